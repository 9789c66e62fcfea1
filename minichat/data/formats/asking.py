"""What the user says to a picture that comes with a text alone, and what of the text is the reply."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from minichat.data.example import Problem, StoredPicture, Turn, Where
from minichat.data.formats.captions import CAPTIONS
from minichat.data.formats.lines import read_text
from minichat.data.formats.record import turn, words
from minichat.errors import DataError, SettingsError

#: MiniGPT-4's own instructions for its second stage.
ALIGNMENT = Path(__file__).parents[3] / "prompts" / "alignment.txt"


@dataclass(frozen=True)
class Asking:
    """How a picture and its text become a question and a reply.

    Args:
        instructions: what is asked, one of them drawn for each record and epoch; none: the picture is shown without a
            word, as in MiniGPT-4's first stage.
        captions: how the text is changed, by its name in `CAPTIONS`.
    """

    instructions: tuple[str, ...] = ()
    captions: str = "verbatim"
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.captions, str) or self.captions not in CAPTIONS:
            raise SettingsError(f"captions is {self.captions!r}: use {' or '.join(map(repr, CAPTIONS))}.")

    def draw(self, record: str) -> str:
        """The instruction for a record: the same for equal seed, epoch and record, whatever else is read."""
        if not self.instructions:
            return ""
        return random.Random(f"instruction {self.seed} {self.epoch} {record}").choice(self.instructions)

    def turns(self, record: str, pictures: list[StoredPicture], text: str, question: str | None = None) -> list[Turn]:
        """The picture or pictures with `question` or a drawn instruction, and the text."""
        asked = self.draw(record) if question is None else question
        return [turn("user", [*pictures, asked]), turn("assistant", [CAPTIONS[self.captions](text)])]


def read_instructions(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a file of one instruction a line; lines that begin with `#` are remarks.

    Raises `DataError`, naming file and line, for a file without one, or with one that marks the picture's place.
    """
    if not isinstance(path, str | os.PathLike):
        raise SettingsError(f"instructions is {path!r}: it must be the path of a file.")
    shown = os.fspath(path)
    try:
        text = read_text(Path(path), Where(shown, 1))
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
    return tuple(lines)
