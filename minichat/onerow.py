"""One row times a bfloat16 matrix on a CPU, by PyTorch's own code in place of oneDNN's.

To write a token is to read each of the LLM's matrices once, for one row. oneDNN, which PyTorch takes for bfloat16 where
there is AVX-512, needs about twice the time of PyTorch's own product then (`benchmarks/full_size.py`); for more rows
than two it is far faster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ONEDNN: Any = torch.backends.mkldnn


class _Aside:
    """oneDNN put aside for as long as anyone wants it. The setting is the whole process's, so users are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = bool(_ONEDNN.enabled)
                _ONEDNN.enabled = False
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _ONEDNN.enabled = self._before


_aside = _Aside()


@contextmanager
def one_row(embeds: Tensor) -> Iterator[None]:
    """Around the reading of embeddings (B, T, H): puts oneDNN aside where there is one row, in bfloat16 on a CPU.

    What another thread multiplies meanwhile is right, but slower.
    """
    if embeds.device.type == "cpu" and embeds.dtype == torch.bfloat16 and embeds.shape[0] * embeds.shape[1] == 1:
        with _aside:
            yield
    else:
        yield
