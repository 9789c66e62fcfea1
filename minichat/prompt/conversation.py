"""A conversation: an immutable sequence of messages, each a sequence of text and picture parts.

A conversation keeps a person's words exactly as they were typed. Nothing here knows how a model's prompt is spelled:
that is `minichat.prompt.template` (the words) and `minichat.prompt.render` (the ids).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image

import minichat.images as pictures_io
from minichat.errors import ImageError, PromptError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

# The keys of a picture part in Hugging Face's messages, the one that is wanted first.
PICTURE_KEYS = ("image", "path", "base64")


@dataclass(frozen=True)
class Text:
    """Words, verbatim."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise PromptError(f"A text part must be a string, not {_kind(self.text)}.")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError("A text part holds half of a surrogate pair, which is no character: remove it.") from None


@dataclass(frozen=True)
class Picture:
    """A picture that `minichat.images.load` has made safe: upright RGB."""

    image: Image.Image

    def __post_init__(self) -> None:
        if not isinstance(self.image, Image.Image):
            raise PromptError(f"A picture part must hold a PIL image, not {_kind(self.image)}.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Picture):
            return NotImplemented
        return self.image is other.image or self.image == other.image

    def __hash__(self) -> int:
        return hash((self.image.mode, self.image.size))


Part = Text | Picture


@dataclass(frozen=True)
class Message:
    """One turn. `ids` are the ids that the model generated for this reply, without the stop; None: spell its text."""

    role: Role
    parts: tuple[Part, ...]
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise PromptError(f"The role {self.role!r} is not known: use one of {', '.join(ROLES)}.")
        if not isinstance(self.parts, tuple) or not all(isinstance(part, (Text, Picture)) for part in self.parts):
            raise PromptError("A message's parts must be a tuple of Text and Picture.")
        if self.role != "user" and self.pictures:
            raise PromptError(f"Only a user's message can hold pictures; this one's role is {self.role!r}.")
        if self.ids is not None:
            if self.role != "assistant":
                raise PromptError(f"Only an assistant's message can hold generated ids, not one of {self.role!r}.")
            if not isinstance(self.ids, tuple) or any(type(i) is not int or i < 0 for i in self.ids):
                raise PromptError("A message's generated ids must be a tuple of integers of 0 and above.")

    @property
    def text(self) -> str:
        """The words of all text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        return tuple(part.image for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True)
class Conversation:
    """Messages in order: a system message or none, then user and assistant by turns, the user first.

    It never changes: `user` and `assistant` return a longer one. Raises PromptError where the order or a type is wrong.
    """

    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.messages, tuple):
            raise PromptError(f"A conversation's messages must be a tuple, not {_kind(self.messages)}.")
        for index, message in enumerate(self.messages):
            if not isinstance(message, Message):
                raise PromptError(f"Message {index} must be a Message, not {_kind(message)}.")
        first = 1 if self.system is not None else 0
        for index, message in enumerate(self.messages[first:], start=first):
            wanted = "user" if (index - first) % 2 == 0 else "assistant"
            if message.role != wanted:
                raise PromptError(
                    f"Message {index} has the role {message.role!r} where {wanted!r} is expected: after an optional "
                    "system message, user and assistant take turns and the user begins."
                )

    @property
    def system(self) -> Message | None:
        """The system message, which stands in place of the template's own system text; or None."""
        if self.messages and self.messages[0].role == "system":
            return self.messages[0]
        return None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system message."""
        return self.messages[0 if self.system is None else 1 :]

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """All pictures in the order in which they are shown to the model."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def user(self, text: str, images: Iterable[Any] = ()) -> Conversation:
        """This conversation and one more question, its pictures before its words.

        `images` holds whatever `minichat.images.load` takes; ImageError for what it refuses.
        """
        pictures = tuple(Picture(pictures_io.load(image)) for image in images)
        words = (Text(text),) if text != "" else ()
        return Conversation((*self.messages, Message("user", (*pictures, *words))))

    def assistant(self, text: str, ids: Sequence[int] | None = None) -> Conversation:
        """This conversation and one more reply; `ids` are the ids that spelled it when it was generated."""
        kept = None if ids is None else tuple(int(i) for i in ids)
        return Conversation((*self.messages, Message("assistant", (Text(text),), kept)))

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Read Hugging Face's messages: `{"role", "content"}`, content a string or a list of parts.

        A part is `{"type": "text", "text": str}` or `{"type": "image", "image": PIL image or path}`; instead of `image`
        it may hold `path` or `base64`. Addresses (`url`, `image_url`) are refused, save those that hold the picture
        itself (`data:…;base64,…`). A key whose value is None counts as absent. Raises PromptError, and ImageError for a
        picture that cannot be opened, both naming the message.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
            raise PromptError(f"Messages must be a list of {{'role', 'content'}} dictionaries, not {_kind(messages)}.")
        return cls(tuple(_read_message(index, message) for index, message in enumerate(messages)))

    def to_messages(self) -> list[dict[str, Any]]:
        """Hugging Face's messages; pictures as PIL images. Generated ids are not among them."""
        return [{"role": m.role, "content": [_write_part(part) for part in m.parts]} for m in self.messages]


def _read_message(index: int, message: object) -> Message:
    where = f"Message {index}"
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} must be a dictionary with 'role' and 'content', not {_kind(message)}.")
    unknown = sorted(str(key) for key, value in message.items() if key not in ("role", "content") and value is not None)
    if unknown:
        raise PromptError(f"{where} holds the unknown key {unknown[0]!r}: only 'role' and 'content' are read.")
    missing = [key for key in ("role", "content") if key not in message]
    if missing:
        raise PromptError(f"{where} has no {missing[0]!r}.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"{where} has the unknown role {role!r}: use one of {', '.join(ROLES)}.")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where}: 'content' must be a string or a list of parts, not {_kind(content)}.")
    parts = tuple(_read_part(f"{where}, part {number}", part) for number, part in enumerate(content))
    try:
        return Message(role, parts)
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from None


def _read_part(where: str, part: object) -> Part:
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} must be a dictionary with a 'type', not {_kind(part)}.")
    kind = part.get("type")
    if kind == "text":
        _refuse_unknown(where, part, ("text",))
        if "text" not in part:
            raise PromptError(f"{where} is of type 'text' but has no 'text'.")
        return _at(where, lambda: Text(part["text"]))
    if kind == "image_url":  # as OpenAI's messages have it
        address = part.get("image_url")
        part = {"type": "image", "url": address.get("url") if isinstance(address, Mapping) else address}
        kind = "image"
    if kind == "image":
        if _is_data(part.get("url")):
            part = {"base64" if key == "url" else key: value for key, value in part.items()}
        if part.get("url") is not None:
            raise PromptError(f"{where} gives a picture by 'url', which is not allowed: download it and give its path.")
        _refuse_unknown(where, part, PICTURE_KEYS)
        given = [key for key in PICTURE_KEYS if part.get(key) is not None]
        if len(given) != 1:
            raise PromptError(f"{where} is a picture: give exactly one of {', '.join(PICTURE_KEYS)}, not {len(given)}.")
        source: Any = part[given[0]]
        if given[0] == "base64" or _is_data(source):
            source = decode_base64(where, source)
        return _at(where, lambda: Picture(pictures_io.load(source)))
    raise PromptError(f"{where} has the unknown type {kind!r}: use 'text' or 'image'.")


def _at(where: str, read: Any) -> Any:
    """What `read()` returns; an error of ours is raised again with its place before it."""
    try:
        return read()
    except (ImageError, PromptError) as error:
        raise type(error)(f"{where}: {error}") from None


def _refuse_unknown(where: str, part: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(str(key) for key, value in part.items() if key not in ("type", *known) and value is not None)
    if unknown:
        raise PromptError(f"{where} holds the unknown key {unknown[0]!r}: known are {', '.join(('type', *known))}.")


def _is_data(source: object) -> bool:
    """Whether the picture itself stands where its address would: RFC 2397, data:image/png;base64,…"""
    return isinstance(source, str) and source.startswith("data:")


def decode_base64(where: str, data: object) -> bytes:
    """Bytes in base64, or in a data address of it. Raises `PromptError`, which begins with `where`."""
    if not isinstance(data, str):
        raise PromptError(f"{where}: 'base64' must be a string, not {_kind(data)}.")
    if _is_data(data):
        header, comma, data = data.partition(",")
        if not comma or not header.endswith(";base64"):
            raise PromptError(f"{where}: the data address is not in base64.")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise PromptError(f"{where}: 'base64' does not hold valid base64.") from None


def _write_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": part.image}


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__}"


# --- Pictures that come beside messages, as Hugging Face has them.


def with_pictures(conversations: Sequence[Any], images: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """Messages in which each `{"type": "image"}` that names no picture is given the next of its conversation's.

    Raises PromptError, with both numbers, where pictures and places do not match.
    """
    if len(images) != len(conversations):
        raise PromptError(f"images has {len(images)} rows for {len(conversations)} conversations: give one for each.")
    return [_with_pictures(messages, row) for messages, row in zip(conversations, images, strict=True)]


def _with_pictures(messages: Any, images: Any) -> list[dict[str, Any]]:
    waiting = list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]
    given, places = len(waiting), 0
    filled = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = []
            for part in content:
                if isinstance(part, Mapping) and part.get("type") == "image" and not _named(part):
                    places += 1
                    part = {"type": "image", "image": waiting.pop(0)} if waiting else part
                parts.append(part)
            content = parts
        filled.append({**message, "content": content})
    if places != given:
        raise PromptError(f"There are {given} images and {places} places for them in the messages: give one for each.")
    return filled


def _named(part: Mapping[str, Any]) -> bool:
    """Whether a part says which picture it is."""
    return any(value is not None for key, value in part.items() if key != "type")
