"""The pictures in folders: all that look like one, also of formats that are not opened, so that each is told of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minichat.errors import DataError
from minichat.signatures import HEAD, OTHER_SUFFIXES, SPELLED, SUFFIXES, format_of, other_format


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is left out, and why."""

    path: Path
    error: str


def _refuse(closed: Skipped) -> None:
    raise DataError(closed.error)


def find_pictures(
    inputs: Iterable[str | os.PathLike[str]], leave_out: Callable[[Skipped], None] = _refuse
) -> list[Path]:
    """The pictures named, in order and each once; a folder stands for the pictures below it, sorted by path.

    In a folder `looks_like_picture` decides, and hidden files and folders are left out. Links to folders are followed
    last, but not upwards, and no folder is looked through twice. A file that is named is always taken, even if it is
    missing or no picture. What looks like a picture and is none that can be opened, opening it says.

    Args:
        leave_out: is told of each folder that cannot be read, where others have pictures; default: it is an error.

    Raises:
        DataError: a folder cannot be read or has no pictures, or nothing is named at all.
    """
    found: dict[str, Path] = {}  # by absolute path, so that `a.png ./a.png .` is one picture
    for given in map(Path, inputs):
        closed: list[Skipped] = []
        pictures = list(_below(given, closed)) if given.is_dir() else [given]
        for each in closed:
            (leave_out if pictures else _refuse)(each)
        if not pictures:
            raise DataError(f"No pictures are in the folder {str(given)!r} or below it: {SPELLED} are looked for.")
        for picture in pictures:
            found.setdefault(os.path.abspath(picture), picture)
    if not found:
        raise DataError("There is nothing to caption: name pictures or folders of pictures.")
    return list(found.values())


def looks_like_picture(path: Path) -> bool:
    """Whether a file is a picture by its ending, or, where it has none, by its content."""
    ending = path.suffix.lower()
    if ending:
        return ending in SUFFIXES or ending in OTHER_SUFFIXES
    try:
        if not path.is_file():  # to open a named pipe would wait for ever
            return False
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return (format_of(head) or other_format(head)) is not None


def _holds(link: Path, folder: Path) -> bool:
    """Whether what is linked is the folder itself or above it: everything there was not asked for."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _below(folder: Path, closed: list[Skipped]) -> Iterator[Path]:
    """The pictures; folders that cannot be read are added to `closed`."""
    for parent, names in walk(folder, closed):
        yield from (path for name in names if looks_like_picture(path := parent / name))


def walk(folder: Path, closed: list[Skipped]) -> Iterator[tuple[Path, list[str]]]:
    """The folder and those below it, each with the names of its files, sorted and without hidden ones.

    Links to folders are followed last, but not upwards, and no folder is looked through twice. Folders that cannot be
    read are added to `closed`.
    """

    def note(error: OSError) -> None:
        why = f"The folder {error.filename!r} cannot be read ({error.strerror}): check its permissions."
        closed.append(Skipped(Path(error.filename), why))

    tops, seen = [folder], set[str]()
    for top in tops:  # links that are found are added to them: os.walk itself would follow a circle for ever
        for parent, folders, files in os.walk(top, onerror=note):
            # `folders` is changed in place, so that os.walk heeds it: sorted, and without hidden ones.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            tops += [path for name in folders if (path := Path(parent, name)).is_symlink() and not _holds(path, folder)]
            yield Path(parent), sorted(name for name in files if not name.startswith("."))
