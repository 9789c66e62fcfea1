"""Pictures that cannot be opened: found before anything is learnt, so that none of them ends a run.

Each picture is decoded once, as training does it; only so is it sure. What was found to be sound is remembered by its
place, size and time of change, for all runs of this user, so that the next start looks at new and changed ones alone.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from minichat.data.encoding import share
from minichat.data.features import PLACE, Lookup, place_of, read_table
from minichat.data.rows import Rows
from minichat.errors import DataError, MiniChatError
from minichat.weights.places import home

if TYPE_CHECKING:
    from minichat.data.example import StoredPicture, Where
    from minichat.train.together import Together

Damage = Mapping["StoredPicture", str]  # of each picture that cannot be opened, why

_FILE = "opened-1.bin"  # the places, end to end; one that is torn or flipped is of no picture, which is looked at again
_THREADS = min(8, os.cpu_count() or 1)  # decoders leave the interpreter alone
_AT_ONCE = 512
_TOLD_EVERY = 20.0  # seconds


def find_damaged(
    pictures: Iterable[tuple[Where, StoredPicture]], together: Together, say: Callable[[str], None]
) -> Damage:
    """Open every picture that was not found to be sound before, of those that are this process's share."""
    file = home() / _FILE
    known = Lookup(read_table(file, PLACE))
    own = (p for _, p in pictures if not p.always_opens and share(p, together.count) == together.rank)
    damaged: dict[StoredPicture, str] = {}
    seen, told, count = set[bytes](), time.monotonic(), 0
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(itertools.islice(own, _AT_ONCE)):
            sound: list[bytes] = []
            for picture, (place, reason) in zip(part, pool.map(lambda p: _look(p, known, seen), part), strict=True):
                if reason is not None:
                    damaged[picture] = reason
                elif place is not None:
                    sound.append(place)
            seen.update(sound)
            _remember(file, sound)
            count += len(part)
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                say(f"Looking whether pictures can be opened, which is remembered: {count:,} so far ...")
    return damaged


def problems(rows: Iterable[tuple[Where, StoredPicture]], damaged: Damage) -> Iterator[str]:
    """A sentence for each record's damaged pictures, with its place."""
    return (f"{where}: {damaged[picture]}" for where, picture in rows if picture in damaged)


def without(rows: Rows, damaged: Damage) -> Rows:
    """The rows whose pictures can all be opened. Raises `DataError` where none is left."""
    if not damaged:
        return rows
    left = Rows(row for row in rows if not damaged.keys() & set(row.pictures))
    if not len(left):
        raise DataError(f"Of no record can the pictures be opened: {next(problems(rows.pictures(), damaged))}")
    return left


def _look(picture: StoredPicture, known: Lookup, seen: set[bytes]) -> tuple[bytes | None, str | None]:
    """A place to be remembered if there is something new to remember, and what is wrong, if anything is."""
    try:
        place = _place(picture)
        if place in seen or known.find(place) is not None:
            return None, None
        picture.open()
    except MiniChatError as error:
        return None, str(error)
    return place, None


def _place(picture: StoredPicture) -> bytes:
    """Raises `DataError` where its file is missing."""
    place = place_of(picture)
    return hashlib.blake2b(picture.read(), digest_size=PLACE).digest() if place is None else place


def _remember(file: Path, places: list[bytes]) -> None:
    if not places:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as opened:
            opened.write(b"\0" * (-opened.tell() % PLACE) + b"".join(places))
    except OSError:  # nothing is lost but time
        return
