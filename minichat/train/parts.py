"""Rows for an encoder–decoder: what comes before a reply for its encoder, the reply for its decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minichat.data.rows import Row
from minichat.prompt.render import IGNORED

if TYPE_CHECKING:
    from minichat.data.example import Example


class LastReply:
    """Renders as `render` does, but of a row's replies the last alone is learnt; the encoder reads those before it."""

    def __init__(self, render: Callable[[Example], Row]) -> None:
        self._render = render

    def __call__(self, example: Example) -> Row:
        row = self._render(example)
        labels = np.full_like(row.labels, IGNORED)
        start = _start(row)
        labels[start:] = row.labels[start:]
        return replace(row, labels=labels)


def parted(rows: Sequence[Row]) -> tuple[list[Row], Tensor]:
    """B rows, each with one reply that is learnt → what is before them, and the replies (B, R), −100 where none is.

    Of a row that learns nothing all is before.
    """
    starts = [_start(row) for row in rows]
    replies = [row.labels[start:] for row, start in zip(rows, starts, strict=True)]
    labels = np.full((len(rows), max(1, *map(len, replies))), IGNORED, np.int64)
    for number, reply in enumerate(replies):
        labels[number, : len(reply)] = reply
    before = [
        replace(row, ids=row.ids[:start], labels=row.labels[:start]) for row, start in zip(rows, starts, strict=True)
    ]
    return before, torch.from_numpy(labels)


def _start(row: Row) -> int:
    """Where the last ids that are learnt begin; a row ends with them."""
    learnt = np.flatnonzero(row.labels != IGNORED)
    if not len(learnt):
        return len(row.labels)
    others = np.flatnonzero(row.labels[: learnt[-1]] == IGNORED)
    return int(others[-1]) + 1 if len(others) else 0
