"""What a run reads: the batches of every step, from any step on, the same for any number of processes and workers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from minichat.data.batches import Shares, plan, shares
from minichat.data.example import Problem, StoredPicture
from minichat.data.formats.stream import Part, Stream
from minichat.data.rows import Row, Rows
from minichat.errors import MiniChatError, SettingsError
from minichat.train.interruption import leave_to_the_main_process

if TYPE_CHECKING:
    from minichat.data.example import Example

Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Row]], Batch]


class Feed(Protocol):
    """The batches of a run, for one process."""

    steps: int

    def load(self, start: int = 0, workers: int = 0) -> Iterator[list[Batch]]:
        """Each step's batches from step `start` on: this process's share, in the parts that follow one another."""

    def where(self, step: int) -> list[list[str]]:
        """Of each of a step's batches, the places of its rows: file and line."""

    def facts(self) -> dict[str, Any]:
        """What is read, for the record; `fingerprint` changes with it."""


class Epochs(Sequence[list[int]]):
    """The global batches of a whole run, epoch after epoch (`plan`)."""

    def __init__(self, lengths: Any, *, batch_size: int, seed: int, epochs: int | None, steps: int | None) -> None:
        self._plan = lambda epoch: plan(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
        self.of_an_epoch = len(self._plan(0))
        self._length = steps if steps is not None else (epochs or 0) * self.of_an_epoch
        self._held: tuple[int, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> list[int]:  # type: ignore[override]
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, number = divmod(step, self.of_an_epoch)
        if self._held[0] != epoch:
            self._held = (epoch, self._plan(epoch))
        return self._held[1][number]


class Listed(Dataset[list[Batch] | MiniChatError]):
    """Rows that were all listed first."""

    def __init__(
        self, rows: Rows, batches: Sequence[Sequence[int]], collate: Collate, *, parts: int, rank: int, processes: int
    ) -> None:
        self.rows, self.batches = rows, batches
        self.steps, self._parts = len(batches), parts
        self._division = {"accumulation": parts, "rank": rank, "processes": processes}
        self._shares = Shares(rows, batches, collate, **self._division)  # type: ignore[arg-type]

    def __getitem__(self, step: int) -> list[Batch] | MiniChatError:
        found: list[Batch] = []
        for number in range(step * self._parts, (step + 1) * self._parts):
            batch = self._shares[number]
            if isinstance(batch, MiniChatError):
                return batch
            found.append(batch)
        return found

    def load(self, start: int = 0, workers: int = 0) -> Iterator[list[Batch]]:
        yield from _loaded(self, workers, sampler=range(start, self.steps))

    def where(self, step: int) -> list[list[str]]:
        division = shares(self.batches[step], **self._division)
        return [[str(self.rows[number].where) for number in share.rows] for share in division]

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(b"%d " % len(row.ids) + row.ids.tobytes() + row.labels.tobytes())
            digest.update("\0".join(picture.name for picture in row.pictures).encode("utf-8", "surrogateescape"))
        return {
            "samples": len(self.rows),
            "tokens": int(self.rows.lengths.sum()),
            "supervised_tokens": int(self.rows.supervised.sum()),
            "pictures": int(self.rows.picture_counts.sum()),
            "replies_cut": self.rows.cut,
            "fingerprint": digest.hexdigest(),
        }


class Streamed(IterableDataset[list[Batch] | MiniChatError]):
    """Rows that are read as the run goes; a record that is wrong is left out of its batch."""

    def __init__(
        self,
        stream: Stream,
        render: Callable[[Example], Row],
        collate: Collate,
        *,
        steps: int,
        batch_size: int,
        parts: int,
        rank: int,
        processes: int,
        fingerprint: str,
    ) -> None:
        if batch_size % processes:
            raise SettingsError(
                f"run.batch_size is {batch_size}, which {processes} processes cannot share evenly, as a stream asks: "
                f"use a multiple of {processes}."
            )
        self.steps = steps
        self._stream, self._render, self._collate = stream, render, collate
        self._of_a_step, self._parts = batch_size // processes, parts
        self._part = Part(rank, processes)
        self._fingerprint = fingerprint
        self._start = 0

    def __iter__(self) -> Iterator[list[Batch] | MiniChatError]:
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        records = self._records(self._start)
        for step in range(self._start, self.steps):
            some = list(itertools.islice(records, self._of_a_step))
            if (step - self._start) % workers == own:
                yield self._batches(some)

    def _records(self, step: int) -> Iterator[Example | Problem]:
        return self._stream.scan(self._part, skip=step * self._of_a_step)

    def _batches(self, records: list[Example | Problem]) -> list[Batch] | MiniChatError:
        rows = sorted(self._rows(records), key=lambda row: len(row.ids))
        size = -(-self._of_a_step // self._parts)
        try:
            return [self._collate(rows[i : i + size]) for i in range(0, len(rows), size)]
        except MiniChatError as error:
            return error

    def _rows(self, records: list[Example | Problem]) -> Iterator[Row]:
        for record in records:
            if isinstance(record, Problem):
                continue
            try:
                row = self._render(record)
                yield replace(row, pictures=tuple(_Opened(p.name, p.source, p.open()) for p in row.pictures))
            except MiniChatError:
                continue

    def load(self, start: int = 0, workers: int = 0) -> Iterator[list[Batch]]:
        self._start = start
        yield from _loaded(self, workers)

    def where(self, step: int) -> list[list[str]]:
        records = itertools.islice(self._records(step), self._of_a_step)
        return [[str(record.where) for record in records]]

    def facts(self) -> dict[str, Any]:
        return {"samples": None, "fingerprint": self._fingerprint}


@dataclass(frozen=True)
class _Opened(StoredPicture):
    """A picture that was found to be sound, kept so that it is opened once."""

    image: Image.Image

    def open(self) -> Image.Image:
        return self.image


def _loaded(dataset: Any, workers: int, **options: Any) -> Iterator[list[Batch]]:
    """A data set's items, prepared ahead by `workers` processes. Raises what was handed over in place of one.

    A worker's error is handed over rather than raised: PyTorch would put its traceback into the message.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_to_the_main_process,
        **options,
    )
    for item in loader:
        if isinstance(item, MiniChatError):
            raise item
        yield item
