"""COCO's captions: `{"images": [{"id", "file_name"}, …], "annotations": [{"image_id", "caption"}, …]}`.

Pictures lie beside the file, or in one of the folders in which COCO is unpacked: `images/`, one with the name of the
file's part (`train2017/` of `captions_train2017.json`), each beside the file or beside its folder.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, StoredPicture, Turn, Where
from minichat.data.formats.asking import Asking
from minichat.data.formats.lines import parse, read_text
from minichat.data.formats.record import Entry, Shelf, fields, kind, words
from minichat.errors import DataError, shown

IMAGES, NOTES = "images", "annotations"


def is_document(value: Any) -> bool:
    """Whether a file's content is COCO's, of captions or of anything else."""
    return isinstance(value, dict) and all(isinstance(value.get(key), list) for key in (IMAGES, NOTES))


def entries(path: Path, file: str, home: Path | None = None) -> Iterator[Entry | Problem]:
    """An entry for each picture that has captions, in the order of the annotations, whose numbers places are.

    Args:
        home: the folder of the pictures; None: where they usually lie.
    """
    text = read_text(path, Where(file, 1))
    value = text if isinstance(text, Problem) else parse(text, Where(file, 1))
    if isinstance(value, Problem):
        yield value
        return
    if not is_document(value):
        yield Problem(Where(file, 1), f"the file must hold an object with lists {IMAGES!r} and {NOTES!r}.")
        return
    names, notes = dict[object, tuple[int, Any]](), dict[object, list[tuple[int, Any]]]()
    for number, image in enumerate(value[IMAGES], start=1):
        key = _key(image, "id")
        first, before = names.setdefault(key, (number, image))
        if key is None or before.get("file_name") != image.get("file_name"):  # the same picture may be listed again
            what = "has no 'id'" if key is None else f"has the id {shown(key)}, as another has (number {first})"
            yield Problem(Where(file, record=number), f"an entry of {IMAGES!r} {what}: give each its own.")
    for number, note in enumerate(value[NOTES], start=1):
        notes.setdefault(_key(note, "image_id"), []).append((number, note))
    if not notes:
        yield Problem(Where(file, 1), f"{NOTES!r} is empty: there is no record in it.")
    places = [home] if home is not None else _places(path)
    for key, some in notes.items():
        where = Where(file, record=some[0][0])
        yield Entry(
            where, path.parent, partial(_samples, names.get(key, (0, None))[1], [note for _, note in some], places)
        )


def _key(record: Any, name: str) -> object:
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _samples(image: Any, notes: list[Any], places: list[Path], shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
    told = [fields(note, "the annotation", ("image_id", "caption")) for note in notes]
    for note in told:
        shelf.only(note, ("image_id", "caption"))
    key = told[0]["image_id"]
    if _key(told[0], "image_id") is None:
        raise DataError(f"'image_id' is {kind(key)}: it must be the id of a picture.")
    if image is None:
        raise DataError(f"the caption is of the image {shown(key)}, which is not listed under {IMAGES!r}.")
    shelf.only(fields(image, "the image", ("file_name",)), ("id", "file_name"))
    picture = _found(image["file_name"], places, shelf)
    texts = [words(note["caption"], "'caption'") for note in told]
    for own, text in asking.chosen(str(key), texts):
        yield asking.turns(own, [picture], text)


def _found(name: object, places: list[Path], shelf: Shelf) -> StoredPicture:
    """The picture in the first place where it is; in the first of all, where it is nowhere."""
    named = shelf.picture(name)
    if isinstance(named.source, bytes):
        return named
    there = next((place for place in places if (place / named.name).is_file()), places[0])
    return StoredPicture(named.name, there / named.name)


def _places(path: Path) -> list[Path]:
    """Where COCO's pictures usually lie, beginning beside the file."""
    part = path.stem.rpartition("_")[2]  # captions_train2017.json
    homes = (path.parent, path.parent.parent)
    return [home / folder for home in homes for folder in ("", "images", part, f"images/{part}")]
