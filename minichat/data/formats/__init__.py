"""Data sets in the formats in which people have them: each is read to the same `Example`s.

    read("train.jsonl")                      the format is told from the content
    read("pairs.csv", "pairs", text_column="caption")

`read` raises at the first record that is wrong; `scan` goes on, and gives a `Problem` in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minichat.data.example import Example, Problem
from minichat.data.formats import messages
from minichat.data.formats.lines import records
from minichat.data.formats.record import Shelf, example
from minichat.errors import DataError

__all__ = ["examples", "read", "scan"]

Source = str | os.PathLike[str]


def read(source: Source, form: str | None = None, **options: Any) -> Iterator[Example]:
    """The examples of a data set, in order.

    Args:
        source: a file or a folder.
        form: one of `FORMS`; None: told from the content.

    Raises `DataError`, naming file and line, at the first record that is wrong.
    """
    for item in scan(source, form, **options):
        if isinstance(item, Problem):
            raise DataError(str(item))
        yield item


def examples(*sources: Source, form: str | None = None, **options: Any) -> list[Example]:
    """All examples of one or several data sets."""
    return [one for source in sources for one in read(source, form, **options)]


def scan(source: Source, form: str | None = None, **options: Any) -> Iterator[Example | Problem]:
    """As `read`, but a record that is wrong is a `Problem` in its place, and reading goes on after it."""
    path = Path(source)
    shelf = Shelf(path.parent)
    for item in records(path, str(source)):
        if isinstance(item, Problem):
            yield item
            continue
        where, value = item
        try:
            yield example(messages.turns(value, shelf), where)
        except DataError as error:
            yield Problem(where, str(error))
