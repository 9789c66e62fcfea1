"""A hash of tensors as they are stored, by which the same weights are known again in any file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_SAMPLE = 64 * 1024  # bytes of each tensor


def fingerprint(tensors: Iterable[tuple[str, Tensor]], whole: bool = False) -> str:
    """A hash of stored tensors: names, dtypes, shapes and the first 64 KiB of each, whatever files they are in.

    `whole`: all of each tensor, for which everything is read.
    """
    held = dict(tensors)
    return fingerprint_of(held, held.__getitem__, whole)


def fingerprint_of(names: Iterable[str], read: Callable[[str], Tensor], whole: bool = False) -> str:
    """The same of tensors that are read one by one, so that no two need be in memory."""
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = read(name)
        count = tensor.numel() if whole else min(tensor.numel(), _SAMPLE // tensor.element_size())
        sample = tensor.flatten()[:count].contiguous().view(torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(sample.cpu().numpy().data)
    return digest.hexdigest()
