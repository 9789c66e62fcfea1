"""Where a run stands, on disk: a file for each checkpoint, whole at any moment.

A checkpoint is one safetensors file: what trains under its own names, the optimizer's state under `optimizer.`, and the
run's facts (where it stands, and on what data and frozen weights) as JSON in the header, with a checksum of all that.
The last and the one before are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.disk import open_to_others, to_disk
from minichat.errors import ModelError, SettingsError, sentence
from minichat.weights.checksum import KEY, checksum

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
        try:
            _write(path, tensors, {**facts, "step": step})
        except _NotWritten as error:
            before = [step for step in self._steps() if step != path]
            kept = f"the run goes on from the one before, {before[-1].name}" if before else "there is none before it"
            raise SettingsError(f"The checkpoint {path.name} cannot be written ({error}): make room; {kept}.") from None
        for old in self._steps()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the weights with the best validation loss so far. Raises `SettingsError` as `save` does."""
        try:
            _write(self.folder / _BEST, tensors, {**facts, "step": step})
        except _NotWritten as error:
            raise SettingsError(f"The best weights, {_BEST}, cannot be written ({error}): make room.") from None

    def last(self, say: Callable[[str], None] = lambda text: None, *, tidy: bool = True) -> Saved | None:
        """The newest checkpoint that is as it was written; None where there is none at all.

        One that is not is told. Raises `ModelError`, naming them, where there are some and all are damaged.

        `tidy`: put damaged ones aside under another name, and remove what a killed writer left; for the run itself.
        """
        for leftover in self.folder.glob(f"*{_PART}") if tidy else ():
            leftover.unlink(missing_ok=True)
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self._steps()):
            try:
                saved = _read(path)
            except ModelError as error:
                damaged.append((path, str(error)))
                continue
            for file, reason in damaged:
                say(f"{reason} The one before it, {path.name}, is taken instead.")
                if tidy:
                    _put_aside(file)
            return saved
        if damaged:
            raise ModelError(f"{' '.join(reason for _, reason in damaged)} {self._left()}")
        return None

    def _left(self) -> str:
        """What remains where no checkpoint can be read."""
        try:
            best = self.best()
        except ModelError:
            best = None
        run = self.folder.parent
        if best is None:
            return f"None is left in {run.name!r}: begin anew in another out."
        return (
            f"None is left in {run.name!r} but {_BEST}, the best weights, after step {best.step}: begin with them in "
            f"another out, by --initialize-from {run}."
        )

    def best(self) -> Saved | None:
        """The weights with the best validation loss; None where nothing was validated.

        Raises `ModelError` where they are damaged.
        """
        return _read(self.folder / _BEST) if (self.folder / _BEST).exists() else None

    def _steps(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob(f"step-*{_SUFFIX}"))


class _NotWritten(Exception):
    """The disk does not take a file; the message is the reason."""


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + _PART)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = json.dumps(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(held, part, metadata={"facts": said, KEY: checksum(held.items(), said)})
        open_to_others(part)
        to_disk(part)
        os.replace(part, path)
        to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise _NotWritten(getattr(error, "strerror", None) or sentence(error)) from None


def _read(path: Path) -> Saved:
    """Raises `ModelError` for a file that is not as it was written; one of an earlier version has no checksum."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said, written = file.metadata()["facts"], file.metadata().get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if written is not None and written != checksum(tensors.items(), said):
            raise ValueError("what it holds does not match its checksum")
        facts = json.loads(said)
        return Saved(int(facts["step"]), tensors, facts)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The checkpoint {path.name} is damaged ({sentence(error)}).") from None


def _put_aside(damaged: Path) -> None:
    """Out of the way of those to come, and still there to be looked at."""
    with suppress(OSError):
        os.replace(damaged, damaged.with_name(damaged.name + ".damaged"))
