"""Text files in, with their line numbers: what a reader needs to say where something is wrong."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.disk import open_file

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")  # JSON's own
#: How a file in UTF-16 or UTF-32 begins; UTF-32's little end begins as UTF-16's.
BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)

OTHER_UNICODE = "the file is in UTF-16 or UTF-32: save it as UTF-8."
NOT_UTF8 = "the byte 0x{byte:02x} is not UTF-8: save the file as UTF-8."

Value = tuple[Where, Any]  # a JSON value and where it begins


def records(path: Path, file: str, key: str | None = None) -> Iterator[Value | Problem]:
    """The records of a JSON file, each with its line: one in every line, or all in one list.

    What cannot be read is a `Problem` in its place: of JSON lines that line alone, of a list all from there on.

    Args:
        file: what errors call it.
        key: the list is the value of this key of one object.
    """
    first = first_byte(path)
    if first == b"[" or key is not None:
        yield from _list(path, file, key)
    else:
        yield from _lines(path, file)


def first_byte(path: Path) -> bytes:
    """The first byte that is neither white space nor a byte order mark; nothing in a file that has none."""
    with open_file(path) as opened:
        while chunk := opened.read(4096):
            if rest := chunk.removeprefix(codecs.BOM_UTF8).lstrip():
                return rest[:1]
    return b""


def read_text(path: Path, where: Where) -> str | Problem:
    """The whole file in UTF-8, with or without a byte order mark; a `Problem` names the line of a bad byte."""
    with open_file(path) as opened:
        return decoded(opened.read(), where)


def parse(text: str, where: Where) -> Any | Problem:
    """One JSON value, and nothing after it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Problem(where, _broken(error))
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets thousands deep
        return Problem(where, "this JSON is nested too deeply or holds too long a number: write it again.")


def _lines(path: Path, file: str) -> Iterator[Value | Problem]:
    empty = True
    with open_file(path) as opened:
        for number, line in enumerate(opened, start=1):
            where = Where(file, number)
            text = decoded(line, where)
            if isinstance(text, str) and not text.strip():
                continue
            empty = False
            value = text if isinstance(text, Problem) else parse(text.rstrip(), where)
            yield value if isinstance(value, Problem) else (where, value)
    if empty:
        yield Problem(Where(file, 1), "the file is empty: there is no record in it.")


def _list(path: Path, file: str, key: str | None) -> Iterator[Value | Problem]:
    text = read_text(path, Where(file, 1))
    if isinstance(text, Problem):
        yield text
        return
    if key is not None:
        found = _find(text, Where(file, 1), key)
        if isinstance(found, Problem):
            yield found
            return
        place = found
    else:
        place = _skip(text, 0)
    yield from _items(text, place, file, key)


def _items(text: str, place: int, file: str, key: str | None) -> Iterator[Value | Problem]:
    """The items of the list that begins at `place`, one by one."""
    line, counted = 1 + text.count("\n", 0, place), place
    place = _skip(text, place + 1)
    if text[place : place + 1] == "]":
        yield Problem(Where(file, line), "the list is empty: there is no record in it.")
        return
    for number in itertools.count(1):
        line, counted = line + text.count("\n", counted, place), place
        where = Where(file, line, number)
        try:
            value, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            yield Problem(Where(file, error.lineno, number), _broken(error))
            return
        except (ValueError, RecursionError):
            yield Problem(where, "this JSON is nested too deeply or holds too long a number: write it again.")
            return
        yield where, value
        place = _skip(text, place)
        after = text[place : place + 1]
        place = _skip(text, place + 1)
        if after == "]" and (key is not None or place >= len(text)):
            return
        if after != ",":
            line += text.count("\n", counted, place)
            ends = {"": "the file ends within the list", "]": "something follows the list's end"}
            end = ends.get(after, f"{after!r} stands where ',' or ']' is expected")
            yield Problem(Where(file, line, number), f"this is not valid JSON ({end}): mend it, or write it again.")
            return


def _find(text: str, where: Where, key: str) -> int | Problem:
    """Where the list begins that is `key`'s value in the one object that a file holds."""
    whole = parse(text, where)
    if isinstance(whole, Problem):
        return whole
    if not isinstance(whole, dict) or not isinstance(whole.get(key), list):
        return Problem(where, f"the file must hold an object with a list {key!r}.")
    place = _skip(text, 0)
    while True:  # it is valid: the keys and values are passed one by one
        name, place = _DECODER.raw_decode(text, _skip(text, place + 1))
        place = _skip(text, _skip(text, place) + 1)
        if name == key:
            return place
        _, place = _DECODER.raw_decode(text, place)
        place = _skip(text, place)


def decoded(data: bytes, where: Where) -> str | Problem:
    """UTF-8, with or without a byte order mark; a `Problem` names the line of a bad byte, counted on from `where`."""
    if data.startswith(BOMS):
        return Problem(where, OTHER_UNICODE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = where.line + data.count(b"\n", 0, error.start)
        return Problem(Where(where.file, line), NOT_UTF8.format(byte=data[error.start]))


def _broken(error: json.JSONDecodeError) -> str:
    return f"this is not valid JSON ({error.msg}, column {error.colno}): mend it, or write it again."


def _skip(text: str, place: int) -> int:
    """The next place that holds no white space."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()
