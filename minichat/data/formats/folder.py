"""A folder of pictures with `.txt` files beside them: `a.png` and `a.txt`, also in folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from minichat.data.example import Example, Problem, StoredPicture, Turn, Where
from minichat.data.formats.asking import Asking
from minichat.data.formats.lines import read_text
from minichat.data.formats.record import attempt, words
from minichat.errors import DataError
from minichat.images import SUFFIXES

TEXT = ".txt"


def scan(folder: Path, shown: str, asking: Asking) -> Iterator[Example | Problem]:
    """An example for each text, sorted by path; a `Problem` for a picture or a text that stands alone."""
    found = False
    for stem, files in _stems(folder):
        found = True
        where = Where(os.path.join(shown, files.get(TEXT, next(iter(files.values())))), 1)
        text = read_text(folder / files[TEXT], where) if TEXT in files else None
        yield text if isinstance(text, Problem) else attempt(where, _turns, folder, stem, files, text, asking)
    if not found:
        yield Problem(Where(shown), "the folder is empty: it must hold pictures, and .txt files of the same names.")


def has_pairs(folder: Path) -> bool:
    """Whether a text lies beside a picture somewhere."""
    return any(TEXT in files and len(files) > 1 for _, files in _stems(folder))


def _turns(folder: Path, stem: str, files: dict[str, str], text: str | None, asking: Asking) -> list[Turn]:
    pictures = [name for ending, name in files.items() if ending != TEXT]
    if text is None:
        raise DataError(f"the picture has no text: write {stem + TEXT!r}.")
    if len(pictures) != 1:
        several = f"{len(pictures)} pictures ({', '.join(map(repr, pictures))})" if pictures else "no picture"
        raise DataError(f"the text has {several} of its name beside it: it needs one.")
    picture = StoredPicture(pictures[0], folder / pictures[0])
    return asking.turns(stem, [picture], words(text.strip(), "the text"))


def _stems(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each name without its ending, and its files by their ending; relative to `folder`, sorted."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stems: dict[str, dict[str, str]] = {}
        for name in sorted(files):
            ending = Path(name).suffix
            if not name.startswith(".") and ending.lower() in (TEXT, *SUFFIXES):
                path = os.path.relpath(os.path.join(parent, name), folder)
                key = ending.lower() if ending.lower() == TEXT else ending
                stems.setdefault(path[: -len(ending)], {})[key] = path
        yield from stems.items()
