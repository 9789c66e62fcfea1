"""Outputs other than lines: Parquet, COCO's results, texts beside pictures, tars, and a page to look through."""

from __future__ import annotations

import base64
import glob
import html
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from minichat.captioning.journal import Journal, Planned, Result, Shape
from minichat.captioning.outputs import Output, remove_unfinished, replacing
from minichat.captioning.sources import readable, stored
from minichat.errors import DataError, MiniChatError, shown
from minichat.fileio import json_line, open_file

# --- Outputs other than lines: Parquet and COCO's results, which are written whole, texts beside pictures, and tars.


_ROWS = 10_000  # of a Parquet file's row group


class Whole(Output):
    """A file that is written at the end of a command, from all that is known, in place of the one before."""

    live = False

    def begin(self, journal: Journal, before: Shape | None) -> None:
        if self.path is None:
            return
        if self.path.is_file() and _state(self.path) not in (journal.fact("written") or []):
            raise DataError(
                f"{str(self.path)!r} has changed since it was written, and would be written anew: move it away."
            )
        remove_unfinished(self.path)

    def finish(self, journal: Journal) -> None:
        if self.path is None:
            return
        try:
            # Noted before it takes its place: a process may be killed between the two.
            before = [_state(self.path)] if self.path.is_file() else []
            with replacing(self.path, lambda made: journal.note(written=[*before, _state(made)])) as file:
                self.write(file, journal)
        except OSError as error:
            raise DataError(
                f"{str(self.path)!r} cannot be written ({error.strerror or error}): make room or check the folder, "
                "and the same command goes on."
            ) from None
        journal.note(stale=False)

    def write(self, file: IO[bytes], journal: Journal) -> None:
        raise NotImplementedError


class Parquet(Whole):
    """The columns of the lines: image, prompt where there are several, caption, finish, error."""

    def write(self, file: IO[bytes], journal: Journal) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise DataError("To write Parquet, install the library pyarrow (pip install datasets).") from None
        image = "file_name" if self.path is not None and self.path.stem == "metadata" else "image"
        names = [image, *(["prompt"] if self.several else []), "caption", "finish", "error"]
        schema = pa.schema([(name, pa.string()) for name in names])
        with parquet.ParquetWriter(file, schema) as writer:
            for group in _groups(journal.results(), _ROWS):
                rows = [dict(zip(names, self._row(result), strict=True)) for result in group]
                writer.write_table(pa.Table.from_pylist(rows, schema))

    def _row(self, result: Result) -> list[str | None]:
        asked = [result.asked] if self.several else []
        caption = self.text(result) if result.error is None else None
        finish = "length" if result.cut else None
        return [_readable(value) for value in (result.place, *asked, caption, finish, result.error)]


class Coco(Whole):
    """COCO's results, as pycocotools' `COCO.loadRes` reads them: every image_id is one of the annotations' file.

    Of a COCO file the ids are its own; of a list, those in its column `image_id` or `id`; else a file is called by its
    number, as COCO's are (`COCO_val2014_000000000042.jpg` is 42). Source: https://cocodataset.org/#format-results

    A caption is one line: the tokenizer of pycocoevalcap 1.2 would take what follows another line end than \\n for the
    next picture's caption.
    """

    marks = False

    def check(self, new: bool) -> None:
        super().check(new)
        if self.several:
            raise DataError("COCO's results hold one caption of each picture: give one prompt, or another format.")

    def write(self, file: IO[bytes], journal: Journal) -> None:
        first = True
        file.write(b"[")
        for result in journal.results():
            if result.error is None:
                file.write(b"\n" if first else b",\n")
                caption = " ".join(self.text(result).splitlines())
                file.write(json_line({"image_id": image_id(result), "caption": caption}).encode())
                first = False
        file.write(b"\n]\n")

    def key(self, planned: Planned) -> str | None:
        return f"image_id {image_id(planned)}"


def image_id(result: Result | Planned) -> int | str:
    """A picture's id in COCO's files. Raises `DataError` for a file without a number."""
    if result.id is not None:
        return int(result.id) if re.fullmatch(r"0*\d{1,18}", result.id) else result.id
    found = re.search(r"(\d{1,18})(?:\.[^.]*)?$", result.place)
    if found is None:
        raise DataError(
            f"{shown(result.place)} has no number to be its image_id: name the annotations' file as the source, or a "
            "list with a column image_id."
        )
    return int(found[1])


class Beside(Output):
    """A text beside each picture, of its name: what kohya's and taggui's programs read, and `minichat data`.

    kohya's sd-scripts read the first line of the file with the ending that they are told (`--caption_extension`; any of
    the lines with `--enable_wildcard`), and taggui the .txt. So several captions are as many lines.
    """

    beside = True
    marks = False

    def __init__(self, ending: str, **shared: Any) -> None:
        super().__init__(None, **shared)
        self.ending = ending
        self._journal: Journal | None = None
        self._before: Shape | None = None

    def key(self, planned: Planned) -> str | None:
        path = planned.picture.get("path")
        if path is None:
            raise DataError(f"{shown(planned.place)} is in another file, where no text can lie beside it: use --out.")
        return str(os.path.splitext(path)[0]) + self.ending

    def begin(self, journal: Journal, before: Shape | None) -> None:
        """Put texts back that are missing; those that somebody has changed are left alone."""
        self._journal, self._before = journal, before
        self._restore(journal, anew=bool(journal.fact("stale")))
        journal.note(stale=False)

    def add(self, results: Sequence[Result]) -> None:
        if self._journal is not None:
            self._write_all(dict.fromkeys(result.place for result in results))

    def replace(self, results: Sequence[Result]) -> None:
        if self._journal is not None and results:
            self._write_all(dict.fromkeys(result.place for result in results))
            self._journal.note(stale=False)

    def finish(self, journal: Journal) -> None:
        journal.note(stale=False)  # pictures that are gone have taken their texts with them, or left them

    def _restore(self, journal: Journal, anew: bool = False) -> None:
        last = ""
        kept = 0
        for result in journal.results():
            if result.place == last:
                continue
            last = result.place
            file = self._file(result)
            reshaped = self._before is not None and self._before != self.shape
            if file is not None and (anew or reshaped or not file.exists()):
                kept += not self._write_all([result.place], reshaped)
        if kept:
            self.told.append(f"Texts beside pictures that were changed by hand, and are left so: {kept:,}.")

    def _file(self, result: Result) -> Path | None:
        path = (result.picture or {}).get("path")
        return None if path is None else Path(path).with_suffix(self.ending)

    def _write_all(self, places: Any, reshaped: bool = False) -> bool:
        """Write the texts of some pictures; False where one was left as somebody changed it."""
        done = True
        for place in places:
            found = [self._journal.known(place, number) for number in range(len(self.prompts))] if self._journal else []
            results = [one for one in found if one is not None and one.error is None]
            if len(results) < len(self.prompts) or all(one.fixed and one.caption == one.before for one in results):
                continue  # another prompt is still to be answered, or it is what was there
            file = self._file(results[0])
            if file is None or not file.parent.is_dir():
                continue
            if (
                reshaped
                and self._before is not None
                and _content(file) not in (None, self._text(results, self._before))
            ):
                done = False
                continue
            content = self._text(results, self.shape).encode("utf-8", "replace")
            try:
                _replace(file, content)
            except OSError as error:
                raise DataError(
                    f"{str(file)!r} cannot be written ({error.strerror or error}): make room or check the folder, and "
                    "the same command goes on."
                ) from None
        return done

    def _text(self, results: list[Result], shape: Shape) -> str:
        now, self.shape = self.shape, shape
        try:
            texts = [self.text(result) for result in results]
        finally:
            self.shape = now
        if len(texts) > 1:
            texts = [" ".join(text.split()) for text in texts]
        return "\n".join(texts) + "\n"


class Shards(Output):
    """WebDataset's tars: a picture as it is, its caption as .txt, and a .json that says which picture it is.

    A tar is written when it is full, and the last when the command ends. Names end at their first dot, so dots in a
    picture's path become underscores; two pictures that would have one name get numbers.
    """

    marks = False

    def __init__(self, path: Path, size: int, prefix: str = "", **shared: Any) -> None:
        super().__init__(path, **shared)
        self.prefix = prefix
        self.size = size
        self._journal: Journal | None = None
        self._loose = 0  # results that may be in no tar yet

    def check(self, new: bool) -> None:
        folder = self.path or Path()
        if new and folder.is_dir() and any(folder.glob(f"{glob.escape(self.prefix)}*.tar")):
            raise DataError(f"{str(folder)!r} holds tars already: name another folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{str(folder)!r} cannot be made ({error.strerror}): check the folder.") from None

    def begin(self, journal: Journal, before: Shape | None) -> None:
        self._journal = journal
        if before is not None and before != self.shape:
            raise DataError(
                f"{str(self.path)!r} was begun with other words round the captions: give the same, or another --out."
            )
        for left in (self.path or Path()).glob(f".{glob.escape(self.prefix)}*.tar.*.unfinished"):
            left.unlink()
        self._loose = len(journal)  # more than there are, at first: then one look tells

    def add(self, results: Sequence[Result]) -> None:
        self._loose += len(results)
        if self._journal is not None and self._loose >= self.size * len(self.prompts):
            self._write(self._journal, only_full=True)

    def finish(self, journal: Journal) -> None:
        if journal.fact("stale"):
            self.told.append(
                f"Some pictures of {str(self.path)!r} have changed or are gone since; their tars hold what they were."
            )
        self._write(journal)

    def close(self) -> None:
        if self.path is not None and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _write(self, journal: Journal, only_full: bool = False) -> None:
        """The next tars. Where a process is killed before the journal knows of one, it is written again."""
        while places := journal.without_shard(len(self.prompts), self.size):
            if only_full and len(places) < self.size:
                self._loose = len(places)
                return
            number = journal.shards()
            path = (self.path or Path()) / f"{self.prefix}{number:05}.tar"
            names: set[str] = set()
            with _told(path), replacing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
                for results in places:
                    self._add(tar, results, names, journal)
            with journal.writing():
                journal.in_shard([results[0].place for results in places], number)
        self._loose = 0

    def _add(self, tar: tarfile.TarFile, results: list[Result], names: set[str], journal: Journal) -> None:
        first = results[0]
        data = stored(first.picture or {}, journal.data(first.place)).read()
        name = _key(first.place)
        while name in names:
            name += "_"
        names.add(name)
        called = first.place if "path" in (first.picture or {}) else str((first.picture or {}).get("name"))
        _put(tar, name + (os.path.splitext(called)[1] or ".jpg").lower(), data)
        for number, result in enumerate(results):
            part = f".{number}" if self.several else ""
            _put(tar, f"{name}{part}.txt", self.text(result).encode("utf-8", "replace"))
        notes = {"image": first.place}
        if first.cut:
            notes["finish"] = "length"
        _put(tar, f"{name}.json", json_line({**notes, "caption": self._captions(results)}).encode())

    def _captions(self, results: list[Result]) -> Any:
        texts = [self.text(result) for result in results]
        return texts if self.several else texts[0]


def _key(place: str) -> str:
    """A picture's name in a tar: its path without the ending, of which no dot is left and no way up."""
    stem = os.path.splitext(place)[0]
    parts = [part for part in re.split(r"[/\\]", stem) if part not in ("", ".", "..")]
    name = "/".join(re.sub(r"[.\x00-\x1f#]", "_", part) for part in parts)
    return name.encode("utf-8", "replace").decode() or "picture"


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written ({error.strerror or error}).") from None


def _groups(results: Iterator[Result], size: int) -> Iterator[list[Result]]:
    group: list[Result] = []
    for one in results:
        group.append(one)
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _replace(file: Path, content: bytes) -> None:
    """Whole or not at all; what a killed process leaves is taken up again by the next, under the same name."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    with open(unfinished, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(unfinished, file)


def _content(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _readable(text: str | None) -> str | None:
    """Arrow holds UTF-8 alone."""
    return None if text is None else readable(text)


# --- A page to look through: each picture with what was said of it, failures first. It runs nothing, and fetches
# nothing but the pictures beside it.


MOST = 10_000  # captions on a page: a browser shows no million
_SIDE = 240  # pixels of a thumbnail's longer side
_SHOWN = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif")  # by every browser
_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src * data:; style-src 'unsafe-inline'">
<title>Captions</title>
<style>
body { font: 16px/1.4 sans-serif; margin: 1rem; color: #222; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; border: 1px solid #ddd; border-radius: .4rem; overflow-wrap: anywhere }
figure.failed { border-color: #b00; color: #b00 }
img { display: block; width: 100%; height: 200px; object-fit: contain; background: #f4f4f4 }
small { color: #666 } p { margin: .4rem 0 0; white-space: pre-wrap } b { color: #b60; font-weight: normal }
</style>
"""


_TITLE = b"<title>Captions</title>"


def check_page(path: Path, out: Path | None) -> None:
    """Raises `DataError`, before anything is captioned, where a page cannot be written, or would replace another file.

    An earlier page gives way.
    """
    if out is not None and os.path.abspath(path) == os.path.abspath(out):
        raise DataError(f"--html and --out are both {str(path)!r}: name another page.")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{str(path)!r} cannot be written (No such file or directory): check the folder.")
    if not path.exists():
        return
    try:
        with open_file(path) as file:
            known = _TITLE in file.read(len(_HEAD))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written ({error.strerror}): name another page.") from None
    if not known:
        raise DataError(f"{str(path)!r} exists already and is no page of captions: name another (--html).")


def write_page(journal: Journal, output: Output, path: Path) -> int:
    """Write the page; returns how many captions it shows. Raises `DataError` where it cannot be written."""
    count = 0
    folder = path.absolute().parent
    total = len(journal)
    try:
        with replacing(path) as file:
            file.write(_HEAD.encode())
            shown = f"{total:,} captions" if total <= MOST else f"{MOST:,} of {total:,} captions"
            file.write(f"<h1>{shown}</h1>\n<main>\n".encode())
            for result in islice(_failures_first(journal), MOST):
                count += 1
                file.write(_figure(journal, output, result, folder).encode("utf-8", "replace"))
            file.write(b"</main>\n")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written ({error.strerror or error}): check the folder.") from None
    return count


def _failures_first(journal: Journal) -> Iterator[Result]:
    yield from (result for result in journal.results() if result.error is not None)
    yield from (result for result in journal.results() if result.error is None)


def _figure(journal: Journal, output: Output, result: Result, folder: Path) -> str:
    asked = f"<p><small>{html.escape(result.asked or '')}</small></p>" if output.several else ""
    cut = " <b>… cut off</b>" if result.cut else ""
    said = html.escape(result.error if result.error is not None else output.text(result))
    kind = ' class="failed"' if result.error is not None else ""
    picture = _picture(journal, result, folder)
    name = html.escape(result.place)
    return f"<figure{kind}>{picture}<figcaption><small>{name}</small>{asked}<p>{said}{cut}</p></figcaption></figure>\n"


def _picture(journal: Journal, result: Result, folder: Path) -> str:
    """A link to the file as seen from the page; what no browser shows, or lies in another file, is in the page."""
    place: dict[str, Any] = result.picture or {}
    path = place.get("path")
    if path is not None and path.lower().endswith(_SHOWN):
        try:
            seen = os.path.relpath(path, folder)
        except ValueError:  # on Windows there is no way from one drive to another
            return f'<img loading="lazy" alt="" src="{Path(path).as_uri()}">'
        return f'<img loading="lazy" alt="" src="{quote(os.fsencode(seen.replace(os.sep, "/")))}">'
    if result.error is not None or not place:
        return ""
    try:
        picture = stored(place, journal.data(result.place)).open()
    except (MiniChatError, KeyError):
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}">'
