"""Which files are meant by FILES_OR_FOLDERS."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from minichat.errors import DataError
from minichat.images import SUFFIXES


def find_pictures(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The pictures named, in order and each once; a folder stands for the pictures below it, sorted by path.

    In a folder the file's ending decides, and hidden files and folders are left out. A file that is named is always
    taken, even if it is missing or no picture: then its row says so.

    Raises:
        DataError: a folder cannot be read or has no pictures, or nothing is named at all.
    """
    found: dict[str, Path] = {}  # by absolute path, so that `a.png ./a.png .` is one picture
    for given in map(Path, inputs):
        pictures = list(_below(given)) if given.is_dir() else [given]
        if not pictures:
            endings = ", ".join(SUFFIXES)
            raise DataError(f"No pictures are in the folder {str(given)!r} or below it: they must end in {endings}.")
        for picture in pictures:
            found.setdefault(os.path.abspath(picture), picture)
    if not found:
        raise DataError("There is nothing to caption: name pictures or folders of pictures.")
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"The folder {error.filename!r} cannot be read ({error.strerror}): check its permissions.")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        # In place, so that os.walk follows: sorted, and without hidden ones.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)
