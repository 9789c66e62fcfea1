"""Each format by its name: what it is, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Turn, Where
from minichat.data.formats import align, arrow, coco, folder, llava, messages, pairs, shards, sharegpt, table
from minichat.data.formats.asking import ALIGNMENT, Asking, read_instructions
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import first_byte, records
from minichat.data.formats.record import Entry, Shelf
from minichat.data.formats.telling import of_record
from minichat.errors import DataError, SettingsError

UNKNOWN_KEYS = ("refuse", "ignore")


@dataclass(frozen=True)
class Options:
    """How a data set is read, beyond its format."""

    #: The folder that pictures' paths start from; None: where the file lies.
    pictures: str | os.PathLike[str] | None = None
    #: A file of instructions, one of which is drawn for each picture that comes with a text alone.
    instructions: str | os.PathLike[str] | None = None
    #: "verbatim", or "blip": as MiniGPT-4's first stage changes the captions of such pictures.
    captions: str = "verbatim"
    #: Of several captions of one picture: "each" is a sample, the "first" alone, or a "random" one in each epoch.
    several_captions: str = "each"
    #: "refuse" a record with a key that nothing reads and that is not known to be harmless, or "ignore" such keys.
    unknown_keys: str = "refuse"
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

    def __post_init__(self) -> None:
        if self.unknown_keys not in UNKNOWN_KEYS:
            known = " or ".join(map(repr, UNKNOWN_KEYS))
            raise SettingsError(f"unknown_keys is {self.unknown_keys!r}: use {known}.")

    def asking(self, form: str) -> Asking:
        """How a picture and its text become turns; one format draws its instructions from a file of its own."""
        path = self.instructions
        if path is None and form == "cc_sbu_align":
            path = ALIGNMENT
            if not path.is_file():
                raise DataError("This format draws its instructions from a file: name one (instructions).")
        lines = () if path is None else read_instructions(path)
        return Asking(lines, self.captions, self.several_captions, self.seed, self.epoch)

    def home(self, usual: Path) -> Path:
        """Where pictures lie."""
        return usual if self.pictures is None else Path(self.pictures)


Items = Iterator[Entry | Problem]
Scan = Callable[[Path, str, Options], Items]


@dataclass(frozen=True)
class Form:
    """A format: what it is, in a line; how it is read; which options it has besides those of all."""

    says: str
    entries: Scan
    options: tuple[str, ...] = ()


def _messages(record: object, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield messages.turns(record, shelf)


def _llava(record: object, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield llava.turns(record, shelf)


def _sharegpt(record: object, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield sharegpt.turns(record, shelf)


_TALKS = {"messages": _messages, "llava": _llava, "sharegpt": _sharegpt}


def _entry(form: str | None, where: Where, record: object, home: Path, columns: Columns) -> Entry:
    """A record in one of the formats whose records are objects."""
    if form in _TALKS:
        return Entry(where, home, partial(_TALKS[form], record))
    return Entry(where, home, partial(_pair, record, columns, str(where.line)))


def _pair(record: object, columns: Columns, name: str, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield from pairs.samples(record, shelf, columns, asking, name)


def _json(form: str) -> Scan:
    """Reads conversations in JSON."""

    def entries(path: Path, shown: str, options: Options) -> Items:
        home = options.home(path.parent)
        for item in records(path, shown):
            yield item if isinstance(item, Problem) else _entry(form, *item, home, options.columns)

    return entries


def by_record(usual: str) -> Scan:
    """Reads JSON whose records are each told by themselves: what is in none of the formats is read as the first is."""

    def entries(path: Path, shown: str, options: Options) -> Items:
        home = options.home(path.parent)
        for item in records(path, shown):
            if isinstance(item, Problem):
                yield item
            else:
                yield _entry(of_record(item[1]) or usual, *item, home, options.columns)

    return entries


def _align(path: Path, shown: str, options: Options) -> Items:
    file, said = path, shown
    if path.is_dir():
        file, said = path / align.CAPTIONS, os.path.join(shown, align.CAPTIONS)
    home = options.home(file.parent / align.PICTURES)
    for item in records(file, said, align.KEY):
        yield item if isinstance(item, Problem) else Entry(item[0], home, partial(align.samples, item[1]))


def _coco(path: Path, shown: str, options: Options) -> Items:
    yield from coco.entries(path, shown, None if options.pictures is None else Path(options.pictures))


def _pairs(path: Path, shown: str, options: Options) -> Items:
    file, said = path, shown
    if path.is_dir():
        found = next((name for name in folder.METADATA if (path / name).is_file()), folder.METADATA[0])
        file, said = path / found, os.path.join(shown, found)
    home, columns = options.home(file.parent), options.columns
    if file.suffix == arrow.ENDING:
        yield from _arrow(file, said, options)
        return
    objects = first_byte(file) in (b"{", b"[")
    for item in records(file, said) if objects else table.rows(file, said, columns):
        yield item if isinstance(item, Problem) else _entry("pairs", *item, home, columns)


def _arrow(path: Path, shown: str, options: Options) -> Items:
    for file in tables_of(shown):
        folder = Path(file).parent
        home = options.home(folder.parent if arrow.is_saved(folder) else folder)
        for item in arrow.rows(Path(file), file):
            yield item if isinstance(item, Problem) else _entry(of_record(item[1]), *item, home, options.columns)


def tables_of(source: str) -> list[str]:
    """The files of a table, of a folder of them, or of a pattern. Raises `DataError` where there is none."""
    found: list[str] = []
    for name in shards.expand(source):
        found += arrow.files(Path(name), name) if os.path.isdir(name) else [name]
    if not found:
        raise DataError(f"There is no table at {source!r}: check the path.")
    return found


def _folder(path: Path, shown: str, options: Options) -> Items:
    if not path.is_dir():
        raise DataError(f"{shown!r} is not a folder: name one that holds pictures and .txt files.")
    yield from folder.entries(path, shown)


def _shards(path: Path, shown: str, options: Options) -> Items:
    for file in shards.tars(shown):
        yield from shards.entries(Path(file), file, options.columns)


_COMMON = ("seed", "epoch", "several_captions", "unknown_keys")
_ASKING = ("instructions", "captions")
_COLUMNS = ("image_column", "text_column", "question_column")

FORMS: dict[str, Form] = {
    "messages": Form("Hugging Face messages, JSON lines or a list", _json("messages"), ("pictures",)),
    "llava": Form("LLaVA's JSON: image, conversations of from and value", _json("llava"), ("pictures",)),
    "sharegpt": Form("ShareGPT with images: messages or conversations", _json("sharegpt"), ("pictures",)),
    "cc_sbu_align": Form("MiniGPT-4's folder: filter_cap.json, image/", _align, ("pictures", *_ASKING)),
    "coco": Form("COCO's captions: images, annotations", _coco, ("pictures", *_ASKING)),
    "pairs": Form(
        "pictures and texts, Alpaca, ms-swift: CSV, TSV, JSON lines or a list",
        _pairs,
        ("pictures", *_ASKING, *_COLUMNS),
    ),
    "arrow": Form(
        "Parquet files, or a folder that the library datasets saved, of any of these",
        _arrow,
        ("pictures", *_ASKING, *_COLUMNS),
    ),
    "folder": Form("a folder of pictures with .txt or .caption files beside them", _folder, _ASKING),
    "webdataset": Form(
        "WebDataset's tars: a file, a folder, a pattern {000..012}.tar",
        _shards,
        (*_ASKING, *_COLUMNS[1:]),
    ),
}

#: The formats whose records, as objects in JSON, tell by themselves which of them each is in.
OF_RECORDS = ("messages", "llava", "sharegpt", "pairs")


def options_of(form: str, given: dict[str, Any]) -> Options:
    """The options, if the format has them. Raises `SettingsError` naming one that it has not."""
    known = FORMS[form].options
    for name, value in given.items():
        if name not in {field.name for field in fields(Options)}:
            raise SettingsError(f"{name} is no option of a data set: use {', '.join(f.name for f in fields(Options))}.")
        if value is not None and name not in (*_COMMON, *known):
            raise SettingsError(f"{name} is no option of the format {form!r}, which has {', '.join(known)}.")
    return Options(**given)


def listing() -> str:
    """All formats, for an error."""
    return "; ".join(f"{name} ({form.says})" for name, form in FORMS.items())
