"""Each format by its name: what it is, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minichat.data.example import Example, Problem, Turn
from minichat.data.formats import align, arrow, folder, llava, messages, pairs, shards, sharegpt
from minichat.data.formats.asking import ALIGNMENT, Asking, read_instructions
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import first_byte, records
from minichat.data.formats.record import Shelf, attempt
from minichat.data.formats.telling import of_record
from minichat.errors import DataError, SettingsError


@dataclass(frozen=True)
class Options:
    """How a data set is read, beyond its format."""

    #: The folder that pictures' paths start from; None: where the file lies.
    pictures: str | os.PathLike[str] | None = None
    #: A file of instructions, one of which is drawn for each picture that comes with a text alone.
    instructions: str | os.PathLike[str] | None = None
    #: "verbatim", or "blip": as MiniGPT-4's first stage changes the captions of such pictures.
    captions: str = "verbatim"
    #: Columns of a table (or keys of its objects) of pictures, texts and questions; None: found by their usual names.
    image_column: str | None = None
    text_column: str | None = None
    question_column: str | None = None
    #: What is drawn depends on these two, and on the record, alone.
    seed: int = 0
    epoch: int = 0

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.text_column, self.question_column)

    def asking(self, usual: Path | None = None) -> Asking:
        """How a picture and its text become turns; `usual` is the file of instructions where none is named."""
        if self.instructions is None and usual is not None and not usual.is_file():
            raise DataError("This format draws its instructions from a file: name one (instructions).")
        path = self.instructions or usual
        return Asking(() if path is None else read_instructions(path), self.captions, self.seed, self.epoch)

    def shelf(self, usual: Path) -> Shelf:
        """Where pictures lie."""
        return Shelf(usual if self.pictures is None else Path(self.pictures))


Items = Iterator[Example | Problem]
Scan = Callable[[Path, str, Options], Items]


@dataclass(frozen=True)
class Form:
    """A format: what it is, in a line; how it is read; which options it has besides `seed` and `epoch`."""

    says: str
    scan: Scan
    options: tuple[str, ...] = ()


_TALKS: dict[str, Callable[[object, Shelf], Iterable[Turn]]] = {
    "messages": messages.turns,
    "llava": llava.turns,
    "sharegpt": sharegpt.turns,
}


def _json(form: str) -> Scan:
    """Reads conversations in JSON."""

    def scan(path: Path, shown: str, options: Options) -> Items:
        shelf = options.shelf(path.parent)
        for item in records(path, shown):
            yield item if isinstance(item, Problem) else attempt(item[0], _TALKS[form], item[1], shelf)

    return scan


def _align(path: Path, shown: str, options: Options) -> Items:
    file, said = path, shown
    if path.is_dir():
        file, said = path / align.CAPTIONS, os.path.join(shown, align.CAPTIONS)
    shelf, asking = options.shelf(file.parent / align.PICTURES), options.asking(ALIGNMENT)
    for item in records(file, said, align.KEY):
        yield item if isinstance(item, Problem) else attempt(item[0], align.turns, item[1], shelf, asking)


def _pairs(path: Path, shown: str, options: Options) -> Items:
    shelf, columns, asking = options.shelf(path.parent), options.columns, options.asking()
    objects = first_byte(path) in (b"{", b"[")
    for item in records(path, shown) if objects else pairs.rows(path, shown, columns):
        if isinstance(item, Problem):
            yield item
        else:
            yield attempt(item[0], pairs.turns, item[1], shelf, columns, asking, item[0])


def _arrow(path: Path, shown: str, options: Options) -> Items:
    shelf, columns, asking = options.shelf(path.parent), options.columns, options.asking()
    for item in arrow.rows(path, shown):
        if isinstance(item, Problem):
            yield item
            continue
        where, row = item
        form = of_record(row)
        if form in _TALKS:
            yield attempt(where, _TALKS[form], row, shelf)
        else:
            yield attempt(where, pairs.turns, row, shelf, columns, asking, where)


def _folder(path: Path, shown: str, options: Options) -> Items:
    if not path.is_dir():
        raise DataError(f"{shown!r} is not a folder: name one that holds pictures and .txt files.")
    yield from folder.scan(path, shown, options.asking())


def _shards(path: Path, shown: str, options: Options) -> Items:
    asking = options.asking()
    for file in shards.expand(shown):
        for record in shards.records(Path(file), file):
            yield record if isinstance(record, Problem) else record.example(asking)


_ASKING = ("instructions", "captions")
_COLUMNS = ("image_column", "text_column", "question_column")

FORMS: dict[str, Form] = {
    "messages": Form("Hugging Face messages, JSON lines or a list", _json("messages"), ("pictures",)),
    "llava": Form("LLaVA's JSON: image, conversations of from and value", _json("llava"), ("pictures",)),
    "sharegpt": Form("ShareGPT with images: messages or conversations", _json("sharegpt"), ("pictures",)),
    "cc_sbu_align": Form("MiniGPT-4's folder: filter_cap.json, image/", _align, ("pictures", *_ASKING)),
    "pairs": Form(
        "pictures and texts: CSV, TSV, JSON lines or a list",
        _pairs,
        ("pictures", *_ASKING, *_COLUMNS),
    ),
    "arrow": Form(
        "a Parquet file, or a folder that the library datasets saved, of any of these",
        _arrow,
        ("pictures", *_ASKING, *_COLUMNS),
    ),
    "folder": Form("a folder of pictures with .txt files beside them", _folder, _ASKING),
    "webdataset": Form("WebDataset's tars: a file, a folder, a pattern {000..012}.tar", _shards, _ASKING),
}


def options_of(form: str, given: dict[str, Any]) -> Options:
    """The options, if the format has them. Raises `SettingsError` naming one that it has not."""
    known = FORMS[form].options
    for name, value in given.items():
        if name not in {field.name for field in fields(Options)}:
            raise SettingsError(f"{name} is no option of a data set: use {', '.join(f.name for f in fields(Options))}.")
        if value is not None and name not in ("seed", "epoch", *known):
            raise SettingsError(f"{name} is no option of the format {form!r}, which has {', '.join(known)}.")
    return Options(**given)


def listing() -> str:
    """All formats, for an error."""
    return "; ".join(f"{name} ({form.says})" for name, form in FORMS.items())
