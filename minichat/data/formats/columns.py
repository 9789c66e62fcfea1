"""Which columns of a table, or keys of an object, hold the picture, the text, and the question where there is one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from minichat.errors import DataError, listing, shown

PICTURE = ("image", "images", "img", "picture", "pictures", "image_path", "img_path", "image_name", "image_file",
           "filepath", "file_path", "file_name", "filename", "path", "file", "jpg", "jpeg", "png", "webp")  # fmt: skip
TEXT = ("caption", "captions", "text", "title", "description", "sentences", "references", "answer",
        "multiple_choice_answer", "reply", "response", "output", "completion")  # fmt: skip
QUESTION = ("question", "instruction", "query", "prompt")
#: Questions of formats that mark a picture's place by `<image>` (Alpaca with images, ms-swift, and TRL's with a
#: `completion`), and in which a question may do without a picture.
MARKED = ("instruction", "query")
INPUT = "input"  # what Alpaca's instruction is about; or, alone, the question


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None: found among the usual ones."""

    picture: str | None = None
    text: str | None = None
    question: str | None = None

    def among(self, names: Iterable[str], held: Collection[str] = (), pictures: bool = True) -> Columns:
        """These columns, found in a table that has the columns `names`.

        Args:
            held: of these, the ones that hold pictures themselves; they go before names of pictures.
            pictures: whether there must be a picture.

        Raises `DataError` for one that is missing, or for several that could be meant.
        """
        there = list(names)
        asked = QUESTION if any(_is(name, QUESTION) for name in there) else (INPUT,)
        question = _found("question_column", self.question, there, asked, needed=False)
        shows = [name for name in there if name in held and _is(name, PICTURE)] or there
        alone = not pictures and question is not None
        picture = _found("image_column", self.picture, there if self.picture else shows, PICTURE, needed=not alone)
        return Columns(picture, _found("text_column", self.text, there, TEXT), question)

    def passed_over(self, names: Iterable[str]) -> list[str]:
        """Of these names those that could have been a column which is another by choice."""
        chosen = ((self.picture, PICTURE), (self.text, TEXT), (self.question, QUESTION))
        return [name for name in names for named, usual in chosen if named is not None and _is(name, usual)]

    @property
    def marks(self) -> bool:
        """Whether `<image>` in the question is a picture's place."""
        named = (self.text or "").casefold() == "completion"
        return self.question is not None and (_is(self.question, MARKED) or named)


def _is(name: str, usual: tuple[str, ...]) -> bool:
    return name.strip().casefold() in usual


def _found(option: str, named: str | None, there: list[str], usual: tuple[str, ...], needed: bool = True) -> str | None:
    what = option.removesuffix("_column")
    if named is not None:
        found = next((name for name in there if named in (name, name.strip())), None)
        if found is None:
            raise DataError(f"there is no column {shown(named)} for the {what}: there are {listing(there) or 'none'}.")
        return found
    candidates = [name for name in there if _is(name, usual)]
    if len(candidates) > 1:
        several = " and ".join(map(shown, candidates))
        raise DataError(f"the columns {several} could each be the {what}: name one ({option}).")
    if not candidates and needed:
        raise DataError(f"no column is known to be the {what} ({listing(there) or 'none'}): name it ({option}).")
    return candidates[0] if candidates else None
