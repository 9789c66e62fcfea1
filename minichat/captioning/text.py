"""Words in and out: prompts with a picture's own words in them, and what becomes of a caption before it is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.data.formats.lines import read_text
from minichat.errors import DataError, PromptError, SettingsError, shown

_PLACEHOLDER = re.compile(r"\{(name|folder|caption)\}")
EXISTING = ("keep", "skip", "append", "overwrite")


def read_prompts(path: Path) -> list[str]:
    """A file of one prompt a line; lines that begin with `#` are remarks. Raises `DataError` for one without any."""
    try:
        text = read_text(path, Where(os.fspath(path), 1))
    except OSError as error:
        raise DataError(f"The prompts {str(path)!r} cannot be read ({error.strerror}): name another file.") from None
    if isinstance(text, Problem):
        raise DataError(str(text))
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise DataError(f"{str(path)!r} holds no prompt: write one in every line.")
    return found


def needs_caption(prompts: Sequence[str | None]) -> bool:
    """Whether a prompt asks for the caption that a picture has already."""
    return any(prompt is not None and "{caption}" in prompt for prompt in prompts)


def filled(prompt: str | None, place: str, before: str | None) -> str | None:
    """The prompt with `{name}` (the file's, without its ending), `{folder}` and `{caption}` in it; other braces stay.

    Raises `PromptError` where a picture has no caption that could stand there.
    """
    if prompt is None:
        return None
    path = Path(os.path.abspath(place))
    words: dict[str, Callable[[], str]] = {
        "name": lambda: path.name.split(".")[0] or path.name,
        "folder": lambda: path.parent.name,
        "caption": lambda: _before(before),
    }
    return _PLACEHOLDER.sub(lambda found: _legible(words[found[1]]()), prompt)


def _before(text: str | None) -> str:
    if text is None:
        raise PromptError("The prompt asks for the picture's {caption}, and it has none: write one, or ask otherwise.")
    return text


def _legible(text: str) -> str:
    """A name that is no Unicode, with marks in place of what cannot be read."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


@dataclass(frozen=True)
class Shape:
    """What becomes of a caption before it is written, in this order. Raises `SettingsError` for what cannot be."""

    one_line: bool = False  # line breaks and runs of blanks become one blank
    forbid: tuple[str, ...] = ()  # words, or several in a row, that are taken out wherever they stand whole
    words: int | None = None  # the first so many
    prefix: str = ""
    suffix: str = ""
    triggers: tuple[str, ...] = ()  # words that stand first, each with a comma
    append: bool = False  # all of this after the caption that the picture had already

    def __post_init__(self) -> None:
        if self.words is not None and (isinstance(self.words, bool) or self.words < 1):
            raise SettingsError(f"words is {self.words!r}; it must be a whole number of at least 1.")
        for word in self.forbid:
            if not word.strip():
                raise SettingsError("A word to forbid is empty: name one.")
        object.__setattr__(self, "_forbidden", _forbidden(self.forbid))

    def apply(self, caption: str, before: str | None = None) -> str:
        """The caption as it is written; `before` is what the picture had already."""
        text = " ".join(caption.split()) if self.one_line else caption
        forbidden: re.Pattern[str] | None = getattr(self, "_forbidden", None)
        if forbidden is not None:
            text = _tidied(forbidden.sub("", text))
        if self.words is not None:
            found = list(re.finditer(r"\S+", text))
            if len(found) > self.words:
                text = text[: found[self.words - 1].end()]
        text = f"{self.prefix}{text}{self.suffix}"
        text = ", ".join((*self.triggers, text) if text else self.triggers)
        return " ".join(filter(None, (before, text))) if self.append else text

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> Shape:
        held: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in facts.items()}
        return cls(**held)


def _forbidden(words: tuple[str, ...]) -> re.Pattern[str] | None:
    """Each of the words, in any case, where it is no part of a longer one."""
    if not words:
        return None
    longest_first = sorted((word.strip() for word in words), key=len, reverse=True)
    spelled = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{spelled})(?!\w)", re.IGNORECASE)


def _tidied(text: str) -> str:
    """Without the blanks and commas that are left where words were taken out."""
    text = re.sub(r"[ \t]{2,}", " ", text)
    text = re.sub(r"[ \t]+(?=[,.;:!?])", "", text)
    text = re.sub(r",(?:\s*,)+", ",", text)
    text = re.sub(r",(?=[.;:!?])", "", text)
    return re.sub(r"^[\s,;:]+", "", text).rstrip(" \t,;:")


def check_existing(existing: str) -> str:
    """Raises `SettingsError` for a word that is none of `EXISTING`."""
    if existing not in EXISTING:
        raise SettingsError(f"existing is {shown(existing)}: use {', '.join(EXISTING)}.")
    return existing
