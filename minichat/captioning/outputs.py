"""Where captions go. Each output is a view of the run's journal, and can be brought up to date from it at any moment.

    jsonl    {"image", "caption"} or {"image", "error"}, a line each; a caption that was cut off has "finish": "length"
             (with boxes, "boxes": [{"phrase", "box": [left, top, right, bottom]}], in fractions of the picture)
    csv      columns image, caption, finish, error
    parquet  the same columns
    coco     COCO's caption results: [{"image_id", "caption"}, …]
    txt, caption   a file beside each picture
    webdataset     a folder of tars, each picture with its caption as .txt

With several prompts rows have a "prompt", too. A table called `metadata` names its pictures `file_name`, as the library
datasets wants it of a folder of pictures.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar

from minichat.captioning.journal import Journal, Planned, Result, Shape, filled
from minichat.errors import DataError, PromptError, shown
from minichat.fileio import json_line, open_to_others, to_disk
from minichat.prompt import boxes

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "coco"}
FORMATS = ("jsonl", "csv", "parquet", "coco", "txt", "caption", "webdataset")
_KEYS = {"image", "file_name", "prompt", "caption", "error", "finish", "boxes"}


def format_of(out: Path | None, named: str | None) -> str:
    """The format that is named, or told from the output's name: JSON lines where neither says one."""
    if named is not None:
        if named not in FORMATS:
            raise DataError(f"The format {named!r} is not known: use {', '.join(FORMATS)}.")
        return named
    if out is None:
        return "jsonl"
    if out.suffix.lower() == ".tar" or out.is_dir() or str(out).endswith(os.sep):
        return "webdataset"
    return SUFFIXES.get(out.suffix.lower(), "jsonl")


@dataclass
class Output:
    """What all outputs share. With several prompts rows say which."""

    beside: ClassVar[bool] = False  # captions lie beside the pictures, where others may have lain before
    marks: ClassVar[bool] = True  # errors, and that a caption was cut off, stand in it
    live: ClassVar[bool] = True  # captions stand in it as soon as they are made

    path: Path | None
    shape: Shape = field(default_factory=Shape)
    prompts: tuple[str | None, ...] = (None,)
    notes: list[str] = field(default_factory=list)  # what a person should know at the beginning, as sentences
    told: list[str] = field(default_factory=list)  # and at the end

    @property
    def several(self) -> bool:
        return len(self.prompts) > 1

    def text(self, result: Result) -> str:
        """The caption as it is written."""
        if result.caption is None:
            return ""
        return result.caption if result.fixed else self.shape.apply(result.caption, result.before)

    def key(self, planned: Planned) -> str | None:
        """What a picture is called in this output, where no two may be called alike.

        Raises `DataError` for one that has no place in it.
        """
        return None

    def check(self, new: bool) -> None:
        """Find out whether it can be written. `new`: there is no record of a run that wrote it. Raises `DataError`."""
        if self.path is None:
            return
        if self.path.exists() and not self.path.is_file():
            raise DataError(f"{str(self.path)!r} exists already and is no file: name another.")
        if new and self.path.exists():
            raise DataError(f"{str(self.path)!r} exists already: remove it, or name another file.")
        if not self.path.absolute().parent.is_dir():
            raise DataError(f"{str(self.path)!r} cannot be made (No such file or directory): check the folder.")

    def begin(self, journal: Journal, before: Shape | None) -> None:
        """Bring what is there up to date; `before` is how captions were shaped when it was last written."""

    def look(self, journal: Journal) -> None:
        """For a dry run: take over what is there, and write nothing."""

    def add(self, results: Sequence[Result]) -> None:
        """Show new results, which the journal holds already."""

    def replace(self, results: Sequence[Result]) -> None:
        """Results in place of earlier ones; the journal notes that the output is stale."""

    def finish(self, journal: Journal) -> None:
        """All is done that this command could do."""

    def close(self) -> None:
        """Leave whole rows behind, and no empty file."""


class Lines(Output):
    """A file of one row after another, to which new ones are added at once; or standard output."""

    head = b""

    def __init__(self, path: Path | None, stream: IO[bytes] | None = None, **shared: Any) -> None:
        super().__init__(path, **shared)
        self._file: IO[bytes] | None = stream
        self.image_key = "file_name" if path is not None and path.stem == "metadata" else "image"
        self._shown = "The captions" if path is None else repr(str(path))

    def line(self, result: Result) -> bytes:
        raise NotImplementedError

    def parse(self, path: Path) -> Iterator[Result]:
        """The rows of a file that somebody may have changed. Raises `DataError` for what is no row."""
        raise NotImplementedError

    def check(self, new: bool) -> None:
        super().check(new=False)
        if self.path is None:
            return
        try:
            with open(self.path, "ab"):
                pass
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be made ({error.strerror}): check the folder.") from None

    def begin(self, journal: Journal, before: Shape | None) -> None:
        if self.path is None:
            self._append([self.head])
            return
        stale = bool(journal.fact("stale"))
        if not stale:
            stale = not self._complete(journal, before or self.shape)
        remove_unfinished(self.path)
        if stale or (before is not None and before != self.shape):
            self._rewrite(journal)
        with self._told():
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
            if self._file.tell() == 0:
                self._append([self.head])

    def look(self, journal: Journal) -> None:
        if self.path is not None and self.path.is_file() and journal.fact("asked") is None:
            self._take_over(journal)

    def _complete(self, journal: Journal, before: Shape) -> bool:
        """Add the rows that the file lacks at its end; False where it has others than the journal, which are taken
        over into that.
        """
        if self.path is None:
            return True
        now, self.shape = self.shape, before
        try:
            with self._told(), open(self.path, "r+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                at = 0
                rows = (self.line(result) for result in journal.results())
                for row in _with_head(self.head, rows, size > 0):
                    found = file.read(len(row))
                    if found != row and not (len(found) < len(row) and row.startswith(found)):
                        self._take_over(journal)
                        return False
                    if found != row:
                        file.seek(at)
                        file.truncate()
                        file.write(row)
                    at += len(row)
                if size > at:
                    self._take_over(journal)
                    return False
        finally:
            self.shape = now
        return True

    def _take_over(self, journal: Journal) -> None:
        """Note rows that are in the file and not in the journal, and captions that a person has changed."""
        if self.path is None:
            return
        strange = changed = 0
        batch: list[Result] = []
        for row in self.parse(self.path):
            row = replace(row, question=self._question(row))
            known = journal.known(row.place, row.question)
            if known is None:
                if row.error is None:
                    batch.append(row)
                    strange += 1
                else:
                    batch.append(Result(row.place, row.question, stamp="", error=row.error))  # is tried again
            elif row.error is None and row.caption != self.text(known):
                batch.append(replace(known, caption=row.caption, error=None, fixed=True, cut=row.cut))
                changed += 1
            if len(batch) >= 1000:
                _note(journal, batch)
        _note(journal, batch)
        if strange:
            self.notes.append(
                f"Rows of {str(self.path)!r} that came with no record of model and prompt, and are kept: {strange:,}."
            )
        if changed:
            self.notes.append(
                f"Captions of {str(self.path)!r} that were changed by hand, and are kept so: {changed:,}."
            )

    def _question(self, row: Result) -> int:
        """The number of the prompt that a row answers."""
        if not self.several:
            return 0
        for number, prompt in enumerate(self.prompts):
            with suppress(PromptError):
                if filled(prompt, row.place, None) == row.asked:
                    return number
        raise DataError(f"{str(self.path)!r} has a row of another prompt, {shown(row.asked)}: name another --out.")

    def _rewrite(self, journal: Journal) -> None:
        if self.path is None:
            return
        with self._told(), replacing(self.path) as file:
            file.write(self.head)
            for result in journal.results():
                file.write(self.line(result))
        journal.note(stale=False)

    def add(self, results: Sequence[Result]) -> None:
        self._append([self.line(result) for result in results])

    def _append(self, lines: Iterable[bytes]) -> None:
        if self._file is not None:
            append(self._file, b"".join(lines))

    def finish(self, journal: Journal) -> None:
        if self.path is not None and journal.fact("stale"):
            self._rewrite(journal)

    def close(self) -> None:
        if self.path is None:
            return
        if self._file is not None:
            self._file.close()
        if self.path.is_file() and self.path.stat().st_size <= len(self.head):
            self.path.unlink()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self._shown} cannot be written ({error.strerror or error}): make room or check the folder, and the "
                "same command goes on."
            ) from None


def append(file: IO[bytes], data: bytes) -> None:
    """Append whole lines at once, so that a program stopped at any moment leaves no part of one behind.

    Raises `DataError` where nothing more can be written; an unbuffered file then ends as it did before.
    """
    rest = memoryview(data)
    start = file.tell() if isinstance(file, io.FileIO) and file.seekable() else None
    try:
        while rest:
            rest = rest[file.write(rest) :]  # a full disk takes a part first, and raises next time
        file.flush()
    except BaseException as error:  # also Ctrl-C, between two parts
        if start is not None and rest:
            with suppress(OSError):  # a device has no end to cut
                file.truncate(start)
        if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"The captions cannot be written ({error.strerror}): those so far are kept.") from None


class JsonLines(Lines):
    def line(self, result: Result) -> bytes:
        row: dict[str, Any] = {self.image_key: result.place}
        if self.several:
            row["prompt"] = result.asked
        if result.error is not None:
            row["error"] = result.error
        else:
            row["caption"] = self.text(result)
            if self.shape.boxes:
                row["boxes"] = [box.as_dict() for box in boxes.parse(row["caption"])]
        if result.cut:
            row["finish"] = "length"
        return json_line(row).encode() + b"\n"

    def parse(self, path: Path) -> Iterator[Result]:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = _json(line)
                if row is None and not line.endswith(b"\n"):
                    return  # torn off
                yield self._row(row, f"{path}:{number}")

    def _row(self, row: Any, where: str) -> Result:
        wrong = f"{where} is no row of `minichat caption`"
        if not isinstance(row, dict) or not isinstance(row.get(self.image_key), str):
            raise DataError(f"{wrong}: mend or remove it, or name another --out.")
        if unknown := sorted(row.keys() - _KEYS):
            raise DataError(f"{wrong} (it has {', '.join(map(shown, unknown))}): name another --out, and join them.")
        return _row(row[self.image_key], row, self.several, wrong)


class Csv(Lines):
    """RFC 4180 with line feeds, as pandas and `datasets` read it."""

    @property
    def columns(self) -> list[str]:
        return [self.image_key, *(["prompt"] if self.several else []), "caption", "finish", "error"]

    @property
    def head(self) -> bytes:  # type: ignore[override]
        return _csv([self.columns])

    def line(self, result: Result) -> bytes:
        asked = [result.asked or ""] if self.several else []
        finish = "length" if result.cut else ""
        return _csv([[result.place, *asked, self.text(result), finish, result.error or ""]])

    def finish(self, journal: Journal) -> None:
        super().finish(journal)
        lost, count = list[str](), 0
        for result in journal.results():
            if result.error is None and self.text(result) in _MISSING:
                count += 1
                lost += [result.place] if len(lost) < 10 else []
        if count:
            names = ", ".join(map(shown, lost)) + (" and more" if count > len(lost) else "")
            why = "Captions that pandas and datasets read as missing in a CSV (None, NA and the like)"
            self.told.append(f"{why}: {count:,} ({names}).")

    def parse(self, path: Path) -> Iterator[Result]:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                for number, row in enumerate(csv.DictReader(file, strict=True), start=2):
                    wrong = f"Row {number} of {str(path)!r} is no row of `minichat caption`"
                    if set(row) != set(self.columns) or None in row.values():
                        raise DataError(f"{wrong}: its columns must be {', '.join(self.columns)}; name another --out.")
                    kept = {name: value for name, value in row.items() if value or name == "caption"}
                    yield _row(row[self.image_key], kept, self.several, wrong)
        except csv.Error:
            return  # torn off


#: What pandas, and with it the library datasets, takes for a missing value in a CSV.
_MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
))  # fmt: skip


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _row(place: str, row: dict[str, Any], several: bool, wrong: str) -> Result:
    caption, error, asked = row.get("caption"), row.get("error"), row.get("prompt")
    if not isinstance(error if error is not None else caption, str) or not isinstance(asked, str | None):
        raise DataError(f"{wrong}: it has no caption; mend or remove it, or name another --out.")
    if several != (asked is not None):
        raise DataError(f"{wrong} with {'several prompts' if several else 'one prompt'}: name another --out.")
    if error is not None:
        return Result(place, asked=asked, error=error)
    return Result(place, asked=asked, caption=caption, cut=row.get("finish") == "length", fixed=True)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _note(journal: Journal, batch: list[Result]) -> None:
    with journal.writing():
        journal.add(batch)
    batch.clear()


def _with_head(head: bytes, rows: Iterable[bytes], there: bool) -> Iterator[bytes]:
    """The file's parts in order; an empty file has no head yet."""
    if head and there:
        yield head
    yield from rows


def remove_unfinished(path: Path) -> None:
    """What a process that was killed left of its attempt to write a file. Nobody else may be writing it."""
    for left in path.absolute().parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        left.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, ready: Callable[[Path], None] = lambda made: None) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is whole; what was there stays until then. `ready` is told of it
    just before.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.absolute().parent)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        open_to_others(Path(temporary))
        ready(Path(temporary))
        os.replace(temporary, path)
        to_disk(path.absolute().parent)
    finally:
        Path(temporary).unlink(missing_ok=True)
