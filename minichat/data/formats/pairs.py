"""Pairs of picture and text: rows of a table (`table`), or JSON objects, with a question where there is one.

    {"image", "caption"}                            or a list of captions
    {"image", "question", "answer"}
    {"instruction", "input", "output", "history", "system", "images"}      Alpaca, as LLaMA-Factory has it
    {"query", "response", "history", "system", "images"}                   ms-swift
    {"prompt", "completion", "images"}                                     TRL

In the last three `<image>` in a question is the place of a picture (see `marked`), and a question may do without one. A
row of `minichat caption` that holds an error in place of a caption is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minichat.data.example import StoredPicture, Turn
from minichat.data.formats import sharegpt
from minichat.data.formats.asking import Asking
from minichat.data.formats.columns import INPUT, MARKED, PICTURE, TEXT, Columns
from minichat.data.formats.harmless import empty
from minichat.data.formats.marked import IMAGE, Said, cut, place
from minichat.data.formats.record import LeftOut, Shelf, fields, is_base64, kind, listed, with_system, words
from minichat.data.tables import Cell
from minichat.errors import DataError, shown

_ERROR = "error"  # in a row of `minichat caption`


def samples(record: object, shelf: Shelf, columns: Columns, asking: Asking, name: str) -> Iterator[list[Turn]]:
    """The turns of one pair, or of each of its texts that is learnt. Raises `DataError` for what is not understood.

    Args:
        name: the record's, from which follows what is drawn for it.
    """
    read = fields(record, "the record", ())
    if columns == Columns():
        _leave_out_failed(read)
    if isinstance(read.get("prompt"), list):
        yield _messages(read, shelf)
        return
    there = {key: value for key, value in read.items() if value is not None}
    held = [key for key, value in there.items() if _is_picture(value)]
    named = columns.among(there, held, pictures=not any(key.casefold() in (*MARKED, "completion") for key in there))
    texts = _texts(read[str(named.text)], shown(named.text), several=not named.marks)
    shows = named.picture is not None and not (named.marks and empty(read[named.picture]))
    pictures = _pictures(read[str(named.picture)], shelf) if shows else []
    if not pictures and not named.marks:
        raise DataError(f"{shown(named.picture)} is an empty list: a pair needs a picture.")
    shelf.only(read, _known(there, named, held, columns))
    for own, text in asking.chosen(name, texts):
        if named.question is None:
            shown_to = [picture for frames in pictures for picture in frames]
            yield with_system(read, asking.turns(own, shown_to, text))
        else:
            asked = _asked(read, named.question)
            talk = [*_history(read.get("history")), ("user", asked), ("assistant", asking.worded(text))]
            said = [_said(role, spoken, named.marks) for role, spoken in talk]
            yield with_system(read, place(said, {IMAGE: pictures}))


def _known(there: Mapping[str, Any], named: Columns, held: list[str], columns: Columns) -> list[str]:
    """The keys of a record that are read, or need not be."""
    known = [name for name in (named.picture, named.text, named.question) if name is not None]
    known += [*columns.passed_over(there), "system"]
    if named.picture in held:  # it may have names, too
        known += [key for key, value in there.items() if key.strip().casefold() in PICTURE and isinstance(value, str)]
    return known if named.question is None else [*known, INPUT, "history"]


def _leave_out_failed(read: Mapping[str, Any]) -> None:
    """Leave out a row that says why there is no caption."""
    if not empty(read.get(_ERROR)) and all(empty(read.get(key)) for key in TEXT):
        raise LeftOut(f"the row holds an error in place of a caption: {shown(read[_ERROR])}.")


def _messages(read: Mapping[str, Any], shelf: Shelf) -> list[Turn]:
    """TRL's prompt and completion, which may be messages."""
    whole = [*read["prompt"], *listed(read.get("completion"), "'completion'")]
    rest = {key: value for key, value in read.items() if key not in ("prompt", "completion")}
    return sharegpt.turns({**rest, "messages": whole}, shelf)


def _is_picture(value: Any) -> bool:
    """Whether a value holds a picture, or pictures, rather than their names."""
    if isinstance(value, list):
        return any(map(_is_picture, value))
    if isinstance(value, dict):
        return value.get("bytes") is not None
    if isinstance(value, str):
        return value.startswith("data:image/") or is_base64(value)
    return isinstance(value, bytes | Cell | StoredPicture)


def _pictures(value: Any, shelf: Shelf) -> list[Any]:
    """A picture or a list of them, each as its frames."""
    if isinstance(value, list):
        return [shelf.frames(name) for name in value]
    return [[shelf.picture(value)]]


def _texts(value: Any, what: str, several: bool) -> list[str]:
    """A text, or those of a list; the reply to a question of Alpaca's kind is one."""
    if several and isinstance(value, list) and value:
        return [words(text, f"{what}, text {number},") for number, text in enumerate(value, start=1)]
    return [words(value, what)]


def _asked(read: Mapping[str, Any], key: str) -> str:
    """The question; of Alpaca's the instruction and, in a line after it, what it is about."""
    asked = words(read[key], shown(key))
    if key == INPUT or empty(read.get(INPUT)):
        return asked
    return "\n".join(part for part in (asked, words(read[INPUT], f"{INPUT!r}")) if part)


def _history(turns: Any) -> Iterator[tuple[str, str]]:
    """Earlier questions and replies, `[[question, reply], …]`."""
    for number, pair in enumerate([] if empty(turns) else listed(turns, "'history'"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"turn {number} of 'history' is {kind(pair)}: it must be a list of a question and a reply.")
        yield "user", words(pair[0], f"turn {number} of 'history', the question,")
        yield "assistant", words(pair[1], f"turn {number} of 'history', the reply,")


def _said(role: Any, text: str, marks: bool) -> Said:
    return Said(role, cut(text, [IMAGE]) if marks and role == "user" else [text])
