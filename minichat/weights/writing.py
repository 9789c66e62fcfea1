"""Folders that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from minichat.errors import ModelError
from minichat.weights.files import WEIGHTS, sentence

_SHARD = 2 * 1024**3  # bytes; so much is in memory while it is written


class Entry(NamedTuple):
    """A tensor that is made when it is written."""

    name: str
    bytes: int
    make: Callable[[], Tensor]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end, and is removed if anything fails before.

    Raises `ModelError` if `out` is there already and not empty, or cannot be written.
    """
    from safetensors import SafetensorError

    out = out.expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out.name!r} exists already: remove it, or name another folder.")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    except OSError as error:
        raise ModelError(f"{out.name!r} cannot be made ({error.strerror}): check the folder it is to be in.") from None
    try:
        yield made
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o777 & ~mask)
        for file in made.iterdir():
            file.chmod(0o666 & ~mask)
        os.rename(made, out.absolute())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out.name!r} cannot be written ({_reason(error)}): nothing was left behind.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _reason(error: BaseException) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else sentence(error)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(folder: Path, entries: Sequence[Entry], file: str = WEIGHTS, shard: int = _SHARD) -> None:
    """Write `model.safetensors`, or shards of it with their index; never more than one shard in memory.

    `file`: another name where there is one file.
    """
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
        save_file({e.name: e.make().clone().contiguous() for e in part}, folder / name, metadata={"format": "pt"})
        index |= {e.name: name for e in part}
    if len(shards) > 1:
        total = sum(entry.bytes for entry in entries)
        write_json(folder / f"{WEIGHTS}.index.json", {"metadata": {"total_size": total}, "weight_map": index})
