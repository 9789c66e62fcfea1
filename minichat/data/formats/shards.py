"""WebDataset's tars: files of one name (`000.jpg`, `000.txt` or `000.json`) that stand together are a record.

Only headers are read to find the records; a text is read when its record's turn comes, a picture when it is opened. So
a tar of any size costs no memory, and any record of it can be passed over.

Source: WebDataset's own description of its format. A name ends at its first dot; several pictures of one name
(`000.0.jpg`, `000.1.jpg`) are shown in their order.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from minichat.data.example import Example, Member, Problem, StoredPicture, Turn, Where
from minichat.data.formats.asking import Asking
from minichat.data.formats.columns import TEXT
from minichat.data.formats.lines import decoded, parse
from minichat.data.formats.record import attempt, words
from minichat.errors import DataError
from minichat.images import MAX_BYTES, SUFFIXES

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")  # gzip, bzip2, xz, zstandard


@dataclass(frozen=True)
class Record:
    """The files of one name in a tar, by what follows the name's first dot; `where` counts records from 1."""

    key: str
    where: Where
    files: tuple[tuple[str, Member], ...]

    def example(self, asking: Asking) -> Example | Problem:
        """The picture or pictures and their text; reads the text alone."""
        return attempt(self.where, self._turns, asking)

    def _turns(self, asking: Asking) -> list[Turn]:
        name = f"{self.key!r}"
        endings = [ending for ending, _ in self.files]
        for ending in endings:
            if endings.count(ending) > 1:
                raise DataError(f"the tar holds {f'{self.key}.{ending}'!r} twice: it must be there once.")
        pictures = [
            StoredPicture(f"{self.key}.{ending}", member)
            for ending, member in self.files
            if f".{ending}".lower().endswith(SUFFIXES)
        ]
        if not pictures:
            raise DataError(f"{name} has no picture ({', '.join(endings)}): it needs one of {', '.join(SUFFIXES)}.")
        return asking.turns(self.key, pictures, self._text(dict(self.files)))

    def _text(self, files: dict[str, Member]) -> str:
        if "txt" in files:
            return words(self._decoded(files["txt"]).strip(), f"the text of {self.key!r}")
        if "json" not in files:
            raise DataError(f"{self.key!r} has no text: it needs a .txt, or a .json with a caption.")
        value = parse(self._decoded(files["json"]), self.where)
        if isinstance(value, Problem):
            raise DataError(f"the .json of {self.key!r}: {value.text}")
        for key in TEXT if isinstance(value, dict) else ():
            if value.get(key) is not None:
                return words(value[key], f"{key!r} in the .json of {self.key!r}")
        raise DataError(f"the .json of {self.key!r} has no text: it must be an object with a 'caption'.")

    def _decoded(self, member: Member) -> str:
        if member.size > MAX_BYTES:
            raise DataError(f"the text of {self.key!r} has {member.size:,} bytes: at most {MAX_BYTES:,}.")
        data = StoredPicture(self.key, member).read()
        text = decoded(data, self.where)
        if isinstance(text, Problem):
            raise DataError(f"the text of {self.key!r}: {text.text}")
        return text


def expand(pattern: str) -> list[str]:
    """The shards that a pattern names: `{00000..00012}` counts with leading zeros, `*` and `?` stand for what is there.

    A folder stands for the tars in it. Raises `DataError` where that is none.
    """
    names = [pattern]
    while any(_RANGE.search(name) for name in names):
        names = [spelled for name in names for spelled in _counted(name)]
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            found += sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
        elif glob.has_magic(name) and not os.path.exists(name):
            found += sorted(glob.glob(name))
        else:
            found.append(name)
    if not found:
        raise DataError(f"There is no tar at {pattern!r}: check the path.")
    return found


def _counted(name: str) -> list[str]:
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = found[1], found[2]
    if int(last) < int(first):
        raise DataError(f"The range {found[0]} in {name!r} counts down: write the smaller number first.")
    width = len(first) if first.startswith("0") else 0
    return [
        f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}" for number in range(int(first), int(last) + 1)
    ]


def records(path: Path, file: str) -> Iterator[Record | Problem]:
    """The records of one tar, in order; a `Problem` where it is damaged, or holds what is no file.

    Raises `DataError` for a file that is missing or no tar.
    """
    key, files, count = "", list[tuple[str, Member]](), 0
    seen: set[str] = set()
    for member in _members(path, file):
        stem, ending = ("", "") if isinstance(member, Problem) else _split(member[0])
        if files and stem != key:
            count += 1
            yield _record(key, files, Where(file, count), seen)
            files = []
        if isinstance(member, Problem):
            count += 1
            yield Problem(Where(file, count), member.text)
            continue
        key = stem
        files.append((ending, member[1]))
    if files:
        count += 1
        yield _record(key, files, Where(file, count), seen)
    if count == 0:
        yield Problem(Where(file, 1), "the tar is empty: there is no record in it.")


def _record(key: str, files: list[tuple[str, Member]], where: Where, seen: set[str]) -> Record | Problem:
    if key in seen:
        return Problem(where, f"the name {key!r} was there before: the files of a record must stand together.")
    seen.add(key)
    return Record(key, where, tuple(files))


def _split(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    stem, _, ending = base.partition(".")
    return os.path.join(folder, stem), ending.lower()


def _members(path: Path, file: str) -> Iterator[tuple[str, Member] | Problem]:
    """The files of a tar by their headers, and what is damaged."""
    try:
        with open(path, "rb") as opened:
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
            yield Problem(_NOWHERE, f"the header of {name!r} states a negative size: the tar is damaged here.")
            return
        if info.isdir() or name.startswith("__"):  # WebDataset's own notes are named so
            continue
        if not info.isreg() or info.issparse():
            yield Problem(_NOWHERE, f"{name!r} is a link or no ordinary file: put the file itself into the tar.")
        elif info.offset_data + info.size > whole:
            yield Problem(_NOWHERE, f"the tar ends within {name!r}: it was cut off; fetch it again.")
            return
        else:
            yield name, Member(path, info.offset_data, info.size)
    opened.seek(tar.offset)
    block = opened.read(tarfile.BLOCKSIZE)
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        what = "ends without its end mark: it was cut off" if len(block) < tarfile.BLOCKSIZE else "is damaged here"
        yield Problem(_NOWHERE, f"the tar {what}; fetch it again.")


_NOWHERE = Where("")  # until it is known how many records came before
