"""Hugging Face's messages: `{"messages": [{"role", "content"}, …]}`, one record in every line, or all in one list.

Content is text or a list of parts: `{"type": "text", "text"}`, `{"type": "image", "image" | "path" | "base64"}`, or
`{"type": "video", "video": [frames]}`; a `url` is read where it holds the picture itself (`data:…`). Words are words:
`<image>` in them is what was typed. `system` beside the messages is the system text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.record import (
    OF_A_PART,
    OF_A_TURN,
    Parts,
    Shelf,
    fields,
    kind,
    listed,
    of_base64,
    turn,
    with_system,
    words,
)
from minichat.errors import DataError, shown
from minichat.prompt.conversation import PICTURE_KEYS, ROLES


def turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ("messages",))
    shelf.only(read, ("messages", "system"))
    messages = listed(read["messages"], "'messages'")
    return with_system(read, [_message(one, f"turn {number}", shelf) for number, one in enumerate(messages, start=1)])


def _message(message: object, what: str, shelf: Shelf) -> Turn:
    """One message. Raises `DataError` beginning with `what`."""
    read = fields(message, what, ("role", "content"))
    shelf.only(read, ("role", "content"), OF_A_TURN)
    if read["role"] not in ROLES:
        raise DataError(f"{what} has the unknown role {shown(read['role'])}: use one of {', '.join(ROLES)}.")
    content = read["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError(f"{what}: 'content' is {kind(content)}: it must be text or a list of parts.")
    parts: Parts = []
    for number, part in enumerate(content, start=1):
        parts += _part(part, f"{what}, part {number}", shelf)
    return turn(read["role"], parts)


def _part(part: object, what: str, shelf: Shelf) -> Parts:
    """The words or the pictures of a part."""
    read = fields(part, what, ("type",))
    sort = read["type"]
    if sort == "text":
        shelf.only(read, ("type", "text"), OF_A_PART)
        return [words(read.get("text"), f"{what}, 'text',")]
    if sort in ("image", "image_url"):
        return [*_pictures(read, what, shelf)]
    if sort == "video":
        shelf.only(read, ("type", "video"), OF_A_PART)
        return [*shelf.frames(listed(read.get("video"), f"{what}, 'video',"))]
    raise DataError(f"{what} has the unknown type {shown(sort)}: use 'text', 'image' or 'video'.")


def _pictures(part: Mapping[str, Any], what: str, shelf: Shelf) -> list[StoredPicture]:
    keys = (*PICTURE_KEYS, "url", "image_url")
    shelf.only(part, ("type", *keys), OF_A_PART)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"{what} is a picture: give exactly one of {', '.join(PICTURE_KEYS)}, not {len(given)}.")
    source = part[given[0]]
    if given[0] == "base64":
        return [StoredPicture(f"base64 of {what}", of_base64(words(source, f"{what}, 'base64',"), f"{what}: 'base64'"))]
    if given[0] in PICTURE_KEYS:
        return shelf.frames(source)
    if given[0] == "image_url" and isinstance(source, dict):  # as OpenAI has it: {"url", "detail"}
        source = source.get("url")
    address = words(source, f"{what}, {given[0]!r},")
    if not address.startswith("data:"):
        raise DataError(f"{what} gives a picture by its address, which is not fetched: save it and give its path.")
    return [shelf.picture(address)]
