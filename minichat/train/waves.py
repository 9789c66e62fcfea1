"""Where something is, as numbers to begin with: neighbours are alike, and all are in order."""

from __future__ import annotations

import torch
from torch import Tensor


def waves(places: int, rates: int) -> Tensor:
    """Codes of `places` in a row (places, 2 · rates): sines, then cosines, of half a wave over them to eleven waves."""
    speeds = torch.pi * 2.0 ** torch.linspace(0, 4.5, rates)
    angles = ((torch.arange(places) + 0.5) / places)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], -1)
