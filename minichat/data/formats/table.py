"""Tables as text: CSV (RFC 4180), whose fields may be quoted, and TSV, whose fields never are.

The first line names the columns. A table without such a line is read where it has two columns and the first line's one
field is the path of a picture: then the other is its text. Fields may have any length.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import BOMS, NOT_UTF8, OTHER_UNICODE, Value
from minichat.disk import open_file
from minichat.errors import DataError, shown
from minichat.images import SUFFIXES

_DELIMITERS = ",\t;|"
# Flickr8k and Flickr30k number a picture's captions behind its name: 1000268201_693b08cb0e.jpg#0.
_NUMBER = re.compile(r"(.*\.[A-Za-z]+)#\d+")
_NUMBERED_PICTURE = " numbered picture"  # a column without a name, whose names may be so
_UNQUOTED = " (A TSV has no quotation marks round its fields: name it .csv if this one has.)"
_HALF = re.compile(r"[\udc80-\udcff]")  # a byte that is no UTF-8

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of the module as a whole: 131,072 unless one says otherwise


def rows(path: Path, file: str, columns: Columns) -> Iterator[Value | Problem]:
    """The rows of a table as objects, each with the line on which it begins; a `Problem` in place of a ragged one."""
    with open_file(path) as opened:
        # A byte that is no UTF-8 becomes a half surrogate, which the row is refused for.
        lines: Iterator[str] = (line.decode("utf-8", "surrogateescape") for line in opened)
        first = next(lines, "").removeprefix("\ufeff")
        if first.encode("utf-8", "surrogateescape").startswith(BOMS):
            yield Problem(Where(file, 1), OTHER_UNICODE)
            return
        if not first.strip():
            yield Problem(Where(file, 1), "the file is empty: its first line must name the columns.")
            return
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=first.count)
        quoted = delimiter != "\t" or path.suffix.lower() == ".csv"
        quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        header = next(csv.reader([first], delimiter=delimiter, quoting=quoting))
        names = _nameless(header) if columns == Columns() else None
        if names is None:
            wrong = _wrong_header(header, Where(file, 1), columns)
            if wrong is not None:
                yield wrong
                return
        else:
            lines = itertools.chain([first], lines)
        table = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=quoted)
        yield from _rows(table, names or header, file, 1 if names else 2, "" if quoted else _UNQUOTED)


def _nameless(first: list[str]) -> list[str] | None:
    """The names of the columns where the first line is a row already: the path of a picture, and its text."""
    shows = [_is_path(field) for field in first]
    if len(first) != 2 or sum(shows) != 1:
        return None
    return [_NUMBERED_PICTURE, "caption"] if shows[0] else ["caption", _NUMBERED_PICTURE]


def _is_path(field: str) -> bool:
    return _plain(field).lower().endswith(SUFFIXES)


def _plain(name: str) -> str:
    found = _NUMBER.fullmatch(name)
    return name if found is None else found[1]


def _wrong_header(header: list[str], where: Where, columns: Columns) -> Problem | None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return Problem(where, f"the column {shown(twice[0])} stands there twice: give each its own name.")
    bad = _bad_byte(header, where)
    if bad is not None:
        return bad
    try:
        columns.among(header, held=header)
    except DataError as error:
        # Several columns may name the picture where one of them holds it: the rows tell.
        return None if "could each be the image" in str(error) else Problem(where, str(error))
    return None


def _rows(table: Any, header: list[str], file: str, first: int, hint: str) -> Iterator[Value | Problem]:
    """The rows from line `first` on; `hint` is added to what is said of a ragged one."""
    found = False
    while True:
        where = Where(file, table.line_num + first)
        try:
            row = next(table)
        except StopIteration:
            break
        except csv.Error as error:
            look = "its line ends" if hint else "its quotation marks"
            yield Problem(where, f"this row is no {'TSV' if hint else 'CSV'} ({error}): look at {look}.")
            found = True
            continue
        if not row:
            continue
        found = True
        if len(row) != len(header):
            counts = f"the row has {len(row)} fields and the header {len(header)}"
            yield Problem(where, f"{counts}: give each column one.{hint}")
            continue
        bad = _bad_byte(row, where)
        yield bad if bad is not None else (where, _record(header, row))
    if not found:
        yield Problem(Where(file, 1), "the table has a header but no row.")


def _record(header: list[str], row: list[str]) -> dict[str, str]:
    record = dict(zip(header, row, strict=True))
    if _NUMBERED_PICTURE in record:
        record["image"] = _plain(record.pop(_NUMBERED_PICTURE))
    return record


def _bad_byte(row: list[str], where: Where) -> Problem | None:
    line = where.line
    for field in row:
        found = _HALF.search(field)
        if found is not None:
            line += field.count("\n", 0, found.start())
            return Problem(Where(where.file, line), NOT_UTF8.format(byte=ord(found[0]) - 0xDC00))
        line += field.count("\n")
    return None
