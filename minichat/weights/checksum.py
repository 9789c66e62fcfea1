"""Checksums of what is written: a byte that changes on the disk is found when the file is next read.

A safetensors file carries its own, as `sha256` among its metadata: of names, types, shapes and all bytes of its
tensors, and of the other metadata that matter. It is in the file, and not beside it, so that the two are never apart.
A file without one, as others write them, is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.weights.fingerprint import fingerprint, fingerprint_of

if TYPE_CHECKING:
    from torch import Tensor

KEY = "sha256"
_AT_MOST = 2**30  # bytes of a file that is hashed whenever it is read; `--verify` is for larger ones


def checksum(tensors: Iterable[tuple[str, Tensor]], said: str = "") -> str:
    """SHA-256 of tensors by name, and of a text that belongs to them."""
    return _with(fingerprint(tensors, whole=True), said)


def _with(found: str, said: str = "") -> str:
    return hashlib.sha256(f"{found} {said}".encode()).hexdigest()


def is_sound(path: Path) -> bool:
    """Whether a safetensors file of weights holds what was written; also where that is not known, or it is large.

    Raises what `safe_open` raises.
    """
    found = path.stat()
    return found.st_size > _AT_MOST or _is_sound(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)  # a model's loading opens its files more than once
def _is_sound(path: Path, size: int, changed: int) -> bool:
    from safetensors import safe_open

    # Read tensor by tensor and not mapped: a mapped file would be in memory as a whole, beside a quantized model.
    with safe_open(path, framework="pt", backend="pread") as file:
        written = (file.metadata() or {}).get(KEY)
        return written is None or written == _with(fingerprint_of(file.keys(), file.get_tensor, whole=True))


def of_facts(facts: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON object says, however it is laid out."""
    read_back = json.loads(json.dumps(facts))  # where all keys are texts
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()
