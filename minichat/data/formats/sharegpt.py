"""ShareGPT with `images`: `{"messages" | "conversations": […], "images": [paths]}`, in one list, or by lines.

A turn is `{"role", "content"}` or `{"from", "value"}`. `<image>` in the user's words is the place of the next picture
(see `marked`), and so is a part `{"type": "image"}` where content is a list of parts; its `index` may give the
picture's number, from 0, as in TRL's data sets. `videos` holds lists of frames, and `<video>` or `{"type": "video"}` is
the place of one. `system` beside the turns is the system text, as LLaMA-Factory and ms-swift have it.
"""

from __future__ import annotations

from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.harmless import empty
from minichat.data.formats.marked import IMAGE, ROLES, VIDEO, Mark, Pieces, Said, cut, place
from minichat.data.formats.record import OF_A_PART, OF_A_TURN, Shelf, fields, listed, with_system, words
from minichat.errors import DataError, shown

_MARKS = {"image": IMAGE, "video": VIDEO}
_Shown = dict[str, list[list[StoredPicture]]]


def turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ())
    key = "messages" if read.get("messages") is not None else "conversations"
    return talk(read, shelf, key, images=("images", "image"), videos=("videos", "video"))


def talk(record: object, shelf: Shelf, key: str, *, images: tuple[str, ...], videos: tuple[str, ...]) -> list[Turn]:
    """The turns under `key`, with the pictures under the first of `images` that there is, and so with films."""
    read = fields(record, "the record", (key,))
    pictures, named = _given(read, shelf, images, videos)
    shelf.only(read, (key, *named, "system"))
    said = [
        _said(message, f"turn {number}", pictures, shelf)
        for number, message in enumerate(listed(read[key], f"{key!r}"), start=1)
    ]
    return with_system(read, place(said, pictures))


def _given(record: Any, shelf: Shelf, images: tuple[str, ...], videos: tuple[str, ...]) -> tuple[_Shown, list[str]]:
    """The pictures and films of a record, and the keys that they stand under."""
    found: _Shown = {IMAGE: []}
    image, video = (next((key for key in keys if not empty(record.get(key))), None) for keys in (images, videos))
    if image is not None:
        names = record[image] if isinstance(record[image], list) else [record[image]]
        found[IMAGE] = [shelf.frames(name) for name in names]
    if video is not None:
        films = listed(record[video], f"{video!r}")
        films = films if any(isinstance(film, list) for film in films) else [films]
        found[VIDEO] = [shelf.frames(film) for film in films]
    return found, [key for key in (image, video) if key is not None]


def _said(message: object, what: str, pictures: _Shown, shelf: Shelf) -> Said:
    """One turn. Raises `DataError` beginning with `what`."""
    names = ("from", "value") if isinstance(message, dict) and message.get("from") is not None else ("role", "content")
    read = fields(message, what, names)
    shelf.only(read, names, OF_A_TURN)
    speaker, content = (read[name] for name in names)
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None and names[0] == "from":
        raise DataError(f"{what} is from the unknown {shown(speaker)}: use 'human', 'gpt' or 'system'.")
    if role is None:
        raise DataError(f"{what} has the unknown role {shown(speaker)}: use 'user', 'assistant' or 'system'.")
    if isinstance(content, list) and names[1] == "content":
        parts = enumerate(content, start=1)
        return Said(role, [_piece(part, f"{what}, part {number}", role, shelf) for number, part in parts])
    text = words(content, f"{what}, {names[1]!r},")
    pieces: Pieces = cut(text, pictures) if role == "user" else [text]
    return Said(role, pieces)


def _piece(part: object, what: str, role: str, shelf: Shelf) -> str | Mark:
    read = fields(part, what, ("type",))
    sort = read["type"]
    if sort == "text":
        shelf.only(read, ("type", "text"), OF_A_PART)
        return words(read.get("text"), f"{what}, 'text',")
    if not isinstance(sort, str) or sort not in _MARKS:
        raise DataError(f"{what} has the unknown type {shown(sort)}: use 'text', 'image' or 'video'.")
    shelf.only(read, ("type", "index"), OF_A_PART)
    if role != "user":
        raise DataError(f"{what} is a picture in the {role}'s turn: only the user can show one.")
    return Mark(_MARKS[sort], _number(read.get("index"), what))


def _number(index: object, what: str) -> int | None:
    """A picture's number; tables hold it as a float where it is missing elsewhere."""
    if isinstance(index, float) and index.is_integer():
        index = int(index)
    if index is None or index != index:  # not a number
        return None
    if isinstance(index, bool) or not isinstance(index, int):
        raise DataError(f"{what} has the index {shown(index)}: it must be the number of a picture, from 0.")
    return index
