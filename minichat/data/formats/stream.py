"""Tars of several sources as one stream: shuffled, mixed, divided over processes, and entered at any record.

MiniGPT-4's first stage draws from LAION and CC/SBU by 115 : 14 (train_configs/minigpt4_stage1_pretrain.yaml), shuffling
within the last thousand records. So does this, save that the order is the same for the same seed, that a source is
read once through before it is read again, and that each record (not each batch) is drawn anew from a source.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from minichat.data.example import Example, Problem
from minichat.data.formats.asking import Asking, read_instructions
from minichat.data.formats.shards import Record, expand, records
from minichat.errors import DataError, SettingsError

Divide = Literal["records", "shards"]


@dataclass(frozen=True)
class Source:
    """Shards, and how much of the stream comes of them: 115 and 14 are 115 : 14."""

    shards: str | os.PathLike[str] | Sequence[str]
    ratio: float = 1.0

    def files(self) -> list[str]:
        """Every shard. Raises `DataError` where there is none."""
        named = [os.fspath(self.shards)] if isinstance(self.shards, str | os.PathLike) else list(self.shards)
        files = [file for pattern in named for file in expand(pattern)]
        for file in files:
            if not os.path.isfile(file):
                raise DataError(f"{file} was not found: check the path.")
        return files


@dataclass(frozen=True)
class Part:
    """One process's or worker's share: number `index` of `count`, from 0.

    By "records" the stream's order is the same for any number of parts, and part i takes records i, i + count, …; each
    part then reads the headers of all shards. By "shards" each part reads shards of its own, and shares one only where
    there are more parts than shards. Either way each record is some part's, once in each pass.
    """

    index: int = 0
    count: int = 1
    by: Divide = "records"

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise SettingsError(f"part is {self.index} of {self.count}: it must be one of 0 to {self.count - 1}.")
        if self.by not in ("records", "shards"):
            raise SettingsError(f"by is {self.by!r}: use 'records' or 'shards'.")


class Stream:
    """Records of one or several sources without end, or `passes` times through each.

    Args:
        sources: what is mixed. A source that is through (`passes`) leaves the others their ratio.
        seed: the same seed gives the same order.
        shuffle: how many records are held back to draw the next from; 1: in the order of the shards.
        passes: how often each source is read; None: without end.
        instructions: a file of instructions to draw from; None: the picture is shown without a word.
        captions: how texts are changed, "verbatim" or "blip" (`minichat.data.formats.captions`).

    Raises `DataError` for a source without a tar, `SettingsError` for a value out of range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int = 0,
        shuffle: int = 1000,
        passes: int | None = None,
        instructions: str | os.PathLike[str] | None = None,
        captions: str = "verbatim",
    ) -> None:
        if not sources:
            raise SettingsError("sources is empty: name one at least.")
        for source in sources:
            if not 0 < source.ratio < float("inf"):
                raise SettingsError(f"ratio is {source.ratio}: it must be above 0.")
        if isinstance(shuffle, bool) or not isinstance(shuffle, int) or shuffle < 1:
            raise SettingsError(f"shuffle is {shuffle!r}: it must be a whole number, 1 or more.")
        if passes is not None and passes < 1:
            raise SettingsError(f"passes is {passes}: it must be at least 1.")
        self._files = [source.files() for source in sources]
        self._ratios = [source.ratio for source in sources]
        self._seed = seed
        self._shuffle = shuffle
        self._passes = passes
        self._asking = Asking(() if instructions is None else read_instructions(instructions), captions, seed)

    def scan(self, part: Part = Part(), skip: int = 0) -> Iterator[Example | Problem]:
        """The part's records from number `skip` on; a `Problem` in place of one that is wrong, which counts too.

        What is skipped costs the headers of its shards, no more.
        """
        stride = part.count if part.by == "records" else 1
        first = part.index if part.by == "records" else 0
        chosen = itertools.islice(self._mixed(part), first + skip * stride, None, stride)
        for epoch, record in chosen:
            asking = replace(self._asking, epoch=epoch)
            yield record if isinstance(record, Problem) else record.example(asking)

    def _mixed(self, part: Part) -> Iterator[tuple[int, Record | Problem]]:
        draw = random.Random(f"mix {self._seed}" + (f" {part.index}" if part.by == "shards" else ""))
        open_ = [(self._source(number, part), ratio) for number, ratio in enumerate(self._ratios)]
        while open_:
            (chosen,) = draw.choices(range(len(open_)), [ratio for _, ratio in open_]) if len(open_) > 1 else (0,)
            item = next(open_[chosen][0], None)
            if item is None:
                del open_[chosen]
            else:
                yield item

    def _source(self, number: int, part: Part) -> Iterator[tuple[int, Record | Problem]]:
        """A source's records, pass by pass: its shards in a new order, its records shuffled."""
        for epoch in itertools.count() if self._passes is None else range(self._passes):
            draw = random.Random(f"order {self._seed} {number} {epoch}")
            files = list(self._files[number])
            if self._shuffle > 1:
                draw.shuffle(files)
            for item in _shuffled(_divided(files, part), self._shuffle, draw):
                yield epoch, item


def _divided(files: list[str], part: Part) -> Iterator[Record | Problem]:
    """The records of the part's shards, in order; of all shards where it is records that are divided."""
    if part.by == "records" or len(files) >= part.count:
        own = files if part.by == "records" else files[part.index :: part.count]
        for file in own:
            yield from records(Path(file), file)
        return
    shard, place = part.index % len(files), part.index // len(files)
    sharing = len(range(shard, part.count, len(files)))
    yield from itertools.islice(records(Path(files[shard]), files[shard]), place, None, sharing)


def _shuffled(items: Iterator[Record | Problem], held: int, draw: random.Random) -> Iterator[Record | Problem]:
    """Each item once, drawn from the `held` that came last."""
    waiting = list(itertools.islice(items, held))
    for item in items:
        place = draw.randrange(len(waiting))
        waiting[place], item = item, waiting[place]
        yield item
    draw.shuffle(waiting) if held > 1 else None
    yield from waiting
