"""What a run reads: the batches of every step, from any step on, the same for any number of processes and workers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from minichat.data.batches import WINDOW, Shares, padding, plan, shares
from minichat.data.example import Problem, StoredPicture
from minichat.data.formats.stream import Part
from minichat.data.rows import Row, Rows
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.train.interruption import leave_to_the_main_process

if TYPE_CHECKING:
    from minichat.data.example import Example

_LOOKED_AT = 1000  # batches, to know how much of all is padding
_NO_IDS = np.zeros(0, np.int32)
Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Row]], Batch]


class Examples(Protocol):
    """Records without end, the same for the same arguments."""

    def scan(self, part: Part = ..., skip: int = ...) -> Iterator[Example | Problem]:
        """A process's share of them, from its number `skip` on."""


class Feed(Protocol):
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


class Listed(Dataset[list[Batch] | MiniChatError]):
    """Rows that are all listed first, epoch after epoch.

    Args:
        rows_of: the rows of an epoch; as many in each.
        collate: rows → tensors.
        batch_size: rows of a global batch.
        parts, rank, processes: how it is divided (`minichat.data.batches.shares`).
        epochs, steps: how long; one of the two.
        window: see `minichat.data.batches.plan`.
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


class Streamed(IterableDataset["Records | MiniChatError"]):
    """Rows that are read as the run goes; a record that is wrong is left out of its batch, and told (`left_out`).

    A share of which nothing can be read has no batch. For a stage that is `joined` the rows stay in the stream's order,
    and one of which nothing is learnt stands for a record that is left out.
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
        return _Opened(picture.name, picture.source, picture.open())
    except MiniChatError as error:
        raise _Damaged(f"{row.where}: {error}") from None


class _Damaged(DataError):
    """A picture of a record cannot be opened."""


@dataclass(frozen=True)
class _Opened(StoredPicture):
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
