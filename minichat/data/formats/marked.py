"""Conversations whose words mark the places of pictures by `<image>`, as LLaVA and ShareGPT write them.

A marker and one space or line break on each side of it stand for a picture; all other words stay as they are. In
replies and system texts `<image>` is a word, for only the user shows pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats.record import Parts, turn
from minichat.errors import DataError
from minichat.prompt.conversation import Role

#: Who speaks, by the names that data sets use.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
IMAGE, VIDEO = "<image>", "<video>"
_BESIDE = r"[ \n]?"


@dataclass(frozen=True)
class Mark:
    """The place of one picture, or of one film's frames."""

    sort: str


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
    """The turns with their pictures: each mark takes the next of its sort.

    Without a mark, pictures come before all that the user says. Raises `DataError` where marks and pictures differ in
    number.
    """
    first: Parts = []
    left = {sort: list(given) for sort, given in shown.items()}
    for sort, given in shown.items():
        marks = sum(piece == Mark(sort) for one in said for piece in one.pieces)
        if marks == 0:
            first += [picture for pictures in left.pop(sort) for picture in pictures]
        elif marks != len(given):
            raise DataError(
                f"the number of {sort} is {marks} but {len(given)} of them {'is' if len(given) == 1 else 'are'} given: "
                f"each {sort} needs its own (frames of one film stand in a list of their own)."
            )
    turns = []
    for one in said:
        parts: Parts = []
        if one.role == "user":
            parts, first = first, []
        for piece in one.pieces:
            parts += [piece] if isinstance(piece, str) else left[piece.sort].pop(0)
        turns.append(turn(one.role, parts))
    if first:
        raise DataError("pictures are given but no turn is the user's, who shows them.")
    return turns
