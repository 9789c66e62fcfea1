"""Pairs of picture and text: a CSV or TSV table with a header, or JSON objects, with a question where there is one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Turn, Where
from minichat.data.formats.asking import Asking
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import BOMS, NOT_UTF8, OTHER_UNICODE, Value
from minichat.data.formats.record import Shelf, fields, words
from minichat.errors import DataError

_DELIMITERS = ",\t;|"


def turns(record: object, shelf: Shelf, columns: Columns, asking: Asking, where: Where) -> list[Turn]:
    """The turns of one pair. Raises `DataError` for what is not understood."""
    read = fields(record, "the record", ())
    named = columns.among(key for key, value in read.items() if value is not None)
    text = words(read[str(named.text)], f"{named.text!r}")
    question = None if named.question is None else words(read[named.question], f"{named.question!r}")
    pictures = shelf.pictures(read[str(named.picture)])
    if not pictures:
        raise DataError(f"{named.picture!r} is an empty list: a pair needs a picture.")
    return asking.turns(str(where.line), pictures, text, question)


def rows(path: Path, file: str, columns: Columns) -> Iterator[Value | Problem]:
    """The rows of a table as objects, each with the line on which it begins; a `Problem` in place of a ragged one."""
    with open(path, "rb") as opened:
        # A byte that is no UTF-8 becomes a half surrogate, which the row is refused for.
        lines = (line.decode("utf-8", "surrogateescape") for line in opened)
        first = next(lines, "").removeprefix("\ufeff")
        if first.encode("utf-8", "surrogateescape").startswith(BOMS):
            yield Problem(Where(file, 1), OTHER_UNICODE)
            return
        if not first.strip():
            yield Problem(Where(file, 1), "the file is empty: its first line must name the columns.")
            return
        delimiter = max(_DELIMITERS, key=first.count)
        header = next(csv.reader([first], delimiter=delimiter))
        wrong = _wrong_header(header, Where(file, 1), columns)
        if wrong is not None:
            yield wrong
            return
        yield from _rows(csv.reader(lines, delimiter=delimiter, strict=True), header, file)


def _wrong_header(header: list[str], where: Where, columns: Columns) -> Problem | None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return Problem(where, f"the column {twice[0]!r} stands there twice: give each its own name.")
    bad = _bad_byte(header, where)
    if bad is not None:
        return bad
    try:
        columns.among(header)
    except DataError as error:
        return Problem(where, str(error))
    return None


def _rows(table: Any, header: list[str], file: str) -> Iterator[Value | Problem]:
    found = False
    while True:
        where = Where(file, table.line_num + 2)  # its lines begin after the header
        try:
            row = next(table)
        except StopIteration:
            break
        except csv.Error as error:
            yield Problem(where, f"this row is no CSV ({error}): look at its quotation marks.")
            found = True
            continue
        if not row:
            continue
        found = True
        if len(row) != len(header):
            yield Problem(where, f"the row has {len(row)} fields and the header {len(header)}: give each column one.")
            continue
        bad = _bad_byte(row, where)
        yield bad if bad is not None else (where, dict(zip(header, row, strict=True)))
    if not found:
        yield Problem(Where(file, 1), "the table has a header but no row.")


def _bad_byte(row: list[str], where: Where) -> Problem | None:
    line = where.line
    for field in row:
        for character in field:
            if "\udc80" <= character <= "\udcff":
                return Problem(Where(where.file, line), NOT_UTF8.format(byte=ord(character) - 0xDC00))
            line += character == "\n"
    return None
