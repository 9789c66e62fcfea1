"""What stands beside a picture under its name, in a folder or in a tar: texts, and a record in JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats import pairs, sharegpt
from minichat.data.formats.asking import Asking
from minichat.data.formats.columns import PICTURE, TEXT, Columns
from minichat.data.formats.harmless import empty
from minichat.data.formats.record import Shelf
from minichat.errors import DataError

TEXTS = (".txt", ".caption")
NOTES = ".json"
# Files of a record that say nothing to learn: a class, a hash, a place.
_SILENT = re.compile(r"(cls|id|index|key|url|sha256|license)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:\d+\.)?(?:txt|caption)", re.IGNORECASE)


def is_text(ending: str) -> bool:
    """Whether a file holds a text by its name's ending, without the dot: `txt`, `caption`, one of several `0.txt`."""
    return _NUMBERED.fullmatch(ending) is not None


def is_silent(ending: str) -> bool:
    """Whether a file may be passed over by its name's ending, without the dot."""
    return _SILENT.fullmatch(ending) is not None


def samples(
    name: str,
    pictures: list[StoredPicture],
    texts: list[str],
    notes: Any,
    columns: Columns,
    shelf: Shelf,
    asking: Asking,
) -> Iterator[list[Turn]]:
    """The turns of a picture's texts, or of the record `notes` (None: there is none), with what it asks.

    The record is read as one of a file is; the pictures are those that stand there, whatever it calls them.

    Raises `DataError` for what is not understood.
    """
    if notes is None:
        for own, text in asking.chosen(name, texts):
            yield asking.turns(own, pictures, text)
        return
    read = notes if isinstance(notes, dict) else {}
    rest = {key: value for key, value in read.items() if key.strip().casefold() not in PICTURE}
    if texts:
        # A text is often there twice, as img2dataset writes it.
        same = [key for key, value in rest.items() if value in (texts, texts[0]) or _stripped(value) == texts]
        rest = {key: value for key, value in rest.items() if key not in same}
        if not empty(rest.pop("caption", None)):
            shelf.unread.append("'caption' of a .json beside another text")
        rest["caption"] = texts
    talks = next((key for key in ("messages", "conversations") if not empty(rest.get(key))), None)
    if talks is not None:
        record = {**rest, "images": pictures}
        yield sharegpt.turns(record, shelf)
        return
    if columns.text is None and not any(key.strip().casefold() in TEXT for key in rest):
        raise DataError(f"the .json of {name!r} has no text: it must be an object with a 'caption'.")
    yield from pairs.samples({**rest, "images": pictures}, shelf, columns, asking, name)


def _stripped(value: Any) -> list[str]:
    """The texts of a value, as a file of them is read."""
    return [text.strip() for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
