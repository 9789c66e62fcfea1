"""WebDataset's tars: files of one name (`000.jpg`, `000.txt` or `000.json`) that stand together are a record.

Only headers are read to find the records; a text is read when its record's turn comes, a picture when it is opened. So
a tar of any size costs no memory, and any record of it can be passed over.

Source: WebDataset's own description of its format. A name ends at its first dot; several pictures of one name
(`000.0.jpg`, `000.1.jpg`) are shown in their order, and several texts (`000.0.txt`, `000.1.txt`) are captions of them.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from minichat.data.example import Member, Problem, StoredPicture, Turn, Where
from minichat.data.formats import beside
from minichat.data.formats.asking import Asking
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import decoded, parse
from minichat.data.formats.record import Entry, Shelf, words
from minichat.disk import open_file
from minichat.errors import DataError, listing, shown
from minichat.images import MAX_BYTES, SUFFIXES

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")  # gzip, bzip2, xz, zstandard


@dataclass(frozen=True)
class _Record:
    """The files of one name in a tar, by what follows the name's first dot."""

    key: str
    where: Where
    files: tuple[tuple[str, Member], ...]

    def samples(self, columns: Columns, shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
        """The picture or pictures with what stands beside them; reads texts and JSON alone."""
        endings = [ending for ending, _ in self.files]
        for ending in endings:
            if endings.count(ending) > 1:
                raise DataError(f"the tar holds {shown(f'{self.key}.{ending}')} twice: it must be there once.")
        pictures, texts, notes = list[StoredPicture](), list[str](), None
        for ending, member in self.files:
            if f".{ending}".endswith(SUFFIXES):
                pictures.append(StoredPicture(f"{self.key}.{ending}", member))
            elif beside.is_text(ending):
                texts.append(words(self._decoded(member).strip(), f"the text of {shown(self.key)}"))
            elif f".{ending}" == beside.NOTES:
                notes = self._notes(member)
            elif not beside.is_silent(ending):
                shelf.unread.append(f"{'.' + ending!r} of a tar")
        if not pictures:
            known = ", ".join(SUFFIXES)
            raise DataError(f"{shown(self.key)} has no picture ({listing(endings)}): it needs one of {known}.")
        if not texts and notes is None:
            raise DataError(f"{shown(self.key)} has no text: it needs a .txt, or a .json with a caption.")
        yield from beside.samples(self.key, pictures, texts, notes, columns, shelf, asking)

    def _notes(self, member: Member) -> Any:
        value = parse(self._decoded(member), self.where)
        if isinstance(value, Problem):
            raise DataError(f"the .json of {shown(self.key)}: {value.text}")
        return [] if value is None else value

    def _decoded(self, member: Member) -> str:
        if member.size > MAX_BYTES:
            raise DataError(f"the text of {shown(self.key)} has {member.size:,} bytes: at most {MAX_BYTES:,}.")
        data = StoredPicture(self.key, member).read()
        text = decoded(data, self.where)
        if isinstance(text, Problem):
            raise DataError(f"the text of {shown(self.key)}: {text.text}")
        return text


def expand(pattern: str) -> list[str]:
    """The files that a pattern names: `{00000..00012}` counts with leading zeros, `*` and `?` stand for what is there.

    A folder stands for itself. Nothing where no file is of the pattern.
    """
    found: list[str] = []
    for name in ranges(pattern):
        found += sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
    return found


def ranges(pattern: str) -> list[str]:
    """A pattern with each number of `{00000..00012}` in its place."""
    names = [pattern]
    while any(_RANGE.search(name) for name in names):
        names = [spelled for name in names for spelled in _counted(name)]
    return names


def tars(pattern: str) -> list[str]:
    """The tars that a pattern names; a folder stands for those in it. Raises `DataError` where that is none."""
    found: list[str] = []
    for name in expand(pattern):
        found += sorted(glob.glob(os.path.join(glob.escape(name), "*.tar"))) if os.path.isdir(name) else [name]
    if not found:
        raise DataError(f"There is no tar at {pattern!r}: check the path.")
    return found


def _counted(name: str) -> list[str]:
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = found[1], found[2]
    if int(last) < int(first):
        raise DataError(f"The range {found[0]} in {shown(name)} counts down: write the smaller number first.")
    width = len(first) if first.startswith("0") else 0
    return [
        f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}" for number in range(int(first), int(last) + 1)
    ]


def entries(path: Path, file: str, columns: Columns) -> Iterator[Entry | Problem]:
    """The records of one tar, in order; a `Problem` where it is damaged, or holds what is no file.

    Raises `DataError` for a file that is missing or no tar.
    """
    key, files, count = "", list[tuple[str, Member]](), 0
    seen: set[str] = set()

    def entry() -> Entry | Problem:
        where = Where(file, count)
        if key in seen:
            return Problem(where, f"the name {shown(key)} was there before: the files of a record must stand together.")
        seen.add(key)
        return Entry(where, path.parent, partial(_Record(key, where, tuple(files)).samples, columns))

    for member in members(path, file):
        stem, ending = ("", "") if isinstance(member, Problem) else key_of(member[0])
        if files and stem != key:
            count += 1
            yield entry()
            files = []
        if isinstance(member, Problem):
            count += 1
            yield Problem(Where(file, count), member.text)
            continue
        key = stem
        files.append((ending, member[1]))
    if files:
        count += 1
        yield entry()
    if count == 0:
        yield Problem(Where(file, 1), "the tar is empty: there is no record in it.")


def key_of(name: str) -> tuple[str, str]:
    """A file's key, with its folder, and what follows the first dot of its name, in lower case."""
    folder, base = os.path.split(name)
    stem, _, ending = base.partition(".")
    return os.path.join(folder, stem), ending.lower()


def members(path: Path, file: str) -> Iterator[tuple[str, Member] | Problem]:
    """The files of a tar by their headers, and what is damaged."""
    try:
        with open_file(path) as opened:
            start = opened.read(6)
            if start.startswith(_PACKED):
                raise DataError(f"{file}: the tar is compressed, so that nothing in it can be found: unpack it.")
            opened.seek(0)
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                yield from _headers(tar, opened, path)
    except FileNotFoundError:
        raise DataError(f"{file} was not found: check the path.") from None
    except tarfile.TarError as error:
        yield Problem(_NOWHERE, f"the tar is damaged here ({error}); fetch it again.")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): check it.") from None


def _headers(tar: tarfile.TarFile, opened: IO[bytes], path: Path) -> Iterator[tuple[str, Member] | Problem]:
    whole = path.stat().st_size
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million files would otherwise be remembered
        name = info.name.removeprefix("./")
        if info.size < 0:
            yield Problem(_NOWHERE, f"the header of {shown(name)} states a negative size: the tar is damaged here.")
            return
        if info.isdir() or name.startswith("__"):  # WebDataset's own notes are named so
            continue
        if not info.isreg() or info.issparse():
            yield Problem(_NOWHERE, f"{shown(name)} is a link or no ordinary file: put the file itself into the tar.")
        elif info.offset_data + info.size > whole:
            yield Problem(_NOWHERE, f"the tar ends within {shown(name)}: it was cut off; fetch it again.")
            return
        else:
            yield name, Member(path, info.offset_data, info.size)
    opened.seek(tar.offset)
    block = opened.read(tarfile.BLOCKSIZE)
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        what = "ends without its end mark: it was cut off" if len(block) < tarfile.BLOCKSIZE else "is damaged here"
        yield Problem(_NOWHERE, f"the tar {what}; fetch it again.")


_NOWHERE = Where("")  # until it is known how many records came before
