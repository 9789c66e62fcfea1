"""The data loader: the batches of every step, from any step on, for any number of processes and workers."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from minichat.data.dataset import WINDOW, Row, Rows, Shares, padding, plan, shares
from minichat.data.example import Example, Problem, StoredPicture
from minichat.data.formats import Options, entries, form_for, options_of, tables_of, tars_of
from minichat.data.formats.base import Asking, Entry, refusal
from minichat.errors import DataError, MiniChatError, SettingsError

# --- Ctrl-C and SIGTERM wait for the step at hand to end, so that a checkpoint can be written.


_HEEDED = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Meanwhile a signal is noted rather than obeyed; a second Ctrl-C is obeyed at once.

    Outside the main thread, where Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HEEDED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == number:
            raise KeyboardInterrupt
        self.signal = number


def leave_to_the_main_process(worker: int) -> None:
    """For a loader's worker: signals that reach the whole group are the main process's to answer."""
    for number in _HEEDED:
        signal.signal(number, signal.SIG_IGN)


# --- Data sets as one stream: shuffled, mixed, divided over processes, and entered at any record.
#
# Tars and tables are read shard by shard; the records of any other format are those of its one file.
#
# MiniGPT-4's first stage draws from LAION and CC/SBU by 115 : 14 (train_configs/minigpt4_stage1_pretrain.yaml),
# shuffling within the last thousand records. So does this, save that the order is the same for the same seed, that a
# source is read once through before it is read again, and that each record (not each batch) is drawn anew from a
# source.


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
        listed = {"webdataset": tars_of, "arrow": tables_of}
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
        options: fields of `minichat.data.formats.Options`, such as `instructions` and `captions`.

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


# --- What a run reads: the batches of every step, from any step on, the same for any number of processes and workers.


_LOOKED_AT = 1000  # batches, to know how much of all is padding
_NO_IDS = np.zeros(0, np.int32)
Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Row]], Batch]


class Examples(Protocol):
    """Records without end, the same for the same arguments."""

    def scan(self, part: Part = ..., skip: int = ...) -> Iterator[Example | Problem]:
        """A process's share of them, from its number `skip` on."""


class BatchLoader(Protocol):
    """The batches of a run, for one process."""

    steps: int

    def load(self, start: int = 0, workers: int = 0, pinned: bool = False) -> Iterator[list[Batch]]:
        """Each step's batches from step `start` on: this process's share, in the parts that follow one another.

        `pinned`: in memory that a GPU copies from while the program goes on.
        """

    def where(self, step: int) -> list[list[str]]:
        """Of each of a step's batches, the places of its rows: file and line."""

    def heaviest(self, start: int) -> int:
        """A step whose batches need as much memory as any, as far as that is known."""

    def left_out(self) -> list[tuple[int, str]]:
        """By step, counted from 1, what was wrong with records that were passed over, since this was last asked."""

    def padding(self) -> float | None:
        """The share of the computed positions that hold nothing, from 0 to 1; None where it is not known before."""

    def facts(self) -> dict[str, Any]:
        """What is read, for the record; `fingerprint` changes with it."""


@dataclass(frozen=True)
class Epoch:
    """Once over the rows: the global batches, and one process's shares of them."""

    rows: Rows
    batches: list[list[int]]
    shares: Shares


class ListedBatches(Dataset[list[Batch] | MiniChatError]):
    """Rows that are all listed first, epoch after epoch.

    Args:
        rows_of: the rows of an epoch; as many in each.
        collate: rows → tensors.
        batch_size: rows of a global batch.
        parts, rank, processes: how it is divided (`minichat.data.dataset.shares`).
        epochs, steps: how long; one of the two.
        window: see `minichat.data.dataset.plan`.
    """

    def __init__(
        self,
        rows_of: Callable[[int], Rows],
        collate: Collate,
        *,
        batch_size: int,
        seed: int = 0,
        epochs: int | None = 1,
        steps: int | None = None,
        parts: int = 1,
        rank: int = 0,
        processes: int = 1,
        window: int = WINDOW,
    ) -> None:
        self._rows_of, self._collate = rows_of, collate
        self._planning = {"batch_size": batch_size, "seed": seed, "window": window}
        self._division = {"accumulation": parts, "rank": rank, "processes": processes}
        self._held: tuple[int, Epoch] | None = None
        self.rows = rows_of(0)
        self.of_an_epoch = -(-len(self.rows) // batch_size)
        self.steps = steps if steps is not None else (epochs or 0) * self.of_an_epoch

    def epoch(self, number: int) -> Epoch:
        """Worked out when it is asked for; the last one is held."""
        if self._held is None or self._held[0] != number:
            rows = self._rows_of(number)
            batches = plan(rows.lengths, epoch=number, **self._planning)
            shares_of_it = Shares(rows, batches, self._collate, **self._division)
            self._held = number, Epoch(rows, batches, shares_of_it)
        return self._held[1]

    def __getitem__(self, step: int) -> list[Batch] | MiniChatError:
        number, step = divmod(step, self.of_an_epoch)
        parts = self._division["accumulation"]
        found: list[Batch] = []
        for place in range(step * parts, (step + 1) * parts):
            batch = self.epoch(number).shares[place]
            if isinstance(batch, MiniChatError):
                return batch
            found.append(batch)
        return found

    def load(self, start: int = 0, workers: int = 0, pinned: bool = False) -> Iterator[list[Batch]]:
        yield from _loaded(self, workers, pinned, sampler=range(start, self.steps))

    def where(self, step: int) -> list[list[str]]:
        number, step = divmod(step, self.of_an_epoch)
        epoch = self.epoch(number)
        division = shares(epoch.batches[step], **self._division)
        return [[str(epoch.rows[place].where) for place in share.rows] for share in division]

    def heaviest(self, start: int) -> int:
        epoch = self.epoch(0)
        sizes = [len(batch) * int(epoch.rows.lengths[batch].max()) for batch in epoch.batches]
        return min(sizes.index(max(sizes)), self.steps - 1)

    def left_out(self) -> list[tuple[int, str]]:
        return []

    def padding(self) -> float | None:
        epoch = self.epoch(0)
        division = {name: count for name, count in self._division.items() if name != "rank"}
        return padding(epoch.rows.lengths, epoch.batches[:_LOOKED_AT], **division)

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        if self._planning["window"] != WINDOW:  # rows are put together otherwise
            digest.update(f"window {self._planning['window']} ".encode())
        for row in self.rows:
            digest.update(b"%d " % len(row.ids) + row.ids.tobytes() + row.labels.tobytes())
            digest.update("\0".join(picture.name for picture in row.pictures).encode("utf-8", "surrogateescape"))
        return {
            "samples": len(self.rows),
            "tokens": int(self.rows.lengths.sum()),
            "supervised_tokens": int(self.rows.supervised.sum()),
            "pictures": int(self.rows.picture_counts.sum()),
            "samples_cut": self.rows.cut,
            "fingerprint": digest.hexdigest(),
        }


class StreamedBatches(IterableDataset["Records | MiniChatError"]):
    """Rows that are read as the run goes; a record that is wrong is left out of its batch, and told (`left_out`).

    A share of which nothing can be read has no batch. For a stage that is `joined` the rows stay in the stream's order,
    and one of which nothing is supervised stands for a record that is left out.
    """

    def __init__(
        self,
        stream: Examples,
        render: Callable[[Example], Row],
        collate: Collate,
        *,
        steps: int,
        batch_size: int,
        parts: int,
        rank: int,
        processes: int,
        joined: bool,
        fingerprint: str,
        refuse_damaged: bool = False,
    ) -> None:
        if batch_size % processes:
            raise SettingsError(
                f"run.batch_size is {batch_size}, which {processes} processes cannot share evenly, as a stream asks: "
                f"use a multiple of {processes}."
            )
        self.steps = steps
        self._stream, self._render, self._collate = stream, render, collate
        self._of_a_step, self._parts = batch_size // processes, parts
        self._part, self._joined = Part(rank, processes), joined
        self._fingerprint, self._refuse_damaged = fingerprint, refuse_damaged
        self._start = 0
        self._left_out: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[Records | MiniChatError]:
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        records = self._records(self._start)
        for step in range(self._start, self.steps):
            try:
                some = list(itertools.islice(records, self._of_a_step))
            except MiniChatError as error:  # of the data set as a whole; handed over, see `_loaded`
                yield error
                return
            if (step - self._start) % workers == own:
                yield self._batches(some)

    def _records(self, step: int) -> Iterator[Example | Problem]:
        return self._stream.scan(self._part, skip=step * self._of_a_step)

    def _batches(self, records: list[Example | Problem]) -> Records | MiniChatError:
        rows, problems = list[Row](), list[str]()
        for record in records:
            try:
                if isinstance(record, Problem):
                    raise DataError(str(record))
                row = self._render(record)
                shown = tuple(_opened(row, picture) for picture in row.pictures)
                rows.append(replace(row, pictures=shown))
            except MiniChatError as error:
                if self._refuse_damaged and isinstance(error, _Damaged):
                    return DataError(f"{error} data.damaged_pictures is refuse: mend it, or drop the record.")
                problems.append(str(error))
                if self._joined:
                    rows.append(Row(_NO_IDS, _NO_IDS, (), record.where))
        if not self._joined:
            rows.sort(key=lambda row: len(row.ids))
        size = -(-self._of_a_step // self._parts)
        try:
            batches = [self._collate(rows[i : i + size]) for i in range(0, len(rows), size)]
        except MiniChatError as error:
            return error
        return Records(batches, problems)

    def load(self, start: int = 0, workers: int = 0, pinned: bool = False) -> Iterator[list[Batch]]:
        self._start = start
        for step, records in enumerate(_loaded(self, workers, pinned), start + 1):
            self._left_out += [(step, problem) for problem in records.left_out]
            yield records.batches

    def where(self, step: int) -> list[list[str]]:
        records = itertools.islice(self._records(step), self._of_a_step)
        # Which part a row is in depends on how long those are that could be read; so each part names them all.
        return [[str(record.where) for record in records]] * self._parts

    def heaviest(self, start: int) -> int:
        return start

    def left_out(self) -> list[tuple[int, str]]:
        found, self._left_out = self._left_out, []
        return found

    def padding(self) -> float | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {"samples": None, "fingerprint": self._fingerprint}


@dataclass(frozen=True)
class Records:
    """A step's share of a stream: batches, and what is wrong with the records that are not in them."""

    batches: list[Batch]
    left_out: list[str]

    def pin_memory(self) -> Records:
        """What a loader asks of what is neither a tensor nor a collection."""
        pinned = [{name: tensor.pin_memory() for name, tensor in batch.items()} for batch in self.batches]
        return replace(self, batches=pinned)


def _opened(row: Row, picture: StoredPicture) -> StoredPicture:
    """The picture, found to be sound. One that is drawn always is."""
    if picture.always_opens:
        return picture
    try:
        return _OpenedPicture(picture.name, picture.source, picture.open(), question=picture.question)
    except MiniChatError as error:
        raise _Damaged(f"{row.where}: {error}") from None


class _Damaged(DataError):
    """A picture of a record cannot be opened."""


@dataclass(frozen=True)
class _OpenedPicture(StoredPicture):
    """A picture that was found to be sound, kept so that it is opened once."""

    image: Image.Image

    def open(self) -> Image.Image:
        return self.image


def _loaded(dataset: Any, workers: int, pinned: bool, **options: Any) -> Iterator[Any]:
    """A data set's items, prepared ahead by `workers` processes. Raises what was handed over in place of one.

    A worker's error is handed over rather than raised: PyTorch would put its traceback into the message.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=leave_to_the_main_process,
        **options,
    )
    for item in loader:
        if isinstance(item, MiniChatError):
            raise item
        yield item
