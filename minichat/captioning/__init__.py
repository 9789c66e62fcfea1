"""Captions for many pictures: found anywhere, each captioned once, and written where they are wanted."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from minichat import images
from minichat.captioning.formats import Beside, Coco, Parquet, Shards
from minichat.captioning.journal import Shape, needs_caption, read_prompts
from minichat.captioning.outputs import Csv, JsonLines, Output, format_of
from minichat.captioning.run import Asked, Progress, Run, journal_of
from minichat.captioning.sources import STDIN, Sources
from minichat.device.memory import free_memory, out_of_memory
from minichat.errors import ContextError, DataError, ImageError, MiniChatError, SettingsError
from minichat.fileio import json_line

if TYPE_CHECKING:
    from PIL import Image

    from minichat.inference.bot import MiniChat


# --- Captions for many pictures: found anywhere, each captioned once, and written where they are wanted.
#
# `sources` finds pictures, `journal` shapes words and remembers what is done, `outputs` and `formats` are views of it,
# and `run` asks the bot and puts them together.


__all__ = [
    "Asked",
    "Chosen",
    "Output",
    "Progress",
    "Run",
    "Shape",
    "Sources",
    "open_output",
    "read_prompts",
    "sources_for",
]

_TEXTS = (".txt", ".caption")


@dataclass(frozen=True)
class Chosen:
    """An output, its format's name, where its journal is, and the folder that pictures are named from."""

    output: Output
    form: str
    journal: Path | None
    home: Path


def open_output(
    out: Path | None,
    form: str | None,
    sources: tuple[str, ...],
    *,
    stream: IO[bytes],
    prompts: tuple[str | None, ...],
    shape: Shape,
    shard_size: int = 1000,
) -> Chosen:
    """The output that is asked for; nothing is made yet. Raises `DataError` for what does not go together."""
    known = format_of(out, form)
    shared: dict[str, Any] = {"prompts": prompts, "shape": shape}
    if known in ("jsonl", "csv"):
        kind = JsonLines if known == "jsonl" else Csv
        if out is None:
            return Chosen(kind(None, stream, **shared), known, None, Path())
        return Chosen(kind(out, **shared), known, journal_of(out), out.parent)
    if known in ("txt", "caption"):
        if out is not None:
            raise DataError(f"With --format {known} captions lie beside their pictures: leave --out away.")
        home = _folder_of(sources)
        return Chosen(Beside(f".{known}", **shared), known, journal_of(home / f"captions.{known}"), home)
    if out is None:
        raise DataError(f"The format {known!r} is written to a file or folder: name it (--out).")
    if known == "webdataset":
        if out.suffix.lower() == ".tar":
            shards = Shards(out.parent, shard_size, f"{out.stem}-", **shared)
            return Chosen(shards, known, journal_of(out), out.parent)
        return Chosen(Shards(out, shard_size, **shared), known, out / ".captions.run", out)
    whole = Parquet if known == "parquet" else Coco
    return Chosen(whole(out, **shared), known, journal_of(out), out.parent)


def _folder_of(sources: tuple[str, ...]) -> Path:
    """Where the record of texts beside pictures is: the first source, or the folder that it is in."""
    first = Path(sources[0]) if sources and sources[0] != STDIN else Path()
    if first.is_dir():
        return first
    return first.parent if first.parent.is_dir() else Path()


def sources_for(sources: tuple[str, ...], chosen: Chosen, asked: Asked, **options: Any) -> Sources:
    """The sources, as this run needs them: it looks for captions that are there where it asks for them."""
    wanted = asked.existing != "overwrite" or needs_caption(asked.prompts)
    own = f".{chosen.form}"
    texts = ((own,) if own in _TEXTS else _TEXTS) if wanted else ()
    home = None if asked.absolute else Path(os.path.realpath(chosen.home))
    return Sources(sources, home, texts=texts, **options)


# --- From paths to rows: pictures are captioned in batches, and one that fails costs no other its caption.


@dataclass(frozen=True)
class Row:
    """One picture's outcome: a caption, or the error that stands in its place.

    `cut` says that the limit of tokens cut the caption off.
    """

    image: str
    caption: str | None = None
    error: str | None = None
    cut: bool = False

    def to_json(self) -> str:
        """`{"image": …, "caption": …}` or `{"image": …, "error": …}`, in one line without its end.

        A caption that was cut off has `"finish": "length"`, too.
        """
        outcome = {"caption": self.caption} if self.error is None else {"error": self.error}
        return json_line({"image": self.image, **outcome, **({"finish": "length"} if self.cut else {})})


def named_from(path: str, folder: str | os.PathLike[str] | None) -> str:
    """The path as seen from `folder`, wherever links lead; None, or a folder on another drive: the absolute one."""
    whole = os.path.join(os.getcwd(), path)
    if os.pardir in Path(path).parts:  # after a link it leads to where the link does
        whole = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
    if folder is None:
        return os.path.abspath(whole)
    try:
        return os.path.relpath(whole, os.path.realpath(folder))
    except ValueError:  # on Windows there is no way from one drive to another
        return os.path.abspath(whole)


def append_row(file: IO[bytes], row: Row) -> None:
    """Append the row's line at once, so that a program stopped at any moment leaves whole lines behind.

    Raises:
        DataError: nothing more can be written; an unbuffered file then ends with the last whole line.
    """
    line = memoryview(row.to_json().encode() + b"\n")
    start = file.tell() if isinstance(file, io.FileIO) and file.seekable() else None
    try:
        while line:
            line = line[file.write(line) :]  # a full disk takes a part first, and raises next time
        file.flush()
    except BaseException as error:  # also Ctrl-C, between two parts of a line
        if start is not None and line:
            with suppress(OSError):  # a device has no end to cut
                file.truncate(start)
        if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"The captions cannot be written ({error.strerror}): those so far are kept.") from None


def caption_paths(
    bot: MiniChat,
    paths: Iterable[str | os.PathLike[str]],
    *,
    prompt: str | None = None,
    batch_size: int = 8,
    **settings: Any,
) -> Iterator[Row]:
    """Caption each path's picture: one row per path, in order.

    What cannot be opened is recorded as an error. A batch that does not fit into memory is halved, and so are those
    that follow; where the model fails, the batch's pictures are tried one by one, and only the culprit's row is one.

    Args:
        bot: what `minichat.load` returns.
        paths: pictures, as `find_pictures` lists them.
        prompt: the instruction; None: the bot's own.
        batch_size: pictures at a time, at most; large pictures make smaller batches.
        settings: `GenerationSettings` fields, for all pictures.

    Raises:
        MiniChatError: what concerns every picture alike, such as a setting out of range.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
    captioner = _Captioner(bot, prompt, batch_size, settings)
    rows: list[Row | None] = []  # a batch's rows in order; None: its caption is still to come
    waiting: list[tuple[str, Image.Image]] = []
    pixels = 0
    for path in paths:
        shown = os.fspath(path)
        try:
            picture = images.load(path)
        except ImageError as error:
            rows.append(Row(shown, error=str(error)))
        else:
            rows.append(None)
            waiting.append((shown, picture))
            pixels += picture.width * picture.height
        if len(waiting) >= captioner.batch_size or pixels >= images.MAX_PIXELS or not waiting:
            yield from _filled(rows, captioner.caption(waiting))
            rows, waiting, pixels = [], [], 0
    yield from _filled(rows, captioner.caption(waiting))


def _filled(rows: Sequence[Row | None], captioned: Sequence[Row]) -> Iterator[Row]:
    following = iter(captioned)
    for row in rows:
        yield next(following) if row is None else row


class _Captioner:
    """Captions batches; remembers how many pictures fit into memory."""

    def __init__(self, bot: MiniChat, prompt: str | None, batch_size: int, settings: dict[str, Any]) -> None:
        self.batch_size = batch_size
        self._bot = bot
        self._prompt = prompt
        self._settings = settings

    def caption(self, batch: Sequence[tuple[str, Image.Image]]) -> list[Row]:
        rows: list[Row] = []
        alone = 0  # so many of the next pictures are tried one by one, to find the culprit
        while len(rows) < len(batch):
            part = batch[len(rows) :][: 1 if alone else self.batch_size]
            failure = self._try(part, rows)
            if failure is not None and out_of_memory(failure):
                free_memory()
            if failure is not None and len(part) == 1:
                rows.append(Row(part[0][0], error=_sentence(failure)))
            elif failure is not None and out_of_memory(failure):
                self.batch_size = len(part) // 2
                continue
            elif failure is not None:
                alone = len(part)
                continue
            alone = max(0, alone - len(part))
        return rows

    def _try(self, part: Sequence[tuple[str, Image.Image]], rows: list[Row]) -> Exception | None:
        """Append the part's rows, or return why not. Returning drops the traceback, which would hold on to tensors."""
        try:
            captions = self._bot.caption(
                [picture for _, picture in part], prompt=self._prompt, batch_size=len(part), **self._settings
            )
        except (ImageError, ContextError) as error:
            return error.with_traceback(None)
        except MiniChatError:  # a setting, the model, the prompt: it would be the same for every picture
            raise
        except Exception as error:  # also torch's OutOfMemoryError, which is a RuntimeError
            return error.with_traceback(None)
        for (path, _), caption in zip(part, captions, strict=True):
            rows.append(Row(path, caption=caption, cut=getattr(caption, "finish", "stop") == "length"))
        return None


def _sentence(error: Exception) -> str:
    if isinstance(error, MiniChatError):
        return str(error)
    if out_of_memory(error):
        return "The memory does not suffice for this picture: use a smaller model, or free some memory."
    return f"The model failed on this picture ({type(error).__name__}): report it if it happens again."
