"""Where a run stands, on disk: a file for each checkpoint, whole at any moment.

A checkpoint is one safetensors file: what trains under its own names, the optimizer's state under `optimizer.`, and the
run's facts (where it stands, and on what data and frozen weights) as JSON in the header. The last and the one before
are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.errors import ModelError, SettingsError, sentence

if TYPE_CHECKING:
    from torch import Tensor

_KEPT = 2
_SUFFIX, _PART = ".safetensors", ".part"
_BEST = f"best{_SUFFIX}"


@dataclass(frozen=True)
class Saved:
    """A checkpoint, read."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those that are older than the one before it.

        A kill at any point leaves the last one that was whole. Raises `SettingsError` where the disk does not take it.
        """
        path = self.folder / f"step-{step:08}{_SUFFIX}"
        _write(path, tensors, {**facts, "step": step})
        for old in self._steps()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the weights with the best validation loss so far."""
        _write(self.folder / _BEST, tensors, {**facts, "step": step})

    def last(self) -> Saved | None:
        """The newest checkpoint that can be read; None where there is none.

        Raises `ModelError` where there are some and none can be read.
        """
        for leftover in self.folder.glob(f"*{_PART}"):
            leftover.unlink(missing_ok=True)
        steps, failure = self._steps(), None
        for path in reversed(steps):
            try:
                return _read(path)
            except ModelError as error:
                failure = failure or error
        if failure:
            raise failure
        return None

    def best(self) -> Saved | None:
        """The weights with the best validation loss; None where nothing was validated."""
        return _read(self.folder / _BEST) if (self.folder / _BEST).exists() else None

    def _steps(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob(f"step-*{_SUFFIX}"))


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + _PART)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(held, part, metadata={"facts": json.dumps(facts)})
        _to_disk(part)
        os.replace(part, path)
        _to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or sentence(error)
        raise SettingsError(
            f"The checkpoint {path.name} cannot be written ({reason}): make room; the one before is whole, and the run "
            "goes on from it."
        ) from None


def _read(path: Path) -> Saved:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return Saved(int(facts["step"]), tensors, facts)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The checkpoint {path.name} is damaged ({sentence(error)}): remove it, or begin in another folder."
        ) from None


def _to_disk(path: Path) -> None:
    """Past the system's buffers; also a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
