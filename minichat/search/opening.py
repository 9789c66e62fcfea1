"""Files → what the model is shown of them, several at a time; one that cannot be opened says why."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minichat.errors import ImageError
from minichat.search.reader import Reader

_SETTLED = 2_000_000_000  # nanoseconds: some file systems tell the time of a change no more precisely
_THREADS = 4


@dataclass(frozen=True)
class Opened:
    """A file as it was read: its pixels (1, 3, S, S) and their hash, or the error in their place.

    `changed` is when it was last changed, in nanoseconds; 0 if that was only just: it may change again unnoticed.
    """

    path: Path
    size: int = 0
    changed: int = 0
    pixels: Tensor | None = None
    key: bytes = b""
    error: str = ""


def open_all(reader: Reader, paths: Sequence[Path]) -> Iterator[Opened]:
    """The files, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda path: _open(reader, path), paths)


def state(path: Path) -> tuple[int, int] | None:
    """A file's size in bytes and the time of its last change in nanoseconds; None where there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _open(reader: Reader, path: Path) -> Opened:
    size, changed = state(path) or (0, 0)  # asked before: what changes while it is read is read again the next time
    if abs(time.time_ns() - changed) < _SETTLED:
        changed = 0
    try:
        pixels = reader.pixels(path)
    except ImageError as error:
        return Opened(path, error=str(error))
    return Opened(path, size, changed, pixels, hashlib.sha256(pixels.numpy().data).digest())
