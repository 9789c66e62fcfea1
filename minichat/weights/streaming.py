"""Stored tensors that are read when they are asked for: a model is loaded without a second copy of its weights."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minichat.weights.reading import check_float, largest, read_checkpoint

# Of mallopt(3), numbered as in glibc's malloc.h, and the values that glibc comes to by itself at the most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_APART, _USUAL = 256 * 1024, 32 * 1024**2
_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors spells them


class Stream:
    """The tensors of a model by name, for transformers to load, and what was found while they were read.

    A tensor that is used as it is stored stays mapped from its file: nothing is copied. Any other is read into memory,
    one at a time, and not mapped, so that its file takes none beside it.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        as_stored: Callable[[str], bool],
        change: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        """`dtype`: what the tensors become. `as_stored`: whether one is used as it is if it has that dtype already.
        `change`: what is made of a tensor, by its name in the model, when it is read."""
        self.tensors: dict[str, StoredTensor] = {}
        self.not_finite: list[str] = []
        self.too_large: list[str] = []  # finite, but beyond what `dtype` can hold
        self._dtype = dtype
        self._as_stored = as_stored
        self._change = change

    def add(self, path: Path, prefix: str = "", names: Iterable[str] | None = None) -> None:
        """Take in a file's tensors, or these of them. Raises `ModelError`, naming the file, for one that is damaged."""
        mapped = read_checkpoint(path).raw
        read = safe_open(path, framework="pt", backend="pread") if path.suffix == ".safetensors" else None
        for name in mapped if names is None else names:
            value = mapped[name]
            check_float(path.name, name, value)
            stays = self._as_stored(prefix + name) and _stored_as(value) == _STORED[self._dtype]
            if read is not None and not stays:
                value = read.get_slice(name)
            self.tensors[prefix + name] = StoredTensor(value, prefix + name, self)

    def changed(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self._change is None else self._change(name, tensor)

    def look_at(self, name: str, tensor: Tensor) -> None:
        most = largest(tensor)
        if not math.isfinite(most):
            self.not_finite.append(name)
        elif most > torch.finfo(self._dtype).max and not name.startswith("projection."):
            self.too_large.append(name)


class StoredTensor:
    """What transformers takes for a slice of a file: `[...]` reads it."""

    def __init__(self, value: Any, name: str, stream: Stream) -> None:
        self._value, self._name, self._stream = value, name, stream

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._value.get_shape() if hasattr(self._value, "get_shape") else self._value.shape)

    def __getitem__(self, part: Any) -> Tensor:
        tensor: Tensor = self._value[part]
        self._stream.look_at(self._name, tensor)
        return self._stream.changed(self._name, tensor)


def _stored_as(value: Any) -> str:
    return value.get_dtype() if hasattr(value, "get_dtype") else _STORED.get(value.dtype, "")


@contextmanager
def large_apart() -> Iterator[None]:
    """Where the C library is glibc, each large block of memory is for the while one that goes back when it is freed.

    Quantizing leaves small matrices between large copies that are gone. In one heap these are holes that later work
    fills here and there, until the process holds them all; measured in docs/MEMORY.md.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _APART)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _USUAL)
        mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
