"""Hugging Face's messages: `{"messages": [{"role", "content"}, …]}`, one record in every line, or all in one list.

Content is text or a list of parts: `{"type": "text", "text"}`, `{"type": "image", "image" | "path" | "base64"}`, or
`{"type": "video", "video": [frames]}`. Words are words: `<image>` in them is what was typed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.record import Parts, Shelf, fields, kind, listed, only, turn, words
from minichat.errors import DataError
from minichat.prompt.conversation import PICTURE_KEYS, ROLES


def turns(record: object, shelf: Shelf) -> Iterator[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    messages = listed(fields(record, "the record", ("messages",))["messages"], "'messages'")
    for number, message in enumerate(messages, start=1):
        yield read_message(message, f"turn {number}", shelf)


def read_message(message: object, what: str, shelf: Shelf) -> Turn:
    """One message. Raises `DataError` beginning with `what`."""
    read = fields(message, what, ("role", "content"))
    only(read, what, ("role", "content"))
    if read["role"] not in ROLES:
        raise DataError(f"{what} has the unknown role {read['role']!r}: use one of {', '.join(ROLES)}.")
    content = read["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError(f"{what}: 'content' is {kind(content)}: it must be text or a list of parts.")
    parts: Parts = []
    for number, part in enumerate(content, start=1):
        parts += read_part(part, f"{what}, part {number}", shelf)
    return turn(read["role"], parts)


def read_part(part: object, what: str, shelf: Shelf) -> Parts:
    """The words or the pictures of a part."""
    read = fields(part, what, ("type",))
    sort = read["type"]
    if sort == "text":
        only(read, what, ("type", "text"))
        return [words(read.get("text"), f"{what}, 'text',")]
    if sort == "image":
        return [*_pictures(read, what, shelf)]
    if sort == "video":
        only(read, what, ("type", "video"))
        return [*shelf.frames(listed(read.get("video"), f"{what}, 'video',"))]
    raise DataError(f"{what} has the unknown type {sort!r}: use 'text', 'image' or 'video'.")


def _pictures(part: Mapping[str, Any], what: str, shelf: Shelf) -> list[StoredPicture]:
    if part.get("url") is not None:
        raise DataError(f"{what} gives a picture by its address, which is not fetched: save it and give its path.")
    only(part, what, ("type", *PICTURE_KEYS))
    given = [key for key in PICTURE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"{what} is a picture: give exactly one of {', '.join(PICTURE_KEYS)}, not {len(given)}.")
    if given[0] != "base64":
        return shelf.frames(part[given[0]])
    return [StoredPicture(f"base64 of {what}", _decoded(part["base64"], what))]


def _decoded(data: object, what: str) -> bytes:
    text = words(data, f"{what}, 'base64',")
    if text.startswith("data:"):  # RFC 2397: data:image/png;base64,…
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{what}: 'base64' does not hold valid base64.") from None
