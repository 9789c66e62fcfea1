"""What all formats share: words and pictures of a record are checked here, and so is the order of its turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minichat.data.example import Example, Problem, StoredPicture, Turn, Where
from minichat.errors import DataError
from minichat.prompt.conversation import Role

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", re.ASCII)
_FILMS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")

Parts = list[str | StoredPicture]


@dataclass(frozen=True)
class Shelf:
    """Where the pictures of a data set lie: what their relative paths start from."""

    folder: Path

    def picture(self, name: object) -> StoredPicture:
        """The picture of this path, which is not opened yet, or of `{"bytes", "path"}`, as `datasets` has them.

        Raises `DataError` for what is no path of a file.
        """
        if isinstance(name, dict) and isinstance(name.get("bytes"), bytes):
            return StoredPicture(str(name.get("path") or "picture"), name["bytes"])
        name = name.get("path") if isinstance(name, dict) else name
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"a picture is {shown(name)}: it must be the path of a file.")
        if _ADDRESS.match(name):
            raise DataError(
                f"the picture {shown(name)} is an address, and addresses are not fetched: save it and give its path."
            )
        if name.lower().endswith(_FILMS):
            raise DataError(f"{shown(name)} is a film: save its frames as pictures and give them as a list.")
        words(name, "a picture's path")
        return StoredPicture(name, self.folder / name)

    def pictures(self, names: object) -> list[StoredPicture]:
        """One path or a list of them, each perhaps a list of frames; nothing for None and an empty list."""
        if names is None:
            return []
        if isinstance(names, list):
            return [picture for name in names for picture in self.frames(name)]
        return [self.picture(names)]

    def frames(self, name: object) -> list[StoredPicture]:
        """One picture, or a list: the frames of a film."""
        if isinstance(name, list):
            if not name:
                raise DataError("a list of frames is empty: give the path of one at least.")
            return [self.picture(frame) for frame in name]
        return [self.picture(name)]


def words(value: object, what: str) -> str:
    """`value` if it is text that can be tokenised. Raises `DataError` naming `what` otherwise."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {kind(value)}: it must be text.")
    if "\0" in value:
        raise DataError(f"{what} holds a null character: remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{what} holds half of a surrogate pair, which is no character: remove it.") from None
    return value


def fields(value: object, what: str, wanted: tuple[str, ...]) -> Mapping[str, Any]:
    """`value` if it is an object that has the keys `wanted`; raises `DataError` otherwise."""
    if not isinstance(value, dict):
        raise DataError(f"{what} is {kind(value)}: it must be an object with {', '.join(map(repr, wanted))}.")
    for key in wanted:
        if value.get(key) is None:
            raise DataError(f"{what} has no {key!r}.")
    return value


def listed(value: object, what: str) -> list[Any]:
    """`value` if it is a list; raises `DataError` otherwise."""
    if not isinstance(value, list):
        raise DataError(f"{what} is {kind(value)}: it must be a list.")
    return value


def only(value: Mapping[str, Any], what: str, known: tuple[str, ...]) -> None:
    """Refuse a key that is not read: what it asks for would be passed over in silence."""
    for key, given in value.items():
        if key not in known and given is not None:
            raise DataError(f"{what} has the unknown key {shown(key)}: only {', '.join(map(repr, known))} are read.")


def turn(role: Role, parts: Iterable[str | StoredPicture]) -> Turn:
    """A turn whose neighbouring words are one text, and which holds no empty one."""
    joined: Parts = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return Turn(role, tuple(joined))


def example(turns: Iterable[Turn], where: Where) -> Example:
    """The record, if user and assistant take turns, the user first, the assistant last, and all have said something.

    Raises `DataError` naming the turn, counted from 1.
    """
    made = tuple(turns)
    said = [(number, turn) for number, turn in enumerate(made, start=1)]
    if said and made[0].role == "system":
        said = said[1:]
    if not said:
        raise DataError("there is no turn: a record needs a question and a reply.")
    for place, (number, turn) in enumerate(said):
        expected = "assistant" if place % 2 else "user"
        if turn.role != expected:
            raise DataError(
                f"turn {number} is of the {turn.role} where the {expected}'s is expected: after a system message, if "
                "there is one, user and assistant take turns and the user begins."
            )
        if turn.role == "assistant" and not turn.text.strip():
            raise DataError(f"turn {number}, a reply, is empty: write what is to be learnt, or remove the record.")
        if turn.role == "user" and not any(not isinstance(part, str) or part.strip() for part in turn.parts):
            raise DataError(f"turn {number}, a question, is empty: it needs words or a picture.")
    if said[-1][1].role != "assistant":
        raise DataError(f"the reply to turn {said[-1][0]} is missing: a record ends with a reply.")
    for number, turn in enumerate(made, start=1):
        if turn.role != "user" and any(isinstance(part, StoredPicture) for part in turn.parts):
            raise DataError(f"turn {number}, of the {turn.role}, holds a picture: only the user can show one.")
    return Example(made, where)


def attempt(where: Where, turns: Callable[..., Iterable[Turn]], *arguments: Any) -> Example | Problem:
    """The example of the turns that `turns(*arguments)` gives, or what is wrong with it."""
    try:
        return example(turns(*arguments), where)
    except DataError as error:
        return Problem(where, str(error))


def kind(value: object) -> str:
    """What a JSON value is, for a person."""
    if value is None:
        return "missing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value in a sentence: at most a few words of it."""
    return repr(value if not isinstance(value, str) or len(value) <= 80 else value[:77] + "...")
