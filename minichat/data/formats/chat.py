"""Conversations: Hugging Face's messages, ShareGPT, LLaVA's JSON, and `<image>` as a picture's place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.base import (
    OF_A_PART,
    OF_A_TURN,
    Parts,
    Shelf,
    empty,
    fields,
    kind,
    listed,
    of_base64,
    turn,
    with_system,
    words,
)
from minichat.errors import DataError, shown
from minichat.prompt.conversation import PICTURE_KEYS, ROLES, Role

# --- Conversations whose words mark the places of pictures by `<image>`, as LLaVA and ShareGPT write them.
#
# A marker and one space or line break on each side of it stand for a picture; all other words stay as they are. In
# replies and system texts `<image>` is a word, for only the user shows pictures.


#: Who speaks, by the names that data sets use.
MARKED_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
IMAGE, VIDEO = "<image>", "<video>"
_NAMED = re.compile(r"<img>([^<>\n]+)</img>")  # a picture's path among the words, as Qwen-VL has it
_BESIDE = r"[ \n]?"


@dataclass(frozen=True)
class Mark:
    """The place of one picture, or of one film's frames: of the next that is given, or of the one of this number."""

    sort: str
    number: int | None = None  # from 0


Pieces = list[str | Mark]


@dataclass(frozen=True)
class Said:
    """One turn before its pictures are put in place."""

    role: Role
    pieces: Pieces


def cut(text: str, sorts: Iterable[str]) -> Pieces:
    """Words and marks in order."""
    either = "|".join(map(re.escape, sorts))
    pieces: Pieces = []
    done = 0
    for found in re.finditer(f"{_BESIDE}({either}){_BESIDE}", text):
        pieces += [text[done : found.start()], Mark(found[1])]
        done = found.end()
    return [piece for piece in [*pieces, text[done:]] if piece != ""]


def place(said: Sequence[Said], shown: dict[str, list[list[StoredPicture]]]) -> list[Turn]:
    """The turns with their pictures: each mark takes the one of its number, or else the next of its sort.

    Without a mark, pictures come before all that the user says. Raises `DataError` where marks and pictures differ in
    number, or a mark's number is of no picture.
    """
    first: Parts = []
    chosen: dict[str, Iterator[list[StoredPicture]]] = {}
    for sort, given in shown.items():
        marks = [piece for one in said for piece in one.pieces if isinstance(piece, Mark) and piece.sort == sort]
        if marks:
            chosen[sort] = iter(_chosen(sort, marks, given))
        else:
            first += [picture for pictures in given for picture in pictures]
    turns = []
    for one in said:
        parts: Parts = []
        if one.role == "user":
            parts, first = first, []
        for piece in one.pieces:
            parts += [piece] if isinstance(piece, str) else next(chosen[piece.sort])
        turns.append(turn(one.role, parts))
    if first:
        raise DataError("pictures are given but no turn is the user's, who shows them.")
    return turns


def _chosen(sort: str, marks: list[Mark], given: list[list[StoredPicture]]) -> list[list[StoredPicture]]:
    """What each mark is the place of. Those with a number may show one picture again."""
    for mark in marks:
        if mark.number is not None and not 0 <= mark.number < len(given):
            raise DataError(
                f"a place of {sort} has the index {mark.number}, but {len(given)} of them are given, counted from 0."
            )
    following = itertools.count()
    numbers = [next(following) if mark.number is None else mark.number for mark in marks]
    marked, there = len(set(numbers)), len(given)
    if marked != there:
        raise DataError(
            f"the number of {sort} is {marked} but {there} of them {'is' if there == 1 else 'are'} given: "
            f"each {sort} needs its own (frames of one film stand in a list of their own)."
        )
    return [given[number] for number in numbers]


# --- Hugging Face's messages: `{"messages": [{"role", "content"}, …]}`, one record in every line, or all in one list.
#
# Content is text or a list of parts: `{"type": "text", "text"}`, `{"type": "image", "image" | "path" | "base64"}`, or
# `{"type": "video", "video": [frames]}`; a `url` is a path, too, or holds the picture itself (`data:…`). Words are
# words: `<image>` in them is what was typed. `system` beside the messages is the system text.


def message_turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ("messages",))
    shelf.only(read, ("messages", "system"))
    messages = listed(read["messages"], "'messages'")
    return with_system(read, [_message(one, f"turn {number}", shelf) for number, one in enumerate(messages, start=1)])


def _message(message: object, what: str, shelf: Shelf) -> Turn:
    """One message. Raises `DataError` beginning with `what`."""
    read = fields(message, what, ("role", "content"))
    shelf.only(read, ("role", "content"), OF_A_TURN)
    role: Any = "system" if read["role"] == "developer" else read["role"]  # OpenAI's newer word for it
    if role not in ROLES:
        raise DataError(f"{what} has the unknown role {shown(role)}: use one of {', '.join(ROLES)}.")
    content = read["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError(f"{what}: 'content' is {kind(content)}: it must be text or a list of parts.")
    parts: Parts = []
    for number, part in enumerate(content, start=1):
        parts += _part(part, f"{what}, part {number}", shelf)
    return turn(role, parts)


def _film(value: object, what: str) -> list[Any]:
    """The frames of a film, or films."""
    if isinstance(value, str):
        raise DataError(f"{what} is {shown(value)}: films are not opened, so give a list of pictures, its frames.")
    return listed(value, what)


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
        return [*shelf.frames(_film(read.get("video"), f"{what}, 'video',"))]
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
    return [shelf.picture(words(source, f"{what}, {given[0]!r},"))]


# --- ShareGPT with `images`: `{"messages" | "conversations": […], "images": [paths]}`, in one list, or by lines.
#
# A turn is `{"role", "content"}` or `{"from", "value"}`. `<image>` in the user's words is the place of the next
# picture (see `marked`), and so is a part `{"type": "image"}` where content is a list of parts; its `index` may give
# the picture's number, from 0, as in TRL's data sets. `videos` holds lists of frames, and `<video>` or `{"type":
# "video"}` is the place of one. `system` beside the turns is the system text, as LLaMA-Factory and ms-swift have it.


_MARKS = {"image": IMAGE, "video": VIDEO}
_Shown = dict[str, list[list[StoredPicture]]]


def sharegpt_turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ())
    key = "messages" if read.get("messages") is not None else "conversations"
    return talk(read, shelf, key, images=("images", "image"), videos=("videos", "video"))


def talk(record: object, shelf: Shelf, key: str, *, images: tuple[str, ...], videos: tuple[str, ...]) -> list[Turn]:
    """The turns under `key`, with the pictures under the first of `images` that there is, and so with films."""
    read = fields(record, "the record", (key,))
    pictures, named = _given(read, shelf, images, videos)
    shelf.only(read, (key, *named, "system"))
    among = not any(pictures.values())
    said = [
        _said(message, f"turn {number}", pictures, shelf, among)
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
        films = _film(record[video], f"{video!r}")
        films = films if any(isinstance(film, list) for film in films) else [films]
        found[VIDEO] = [shelf.frames(film) for film in films]
    return found, [key for key in (image, video) if key is not None]


def _said(message: object, what: str, pictures: _Shown, shelf: Shelf, among: bool) -> Said:
    """One turn. Raises `DataError` beginning with `what`.

    `among`: the record names its pictures among the words, if at all; they join `pictures` as they are met.
    """
    names = ("from", "value") if isinstance(message, dict) and message.get("from") is not None else ("role", "content")
    read = fields(message, what, names)
    shelf.only(read, names, OF_A_TURN)
    speaker, content = (read[name] for name in names)
    role = MARKED_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None and names[0] == "from":
        raise DataError(f"{what} is from the unknown {shown(speaker)}: use 'human', 'gpt' or 'system'.")
    if role is None:
        raise DataError(f"{what} has the unknown role {shown(speaker)}: use 'user', 'assistant' or 'system'.")
    if isinstance(content, list) and names[1] == "content":
        parts = enumerate(content, start=1)
        return Said(role, [_piece(part, f"{what}, part {number}", role, shelf) for number, part in parts])
    text = words(content, f"{what}, {names[1]!r},")
    if among and role == "user" and _NAMED.search(text):
        pictures[IMAGE] += [shelf.frames(name) for name in _NAMED.findall(text)]
        text = _NAMED.sub(IMAGE, text)
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


# --- LLaVA's JSON: `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, …]}` in one list, or by
# lines.
#
# `image` is a path or a list of paths; `<image>` in the human's words is the place of one (see `marked`). A film is a
# list of frames: `video`, with `<video>` as its mark, or a list within the list `image`. `system` is the system text.
#
# Source: LLaVA's docs/Finetune_Custom_Data.md, which puts a line break between `<image>` and the words.


def llava_turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record, of which `minichat.prompt.render.render` makes token ids.

    Raises `DataError` for what is not understood.
    """
    return talk(record, shelf, "conversations", images=("image",), videos=("video",))
