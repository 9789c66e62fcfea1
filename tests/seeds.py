"""Imported by the tests and the processes that they start: `make test-rounding` has both draw from other seeds.

`MINICHAT_TEST_SEED` shifts what `torch.manual_seed` is given.
"""

from __future__ import annotations

import os

import torch

_seed = torch.manual_seed
if _shift := int(os.environ.get("MINICHAT_TEST_SEED", "0")):
    torch.manual_seed = lambda seed: _seed(seed + 1000 * _shift)
