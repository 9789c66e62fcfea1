"""A folder of pictures with texts beside them: `a.png` and `a.txt` or `a.caption`, also in folders below it.

A `.json` of the same name, as img2dataset writes it, is read as in a WebDataset (see `beside`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from minichat.data.example import Problem, StoredPicture, Turn, Where
from minichat.data.formats import beside
from minichat.data.formats.asking import Asking
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import parse, read_text
from minichat.data.formats.record import Entry, Shelf, words
from minichat.errors import DataError
from minichat.folders import Skipped, looks_like_picture, walk
from minichat.images import SUFFIXES

_LOWER = (*beside.TEXTS, beside.NOTES)  # of these the ending's case does not matter
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of the library datasets: ImageFolder


def entries(folder: Path, shown: str) -> Iterator[Entry | Problem]:
    """An entry for each text, sorted by path; a `Problem` for a picture or a text that stands alone."""
    found, closed = False, list[Skipped]()
    for stem, files in _stems(folder, closed):
        found = True
        pictures = _pictures(files)
        for name in (name for ending, name in files.items() if ending not in _LOWER and name not in pictures):
            yield Problem(
                Where(os.path.join(shown, name)),
                f"this looks like a picture, but beside {pictures[0]!r} it is not read: remove it from the folder.",
            )
        text = next((files[ending] for ending in beside.TEXTS if ending in files), None)
        where = Where(os.path.join(shown, text or next(iter(files.values()))), 1)
        read = {ending: _text(folder, files[ending], shown) for ending in _LOWER if text and ending in files}
        texts = {ending: item for ending, item in read.items() if isinstance(item, str)}
        wrong = next((item for item in read.values() if isinstance(item, Problem)), None)
        yield wrong or Entry(where, folder, partial(_samples, folder, stem, files, texts))
    for each in closed:
        yield Problem(Where(os.path.join(shown, os.path.relpath(each.path, folder))), each.error)
    if not found and not closed:
        yield Problem(Where(shown), "the folder is empty: it must hold pictures, and .txt files of the same names.")


def has_pairs(folder: Path) -> bool:
    """Whether a text lies beside a picture somewhere."""
    return any(any(text in files for text in beside.TEXTS) and _pictures(files) for _, files in _stems(folder, []))


def _text(folder: Path, name: str, shown: str) -> str | Problem:
    where = Where(os.path.join(shown, name), 1)
    try:
        return read_text(folder / name, where)
    except OSError as error:
        return Problem(where, f"the text cannot be read ({error.strerror}): check it.")


def _samples(
    folder: Path, stem: str, files: dict[str, str], read: dict[str, str], shelf: Shelf, asking: Asking
) -> Iterator[list[Turn]]:
    pictures = _pictures(files)
    texts = [words(read[ending].strip(), "the text") for ending in beside.TEXTS if ending in read]
    if not texts:
        raise DataError(f"the picture has no text: write {stem + beside.TEXTS[0]!r}.")
    if len(pictures) != 1:
        several = f"{len(pictures)} pictures ({', '.join(map(repr, pictures))})" if pictures else "no picture"
        raise DataError(f"the text has {several} of its name beside it: it needs one.")
    if len(texts) > 1:
        both = " and ".join(repr(files[ending]) for ending in beside.TEXTS)
        raise DataError(f"the picture has two texts, {both}: keep one of them.")
    record = parse(read[beside.NOTES], Where(stem, 1)) if beside.NOTES in read else None
    if isinstance(record, Problem):
        raise DataError(f"{files[beside.NOTES]!r}: {record.text}")
    picture = StoredPicture(pictures[0], folder / pictures[0])
    yield from beside.samples(stem, [picture], texts, record, Columns(), shelf, asking)


def _pictures(files: dict[str, str]) -> list[str]:
    """Those of formats that are opened, if there are any; others are opened in vain, which says why."""
    found = [name for ending, name in files.items() if ending not in _LOWER]
    return [name for name in found if name.lower().endswith(SUFFIXES)] or found


def _stems(folder: Path, closed: list[Skipped]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each name without its ending, and its files by their ending; relative to `folder`, sorted."""
    for parent, files in walk(folder, closed):
        stems: dict[str, dict[str, str]] = {}
        for name in files:
            ending = Path(name).suffix
            if ending.lower() in _LOWER or looks_like_picture(parent / name):
                path = os.path.relpath(parent / name, folder)
                key = ending.lower() if ending.lower() in _LOWER else ending
                stems.setdefault(path.removesuffix(ending), {})[key] = path
        # A note that stands alone, such as img2dataset's figures of a shard, is of no picture.
        yield from ((stem, found) for stem, found in stems.items() if set(found) != {beside.NOTES})
