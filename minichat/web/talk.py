"""A conversation between page and server: how the chat shows it, and how a browser keeps it."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from minichat.errors import PromptError
from minichat.images import identity
from minichat.prompt import boxes
from minichat.prompt.conversation import Conversation, Message, Picture, Text

# --- A conversation as the chat shows it: every word a person or a model wrote as plain text, every picture inline.
#
# Pictures travel inside the page as data, never as addresses, so there is no address that someone else could fetch.


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
        small.save(file, "PNG", compress_level=1)  # small drawings stay sharp
    if not 0 < file.tell() <= 64 * 2**10:
        file = io.BytesIO()
        small.save(file, "WEBP", quality=82)
    kind = "png" if file.getvalue().startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_part(picture: Image.Image, name: str) -> dict[str, Any]:
    """A picture as a part of a chat message; a click enlarges it."""
    value = (
        f'<img class="mc-picture" src="{data_url(picture)}" alt="{html.escape(ALT)}" '
        f'data-name="{name}" role="button" tabindex="0">'
    )
    return {"type": "component", "component": "html", "value": value, "constructor_args": {}, "props": {}}


def text_part(text: str) -> dict[str, str]:
    """Plain text as a part of a chat message."""
    return {"type": "text", "text": escape(text)}


def bubble(role: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A message as Gradio's chat takes it, whole, so that Gradio need not look through the chat at each update."""
    return {"role": role, "metadata": None, "content": parts, "options": None}


def user_bubble(pictures: Iterable[dict[str, Any]], text: str) -> dict[str, Any]:
    """A person's message: its pictures (`picture_part`), then its words."""
    return bubble("user", [*pictures, text_part(text)])


def reply_bubble(text: str, picture: dict[str, Any] | None = None) -> dict[str, Any]:
    """The model's message. Boxes that it names are drawn over `picture` (`picture_part`), numbered as in the text."""
    found = boxes.parse(text) if picture else []
    if picture is None or not found:
        return bubble("assistant", [text_part(text)])
    drawn = "".join(
        f'<span class="mc-where" style="left:{100 * box.left:g}%;top:{100 * box.top:g}%;'
        f'width:{100 * (box.right - box.left):g}%;height:{100 * (box.bottom - box.top):g}%"><b>{number}</b></span>'
        for number, box in enumerate(found, start=1)
    )
    # One part, since each has buttons of its own.
    words = f'<div class="message-content">{html.escape(boxes.numbered(text))}</div>'
    value = f'{words}<div class="mc-boxed">{picture["value"]}{drawn}</div>'
    return bubble("assistant", [{**picture, "value": value}])


# --- A conversation as a browser keeps it, and sends it with every request.
#
#     {"system": "…", "files": {"1f…": "/tmp/…/upload.webp"},
#      "messages": [{"role": "user", "text": "…", "pictures": ["1f…"]}, {"role": "assistant", "text": "…"}]}
#
# A picture is called by the first letters of its identity. The server keeps no conversation longer than a page is open:
# whatever it lacks, after a restart or in another tab, is in what the page sends; pictures that it lacks are uploaded
# before (`files`). What it sends back has the data of pictures that the page does not have yet.


KEPT_SIDE = 1024  # pixels; a browser keeps pictures no larger
_NAME = 20  # letters of a picture's name
_PICTURE = re.compile(rf"[0-9a-f]{{{_NAME}}}")
_MOST = 4000  # messages of a conversation
LACKING = "A picture of this conversation is no longer here: reload the page, which has it."


@dataclass(frozen=True)
class Shown:
    """A picture with its name, and as a part of a chat's message."""

    picture: Image.Image
    name: str
    part: dict[str, Any]

    @property
    def data(self) -> str:
        """As a browser keeps it."""
        if max(self.picture.size) <= SHOWN_SIDE:  # as it is shown
            return str(self.part["value"]).split('src="', 1)[1].split('"', 1)[0]
        return data_url(self.picture, KEPT_SIDE)


class Album:
    """The pictures of one conversation, each named and made ready for the chat once."""

    def __init__(self) -> None:
        self._shown: dict[int, Shown] = {}  # by id() of the picture, which is kept alive

    def add(self, picture: Image.Image, name: str | None = None) -> Shown:
        """The picture, under the name that a browser knows it by; None: a name that equal pictures share."""
        if id(picture) not in self._shown:
            name = name or identity(picture)[:_NAME]
            self._shown[id(picture)] = Shown(picture, name, picture_part(picture, name))
        return self._shown[id(picture)]

    def names(self, pictures: Iterable[Image.Image]) -> tuple[str, ...]:
        return tuple(self.add(picture).name for picture in pictures)

    def parts(self, pictures: Iterable[Image.Image]) -> list[dict[str, Any]]:
        return [self.add(picture).part for picture in pictures]

    def by_name(self) -> dict[str, Image.Image]:
        return {name: shown.picture for name, shown in self.shown().items()}

    def shown(self) -> dict[str, Shown]:
        """All of them by their names."""
        return {shown.name: shown for shown in list(self._shown.values())}  # another thread may add one

    def keep(self, pictures: Iterable[Image.Image]) -> None:
        """Forget all others."""
        kept = set(map(id, pictures))
        self._shown = {key: shown for key, shown in self._shown.items() if key in kept}


@dataclass(frozen=True)
class Said:
    """A message as a browser keeps it, with the names of its pictures."""

    role: str
    text: str
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Talk:
    """A conversation as a browser sends it. `files`: by the names of pictures, where they were uploaded."""

    messages: tuple[Said, ...]
    system: str = ""
    files: Mapping[str, str] | None = None

    @classmethod
    def read(cls, value: Any) -> Talk | None:
        """What a page sent; None where it sent nothing, and the server's own conversation goes on.

        Raises:
            PromptError: naming the field that is not what a page sends.
        """
        if value is None:
            return None
        sent = _object(value, "The conversation")
        messages = sent.get("messages")
        if not isinstance(messages, list) or len(messages) > _MOST:
            raise PromptError(f"The conversation's messages must be a list of at most {_MOST} messages.")
        said = tuple(_message(number, message) for number, message in enumerate(messages))
        for number, message in enumerate(said):
            if message.role != ("assistant" if number % 2 else "user"):
                raise PromptError(f"Message {number} of the conversation has the wrong role: they take turns.")
        files = _object(sent.get("files") or {}, "The conversation's files")
        if not all(isinstance(path, str) and _PICTURE.fullmatch(name) for name, path in files.items()):
            raise PromptError("The conversation's files must name a file for each picture.")
        return cls(said, _words(sent.get("system") or "", "The system text"), files)

    @classmethod
    def of(cls, conversation: Conversation, album: Album) -> Talk:
        """What a conversation is to a browser."""
        system = conversation.system
        said = (Said(m.role, m.text, album.names(m.pictures)) for m in conversation.turns)
        return cls(tuple(said), "" if system is None else system.text)

    def says(self, other: Talk) -> bool:
        """Whether both say and show the same."""
        return (self.system, self.messages) == (other.system, other.messages)

    @property
    def pictures(self) -> list[str]:
        """The names of all pictures, each once."""
        return list(dict.fromkeys(name for said in self.messages for name in said.pictures))

    def conversation(self, pictures: Mapping[str, Image.Image]) -> Conversation:
        """The conversation, its pictures by their names.

        Raises:
            PromptError: where one is not among them.
        """
        if not all(name in pictures for said in self.messages for name in said.pictures):
            raise PromptError(LACKING)
        system = (Message("system", (Text(self.system),)),) if self.system else ()
        turns = (
            Message(
                said.role,  # type: ignore[arg-type]
                (*(Picture(pictures[name]) for name in said.pictures), *((Text(said.text),) if said.text else ())),
            )
            for said in self.messages
        )
        return Conversation((*system, *turns))

    def as_dict(self, new: Mapping[str, Shown]) -> dict[str, Any]:
        """As JSON, with the data of pictures that are `new` to the page."""
        return {
            "system": self.system,
            "messages": [{"role": m.role, "text": m.text, "pictures": list(m.pictures)} for m in self.messages],
            "pictures": {name: shown.data for name, shown in new.items()},
        }


def _message(number: int, value: Any) -> Said:
    where = f"Message {number} of the conversation"
    message = _object(value, where)
    role, pictures = message.get("role"), message.get("pictures") or []
    if role not in ("user", "assistant"):
        raise PromptError(f"{where} must have the role “user” or “assistant”.")
    if not isinstance(pictures, list) or not all(isinstance(p, str) and _PICTURE.fullmatch(p) for p in pictures):
        raise PromptError(f"{where} must name its pictures.")
    if role == "assistant" and pictures:
        raise PromptError(f"{where} is a reply, which has no pictures.")
    return Said(role, _words(message.get("text"), where), tuple(pictures))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PromptError(f"{what} must be an object.")
    return value


def _words(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{what} must have a text.")
    return re.sub("[\ud800-\udfff]", "", value)
