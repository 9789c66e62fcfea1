"""Where pictures come from: files, folders, patterns, a list on stdin, tables, tars; each found, and none opened.

    photos/  a.png  'shots/**/*.jpg'           files and folders, in order; a folder's pictures sorted by path
    -                                          paths on standard input, one a line (or ended by NUL)
    list.csv  list.tsv  list.jsonl  list.json  a column of paths, or COCO's list of images
    shard.tar  'shards/{000..012}.tar'         WebDataset's tars
    data.parquet  saved/                       Parquet and Arrow files, and what the library datasets saved

What is found is streamed, so that a million pictures take no memory here.
"""

from __future__ import annotations

import codecs
import csv
import glob
import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import minichat.images as images
from minichat.captioning.journal import Planned
from minichat.data.example import BOMS, Cell, Member, Problem, StoredPicture, Where, is_table, parse, read_text, records
from minichat.data.formats import folder as shards
from minichat.data.formats import tables
from minichat.data.formats.base import IMAGES, NOTES, Shelf, empty
from minichat.data.formats.folder import OTHER_SUFFIXES, Skipped, looks_like_picture, walk
from minichat.data.formats.tables import PICTURE, TEXT
from minichat.errors import DataError, ImageError, listing, shown
from minichat.fileio import open_file
from minichat.images import HEAD, SPELLED, SUFFIXES, format_of, other_format

if TYPE_CHECKING:
    from PIL import Image

STDIN = "-"
MISSING = "missing"  # the stamp of a file that is not there
_LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_IDS = ("image_id", "id", "imgid", "cocoid")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_TAR = b"ustar"  # at byte 257 of a tar's first header (POSIX.1-1988)

LeaveOut = Callable[[Skipped], None]


@dataclass(frozen=True)
class Sources:
    """What is to be captioned, as a person names it."""

    given: tuple[str, ...]
    home: Path | None  # the folder that places are seen from, to which no link leads; None: they are absolute
    image_column: str | None = None
    text_column: str | None = None
    null: bool = False  # paths on stdin end with NUL
    stdin: IO[bytes] | None = None
    #: Endings of the files beside a picture that hold its caption; none: they are not looked for.
    texts: tuple[str, ...] = ()

    def pictures(self, leave_out: LeaveOut) -> Iterator[Planned]:
        """All pictures, in order. One that is named twice comes twice; what is no UTF-8 in a name is escaped.

        Args:
            leave_out: is told of each folder that cannot be read and each record that holds no picture.

        Raises:
            DataError: a source is missing, cannot be read or has no pictures, or nothing is named at all.
        """
        for planned in self._found(leave_out):
            # A name that is no UTF-8 would keep whole outputs from being opened.
            place = readable(planned.place)
            yield planned if place == planned.place else replace(planned, place=place)

    def _found(self, leave_out: LeaveOut) -> Iterator[Planned]:
        if not self.given:
            raise DataError("There is nothing to caption: name pictures, folders of them, lists, tars or tables.")
        for source in self.given:
            if source == STDIN:
                yield from self._listed_on_stdin(leave_out)
            elif os.path.exists(source) or not _is_pattern(source):
                yield from self._one(source, leave_out)
            else:
                found = [name for each in shards.ranges(source) for name in _matches(each)]
                if not found:
                    raise DataError(f"Nothing is called {source!r}: check the pattern.")
                for name in found:
                    yield from self._one(name, leave_out)

    def _one(self, source: str, leave_out: LeaveOut) -> Iterator[Planned]:
        path = Path(source)
        if path.is_dir():
            yield from self._folder(path, source, leave_out)
        elif path.suffix.lower() in _LISTS and path.is_file():
            yield from self._list(path, source, leave_out)
        elif _is_tar(path):
            yield from self._tar(source, leave_out)
        elif path.is_file() and not looks_like_picture(path) and is_table(path):
            yield from self._table(source, leave_out)
        elif _is_words(path):
            leave_out(Skipped(path, f"{source!r} is a text and no picture. {_LISTED}"))
        else:
            yield self._file(path)

    # --- files and folders

    def _folder(self, folder: Path, source: str, leave_out: LeaveOut) -> Iterator[Planned]:
        if tables.is_saved(folder):
            yield from self._tables(source, leave_out)
            return
        closed: list[Skipped] = []
        found = False
        for parent, names in walk(folder, closed):
            for name in names:
                if looks_like_picture(path := parent / name):
                    found = True
                    yield self._file(path)
        if not found and not closed:
            if any(folder.glob("*.tar")):
                for tar in shards.tars(source):
                    yield from self._tar(tar, leave_out)
                return
            if tables.is_folder(folder):
                yield from self._tables(source, leave_out)
                return
            raise DataError(
                f"No pictures are in the folder {source!r} or below it: {SPELLED} are looked for, then tars and tables."
            )
        for each in closed:
            if not found:
                raise DataError(each.error)
            leave_out(each)
        # Beside the output they may be its own.
        own = self.home is not None and os.path.realpath(folder) == os.path.realpath(self.home)
        if not own and (tars := sorted(folder.glob("*.tar"))):
            called = listing((tar.name for tar in tars), 3)
            leave_out(
                Skipped(folder, f"Pictures lie in {source!r}, so its tars are not read ({called}): name them, too.")
            )

    def _file(self, path: Path, before: str | None = None, key: str | None = None) -> Planned:
        if before is None and self.texts:
            before = caption_beside(path, self.texts)
        return Planned(
            _seen_from(os.fspath(path), self.home), {"path": os.path.abspath(path)}, stamp(path), before, key
        )

    def _listed_on_stdin(self, leave_out: LeaveOut) -> Iterator[Planned]:
        if self.stdin is None:
            raise DataError("There is no standard input: pipe a list of paths into it.")
        found = False
        for number, raw in enumerate(_split(self.stdin, b"\0" if self.null else b"\n")):
            name = raw if self.null else raw.removesuffix(b"\r")
            if number == 0:
                if name.startswith(BOMS):
                    raise DataError("Standard input is in UTF-16 or UTF-32: send the paths in UTF-8.")
                name = name.removeprefix(codecs.BOM_UTF8)
            if name:
                found = True
                path = os.fsdecode(name)
                if os.path.isdir(path):
                    yield from self._one(path, leave_out)
                else:
                    yield self._file(Path(path))
        if not found:
            raise DataError("Standard input names no picture: give it one path a line.")

    # --- lists

    def _list(self, path: Path, source: str, leave_out: LeaveOut) -> Iterator[Planned]:
        if path.suffix.lower() in (".csv", ".tsv"):
            items: Iterable[tuple[int, Any] | Problem] = _csv(path, source)
        else:
            if path.suffix.lower() == ".json" and (document := _document(path, source)) is not None:
                yield from self._coco(path, source, document, leave_out)
                return
            found = records(path, source)
            items = (one if isinstance(one, Problem) else (one[0].record or one[0].line, one[1]) for one in found)
        changed = stamp(path)
        for item in items:
            if isinstance(item, Problem):
                leave_out(Skipped(path, str(item)))
            else:
                yield from self._row(item[1], path, source, item[0], changed, leave_out)

    def _row(
        self, row: Any, path: Path, source: str, line: int, changed: str, leave_out: LeaveOut
    ) -> Iterator[Planned]:
        """The picture of a row, or its pictures."""
        try:
            if not isinstance(row, Mapping):
                raise DataError("the row is no object with a picture.")
            value = row[_column(self.image_column, "image", row, PICTURE, True)]
            before = _texts(row, _column(self.text_column, "text", row, TEXT, False))
        except DataError as error:
            leave_out(Skipped(path, f"{source}:{line}: {error}"))
            return
        key = next((str(row[name]) for name in _IDS if isinstance(row.get(name), str | int)), None)
        values = value if isinstance(value, list) else [value]
        if not values:
            leave_out(Skipped(path, f"{source}:{line}: the list of pictures is empty: the row has none."))
        for number, one in enumerate(values):
            own = f"{_seen_from(source, self.home)}#{line}" + (f".{number}" if len(values) > 1 else "")
            try:
                picture = Shelf(path.parent).picture(one)
            except DataError as error:
                place = one if isinstance(one, str) and 0 < len(one) < 1000 else own
                yield Planned(place, {"error": _sentence(error)}, str(error), before, key)
                continue
            if isinstance(picture.source, Path):
                yield self._file(picture.source, before, key)
            elif isinstance(picture.source, bytes):
                digest = hashlib.sha256(picture.source).hexdigest()
                yield Planned(own, {"name": picture.name}, digest, before, key, picture.source)
            else:
                yield Planned(own, _placed(picture), f"{changed} {line}", before, key)

    def _coco(self, path: Path, source: str, document: dict[str, Any], leave_out: LeaveOut) -> Iterator[Planned]:
        """The images of COCO's annotations, with their ids."""
        texts: dict[Any, str] = {}
        for note in document.get(NOTES) or []:
            if isinstance(note, dict) and isinstance(note.get("caption"), str):
                texts.setdefault(note.get("image_id"), note["caption"])
        part = path.stem.rpartition("_")[2]
        homes = [home / name for home in (path.parent, path.parent.parent) for name in ("", "images", part)]
        homes += [home / "images" / part for home in (path.parent, path.parent.parent)]
        if not document[IMAGES]:
            leave_out(Skipped(path, f"{source}: {IMAGES!r} is empty: there is no picture in it."))
        for number, image in enumerate(document[IMAGES], start=1):
            name, key = (image.get("file_name"), image.get("id")) if isinstance(image, dict) else (None, None)
            if not isinstance(name, str) or isinstance(key, bool) or not isinstance(key, int | str):
                raise DataError(f"{source}: image {number} has no 'file_name' and 'id': give it both.")
            there = next((home / name for home in homes if (home / name).is_file()), homes[0] / name)
            yield self._file(there, texts.get(key), str(key))

    # --- tars and tables

    def _tar(self, source: str, leave_out: LeaveOut) -> Iterator[Planned]:
        path, changed = Path(source), stamp(Path(source))
        home = _seen_from(source, self.home)
        for key, pictures, texts in _records_of_tar(path, source, leave_out):
            before = None
            if self.texts:
                before = "\n".join(filter(None, (_text_of(member) for _, member in texts))) or None
            for name, member in pictures:
                picture = _placed(StoredPicture(name, member))
                yield Planned(
                    f"{home}/{name}", picture, f"{changed} {member.start}+{member.size}", before, os.path.basename(key)
                )

    def _tables(self, source: str, leave_out: LeaveOut) -> Iterator[Planned]:
        for file in tables.files(Path(source), source):
            yield from self._table(file, leave_out)

    def _table(self, source: str, leave_out: LeaveOut) -> Iterator[Planned]:
        path, changed = Path(source), stamp(Path(source))
        for item in tables.arrow_rows(path, source):
            if isinstance(item, Problem):
                leave_out(Skipped(path, str(item)))
            else:
                yield from self._row(item[1], path, source, item[0].line, changed, leave_out)


def _seen_from(path: str, folder: str | os.PathLike[str] | None) -> str:
    """The path as seen from `folder`, which no link leads to; None, or a folder on another drive: the absolute one."""
    whole = os.path.join(os.getcwd(), path)
    if os.pardir in Path(path).parts:  # after a link it leads to where the link does
        whole = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
    if folder is None:
        return os.path.abspath(whole)
    try:
        return os.path.relpath(whole, folder)
    except ValueError:  # on Windows there is no way from one drive to another
        return os.path.abspath(whole)


def readable(text: str) -> str:
    """The text with an escape (`\\udcff`) for each byte of a file's name that is no UTF-8: no reader opens that."""
    return text.encode("utf-8", "backslashreplace").decode()


def stamp(path: Path) -> str:
    """What tells an unchanged file without reading it: its size, and when it was last written."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return MISSING
    return f"{found.st_size} {found.st_mtime_ns}"


def stored(picture: Mapping[str, Any], data: bytes | None = None) -> StoredPicture:
    """The picture that a plan's entry tells of."""
    name = str(picture.get("name", ""))
    if data is not None:
        return StoredPicture(name, data)
    if "tar" in picture:
        return StoredPicture(name, Member(Path(picture["tar"]), picture["start"], picture["size"]))
    if "table" in picture:
        steps = tuple(picture["steps"])
        return StoredPicture(
            name, Cell(Path(picture["table"]), picture["row"], picture["column"], steps, picture["size"])
        )
    return StoredPicture(name or os.path.basename(picture["path"]), Path(picture["path"]))


def caption_beside(path: Path, endings: Iterable[str]) -> str | None:
    """The text of the first file of the picture's name with one of these endings; None where there is none."""
    for ending in endings:
        file = path.with_suffix(ending)
        try:
            with open_file(file) as opened:
                text = opened.read(1 << 20).decode("utf-8-sig").strip()
        except (OSError, ValueError):
            continue
        if text:
            return text
    return None


def _is_pattern(source: str) -> bool:
    return glob.has_magic(source) or ("{" in source and ".." in source)


def _matches(name: str) -> list[str]:
    """The files of a pattern, `**` for folders at any depth; hidden ones are left out."""
    return sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.exists(name) else [name]


def _is_tar(path: Path) -> bool:
    if path.suffix.lower() == ".tar":
        return True
    try:
        with open_file(path) as file:
            return file.read(512)[257:262] == _TAR
    except (OSError, ValueError):
        return False


_LISTED = "A list of paths is read from standard input (minichat caption - < FILE), or from a file called .csv."


def _is_words(path: Path) -> bool:
    """Whether a file that is not called a picture is a text by its content, in whatever encoding."""
    if path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES):
        return False
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return False
    if format_of(head) is not None or other_format(head) is not None:
        return False
    return head.startswith(BOMS) or (bool(head) and _NO_TEXT.search(head) is None)


def _split(stream: IO[bytes], end: bytes) -> Iterator[bytes]:
    """What stands between ends, read a piece at a time."""
    rest = b""
    try:
        while piece := stream.read(1 << 16):
            *whole, rest = (rest + piece).split(end)
            yield from whole
    except (OSError, ValueError) as error:
        raise DataError(f"Standard input cannot be read ({error}): give it a file or a pipe.") from None
    yield rest


def _document(path: Path, source: str) -> dict[str, Any] | None:
    """COCO's document, or None for any other JSON."""
    try:
        text = read_text(path, Where(source, 1))
    except OSError as error:
        raise DataError(f"{source!r} cannot be read ({error.strerror}): check it.") from None
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return None
    value = parse(text, Where(source, 1))
    return value if isinstance(value, dict) and isinstance(value.get(IMAGES), list) else None


def _csv(path: Path, source: str) -> Iterator[tuple[int, dict[str, str]] | Problem]:
    """The rows of a table as objects, with their lines. Raises `DataError` for a file that is none in UTF-8."""
    try:
        with open_file(path) as opened:
            lines = (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(opened))
            first, number, told = tables.header_line(next(lines, ""), lines)
            header, dialect = tables.delimited(first, path.suffix, told)
            table = csv.reader(lines, **dialect)
            empty_list = True
            if len(header) == 1 and header[0].lower().endswith(SUFFIXES):  # a list of paths without a header
                yield number, {"image": header[0]}
                header, empty_list = ["image"], False
            for row in table:
                while len(row) > len(header) and not row[-1].strip():  # as spreadsheets write columns that were emptied
                    row.pop()
                if not any(map(str.strip, row)):
                    continue
                empty_list = False
                if len(row) == len(header):
                    yield table.line_num + number, dict(zip(header, row, strict=True))
                else:
                    text = f"the row has {len(row)} fields and the header {len(header)}: give each column one."
                    yield Problem(Where(source, table.line_num + number), text)
            if empty_list:
                yield Problem(Where(source, 1), "the list is empty: there is no row in it.")
    except OSError as error:
        raise DataError(f"{source!r} cannot be read ({error.strerror}): check it.") from None
    except UnicodeDecodeError:
        raise DataError(f"{source!r} is not in UTF-8: save it so.") from None
    except csv.Error as error:
        raise DataError(
            f"{source!r} is no table that can be read ({error}): look at its quotation marks and line ends."
        ) from None


def _column(named: str | None, what: str, row: Mapping[str, Any], usual: tuple[str, ...], needed: bool) -> str:
    """The name of the column that holds the picture or its text; "" for a text that there is not."""
    if named is not None:
        if named not in row:
            raise DataError(f"there is no column {shown(named)} for the {what}: there are {listing(row) or 'none'}.")
        return named
    found = [name for name in row if isinstance(name, str) and name.strip().casefold() in usual]
    # A file that holds pictures and their names, or an error beside a caption: what says more goes first.
    found.sort(key=lambda name: (empty(row[name]), isinstance(row[name], str)))
    if not found and needed:
        raise DataError(f"no column is known to be the {what} ({listing(row) or 'none'}): name it (--{what}-column).")
    return found[0] if found else ""


def _texts(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    texts = value if isinstance(value, list) else [value]
    return "\n".join(text for text in texts if isinstance(text, str) and text.strip()) or None


def _placed(picture: StoredPicture) -> dict[str, Any]:
    """Where a picture within another file is, as the plan holds it."""
    source = picture.source
    if isinstance(source, Member):
        tar = os.path.abspath(source.tar)
        return {"name": picture.name, "tar": tar, "start": source.start, "size": source.size}
    if not isinstance(source, Cell):
        raise TypeError("a picture of a tar or a table is asked for")
    return {
        "name": picture.name,
        "table": os.path.abspath(source.file),
        "row": source.row,
        "column": source.column,
        "steps": list(source.steps),
        "size": source.size,
    }


def _text_of(member: Member) -> str:
    try:
        return StoredPicture("", member).read().decode("utf-8-sig").strip()
    except (DataError, ValueError):
        return ""


_Members = list[tuple[str, Member]]


def _records_of_tar(path: Path, source: str, leave_out: LeaveOut) -> Iterator[tuple[str, _Members, _Members]]:
    """Each record's key, its pictures and its texts, by their names in the tar."""
    key, pictures, texts = "", _Members(), _Members()
    found = False
    for item in shards.members(path, source):
        if isinstance(item, Problem):
            leave_out(Skipped(path, f"{source}: {item.text}"))
            continue
        name, member = item
        stem, ending = shards.key_of(name)
        if stem != key and (pictures or texts):
            yield key, pictures, texts
            pictures, texts = [], []
        key = stem
        if f".{ending}".endswith(SUFFIXES):
            found = True
            pictures.append((name, member))
        elif ending in ("txt", "caption"):
            texts.append((name, member))
    yield key, pictures, texts
    if not found:
        raise DataError(f"No picture is in the tar {source!r}: it needs files such as 000.jpg.")


# --- Planned pictures, read and opened before it is their turn.


OPENERS = min(4, os.cpu_count() or 1)  # threads


@dataclass(frozen=True)
class Seen:
    """A planned picture, read and opened; or why it is not there, or why it is none."""

    content: str | None = None  # the hash of its bytes
    picture: Image.Image | None = None
    missing: str | None = None
    damaged: str | None = None

    @classmethod
    def of(cls, planned: Planned, fit: images.Fit | None) -> Seen:
        """As small as the model sees it: so a batch takes the same memory whatever the files hold."""
        if (error := planned.picture.get("error")) is not None:
            return cls(missing=error)
        try:
            held = planned.picture
            data = images.read(held["path"]) if "path" in held else stored(held, planned.data).read()
        except (ImageError, DataError) as failure:
            return cls(missing=_sentence(failure))
        content = hashlib.sha256(data).hexdigest()
        try:
            name = held.get("path") or held.get("name") or planned.place
            return cls(content, images.load(data, name=name, fit=fit))
        except ImageError as failure:
            return cls(content, damaged=str(failure))


def ahead(pool: ThreadPoolExecutor, todo: Iterable[Planned], fit: images.Fit | None) -> Iterator[tuple[Planned, Seen]]:
    """Each with what was seen of it, in order; the next ones are being opened meanwhile, for decoders need no lock."""
    coming = deque[tuple[Planned, Future[Seen]]]()
    for planned in todo:
        coming.append((planned, pool.submit(Seen.of, planned, fit)))
        if len(coming) > 2 * OPENERS:
            first, future = coming.popleft()
            yield first, future.result()
    while coming:
        first, future = coming.popleft()
        yield first, future.result()


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]


__all__ = ["MISSING", "OPENERS", "STDIN", "Seen", "Sources", "ahead", "caption_beside", "readable", "stamp", "stored"]
