"""Processes that train together act on one batch: their rows, joined in the order of their ranks.

Where there is one process, everything here is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """This process's rows (B, …) → the joined batch's (G, …).

    The gradient comes back from every process's use of them. Processes may have unlike numbers of rows.
    """
    return rows if processes() == 1 else _Gather.apply(rows, _sizes(rows))


def first_row(rows: Tensor) -> int:
    """Where this process's rows begin in the joined batch."""
    return 0 if processes() == 1 else sum(_sizes(rows)[: rank()])


def everyones(count: Tensor | int, device: torch.device) -> Tensor:
    """The sum of `count` over all processes, a scalar on the device."""
    together = torch.as_tensor(count, device=device, dtype=torch.float32).clone()
    if processes() > 1:
        dist.all_reduce(together)
    return together


def longest(length: int, device: torch.device) -> int:
    """The greatest `length` of any process."""
    if processes() == 1:
        return length
    greatest = torch.tensor(length, device=device)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def mean(total: Tensor, count: Tensor | int) -> Tensor:
    """A sum and a number of items → this process's share of the mean over all processes' items, times their number.

    So the mean over processes, and of their gradients (which is what data-parallel training computes), is the joined
    batch's, also where they have unlike numbers of items.
    """
    return total * processes() / everyones(count, total.device).clamp(min=1)


def _sizes(rows: Tensor) -> list[int]:
    own = torch.tensor([rows.shape[0]], device=rows.device)
    every = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(every, own)
    return [int(size) for size in every]


class _Gather(torch.autograd.Function):
    """Forward: all processes' rows. Backward: the sum of all processes' gradients of this one's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = torch.nn.functional.pad(rows.detach(), (0, 0) * (rows.dim() - 1) + (0, max(sizes) - rows.shape[0]))
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        together = gradients[0].contiguous().clone()
        dist.all_reduce(together)
        return together.split(ctx.sizes)[rank()], None
