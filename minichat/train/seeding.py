"""The random numbers of a step follow from the run's seed, the step and the process; nothing is to be remembered."""

from __future__ import annotations

import torch

_PROCESSES = 2**10


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch for what is random in a step of one process."""
    torch.manual_seed(((seed * 2**20 + step) * _PROCESSES + rank) % 2**63)


def seed_of_all() -> int:
    """What the present step was seeded with, but for the process: the same in all of them."""
    return torch.initial_seed() // _PROCESSES
