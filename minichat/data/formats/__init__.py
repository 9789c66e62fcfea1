"""Data sets in the formats in which people have them: each is told from its content and read to the same `Example`s."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, get_args

from minichat.data import UnknownKeys
from minichat.data.example import (
    BOMS,
    OTHER_UNICODE,
    Example,
    Problem,
    Turn,
    Where,
    first_byte,
    is_table,
    parse,
    read_text,
    records,
)
from minichat.data.formats import chat, folder, pairs, tables
from minichat.data.formats.base import ALIGNMENT, Asking, Entry, Shelf, is_document, read_instructions, refusal
from minichat.data.formats.folder import expand, tar_entries, tars
from minichat.data.formats.pairs import CAPTIONS, KEY, PICTURES, align_samples, coco_entries, is_named, is_vqa
from minichat.data.formats.tables import PICTURE, QUESTION, TEXT, Columns
from minichat.errors import POINTER, UNFETCHED, DataError, SettingsError
from minichat.errors import listing as listing_of
from minichat.fileio import open_file

# --- Which format a file or folder is in, told from its content.


_TAR = b"ustar"  # at byte 257 of a tar's first header (POSIX.1-1988)
_LISTS = "dataset_info.json"  # LLaMA-Factory's list of data sets


def form_of(path: Path, shown: str) -> str | None:
    """The name of the format, or None where none is recognised.

    Raises `DataError` for what is missing or empty, or holds no record that could tell.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.exists():
        return _of_file(path, shown)
    if shown.endswith(".tar"):
        return "webdataset"  # a pattern
    if shown.endswith((tables.ENDING, ".arrow")) and expand(shown) not in ([], [shown]):
        return "arrow"
    raise DataError(f"{shown!r} was not found: check the path.")


def _of_folder(path: Path) -> str | None:
    if (path / CAPTIONS).is_file():
        return "cc_sbu_align"
    if tables.is_saved(path):
        return "arrow"
    metadata = [name for name in folder.METADATA if (path / name).is_file()]
    if any(path.glob("*.tar")):
        if metadata or folder.has_pictures(path):
            raise DataError(
                f"{str(path)!r} holds tars and pictures beside them: name the tars ('…/*.tar'), or move them."
            )
        return "webdataset"
    if len(metadata) > 1:
        raise DataError(f"{str(path)!r} holds {' and '.join(metadata)}: name one of them, for only one is read.")
    if metadata:
        return "pairs"
    if folder.has_pairs(path):
        return "folder"
    if tables.is_folder(path):  # late: img2dataset puts one beside its tars and pictures, too
        return "arrow"
    if folder.has_kinds(path) and not any(_tells(path / name) for name in folder.lists_below(path)[:_LOOKED_AT]):
        return "kinds"
    return None


_LOOKED_AT = 50  # lists among folders of kinds: by so many it is known what they are


def _tells(path: Path) -> bool:
    """Whether a file among pictures says what they show: a data set, or a text of one of them, whole or damaged."""
    try:
        if form_of(path, path.name) is not None:
            return True
        whole = _document(path, path.name)
    except (DataError, OSError):
        return True
    # A description of the whole set, such as Kaggle's dataset-metadata.json, bears no picture's name.
    of_one = any(map(folder.looks_like_picture, path.parent.glob(f"{escape(path.stem)}.*")))
    return of_one and isinstance(whole, dict) and any(key.strip().casefold() in TEXT for key in whole)


def _of_file(path: Path, shown: str) -> str | None:
    with open_file(path) as file:
        head = file.read(512)
    if head.startswith(POINTER):
        raise DataError(f"{shown!r} {UNFETCHED}.")
    tables.check_unpacked(path, head, shown)
    if head[257:262] == _TAR or path.suffix.lower() == ".tar":
        return "webdataset"
    if is_table(path):
        return "arrow"
    first = first_byte(path)
    if not first:
        raise DataError(f"{Where(shown, 1)}: the file is empty: there is no record in it.")
    if head.startswith(BOMS):
        raise DataError(f"{Where(shown, 1)}: {OTHER_UNICODE}")
    if first not in (b"{", b"["):
        return "pairs" if path.suffix.lower() in (".csv", ".tsv") else _of_table(head)
    if path.name == CAPTIONS:
        return "cc_sbu_align"
    return _of_json(path, shown)


def _of_json(path: Path, shown: str) -> str | None:
    problem = None
    for item in records(path, shown):
        if not isinstance(item, Problem):
            return _of_document(item[1]) or of_record(item[1])
        if problem is None:
            problem = item
            whole = _document(path, shown)
            if (known := _of_document(whole)) is not None:
                return known
            if isinstance(whole, dict) and path.name == _LISTS:
                raise DataError(f"{shown!r} lists data sets rather than records: name the file of one of them.")
            if of_record(whole) is not None:
                raise DataError(f"{shown!r} holds one record over several lines: put it into a list, or into one line.")
            if isinstance(whole, dict):
                return None
    raise DataError(str(problem))


def _of_document(value: Any) -> str | None:
    """The format of a file that holds a whole data set in one object."""
    if is_document(value):
        return "coco"
    if is_vqa(value):
        return "vqa"
    return "by_picture" if is_named(value) else None


def _document(path: Path, shown: str) -> Any:
    """The one JSON value of a file that is spread over lines; None where it is no such file."""
    text = read_text(path, Where(shown, 1))
    value = parse(text, Where(shown, 1)) if isinstance(text, str) and text.rstrip().endswith("}") else None
    return None if isinstance(value, Problem) else value


def _of_table(head: bytes) -> str | None:
    line = head.split(b"\n", 1)[0]
    return "pairs" if b"\0" not in line and any(mark in line for mark in (b",", b"\t", b";", b"|")) else None


def of_record(record: Any) -> str | None:
    """The format that a record is in: "messages", "sharegpt", "llava", "pairs", or none that is known."""
    if not isinstance(record, dict):
        return None
    for key in ("messages", "conversations"):
        if record.get(key) is not None:
            if any(pictures in record for pictures in ("images", "videos")):
                return "sharegpt"
            if key == "conversations":
                return "llava" if _is_said(record[key]) else "sharegpt"
            return "messages" if record.get("image") is None and _is_ours(record[key]) else "sharegpt"
    told = {key.strip().casefold(): value for key, value in record.items()}
    return "pairs" if any(key in told and not _is_listing(told[key]) for key in (*PICTURE, *QUESTION)) else None


def _is_listing(value: Any) -> bool:
    """Whether a value is a list of records, as in files that hold a whole data set in one object."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and not {"bytes", "path", "role", "from"} & first.keys()


def _is_said(turns: Any) -> bool:
    """Whether the turns are LLaVA's, or nothing that would tell."""
    return not (isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0])


def _is_ours(messages: Any) -> bool:
    """Whether the turns are Hugging Face's messages, or nothing that would tell."""
    return not (isinstance(messages, list) and messages and isinstance(messages[0], dict) and "from" in messages[0])


# --- Each format by its name: what it is, and how it is read.


UNKNOWN_KEYS: tuple[str, ...] = get_args(UnknownKeys)


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
    yield chat.message_turns(record, shelf)


def _llava(record: object, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield chat.llava_turns(record, shelf)


def _sharegpt(record: object, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield chat.sharegpt_turns(record, shelf)


_TALKS = {"messages": _messages, "llava": _llava, "sharegpt": _sharegpt}


def _entry(form: str | None, where: Where, record: object, home: Path, columns: Columns) -> Entry:
    """A record in one of the formats whose records are objects."""
    if form in _TALKS:
        return Entry(where, home, partial(_TALKS[form], record))
    return Entry(where, home, partial(_pair, record, columns, str(where.line)))


def _pair(record: object, columns: Columns, name: str, shelf: Shelf, asking: Asking) -> Iterator[Iterable[Turn]]:
    yield from pairs.pair_samples(record, shelf, columns, asking, name)


def _json(form: str, path: Path, shown: str, options: Options) -> Items:
    """Reads conversations in JSON."""
    home = options.home(path.parent)
    for item in records(path, shown):
        yield item if isinstance(item, Problem) else _entry(form, *item, home, options.columns)


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
        file, said = path / CAPTIONS, os.path.join(shown, CAPTIONS)
    home = options.home(file.parent / PICTURES)
    for item in records(file, said, KEY):
        yield item if isinstance(item, Problem) else Entry(item[0], home, partial(align_samples, item[1]))


def _coco(path: Path, shown: str, options: Options) -> Items:
    yield from coco_entries(path, shown, None if options.pictures is None else Path(options.pictures))


def _vqa(path: Path, shown: str, options: Options) -> Items:
    yield from pairs.vqa_entries(path, shown, None if options.pictures is None else Path(options.pictures))


def _by_picture(path: Path, shown: str, options: Options) -> Items:
    yield from pairs.named_entries(path, shown, options.home(path.parent))


def _pairs(path: Path, shown: str, options: Options) -> Items:
    file, said = path, shown
    if path.is_dir():
        found = next((name for name in folder.METADATA if (path / name).is_file()), folder.METADATA[0])
        file, said = path / found, os.path.join(shown, found)
    home, columns = options.home(file.parent), options.columns
    if file.suffix == tables.ENDING:
        yield from _arrow(file, said, options)
        return
    objects = first_byte(file) in (b"{", b"[")
    for item in records(file, said) if objects else tables.table_rows(file, said, columns):
        yield item if isinstance(item, Problem) else _entry("pairs", *item, home, columns)


def _arrow(path: Path, shown: str, options: Options) -> Items:
    for file in tables_of(shown):
        folder = Path(file).parent
        home = options.home(folder.parent if tables.is_saved(folder) else folder)
        for item in tables.arrow_rows(Path(file), file):
            yield item if isinstance(item, Problem) else _entry(of_record(item[1]), *item, home, options.columns)


def tables_of(source: str) -> list[str]:
    """The files of a table, of a folder of them, or of a pattern. Raises `DataError` where there is none."""
    found: list[str] = []
    for name in expand(source):
        some = tables.files(Path(name), name) if os.path.isdir(name) else [name]
        if os.path.isdir(name):
            tables.check_one_set(some, name, tables.ENDING)
        found += some
    if not found:
        raise DataError(f"There is no table at {source!r}: check the path.")
    return found


def tars_of(source: str) -> list[str]:
    """The tars of a pattern, or of a folder. Raises `DataError` where there is none, or a folder holds several sets."""
    found = tars(source)
    if os.path.isdir(source):
        tables.check_one_set(found, source, ".tar")
    return found


def _folder(path: Path, shown: str, options: Options) -> Items:
    if not path.is_dir():
        raise DataError(f"{shown!r} is not a folder: name one that holds pictures and .txt files.")
    yield from folder.folder_entries(path, shown)


def _kinds(path: Path, shown: str, options: Options) -> Items:
    if not path.is_dir():
        raise DataError(f"{shown!r} is not a folder: name one that holds a folder for each kind.")
    yield from folder.kind_entries(path, shown)


def _shards(path: Path, shown: str, options: Options) -> Items:
    for file in tars_of(shown):
        yield from tar_entries(Path(file), file, options.columns)


_COMMON = ("seed", "epoch", "several_captions", "unknown_keys")
_ASKING = ("instructions", "captions")
_COLUMNS = ("image_column", "text_column", "question_column")

FORMS: dict[str, Form] = {
    "messages": Form("Hugging Face messages, JSON lines or a list", partial(_json, "messages"), ("pictures",)),
    "llava": Form("LLaVA's JSON: image, conversations of from and value", partial(_json, "llava"), ("pictures",)),
    "sharegpt": Form("ShareGPT with images: messages or conversations", partial(_json, "sharegpt"), ("pictures",)),
    "cc_sbu_align": Form("MiniGPT-4's folder: filter_cap.json, image/", _align, ("pictures", *_ASKING)),
    "coco": Form("COCO's captions: images, annotations", _coco, ("pictures", *_ASKING)),
    "vqa": Form("VQAv2's and OK-VQA's questions and annotations", _vqa, ("pictures", "captions")),
    "by_picture": Form("one object of pictures' paths and captions", _by_picture, ("pictures", *_ASKING)),
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
    "kinds": Form("a folder of pictures for each kind, named for what they show", _kinds, _ASKING),
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


# --- Data sets in the formats in which people have them: each is read to the same `Example`s.
#
#     read("train.jsonl")                      the format is told from the content
#     read("pairs.csv", "pairs", text_column="caption")
#
# `read` raises at the first record that is wrong, or has a key that nothing reads; `scan` goes on, and gives a
# `Problem` in the place of one and `Example.unread` of the other.


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
        options: fields of `minichat.data.formats.Options`. Equal `seed` and `epoch` draw equal instructions.

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
    names = folder.lists_below(path) if path.is_dir() else []
    if not names:
        return ""
    kinds = ", or the format 'kinds' for the names of its folders" if folder.has_kinds(path) else ""
    return f" It holds {listing_of(names, 6)}: name one of them{kinds}."
