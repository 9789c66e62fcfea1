"""From rows to batches: an epoch's order, each process's share of it, and tensors.

A step's batch is *global*: it is the same whatever the number of processes and of the parts in which gradients are
accumulated, and so is the order of batches. Rows of like length are put together, so that little is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from minichat.data.example import StoredPicture
from minichat.data.rows import Row, Rows
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.prompt.render import IGNORED

if TYPE_CHECKING:
    from minichat.data.features import FeatureCache
    from minichat.prompt.processing import MiniChatProcessor

Batch = dict[str, Tensor]
WINDOW = 50  # batches: among so many, rows are sorted by length


def plan(
    lengths: Sequence[int] | NDArray[np.int64], *, batch_size: int, seed: int, epoch: int, window: int = WINDOW
) -> list[list[int]]:
    """An epoch: every row once, in global batches of `batch_size`; one of them may be smaller.

    The rows are shuffled, sorted by length within each stretch of `window` batches, and the batches are shuffled. The
    same arguments give the same batches anywhere. Within a batch, rows are in order of length.
    """
    for name, value in (("batch_size", batch_size), ("window", window)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    lengths = np.asarray(lengths)
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        stretch = order[start : start + window * batch_size]
        stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
        batches += [stretch[i : i + batch_size].tolist() for i in range(0, len(stretch), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


@dataclass(frozen=True)
class Share:
    """The rows that one process passes through the model at once."""

    rows: tuple[int, ...]
    learn: bool = True  # False: a row that others learn from, passed through so that all processes keep step


def shares(batch: Sequence[int], *, accumulation: int = 1, rank: int = 0, processes: int = 1) -> list[Share]:
    """What process `rank` of `processes` does for one global batch: `accumulation` shares, none of them empty.

    Each row is in exactly one share that learns. At any one time the processes have rows of like length.
    """
    if not 0 <= rank < processes or accumulation < 1:
        raise SettingsError(f"There is no share {rank} of {processes}, in {accumulation} parts.")
    parts = np.array_split(np.asarray(batch), accumulation)
    mine = [tuple(part[rank::processes].tolist()) for part in parts]
    return [Share(rows) if rows else Share((batch[0],), learn=False) for rows in mine]


def padding(
    lengths: Sequence[int] | NDArray[np.int64],
    batches: Sequence[Sequence[int]],
    *,
    accumulation: int = 1,
    processes: int = 1,
    multiple: int = 1,
) -> float:
    """The share of the positions that the model computes and that are padding, from 0 to 1."""
    lengths = np.asarray(lengths)
    used = computed = 0
    for batch in batches:
        for rank in range(processes):
            for share in shares(batch, accumulation=accumulation, rank=rank, processes=processes):
                some = lengths[list(share.rows)]
                used += int(some.sum()) if share.learn else 0
                computed += len(some) * _rounded(int(some.max()), multiple)
    return 1 - used / computed if computed else 0.0


class Collator:
    """Rows → tensors, padded on the right to the longest.

    Args:
        processor: the model's own.
        features: the bridge's output of every picture, if it is kept: then no picture is opened.
        multiple: lengths are rounded up to a multiple of this: fewer shapes, and ones that suit the hardware.
    """

    def __init__(
        self, processor: MiniChatProcessor, features: FeatureCache | None = None, *, multiple: int = 1
    ) -> None:
        self.processor = processor
        self.features = features
        self.multiple = multiple

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """B rows → `input_ids`, `attention_mask`, `labels` (B, T), each picture's place in them kept.

        All rows' pictures, row by row in slot order, are `image_features` (I, n, D) where they are kept, or else
        `pixel_values` (I, 3, S, S); neither is there where no row has a picture.

        Raises `DataError`, with file and line, for a picture that cannot be opened or is not among the kept ones.
        """
        if not rows:
            raise DataError("A batch needs at least one row.")
        length = _rounded(max(len(row.ids) for row in rows), self.multiple)
        ids = np.full((len(rows), length), self.processor.content_tokenizer.pad_id, np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], labels[number, : len(row.ids)] = row.ids, row.labels
            mask[number, : len(row.ids)] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(values) for name, values in batch.items()} | self._pictures(rows)

    def _pictures(self, rows: Sequence[Row]) -> Batch:
        found: list[Any] = []
        for row in rows:
            try:
                found += map(self._read, row.pictures)
            except MiniChatError as error:
                raise DataError(f"{row.where}: {error}") from None
        if not found:
            return {}
        if self.features is not None:
            return {"image_features": torch.stack(found)}
        return {"pixel_values": self.processor.image_processor(found, return_tensors="pt")["pixel_values"]}

    def _read(self, picture: StoredPicture) -> Any:
        return picture.open() if self.features is None else self.features[picture]


class Shares(Dataset[Batch | MiniChatError]):
    """One process's shares of an epoch, one after the other, as tensors.

    Item k is the same whoever asks for it and when: share k mod `accumulation` of step k div `accumulation`.
    """

    def __init__(
        self,
        rows: Rows,
        batches: Sequence[Sequence[int]],
        collate: Callable[[Sequence[Row]], Batch],
        *,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows = rows
        self.batches = batches
        self.collate = collate
        self.division = {"accumulation": accumulation, "rank": rank, "processes": processes}
        shares((0,), **self.division)  # refuses a division that is none

    def __len__(self) -> int:
        return len(self.batches) * self.division["accumulation"]

    def __getitem__(self, index: int) -> Batch | MiniChatError:
        step, part = divmod(index, self.division["accumulation"])
        share = shares(self.batches[step], **self.division)[part]
        rows = [self.rows[i] if share.learn else self.rows[i].muted() for i in share.rows]
        try:
            return self.collate(rows)
        except MiniChatError as error:
            # Handed over rather than raised: PyTorch would put a worker's traceback into the message.
            return error


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
