"""A conversation as the chat shows it: every word a person or a model wrote as plain text, every picture inline.

Pictures travel inside the page as data, never as addresses, so there is no address that someone else could fetch.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable
from typing import Any

from PIL import Image

SHOWN_SIDE = 480  # pixels; the chat shows pictures no larger
ALT = "A picture in the conversation"

# What HTML would read as the start of a tag or of a character's name. All else stays as typed, so that the chat's copy
# and edit buttons, which see this text and not the page, give back what was written.
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])")


def escape(text: str) -> str:
    """Text that an HTML page shows exactly as it is."""
    return _MARKUP.sub(lambda found: "&lt;" if found.group() == "<" else "&amp;", text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return text.replace("&lt;", "<").replace("&amp;", "&")


def data_url(picture: Image.Image, side: int = SHOWN_SIDE) -> str:
    """The picture as a `data:` address, reduced to `side` pixels."""
    small = picture.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    if picture.width <= side and picture.height <= side:
        small.save(file, "PNG")  # small drawings stay sharp
    if not 0 < file.tell() <= 64 * 2**10:
        file = io.BytesIO()
        small.save(file, "WEBP", quality=82)
    kind = "png" if file.getvalue().startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_part(picture: Image.Image) -> dict[str, Any]:
    """A picture as a part of a chat message."""
    value = f'<img class="mc-picture" src="{data_url(picture)}" alt="{html.escape(ALT)}">'
    return {"type": "component", "component": "html", "value": value, "constructor_args": {}, "props": {}}


def text_part(text: str) -> dict[str, str]:
    """Plain text as a part of a chat message."""
    return {"type": "text", "text": escape(text)}


def user_bubble(pictures: Iterable[dict[str, Any]], text: str) -> dict[str, Any]:
    """A person's message: its pictures (`picture_part`), then its words."""
    return {"role": "user", "content": [*pictures, text_part(text)]}


def reply_bubble(text: str) -> dict[str, Any]:
    """The model's message."""
    return {"role": "assistant", "content": [text_part(text)]}
