"""Tensors → safetensors files, a shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minichat.disk import open_to_others, write_json
from minichat.errors import ModelError, sentence
from minichat.weights.checksum import KEY, checksum
from minichat.weights.files import WEIGHTS

_SHARD = 2 * 1024**3  # bytes; so much is in memory while it is written


class Entry(NamedTuple):
    """A tensor that is made when it is written."""

    name: str
    bytes: int
    make: Callable[[], Tensor]


def write_tensors(folder: Path, entries: Sequence[Entry], file: str = WEIGHTS, shard: int = _SHARD) -> None:
    """Write `model.safetensors`, or shards of it with their index; never more than one shard in memory.

    `file`: another name where there is one file. Raises `ModelError` where the disk does not take it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.bytes for e in shards[-1]) + entry.bytes > shard:
            shards.append([])
        shards[-1].append(entry)
    index: dict[str, str] = {}
    for number, part in enumerate(shards, start=1):
        name = file if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        # A tensor that shares its storage with others is written as its own.
        tensors = {e.name: e.make().clone().contiguous() for e in part}
        try:
            save_file(tensors, folder / name, metadata={"format": "pt", KEY: checksum(tensors.items())})
            open_to_others(folder / name)
        except SafetensorError as error:  # a full disk
            raise ModelError(f"{name} cannot be written ({sentence(error)}): nothing was left behind.") from error
        index |= {e.name: name for e in part}
    if len(shards) > 1:
        total = sum(entry.bytes for entry in entries)
        write_json(folder / f"{WEIGHTS}.index.json", {"metadata": {"total_size": total}, "weight_map": index})
