"""ShareGPT with `images`: `{"messages" | "conversations": […], "images": [paths]}`, in one list, or by lines.

A turn is `{"role", "content"}` or `{"from", "value"}`. `<image>` in the user's words is the place of the next picture
(see `marked`), and so is a part `{"type": "image"}` where content is a list of parts. `videos` holds
lists of frames, and `<video>` or `{"type": "video"}` is the place of one.
"""

from __future__ import annotations

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.llava import given, spoken
from minichat.data.formats.marked import IMAGE, ROLES, VIDEO, Mark, Pieces, Said, cut, place
from minichat.data.formats.record import Shelf, fields, listed, only, shown, words
from minichat.errors import DataError

_MARKS = {"image": IMAGE, "video": VIDEO}


def turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ())
    key = "messages" if read.get("messages") is not None else "conversations"
    pictures = given(
        fields(record, "the record", (key,)), shelf, images=("images", "image"), videos=("videos", "video")
    )
    said = [
        _said(message, f"turn {number}", pictures)
        for number, message in enumerate(listed(read[key], f"{key!r}"), start=1)
    ]
    return place(said, pictures)


def _said(message: object, what: str, pictures: dict[str, list[list[StoredPicture]]]) -> Said:
    if isinstance(message, dict) and "from" in message:
        return spoken(message, what, pictures)
    read = fields(message, what, ("role", "content"))
    only(read, what, ("role", "content"))
    role = ROLES.get(read["role"]) if isinstance(read["role"], str) else None
    if role is None:
        raise DataError(f"{what} has the unknown role {shown(read['role'])}: use 'user', 'assistant' or 'system'.")
    if isinstance(read["content"], list):
        return Said(role, [_piece(part, f"{what}, part {n}", role) for n, part in enumerate(read["content"], start=1)])
    text = words(read["content"], f"{what}, 'content',")
    pieces: Pieces = cut(text, pictures) if role == "user" else [text]
    return Said(role, pieces)


def _piece(part: object, what: str, role: str) -> str | Mark:
    read = fields(part, what, ("type",))
    sort = read["type"]
    if sort == "text":
        only(read, what, ("type", "text"))
        return words(read.get("text"), f"{what}, 'text',")
    if not isinstance(sort, str) or sort not in _MARKS:
        raise DataError(f"{what} has the unknown type {shown(sort)}: use 'text', 'image' or 'video'.")
    only(read, what, ("type",))
    if role != "user":
        raise DataError(f"{what} is a picture in the {role}'s turn: only the user can show one.")
    return Mark(_MARKS[sort])
