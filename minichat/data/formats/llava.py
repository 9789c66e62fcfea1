"""LLaVA's JSON: `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, …]}` in one list, or by lines.

`image` is a path or a list of paths; `<image>` in the human's words is the place of one (see `marked`). A film is a
list of frames: `video`, with `<video>` as its mark, or a list within the list `image`.

Source: LLaVA's docs/Finetune_Custom_Data.md, which puts a line break between `<image>` and the words.
"""

from __future__ import annotations

from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.marked import IMAGE, ROLES, VIDEO, Said, cut, place
from minichat.data.formats.record import Shelf, fields, listed, only, shown, words
from minichat.errors import DataError


def turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ("conversations",))
    pictures = given(read, shelf, images=("image",), videos=("video",))
    said = [
        spoken(message, f"turn {number}", pictures)
        for number, message in enumerate(listed(read["conversations"], "'conversations'"), start=1)
    ]
    return place(said, pictures)


def given(
    record: Any, shelf: Shelf, *, images: tuple[str, ...], videos: tuple[str, ...]
) -> dict[str, list[list[StoredPicture]]]:
    """The pictures under the first of the keys `images` that there is, and the films under that of `videos`."""
    found: dict[str, list[list[StoredPicture]]] = {IMAGE: []}
    for key in images:
        if record.get(key) is not None:
            names = record[key] if isinstance(record[key], list) else [record[key]]
            found[IMAGE] = [shelf.frames(name) for name in names]
            break
    for key in videos:
        if record.get(key) is not None:
            films = listed(record[key], f"{key!r}")
            films = films if any(isinstance(film, list) for film in films) else [films]
            found[VIDEO] = [shelf.frames(film) for film in films]
            break
    return found


def spoken(message: object, what: str, pictures: dict[str, list[list[StoredPicture]]]) -> Said:
    """One `{"from", "value"}`. Raises `DataError` beginning with `what`."""
    read = fields(message, what, ("from", "value"))
    only(read, what, ("from", "value"))
    role = ROLES.get(read["from"]) if isinstance(read["from"], str) else None
    if role is None:
        raise DataError(f"{what} is from the unknown {shown(read['from'])}: use 'human', 'gpt' or 'system'.")
    text = words(read["value"], f"{what}, 'value',")
    return Said(role, cut(text, pictures) if role == "user" else [text])
