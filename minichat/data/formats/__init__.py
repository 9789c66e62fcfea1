"""Data sets in the formats in which people have them: each is read to the same `Example`s.

    read("train.jsonl")                      the format is told from the content
    read("pairs.csv", "pairs", text_column="caption")

`read` raises at the first record that is wrong, or has a key that nothing reads; `scan` goes on, and gives a `Problem`
in the place of one and `Example.unread` of the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minichat.data.example import Example, Problem
from minichat.data.formats.lines import first_byte
from minichat.data.formats.reading import FORMS, OF_RECORDS, Items, Options, by_record, listing, options_of
from minichat.data.formats.record import refusal
from minichat.data.formats.telling import form_of
from minichat.errors import DataError

__all__ = ["FORMS", "Source", "entries", "examples", "read", "scan"]

Source = str | os.PathLike[str]


def read(
    source: Source,
    form: str | None = None,
    *,
    left_out: Callable[[Problem], None] = lambda problem: None,
    **options: Any,
) -> Iterator[Example]:
    """The examples of a data set, in order. Pictures are named, not opened.

    Args:
        source: a file or a folder; for tars and Parquet files also a pattern such as `shards/{00000..00012}.tar`.
        form: one of `FORMS`; None: told from the content.
        left_out: is told of each record that says itself that it holds nothing to learn.
        options: fields of `minichat.data.formats.reading.Options`. Equal `seed` and `epoch` draw equal instructions.

    Raises `DataError`, naming file and line, at the first record that is wrong; `SettingsError` for an option that the
    format has not.
    """
    for item in scan(source, form, **options):
        if isinstance(item, Example):
            refuse_unread(item)
            yield item
        elif item.mild:
            left_out(item)
        else:
            raise DataError(str(item))


def refuse_unread(example: Example) -> None:
    """Raise `DataError` where a record has keys that nothing reads."""
    if example.unread:
        raise DataError(f"{example.where}: {refusal(example.unread)}")


def examples(*sources: Source, form: str | None = None, **options: Any) -> list[Example]:
    """All examples of one or several data sets; raises as `read` does."""
    return [one for source in sources for one in read(source, form, **options)]


def scan(source: Source, form: str | None = None, **options: Any) -> Iterator[Example | Problem]:
    """As `read`, but a record that is wrong is a `Problem` in its place, and reading goes on after it.

    Raises `DataError` where there is nothing to read at all.
    """
    shown = os.fspath(source)
    known = form_for(shown, form, options)
    told = options_of(known, options)
    asking = told.asking(known)
    for item in entries(shown, known, told, strict=form is not None):
        if isinstance(item, Problem):
            yield item
        else:
            yield from item.examples(asking, told.unknown_keys)


def form_for(shown: str, form: str | None, options: dict[str, Any]) -> str:
    """The name of a source's format, as it is given or told from the content. Raises `DataError`."""
    path = Path(shown)
    if form is not None and form not in FORMS:
        raise DataError(f"The format {form!r} is not known: use {listing()}.")
    with _told(shown):
        known = form or form_of(path, shown)
        if known is None and any(options.get(f"{column}_column") for column in ("image", "text", "question")):
            known = "pairs"
        if known is None:
            raise DataError(f"{shown!r} is in no format that is known.{_within(path)} The formats: {listing()}.")
    return known


def entries(shown: str, form: str, options: Options, *, strict: bool) -> Items:
    """The records of a source, found but not read; `strict`: each is of this format, or else wrong."""
    with _told(shown):
        json = not strict and form in OF_RECORDS and _is_json(Path(shown))
        read_it = by_record(form) if json else FORMS[form].entries
        yield from read_it(Path(shown), shown, options)


def _is_json(path: Path) -> bool:
    return path.is_file() and first_byte(path) in (b"{", b"[")


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """Says what the system has against a source."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{shown!r} was not found: check the path.") from None
    except OSError as error:
        raise DataError(f"{shown!r} cannot be read ({error.strerror}): check it.") from None


def _within(path: Path) -> str:
    """The files of a folder that may be meant, as a sentence."""
    endings = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
    names = sorted(file.name for file in path.iterdir() if file.suffix in endings) if path.is_dir() else []
    return f" It holds {', '.join(map(repr, names))}: name one of them." if names else ""
