"""Boxes as MiniGPT-v2 spells them in its prompts and replies (arXiv:2310.09478, section 3.2).

A box is `{<left><top><right><bottom>}`: whole hundredths of the picture's width and height, from its upper left corner.
A phrase may stand before its boxes, `<p>a cat</p> {<1><2><30><44>}`, and `<delim>` between two of them. They are plain
text, with no tokens of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minichat.errors import PromptError

#: What a question may begin with, and what is then asked for.
TASKS = {
    "vqa": "a short answer",
    "caption": "a caption",
    "grounding": "a description with a box for each thing",
    "refer": "the box of what is described",
    "detection": "the boxes of all that is named",
    "identify": "what is in a box",
}
GROUNDING = "[grounding] please describe this image in details"  # as MiniGPT-v2 was taught it
_RESOLUTION = 100
_BOX = r"\{\s*<\s*(\d{1,3})\s*>\s*<\s*(\d{1,3})\s*>\s*<\s*(\d{1,3})\s*>\s*<\s*(\d{1,3})\s*>\s*\}"
_MARKS = re.compile(rf"<p>(?P<phrase>.*?)</p>|{_BOX}|<delim>", re.DOTALL)


@dataclass(frozen=True)
class Box:
    """A part of a picture, in fractions of its width and height. `phrase`: what is there, where that is said."""

    left: float
    top: float
    right: float
    bottom: float
    phrase: str = ""

    def __post_init__(self) -> None:
        sides = (self.left, self.top, self.right, self.bottom)
        within = all(isinstance(side, (int, float)) and 0 <= side <= 1 for side in sides)
        if not within or self.left > self.right or self.top > self.bottom:
            raise PromptError(
                f"A box goes from {sides[:2]} to {sides[2:]}; it needs left, top, right, bottom in order, each from 0 "
                "to 1."
            )

    def __str__(self) -> str:
        """As a prompt has it."""
        sides = (self.left, self.top, self.right, self.bottom)
        return "{" + "".join(f"<{round(_RESOLUTION * side)}>" for side in sides) + "}"

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in a picture of this size."""
        return (
            round(self.left * width),
            round(self.top * height),
            round(self.right * width),
            round(self.bottom * height),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the phrase, if there is one, and [left, top, right, bottom]."""
        named = {"phrase": self.phrase} if self.phrase else {}
        return {**named, "box": [self.left, self.top, self.right, self.bottom]}


def parse(text: str) -> list[Box]:
    """The boxes that a reply names, in their order, each with the phrase that stands before it.

    What is no box, as one that ends before it begins, is none here and stays in the text.
    """
    return list(_read(text))


def numbered(text: str) -> str:
    """The text to be read beside a picture with its boxes: each box by its number, from 1, and no other marks.

    `<p>a cat</p> {<1><2><30><44>}` is `a cat [1]`.
    """
    count = 0

    def plain(mark: re.Match[str]) -> str:
        nonlocal count
        if mark["phrase"] is not None:
            return mark["phrase"].strip()
        if mark[0] == "<delim>":
            return ""
        if _sides(mark) is None:
            return mark[0]
        count += 1
        return f"[{count}]"

    return _MARKS.sub(plain, text)


def _sides(mark: re.Match[str]) -> tuple[float, float, float, float] | None:
    """Of a box that is one; None: it ends before it begins, or beyond the picture."""
    left, top, right, bottom = (int(side) / _RESOLUTION for side in mark.groups()[1:])
    return (left, top, right, bottom) if left <= right <= 1 and top <= bottom <= 1 else None


def _read(text: str) -> Iterator[Box]:
    done, phrase = 0, ""
    for mark in _MARKS.finditer(text):
        if text[done : mark.start()].strip():  # other words: the phrase before them is over
            phrase = ""
        done = mark.end()
        if mark["phrase"] is not None:
            phrase = mark["phrase"].strip()
        elif mark[0] != "<delim>" and (sides := _sides(mark)):
            yield Box(*sides, phrase)
