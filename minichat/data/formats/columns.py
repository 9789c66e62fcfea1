"""Which columns of a table, or keys of an object, hold the picture, the text, and the question where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minichat.errors import DataError

PICTURE = ("image", "images", "picture", "image_path", "img_path", "filepath", "file_path", "file_name", "filename",
           "path", "file")  # fmt: skip
TEXT = ("caption", "text", "title", "description", "answer", "reply", "response", "output")
QUESTION = ("question", "instruction")


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None: found among the usual ones."""

    picture: str | None = None
    text: str | None = None
    question: str | None = None

    def among(self, names: Iterable[str]) -> Columns:
        """These columns, found in a table that has the columns `names`.

        Raises `DataError` for one that is missing, or for several that could be meant.
        """
        there = list(names)
        return Columns(
            _found("image_column", self.picture, there, PICTURE),
            _found("text_column", self.text, there, TEXT),
            _found("question_column", self.question, there, QUESTION, needed=False),
        )


def _found(option: str, named: str | None, there: list[str], usual: tuple[str, ...], needed: bool = True) -> str | None:
    what = option.removesuffix("_column")
    listing = ", ".join(map(repr, there)) or "none"
    if named is not None:
        if named not in there:
            raise DataError(f"there is no column {named!r} for the {what}: there are {listing}.")
        return named
    candidates = [name for name in there if name.strip().casefold() in usual]
    if len(candidates) > 1:
        several = " and ".join(map(repr, candidates))
        raise DataError(f"the columns {several} could each be the {what}: name one ({option}).")
    if not candidates and needed:
        raise DataError(f"no column is known to be the {what} ({listing}): name it ({option}).")
    return candidates[0] if candidates else None
