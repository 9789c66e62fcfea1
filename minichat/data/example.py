"""One record of a data set: its place in a file or table, and a conversation whose pictures are not yet opened."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

import minichat.images as images
from minichat.errors import DataError, ImageError, MiniChatError, sentence, shown
from minichat.fileio import open_file
from minichat.prompt.conversation import Conversation, Message, Part, Picture, Role, Text

# --- Tables on disk, Parquet and Arrow: their rows one by one, and single cells of them.
#
# A row is a dict, as pyarrow reads it. Bytes in it are a `Cell`, a place in the file, until they are read: so a table
# of any size costs the memory of its words. A cell is read with its whole row group; of a file whose groups are larger
# than `GROUP_BYTES` the bytes themselves are held.


PARQUET = b"PAR1"  # begins and ends a Parquet file
ARROW = b"ARROW1"  # begins an Arrow file; a stream, which `datasets` writes, begins with its first message
GROUP_BYTES = 64 * 1024 * 1024
_AT_ONCE = 16  # rows
_LEAST = 256  # bytes: what is smaller is kept as it is


@dataclass(frozen=True)
class Cell:
    """Bytes within a table: of the row `row`, counted from 0, in `column`, by these steps into lists and structs."""

    file: Path
    row: int
    column: str
    steps: tuple[int | str, ...]
    size: int

    def read(self) -> bytes:
        """Raises `OSError` or `ValueError`, pyarrow's own, where the file is not what it was."""
        found = os.stat(self.file)
        value = _table(self.file, found.st_mtime_ns).cell(self.column, self.row)
        for step in self.steps:
            value = value[step]
        if not isinstance(value, bytes) or len(value) != self.size:
            raise ValueError("the table has changed")
        return value


def is_table(path: Path) -> bool:
    """Whether a file is a table by its content, or an Arrow stream by its name."""
    if path.suffix.lower() == ".arrow":
        return True
    with open_file(path) as file:
        return file.read(len(ARROW)).startswith((PARQUET, ARROW))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Raises `OSError` or `ValueError`, pyarrow's own, for a file that is damaged, `DataError` without pyarrow."""
    table = _table(path, os.stat(path).st_mtime_ns)
    for number, row in enumerate(table.rows()):
        yield {
            name: _placed(value, Cell(path, number, name, (), 0)) if table.seeks(number) else value
            for name, value in row.items()
        }


def _placed(value: Any, cell: Cell) -> Any:
    """The value with cells in place of its bytes."""
    if isinstance(value, bytes) and len(value) >= _LEAST:
        return Cell(cell.file, cell.row, cell.column, cell.steps, len(value))
    steps: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [
        (step, _placed(one, Cell(cell.file, cell.row, cell.column, (*cell.steps, step), 0))) for step, one in steps
    ]
    if isinstance(value, dict):
        return dict(inner)
    return [one for _, one in inner] if isinstance(value, list) else value


class _Parquet:
    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(os.fspath(path), pre_buffer=False)
        facts = self._file.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        self._small = [group.total_byte_size <= GROUP_BYTES for group in groups]
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(_AT_ONCE, use_threads=False):
            yield from batch.to_pylist()

    def seeks(self, row: int) -> bool:
        return self._small[self._group(row)]

    def cell(self, column: str, row: int) -> Any:
        group = self._group(row)
        return _column(self, group, column)[row - self._starts[group]].as_py()

    def _group(self, row: int) -> int:
        import bisect

        return min(bisect.bisect_right(self._starts, row) - 1, len(self._small) - 1)

    def column(self, group: int, column: str) -> Any:
        return self._file.read_row_group(group, columns=[column], use_threads=False)[column]


@lru_cache(maxsize=4)
def _column(table: _Parquet, group: int, column: str) -> Any:
    """A column of a row group; few are kept, for pictures are mostly asked for in their order."""
    return table.column(group, column)


class _Arrow:
    """Read in place: the file's pages are memory that the system can take back."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        mapped = pa.memory_map(os.fspath(path))
        is_file = mapped.read(len(ARROW)) == ARROW
        mapped.seek(0)
        self._table = (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all()

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(_AT_ONCE):
            yield from batch.to_pylist()

    def seeks(self, row: int) -> bool:
        return True

    def cell(self, column: str, row: int) -> Any:
        return self._table[column][row].as_py()


@lru_cache(maxsize=16)
def _table(path: Path, changed: int) -> _Parquet | _Arrow:
    """A file, opened; `changed` is when it was last written."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DataError(f"{path.name}: to read it, install the library pyarrow (pip install datasets).") from None
    with open_file(path) as file:
        parquet = file.read(len(PARQUET)) == PARQUET
    return _Parquet(path) if parquet else _Arrow(path)


def reason(error: Exception) -> str:
    """pyarrow's words in short."""
    return sentence(error)[:200]


# --- One record of a data set: a conversation whose pictures are named but not yet opened.


_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\S*:\d+|[\d,]+")  # names, places and numbers


@dataclass(frozen=True)
class Where:
    """The place of a record, for an error: a file, its line (0: the file as a whole), and its number in a list.

    Of a tar, the line is the record's number. Both are counted from 1.
    """

    file: str
    line: int = 0
    record: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} (record {self.record})" if self.record else place


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record, in its place; or, where it is `mild`, what a sound data set may hold."""

    where: Where
    text: str
    mild: bool = False

    @property
    def kind(self) -> str:
        """The text without its names and numbers: equal for mistakes of one kind."""
        return _PARTICULAR.sub("…", self.text)

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Member:
    """A file within a tar: `size` bytes from `start` on."""

    tar: Path
    start: int
    size: int


def _plainly(name: str) -> str:
    """A file's name without what is seldom meant: blanks round it, large letters, and how an accent is composed."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


@lru_cache(maxsize=1)
def _alike(folder: Path) -> dict[str, str]:
    """The names in a folder by what they are plainly."""
    try:
        return {_plainly(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


@dataclass(frozen=True)
class StoredPicture:
    """A picture on disk, in a tar or a table, or as bytes. `name` is what its record calls it.

    `question`: what is asked of it, where what a model sees in it depends on that.
    """

    always_opens: ClassVar[bool] = False  # made when it is asked for: nothing of it can be missing or damaged
    name: str
    source: Path | Member | Cell | bytes
    question: str = field(default="", kw_only=True)

    def read(self) -> bytes:
        """The file as it is. Raises `DataError` where it is missing, no file, or larger than any picture may be."""
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, Cell):
            return self._of_table(self.source)
        member = self.source if isinstance(self.source, Member) else None
        path = self.source.tar if isinstance(self.source, Member) else self.source
        try:
            found = path.stat()
            # Asked before opening: to open a named pipe would wait for ever.
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"the picture {shown(self.name)} is not a file: correct its path.")
            size = found.st_size if member is None else member.size
            if size > images.MAX_BYTES:
                raise DataError(f"the picture {shown(self.name)} has {size:,} bytes: at most {images.MAX_BYTES:,}.")
            with open(path, "rb") as file:
                file.seek(0 if member is None else member.start)
                data = file.read(size)
        except FileNotFoundError:
            hint = ", whose folders / divides here" if "\\" in self.name and os.sep == "/" else ""
            if self.name != self.name.strip():
                hint = ", which begins or ends with a blank"
            other = _alike(path.parent).get(_plainly(path.name), path.name)
            if other != path.name:  # which a link that leads nowhere has
                hint = f" ({shown(other)} is there)"
            say = f"the picture {shown(self.name)} is missing: put it there, or correct its path{hint}."
            raise DataError(say) from None
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or "the path is not valid"
            raise DataError(f"the picture {shown(self.name)} cannot be read ({reason}).") from None
        if len(data) < size:
            name = shown(self.name)
            raise DataError(f"the picture {name} has {len(data):,} bytes of {size:,}: its file was cut off.")
        return data

    def _of_table(self, cell: Cell) -> bytes:
        if cell.size > images.MAX_BYTES:
            raise DataError(f"the picture {shown(self.name)} has {cell.size:,} bytes: at most {images.MAX_BYTES:,}.")
        try:
            return cell.read()
        except (OSError, ValueError, LookupError, TypeError):
            raise DataError(
                f"the picture {shown(self.name)} is not in {cell.file.name!r} any more: it has changed, read it again."
            ) from None

    def key(self) -> str:
        """The hash of its content: two files that hold the same bytes are the same picture."""
        return hashlib.sha256(self.read()).hexdigest()

    def open(self) -> Image.Image:
        """The picture, upright and in RGB. Raises `DataError` where it cannot be opened."""
        try:
            return images.load(self.read())
        except ImageError as error:
            reason = str(error).removeprefix("The picture ")
            raise DataError(f"the picture {shown(self.name)} cannot be used: it {reason}") from None


@dataclass(frozen=True)
class Turn:
    """One message: words and pictures in order."""

    role: Role
    parts: tuple[str | StoredPicture, ...]

    @property
    def text(self) -> str:
        """Its words without its pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Example:
    """A record: its turns, as in `Conversation`, and where it stands. `unread`: its keys that nothing reads."""

    turns: tuple[Turn, ...]
    where: Where
    unread: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[StoredPicture, ...]:
        """All pictures, in the order in which they are shown to the model."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, StoredPicture))

    @property
    def replies(self) -> tuple[str, ...]:
        """The assistant's words, turn by turn."""
        return tuple(turn.text for turn in self.turns if turn.role == "assistant")

    def conversation(self, pictures: Sequence[Image.Image] | None = None) -> Conversation:
        """The conversation, its pictures opened, or `pictures` in their place.

        Raises `DataError`, naming file and line, for a picture that cannot be opened or turns that are out of order.
        """
        try:
            shown = iter([stored.open() for stored in self.pictures] if pictures is None else pictures)
            messages = []
            for turn in self.turns:
                parts: list[Part] = [Text(p) if isinstance(p, str) else Picture(next(shown)) for p in turn.parts]
                messages.append(Message(turn.role, tuple(parts)))
            return Conversation(tuple(messages))
        except MiniChatError as error:
            raise DataError(f"{self.where}: {error}") from None


# --- Text files in, with their line numbers: what a reader needs to say where something is wrong.


_SPACE = re.compile(r"[ \t\r\n]*")  # JSON's own
#: How a file in UTF-16 or UTF-32 begins; UTF-32's little end begins as UTF-16's.
BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)

OTHER_UNICODE = "the file is in UTF-16 or UTF-32: save it as UTF-8."
NOT_UTF8 = "the byte 0x{byte:02x} is not UTF-8: save the file as UTF-8."


class _Object:
    """Makes objects of their pairs, and notes a key that one holds twice: json itself forgets the first value."""

    def __init__(self) -> None:
        self.twice: str | None = None  # what is wrong

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            for key, value in pairs:
                if value != made[key]:
                    values = f"{shown(value)} and as {shown(made[key])}"
                    self.twice = f"the key {shown(key)} stands twice in one object, as {values}: keep one of them."
        return made


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
    made = _Object()
    try:
        value = json.loads(text, object_pairs_hook=made)
    except json.JSONDecodeError as error:
        return Problem(where, _broken(error))
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets thousands deep
        return Problem(where, "this JSON is nested too deeply or holds too long a number: write it again.")
    return value if made.twice is None else Problem(where, made.twice)


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
        made = _Object()
        try:
            value, place = json.JSONDecoder(object_pairs_hook=made).raw_decode(text, place)
        except json.JSONDecodeError as error:
            yield Problem(Where(file, error.lineno, number), _broken(error))
            return
        except (ValueError, RecursionError):
            yield Problem(where, "this JSON is nested too deeply or holds too long a number: write it again.")
            return
        yield (where, value) if made.twice is None else Problem(where, made.twice)
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
    decoder, place = json.JSONDecoder(), _skip(text, 0)
    while True:  # it is valid: the keys and values are passed one by one
        name, place = decoder.raw_decode(text, _skip(text, place + 1))
        place = _skip(text, _skip(text, place) + 1)
        if name == key:
            return place
        _, place = decoder.raw_decode(text, place)
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
