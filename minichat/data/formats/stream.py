"""Data sets as one stream: shuffled, mixed, divided over processes, and entered at any record.

Tars and tables are read shard by shard; the records of any other format are those of its one file.

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
from typing import Any, Literal

from minichat.data.example import Example, Problem
from minichat.data.formats import entries, form_for
from minichat.data.formats.asking import Asking
from minichat.data.formats.reading import Options, options_of, tables_of
from minichat.data.formats.record import Entry, refusal
from minichat.data.formats.shards import tars
from minichat.errors import DataError, SettingsError

Divide = Literal["records", "shards"]


@dataclass(frozen=True)
class Source:
    """Data sets of one format, and how much of the stream comes of them: 115 and 14 are 115 : 14."""

    shards: str | os.PathLike[str] | Sequence[str]
    ratio: float = 1.0
    form: str | None = None

    def open(self, options: dict[str, Any]) -> _Opened:
        """Every shard. Raises `DataError` where there is none, `SettingsError` for an option that it has not."""
        named = [os.fspath(self.shards)] if isinstance(self.shards, str | os.PathLike) else list(self.shards)
        form = form_for(named[0], self.form, options) if named else "webdataset"
        told = options_of(form, options)
        listed = {"webdataset": tars, "arrow": tables_of}
        files = [file for name in named for file in (listed[form](name) if form in listed else [name])]
        for file in files:
            if form in listed and not os.path.exists(file):
                raise DataError(f"{file} was not found: check the path.")
        return _Opened(tuple(files), form, self.form is not None, told, told.asking(form))


@dataclass(frozen=True)
class _Opened:
    files: tuple[str, ...]
    form: str
    strict: bool
    options: Options
    asking: Asking

    def entries(self, file: str) -> Iterator[Entry | Problem]:
        return entries(file, self.form, self.options, strict=self.strict)

    def sample(self, entry: Entry, epoch: int) -> Example | Problem:
        """The one sample of a record. Raises `DataError` for what concerns the data set as a whole."""
        made = list(entry.examples(replace(self.asking, epoch=epoch), self.options.unknown_keys))
        if len(made) > 1:
            raise DataError(
                f"{entry.where}: the picture has {len(made)} texts, and a stream takes one of each record: say which "
                "by several_captions: first, or random."
            )
        if isinstance(made[0], Example) and made[0].unread:
            raise DataError(f"{entry.where}: {refusal(made[0].unread)}")
        return made[0]


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
        options: fields of `minichat.data.formats.reading.Options`, such as `instructions` and `captions`.

    Raises `DataError` for a source without a file, `SettingsError` for a value out of range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int = 0,
        shuffle: int = 1000,
        passes: int | None = None,
        **options: Any,
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
        self._sources = [source.open({**options, "seed": seed}) for source in sources]
        self._ratios = [source.ratio for source in sources]
        self._seed = seed
        self._shuffle = shuffle
        self._passes = passes

    def scan(self, part: Part = Part(), skip: int = 0) -> Iterator[Example | Problem]:
        """The part's records from number `skip` on; a `Problem` in place of one that is wrong, which counts too.

        What is skipped is passed over without being read: of tars it costs the headers, no more.

        Raises `DataError` at a record with a key that nothing reads, or with several texts of which none is chosen.
        """
        stride = part.count if part.by == "records" else 1
        first = part.index if part.by == "records" else 0
        chosen = itertools.islice(self._mixed(part), first + skip * stride, None, stride)
        for source, epoch, record in chosen:
            yield record if isinstance(record, Problem) else source.sample(record, epoch)

    def _mixed(self, part: Part) -> Iterator[tuple[_Opened, int, Entry | Problem]]:
        draw = random.Random(f"mix {self._seed}" + (f" {part.index}" if part.by == "shards" else ""))
        open_ = [(self._source(number, part), ratio) for number, ratio in enumerate(self._ratios)]
        while open_:
            (chosen,) = draw.choices(range(len(open_)), [ratio for _, ratio in open_]) if len(open_) > 1 else (0,)
            item = next(open_[chosen][0], None)
            if item is None:
                del open_[chosen]
            else:
                yield item

    def _source(self, number: int, part: Part) -> Iterator[tuple[_Opened, int, Entry | Problem]]:
        """A source's records, pass by pass: its shards in a new order, its records shuffled."""
        source = self._sources[number]
        for epoch in itertools.count() if self._passes is None else range(self._passes):
            draw = random.Random(f"order {self._seed} {number} {epoch}")
            files = list(source.files)
            if self._shuffle > 1:
                draw.shuffle(files)
            for item in _shuffled(_divided(source, files, part), self._shuffle, draw):
                yield source, epoch, item


def _divided(source: _Opened, files: list[str], part: Part) -> Iterator[Entry | Problem]:
    """The records of the part's shards, in order; of all shards where it is records that are divided."""
    if part.by == "records" or len(files) >= part.count:
        own = files if part.by == "records" else files[part.index :: part.count]
        for file in own:
            yield from source.entries(file)
        return
    shard, place = part.index % len(files), part.index // len(files)
    sharing = len(range(shard, part.count, len(files)))
    yield from itertools.islice(source.entries(files[shard]), place, None, sharing)


def _shuffled(items: Iterator[Entry | Problem], held: int, draw: random.Random) -> Iterator[Entry | Problem]:
    """Each item once, drawn from the `held` that came last."""
    waiting = list(itertools.islice(items, held))
    for item in items:
        place = draw.randrange(len(waiting))
        waiting[place], item = item, waiting[place]
        yield item
    draw.shuffle(waiting) if held > 1 else None
    yield from waiting
