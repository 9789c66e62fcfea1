"""Captions for many pictures: found anywhere, each captioned once, and written where they are wanted.

`sources` finds pictures, `journal` shapes words and remembers what is done, `outputs` and `formats` are views of it,
and `run` asks the bot and puts them together. `caption_paths` is the plain way from paths to captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from minichat import images
from minichat.captioning.formats import Beside, Coco, Parquet, Shards
from minichat.captioning.journal import Shape, needs_caption, read_prompts
from minichat.captioning.outputs import Csv, JsonLines, Output, append, format_of
from minichat.captioning.run import Asked, Captioner, Job, Outcome, Progress, Run, journal_of
from minichat.captioning.sources import STDIN, Sources, named_from
from minichat.errors import DataError, ImageError
from minichat.fileio import json_line

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat

__all__ = [
    "Asked",
    "Chosen",
    "Output",
    "Progress",
    "Row",
    "Run",
    "Shape",
    "Sources",
    "append_row",
    "caption_paths",
    "named_from",
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
    if shape.boxes and known != "jsonl":
        raise DataError(
            f"Boxes have no place in the format {known!r}: leave --boxes out, or write JSON lines (.jsonl)."
        )
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


def append_row(file: IO[bytes], row: Row) -> None:
    """Append the row's line as `append` does."""
    append(file, row.to_json().encode() + b"\n")


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
    captioner = Captioner(bot, batch_size, settings)
    rows: list[Row | str] = []  # a batch's rows in order; a path: its caption is still to come
    waiting: list[Job] = []
    pixels = 0
    for path in paths:
        shown = os.fspath(path)
        try:
            picture = images.load(path)
        except ImageError as error:
            rows.append(Row(shown, error=str(error)))
        else:
            rows.append(shown)
            waiting.append(Job(picture, prompt))
            pixels += picture.width * picture.height
        if len(waiting) >= captioner.batch_size or pixels >= images.MAX_PIXELS or not waiting:
            yield from _filled(rows, captioner.caption(waiting))
            rows, waiting, pixels = [], [], 0
    yield from _filled(rows, captioner.caption(waiting))


def _filled(rows: Sequence[Row | str], captioned: Sequence[Outcome]) -> Iterator[Row]:
    following = iter(captioned)
    for row in rows:
        if isinstance(row, str):
            one = next(following)
            row = Row(row, one.caption, one.error, one.cut)
        yield row
