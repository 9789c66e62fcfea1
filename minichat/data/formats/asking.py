"""What the user says to a picture that comes with a text alone, and what of the text is the reply."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minichat.data.example import Problem, StoredPicture, Turn, Where
from minichat.data.formats.captions import CAPTIONS
from minichat.data.formats.lines import read_text
from minichat.data.formats.record import turn, words
from minichat.errors import DataError, SettingsError

#: MiniGPT-4's own instructions for its second stage.
ALIGNMENT = Path(__file__).parents[3] / "prompts" / "alignment.txt"
#: Of several texts of one picture: a sample for each, the first alone, or one that is drawn in each epoch.
SEVERAL = ("each", "first", "random")


@dataclass(frozen=True)
class Asking:
    """How a picture and its text become a question and a reply.

    Args:
        instructions: what is asked, one of them drawn for each record and epoch; none: the picture is shown without a
            word, as in MiniGPT-4's first stage.
        captions: how the text is changed, by its name in `CAPTIONS`.
        several: which of several texts of one picture are learnt, by its name in `SEVERAL`.
    """

    instructions: tuple[str, ...] = ()
    captions: str = "verbatim"
    several: str = "each"
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("captions", self.captions, tuple(CAPTIONS)),
            ("several_captions", self.several, SEVERAL),
        ):
            if not isinstance(value, str) or value not in known:
                raise SettingsError(f"{name} is {value!r}: use {' or '.join(map(repr, known))}.")

    def draw(self, record: str) -> str:
        """The instruction for a record: the same for equal seed, epoch and record, whatever else is read."""
        if not self.instructions:
            return ""
        return random.Random(f"instruction {self.seed} {self.epoch} {record}").choice(self.instructions)

    def worded(self, text: str) -> str:
        """A text as it is to be learnt."""
        return CAPTIONS[self.captions](text)

    def chosen(self, record: str, texts: Sequence[str]) -> list[tuple[str, str]]:
        """Of a record's texts those that are learnt, each with a name of its own; the same for equal seed and epoch."""
        if len(texts) > 1 and self.several == "random":
            return [(record, random.Random(f"caption {self.seed} {self.epoch} {record}").choice(texts))]
        some = texts[:1] if self.several == "first" else texts
        return [(f"{record} {number}" if number else record, text) for number, text in enumerate(some)]

    def turns(self, record: str, pictures: list[StoredPicture], text: str) -> list[Turn]:
        """The picture or pictures with a drawn instruction, and the text."""
        return [turn("user", [*pictures, self.draw(record)]), turn("assistant", [self.worded(text)])]


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
