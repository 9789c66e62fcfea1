"""Tables: which columns hold what, CSV and TSV, and what Hugging Face's `datasets` writes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minichat.data import example
from minichat.data.example import BOMS, NOT_UTF8, OTHER_UNICODE, Problem, Value, Where
from minichat.errors import DataError, listing, shown
from minichat.fileio import open_file
from minichat.images import SUFFIXES

# --- Which columns of a table, or keys of an object, hold the picture, the text, and the question where there is one.


PICTURE = ("image", "images", "img", "picture", "pictures", "image_path", "img_path", "image_name", "image_file",
           "filepath", "file_path", "file_name", "filename", "path", "file", "jpg", "jpeg", "png", "webp")  # fmt: skip
TEXT = ("caption", "captions", "text", "title", "description", "comment", "sentences", "references", "answer",
        "multiple_choice_answer", "reply", "response", "output", "completion")  # fmt: skip
QUESTION = ("question", "instruction", "query", "prompt")
#: Questions of formats that mark a picture's place by `<image>` (Alpaca with images, ms-swift, and TRL's with a
#: `completion`), and in which a question may do without a picture.
MARKED = ("instruction", "query")
INPUT = "input"  # what Alpaca's instruction is about; or, alone, the question


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None: found among the usual ones."""

    picture: str | None = None
    text: str | None = None
    question: str | None = None

    def among(self, names: Iterable[str], held: Collection[str] = (), pictures: bool = True) -> Columns:
        """These columns, found in a table that has the columns `names`.

        Args:
            held: of these, the ones that hold pictures themselves; they go before names of pictures.
            pictures: whether there must be a picture.

        Raises `DataError` for one that is missing, or for several that could be meant.
        """
        there = list(names)
        asked = QUESTION if any(_is(name, QUESTION) for name in there) else (INPUT,)
        question = _found("question_column", self.question, there, asked, needed=False)
        shows = [name for name in there if name in held and _is(name, PICTURE)] or there
        alone = not pictures and question is not None
        picture = _found("image_column", self.picture, there if self.picture else shows, PICTURE, needed=not alone)
        return Columns(picture, _found("text_column", self.text, there, TEXT), question)

    def passed_over(self, names: Iterable[str]) -> list[str]:
        """Of these names those that could have been a column which is another by choice."""
        chosen = ((self.picture, PICTURE), (self.text, TEXT), (self.question, QUESTION))
        return [name for name in names for named, usual in chosen if named is not None and _is(name, usual)]

    @property
    def marks(self) -> bool:
        """Whether `<image>` in the question is a picture's place."""
        named = (self.text or "").casefold() == "completion"
        return self.question is not None and (_is(self.question, MARKED) or named)


def _is(name: str, usual: tuple[str, ...]) -> bool:
    return name.strip().casefold() in usual


def _found(option: str, named: str | None, there: list[str], usual: tuple[str, ...], needed: bool = True) -> str | None:
    what = option.removesuffix("_column")
    naming = f"({option}; on the command line --{what}-column)"
    if named is not None:
        found = next((name for name in there if named in (name, name.strip())), None)
        if found is None:
            raise DataError(f"there is no column {shown(named)} for the {what}: there are {listing(there) or 'none'}.")
        return found
    candidates = [name for name in there if _is(name, usual)]
    if len(candidates) > 1:
        several = " and ".join(map(shown, candidates))
        raise DataError(f"the columns {several} could each be the {what}: name one {naming}.")
    if not candidates and needed:
        raise DataError(f"no column is known to be the {what} ({listing(there) or 'none'}): name it {naming}.")
    return candidates[0] if candidates else None


# --- Tables as text: CSV (RFC 4180), whose fields may be quoted, and TSV, whose fields never are.
#
# The first line names the columns. A table without such a line is read where it has two columns and the first line's
# one field is the path of a picture: then the other is its text. Fields may have any length.


_DELIMITERS = ",\t;|"
_TOLD = re.compile(rf'"?sep=([{_DELIMITERS}])"?\s*', re.IGNORECASE)
# Flickr8k and Flickr30k number a picture's captions behind its name: 1000268201_693b08cb0e.jpg#0.
_NUMBER = re.compile(r"(.*\.[A-Za-z]+)#\d+")
_NUMBERED_PICTURE = " numbered picture"  # a column without a name, whose names may be so
_UNQUOTED = " (A TSV has no quotation marks round its fields: name it .csv if this one has.)"
_HALF = re.compile(r"[\udc80-\udcff]")  # a byte that is no UTF-8
LONE_RETURNS = "the lines end with carriage returns alone, as on old Macs: save the table with line feeds."

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of the module as a whole: 131,072 unless one says otherwise


def table_rows(path: Path, file: str, columns: Columns) -> Iterator[Value | Problem]:
    """The rows of a table as objects, each with the line on which it begins; a `Problem` in place of a ragged one."""
    with open_file(path) as opened:
        # A byte that is no UTF-8 becomes a half surrogate, which the row is refused for.
        lines: Iterator[str] = (line.decode("utf-8", "surrogateescape") for line in opened)
        first = next(lines, "").removeprefix("\ufeff")
        if first.encode("utf-8", "surrogateescape").startswith(BOMS):
            yield Problem(Where(file, 1), OTHER_UNICODE)
            return
        first, number, told = header_line(first, lines)
        if not first.strip():
            yield Problem(Where(file, number), "the file is empty: its first line must name the columns.")
            return
        try:
            header, dialect = delimited(first, path.suffix, told)
        except csv.Error:
            yield Problem(Where(file, number), LONE_RETURNS)
            return
        quoted = dialect["quoting"] != csv.QUOTE_NONE
        names = _nameless(header) if columns == Columns() else None
        if names is None:
            wrong = _wrong_header(header, Where(file, number), columns)
            if wrong is not None:
                yield wrong
                return
        else:
            lines = itertools.chain([first], lines)
        raw: list[str] = []
        table = csv.reader(_noted(lines, raw), **dialect, strict=quoted)
        yield from _rows(table, raw, names or header, file, number + (names is None), "" if quoted else _UNQUOTED)


def _noted(lines: Iterable[str], raw: list[str]) -> Iterator[str]:
    """The same lines, each put into `raw`, too."""
    for line in lines:
        raw.append(line)
        yield line


def header_line(first: str, others: Iterator[str]) -> tuple[str, int, str | None]:
    """The line that names the columns, its number, and the delimiter where a line before it tells that.

    Such a line is `sep=;`, which spreadsheets read before the table.
    """
    told = _TOLD.fullmatch(first)
    return (first, 1, None) if told is None else (next(others, ""), 2, told[1])


def delimited(first: str, ending: str, told: str | None = None) -> tuple[list[str], dict[str, Any]]:
    """The fields of a table's first line, and how `csv.reader` is to read the others. `told`: the delimiter, if known.

    Raises `csv.Error` for a line that holds carriage returns among its fields.
    """
    delimiter = told or ("\t" if ending.lower() == ".tsv" else max(_DELIMITERS, key=first.count))
    quoted = delimiter != "\t" or ending.lower() == ".csv"
    dialect: dict[str, Any] = {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    fields = _named(next(csv.reader([first], **dialect)))
    # "image_name| comment_number| comment", as in Flickr30k's results.csv; "image, caption", as people type it
    spaced = quoted and any(field.startswith(" ") for field in fields[1:])
    dialect["skipinitialspace"] = spaced
    return _named(next(csv.reader([first], **dialect))) if spaced else fields, dialect


def _named(header: list[str]) -> list[str]:
    """Without the columns at its end that have no name, of which nothing may be said either."""
    names = [number for number, name in enumerate(header, start=1) if name.strip()]
    return header[: max(names, default=1)]


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


def _rows(table: Any, raw: list[str], header: list[str], file: str, first: int, hint: str) -> Iterator[Value | Problem]:
    """The rows from line `first` on; `hint` is added to what is said of a ragged one. `raw`: lines as they are read."""
    found = False
    while True:
        raw.clear()
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
        while len(row) > len(header) and not row[-1].strip():  # as spreadsheets write columns that were emptied
            row.pop()
        if not any(map(str.strip, row)):
            continue
        found = True
        if not hint and _stray_blank(row, raw):
            yield Problem(where, "a blank stands before a field's quotation mark, which then is a word: remove it.")
            continue
        if len(row) != len(header):
            counts = f"the row has {len(row)} fields and the header {len(header)}"
            yield Problem(where, f"{counts}: give each column one.{hint}")
            continue
        bad = _bad_byte(row, where)
        yield bad if bad is not None else (where, _record(header, row))
    if not found:
        yield Problem(Where(file, 1), "the table has a header but no row.")


def _stray_blank(row: list[str], raw: list[str]) -> bool:
    """Whether a blank keeps a quotation mark from opening its field. Within quotation marks both are words."""
    return any(field.startswith(' "') and '"' + field.replace('"', '""') + '"' not in "".join(raw) for field in row)


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


# --- What holds a data set, and is none that is read.


#: How files of zip, gzip, bzip2, xz, Zstandard, 7-Zip and RAR begin, and Excel's older ones.
_PACKED = (
    b"PK\3\4",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\xd0\xcf\x11\xe0",
)


def check_unpacked(path: Path, head: bytes, named: str) -> None:
    """Raises `DataError` for a spreadsheet, an archive or a compressed file, by how it begins."""
    if not head.startswith(_PACKED):
        return
    if path.suffix.lower() in (".xlsx", ".xlsm", ".xls", ".ods"):
        raise DataError(f"{named!r} is a spreadsheet, which is not read: save it as CSV in UTF-8, and name that.")
    raise DataError(f"{named!r} is compressed, or an archive: unpack it, and name what was in it.")


# --- What Hugging Face's `datasets` writes: Parquet files, or the folder of `save_to_disk`; pictures may lie within.
#
# A source is a file, a folder of them, or a pattern such as `data/train-*.parquet`. A row is read as a record of
# messages, ShareGPT, LLaVA or pairs is.


STATE = "state.json"  # what a folder of `save_to_disk` holds
SETS = "dataset_dict.json"  # and where it is of several sets
ENDING = ".parquet"


def is_saved(folder: Path) -> bool:
    """Whether a folder is one of `save_to_disk`."""
    return any((folder / name).is_file() for name in (STATE, SETS))


def is_folder(folder: Path) -> bool:
    """Whether a folder holds Parquet files, as one of the Hugging Face hub does."""
    return bool(_shards(folder))


def files(folder: Path, shown: str) -> list[str]:
    """The tables of a folder, in order. Raises `DataError` where it holds several sets, or none."""
    if (folder / SETS).is_file():
        raise several_sets(shown, (entry.parent.name for entry in folder.glob(f"*/{STATE}")))
    if (folder / STATE).is_file():
        return [os.path.join(shown, name) for name in _saved(folder / STATE, shown)]
    found = _shards(folder)
    # The hub's own names: train-00000-of-00002.parquet.
    sets = {path.stem.split("-")[0] for path in found if "-of-" in path.stem}
    if len(sets) > 1:
        raise several_sets(shown, sets, ENDING)
    if not found:
        raise DataError(f"{shown!r} holds no table: name a Parquet file, or a folder of them.")
    if found[0].parent == folder and any(folder.glob(f"data/*{ENDING}")):
        raise DataError(f"{shown!r} holds tables, and so does its folder 'data': name those to read by a pattern.")
    _check_all_there(found, shown)
    return [os.path.join(shown, os.path.relpath(path, folder)) for path in found]


_OF = re.compile(r"(.+)-(\d+)-of-(\d+)")


def _check_all_there(found: Iterable[Path], shown: str) -> None:
    """Raises `DataError` where files are numbered and one of the numbers is missing: a download that did not end."""
    there: dict[tuple[str, str], set[int]] = {}
    for path in found:
        if named := _OF.fullmatch(path.stem):
            there.setdefault((named[1], named[3]), set()).add(int(named[2]))
    for (name, count), numbers in there.items():
        first = 1 if int(count) in numbers else 0  # some count from 1
        lacks = next((number for number in range(first, first + int(count)) if number not in numbers), None)
        if lacks is not None:
            raise DataError(
                f"{shown!r} holds {len(numbers):,} of the {int(count):,} files {name}-*-of-{count}{ENDING}; the first "
                f"that is missing is number {lacks}: fetch them, or name those that are to be read by a pattern."
            )


_SETS = "train|training|valid|validation|val|dev|test|testing"
SET = re.compile(rf"({_SETS})[-_ ]?\d*", re.IGNORECASE)  # train, val2017: what a part of a data set is called
_SET_WITHIN = re.compile(rf"(?:^|.*[-_.])({_SETS})(?:[-_.\d].*)?", re.IGNORECASE)


def check_one_set(files: Iterable[str], shown: str, ending: str) -> None:
    """Raises `DataError` where the names of a folder's files tell of several sets: no test is to be learned."""
    named = (_SET_WITHIN.fullmatch(Path(file).stem) for file in files)
    sets = {found[1].lower() for found in named if found}
    if len(sets) > 1:
        raise several_sets(shown, sets, ending)


def arrow_rows(path: Path, file: str) -> Iterator[Value | Problem]:
    """The rows of one table as objects, counted from 1; bytes in them are places in the file.

    Raises `DataError` for a file that cannot be read.
    """
    count = 0
    try:
        with open_file(path):  # or it is said why not
            pass
        for count, row in enumerate(example.rows(path), start=1):
            yield Where(file, count), row
    except FileNotFoundError:
        raise DataError(f"{file} was not found: check the path.") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        yield Problem(Where(file, count + 1), f"the table cannot be read ({example.reason(error)}).")
        return
    if count == 0:
        yield Problem(Where(file, 1), "the table is empty: there is no row in it.")


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ENDING}")) or sorted(folder.glob(f"data/*{ENDING}"))


def _saved(state: Path, shown: str) -> list[str]:
    try:
        told = json.loads(state.read_text(encoding="utf-8"))
        return [file["filename"] for file in told["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{STATE} in {shown!r} cannot be read: save the data set again.") from None


def several_sets(shown: str, sets: Iterable[str], ending: str = "") -> DataError:
    """The error that asks for one of several sets: for its files by their `ending`, or else for its folder."""
    names = sorted(sets)
    one = "train" if "train" in names else names[0]
    named = f"its files by a pattern, such as {shown}/…/*{one}*{ending}" if ending else "the folder of one"
    return DataError(f"{shown!r} holds several sets ({listing(names)}): name {named}.")
