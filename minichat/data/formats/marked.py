"""Conversations whose words mark the places of pictures by `<image>`, as LLaVA and ShareGPT write them.

A marker and one space or line break on each side of it stand for a picture; all other words stay as they are. In
replies and system texts `<image>` is a word, for only the user shows pictures.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
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
