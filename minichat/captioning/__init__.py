"""Captions for many pictures: found anywhere, each captioned once, and written where they are wanted.

`sources` finds pictures, `journal` shapes words and remembers what is done, `outputs` and `formats` are views of it,
`captioner` asks the bot, `cluster` has workers ask theirs, and `run` puts them together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from minichat.captioning.formats import Beside, Coco, Parquet, Shards
from minichat.captioning.journal import Shape, needs_caption, read_prompts
from minichat.captioning.outputs import Csv, JsonLines, Output, format_of
from minichat.captioning.run import Asked, Progress, Run, journal_of
from minichat.captioning.sources import STDIN, Sources
from minichat.errors import DataError

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
