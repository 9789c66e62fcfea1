"""Data sets in the formats in which people have them: each is read to the same `Example`s.

    read("train.jsonl")                      the format is told from the content
    read("pairs.csv", "pairs", text_column="caption")

`read` raises at the first record that is wrong; `scan` goes on, and gives a `Problem` in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minichat.data.example import Example, Problem
from minichat.data.formats.reading import FORMS, listing, options_of
from minichat.data.formats.telling import form_of
from minichat.errors import DataError

__all__ = ["FORMS", "Source", "examples", "read", "scan"]

Source = str | os.PathLike[str]


def read(source: Source, form: str | None = None, **options: Any) -> Iterator[Example]:
    """The examples of a data set, in order. Pictures are named, not opened.

    Args:
        source: a file or a folder; for WebDataset also a pattern such as `shards/{00000..00012}.tar`.
        form: one of `FORMS`; None: told from the content.
        options: fields of `minichat.data.formats.reading.Options`. Equal `seed` and `epoch` draw equal instructions.

    Raises `DataError`, naming file and line, at the first record that is wrong; `SettingsError` for an option that the
    format has not.
    """
    for item in scan(source, form, **options):
        if isinstance(item, Problem):
            raise DataError(str(item))
        yield item


def examples(*sources: Source, form: str | None = None, **options: Any) -> list[Example]:
    """All examples of one or several data sets; raises as `read` does."""
    return [one for source in sources for one in read(source, form, **options)]


def scan(source: Source, form: str | None = None, **options: Any) -> Iterator[Example | Problem]:
    """As `read`, but a record that is wrong is a `Problem` in its place, and reading goes on after it.

    Raises `DataError` where there is nothing to read at all.
    """
    shown = os.fspath(source)
    path = Path(shown)
    if form is not None and form not in FORMS:
        raise DataError(f"The format {form!r} is not known: use {listing()}.")
    try:
        known = form or form_of(path, shown)
        if known is None and any(options.get(f"{column}_column") for column in ("image", "text", "question")):
            known = "pairs"
        if known is None:
            raise DataError(f"{shown!r} is in no format that is known.{_within(path)} The formats: {listing()}.")
        yield from FORMS[known].scan(path, shown, options_of(known, options))
    except FileNotFoundError:
        raise DataError(f"{shown!r} was not found: check the path.") from None
    except OSError as error:
        raise DataError(f"{shown!r} cannot be read ({error.strerror}): check it.") from None


def _within(path: Path) -> str:
    """The files of a folder that may be meant, as a sentence."""
    endings = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
    names = sorted(file.name for file in path.iterdir() if file.suffix in endings) if path.is_dir() else []
    return f" It holds {', '.join(map(repr, names))}: name one of them." if names else ""
