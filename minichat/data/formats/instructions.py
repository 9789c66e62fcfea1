"""What the user says to a picture that comes with a text alone: one of a file's lines, drawn anew in each epoch."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from minichat.data.example import Problem, StoredPicture, Turn, Where
from minichat.data.formats.lines import read_text
from minichat.data.formats.record import turn, words
from minichat.errors import DataError

#: MiniGPT-4's own instructions for its second stage.
ALIGNMENT = Path(__file__).parents[3] / "prompts" / "alignment.txt"


@dataclass(frozen=True)
class Instructions:
    """The lines to draw from; none: the picture is shown without a word, as in MiniGPT-4's first stage."""

    lines: tuple[str, ...] = ()
    seed: int = 0
    epoch: int = 0

    def draw(self, record: str) -> str:
        """The line for a record: the same for equal seed, epoch and record, whatever else is read."""
        if not self.lines:
            return ""
        return random.Random(f"instruction {self.seed} {self.epoch} {record}").choice(self.lines)

    def turns(self, record: str, pictures: list[StoredPicture], text: str, question: str | None = None) -> list[Turn]:
        """The two turns of a picture and its text: the picture with `question` or a drawn line, and the text."""
        asked = self.draw(record) if question is None else question
        return [turn("user", [*pictures, asked]), turn("assistant", [text])]


def read_instructions(path: str | os.PathLike[str], seed: int = 0, epoch: int = 0) -> Instructions:
    """Read a file of one instruction a line; lines that begin with `#` are remarks.

    Raises `DataError`, naming file and line, for a file without one, or with one that marks the picture's place.
    """
    file, shown = Path(path), os.fspath(path)
    try:
        text = read_text(file, Where(shown, 1))
    except OSError as error:
        raise DataError(f"The instructions {shown!r} cannot be read ({error.strerror}): name another file.") from None
    if isinstance(text, Problem):
        raise DataError(str(text))
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = Where(shown, number)
        if not line.strip() or line.startswith("#"):
            continue
        if "<ImageHere>" in line or "<image>" in line:
            raise DataError(f"{where}: an instruction is words alone, the picture comes before it: take its mark out.")
        lines.append(words(line.strip(), f"{where}: the instruction"))
    if not lines:
        raise DataError(f"{Where(shown, 1)}: the file is empty: write one instruction in every line.")
    return Instructions(tuple(lines), seed, epoch)
