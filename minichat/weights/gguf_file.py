"""A GGUF file: its keys and its tensors, read within its bounds (the format: ggml's docs/gguf.md, versions 2 and 3)."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minichat.errors import ModelError
from minichat.weights.reading import refuse_downloads

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # by GGML's numbers of the types


@dataclass(frozen=True)
class Stored:
    """A tensor in a GGUF file: its shape as PyTorch has it, GGML's number of its type, and where its bytes are."""

    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        with path.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class GgufFile:
    """An open GGUF file: `keys` (name → value, an array as a list) and `stored` (name → `Stored`).

    The `gguf` package reads tensors; its own reader of headers believes every count that a file gives, so a damaged one
    may keep it busy for ever. Raises `ModelError`, naming the file, for one that is damaged or cut off, of another
    version or byte order, or holds tensors of a type that the package cannot read, and where the package is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError:
            raise ModelError(
                "To open a GGUF file needs the package gguf, which is not installed: pip install 'minichat[gguf]'."
            ) from None
        self.name = path.name
        try:
            with path.open("rb") as opened:
                self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelError(f"There is no file {path.name!r}: check the path.") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path.name} cannot be read ({_reason(error)}): check the file.") from None
        refuse_downloads(self.name, self._data[:512])
        self._sizes = {kind.value: GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType}
        try:
            self.keys, self.stored = self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError, _BeyondTheEnd):
            raise self._damaged("its header ends too early or is none") from None

    def is_quantized(self, name: str) -> bool:
        return self.stored[name].kind not in _FLOATS

    def tensor(self, name: str) -> Tensor:
        """A tensor in the float type that it is stored in; a quantized one in float32. It is read now.

        Raises `ModelError` for a type that the package cannot read.
        """
        from gguf import GGMLQuantizationType, dequantize

        stored = self.stored[name]
        data = np.frombuffer(self._data, np.uint8, stored.bytes, stored.start)
        if stored.kind in _FLOATS:
            return torch.from_numpy(data.copy()).view(_FLOATS[stored.kind]).reshape(stored.shape)
        rows = data.reshape(*stored.shape[:-1], -1)
        try:
            values = dequantize(rows, GGMLQuantizationType(stored.kind))
        except NotImplementedError:
            kind = GGMLQuantizationType(stored.kind).name
            raise ModelError(
                f"{self.name} holds tensors of the type {kind}, which the package gguf cannot read: give a file with "
                "another quantization, such as Q8_0 or Q4_K_M."
            ) from None
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(stored.shape)

    def _read_header(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        if self._data[: len(MAGIC)] != MAGIC:
            raise ModelError(f"{self.name} is no GGUF file: it does not begin with the letters GGUF.")
        self._place = len(MAGIC)
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ModelError(
                f"{self.name} has the GGUF version {version}, but 2 and 3 are read (in little-endian order): convert "
                "it with a newer llama.cpp."
            )
        tensors, count = self._count(8), self._count(8)
        keys: dict[str, Any] = {}
        for _ in range(count):
            name = self._string()
            if name in keys:
                raise self._damaged(f"it holds the key {name} twice")
            keys[name] = self._value(self._scalar("I"))
        listed = [self._described() for _ in range(tensors)]
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"general.alignment is {alignment!r}")
        start = math.ceil(self._place / alignment) * alignment
        stored: dict[str, Stored] = {}
        for name, shape, kind, offset in listed:
            if name in stored:
                raise self._damaged(f"it holds the tensor {name} twice")
            stored[name] = self._within(name, shape, kind, start + offset)
        return keys, stored

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape as PyTorch has it (GGML's begins with the last dimension), type and offset of a tensor."""
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _within(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Stored:
        if kind not in self._sizes:
            raise ModelError(f"{self.name} holds {name} in GGML's type {kind}, which the package gguf does not know.")
        block, size = self._sizes[kind]
        if min(shape) < 1 or shape[-1] % block:
            raise self._damaged(f"the tensor {name} has the shape {shape}")
        held = math.prod(shape) // block * size
        if start + held > len(self._data):
            raise self._damaged(f"the tensor {name} goes beyond its end")
        return Stored(shape, kind, start, held)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"it holds a value of the unknown type {kind}")
        of = self._scalar("I")
        if of == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if of not in _SCALARS:
            raise self._damaged(f"it holds an array of the type {of}")
        size = struct.calcsize(f"<{_SCALARS[of]}")
        count = self._count(size)
        values = struct.unpack_from(f"<{count}{_SCALARS[of]}", self._data, self._place)
        self._place += count * size
        return list(values)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._place)
        self._place += struct.calcsize(f"<{code}")
        return value

    def _count(self, size: int) -> int:
        """A number of things that take at least `size` bytes each, of which the file must have so many left."""
        count = int(self._scalar("Q"))
        if count * size > len(self._data) - self._place:
            raise _BeyondTheEnd
        return count

    def _string(self) -> str:
        length = self._count(1)
        text = self._data[self._place : self._place + length].decode("utf-8")
        self._place += length
        return text

    def _damaged(self, how: str) -> ModelError:
        return ModelError(f"{self.name} is damaged or cut off ({how}): download it again.")


class _BeyondTheEnd(Exception):
    """The header counts more than the file holds."""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or ("it is empty" if isinstance(error, ValueError) else str(error))
