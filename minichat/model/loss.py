"""Next-token cross-entropy, where it is wanted and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minichat.prompt.render import IGNORED

_LEARNT = 128  # ids that are learnt come in multiples of it
_LOGITS_AT_ONCE = 2**24  # in float32: 64 MiB, and three times that while their gradient is computed


def token_loss(logits: Tensor, targets: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in float32 of logits (..., V) against targets (...), −100 = no loss.

    The sum over all tokens divided by `count`, or by the number of tokens. A few rows at a time are held in float32, so
    that a large vocabulary costs little more than its logits in the precision they come in.
    """
    targets = targets.to(logits.device).flatten()
    total: Tensor = _SummedCrossEntropy.apply(logits.flatten(0, -2), targets)
    return total / (targets.ne(IGNORED).sum() if count is None else torch.as_tensor(count, device=total.device))


def learnt(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat labels (B · T,), −100 = no loss → the positions of the others and what is learnt there, both (N,).

    N is a multiple of 128, filled up with position 0 and target −100: on a CPU, oneDNN compiles and keeps a product for
    each shape that it meets, which without an end to them takes time and memory.
    """
    positions = labels.ne(IGNORED).nonzero()[:, 0]
    spare = -len(positions) % _LEARNT
    return nn.functional.pad(positions, (0, spare)), nn.functional.pad(labels[positions], (0, spare), value=IGNORED)


class _SummedCrossEntropy(torch.autograd.Function):
    """Logits (N, V), targets (N,) → (), their gradient computed at once rather than on the way back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradients = []
        rows = _rows_at_once(logits)
        for some, aims in zip(logits.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(wanted):
                part = some.detach().requires_grad_(wanted)
                loss = nn.functional.cross_entropy(part.float(), aims, ignore_index=IGNORED, reduction="sum")
            if wanted:
                gradients += torch.autograd.grad(loss, part)
            total += loss.detach()
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (saved,) = ctx.saved_tensors
        # In half precision the factor itself would be rounded, and every gradient with it.
        scaled = [(some.float() * gradient).to(some.dtype) for some in saved.split(_rows_at_once(saved))]
        return torch.cat(scaled), None


def _rows_at_once(logits: Tensor) -> int:
    return max(1, _LOGITS_AT_ONCE // logits.shape[-1])


@contextmanager
def only_at(head: nn.Module, positions: Tensor | None) -> Iterator[None]:
    """Meanwhile `head` is given the hidden states (B, T, H) of N positions alone, as (1, N, H); None: all of them.

    Whatever an LLM does between its head and its logits, it does to those. `positions` (B, T) is true N times, or holds
    the N places (N,) in the flat B · T, which needs no waiting for the device to count them.
    """
    if positions is None:
        yield
        return

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].flatten(0, 1)[positions.flatten().to(inputs[0].device)].unsqueeze(0),)

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def seen_by(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the hidden states that `head` is given meanwhile."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
