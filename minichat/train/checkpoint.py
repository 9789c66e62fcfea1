"""What a run keeps on disk: checkpoints, from which it is resumed, and its configuration; random numbers."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minichat.errors import ModelError, SettingsError, sentence, some
from minichat.fileio import disk_errors, open_to_others, replace_file, to_disk
from minichat.train.config import Config, config_of, read_config
from minichat.train.optimizer import is_of_optimizer
from minichat.train.yaml_config import plain, write_yaml
from minichat.weights.checkpoint_io import KEY, checksum
from minichat.weights.hub import FACTS, is_projection, weight_files
from minichat.weights.projection import read_projection
from minichat.weights.registry import find

# --- The files of a run's folder in which it keeps and tells what it did. What it trained stands beside them.


LOCK = ".lock"
CONFIG, METRICS, LEFT_OUT = "config.yaml", "metrics.jsonl", "left_out.txt"
BEFORE, CURVE, PAGE = "before.json", "curve.png", "report.html"
CHECKPOINTS = "checkpoints"  # a folder
TRAINING = "training.json"  # the facts of the run that made a folder of weights
LESSONS, TEACHING = "lessons", "teaching.json"  # of `minichat teach`: a folder of what is learnt from; what came of it

#: Where a run begins with another run's folder, these are not of the model that is there.
OF_A_RUN = frozenset({LOCK, CONFIG, METRICS, LEFT_OUT, BEFORE, CURVE, PAGE, TRAINING, TEACHING})


# --- The random numbers of a step follow from the run's seed, the step and the process; nothing is to be remembered.


_PROCESSES = 2**10


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch for what is random in a step of one process."""
    torch.manual_seed(((seed * 2**20 + step) * _PROCESSES + rank) % 2**63)


def seed_of_all() -> int:
    """What the present step was seeded with, but for the process: the same in all of them."""
    return torch.initial_seed() // _PROCESSES


# --- Where a run stands, on disk: a file for each checkpoint, whole at any moment.
#
# A checkpoint is one safetensors file: what trains under its own names, the optimizer's state under `optimizer.`, and
# the run's facts (where it stands, and on what data and frozen weights) as JSON in the header, with a checksum of all
# that. The last and the one before are kept.


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


# --- A run's `config.yaml`, which a run that goes on is held against: written with a checksum, and read with care.


_SUM = re.compile(rb"# sha256 of what follows: ([0-9a-f]{64})\r?\n")


def keep_config(out: Path, config: Config) -> None:
    """Write a configuration. Raises `SettingsError` where the disk does not take it."""
    text = write_yaml(config).encode()
    with disk_errors(CONFIG, SettingsError):
        replace_file(out / CONFIG, f"# sha256 of what follows: {hashlib.sha256(text).hexdigest()}\n".encode() + text)


def kept_config(out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The configuration of the run in a folder, as a plain dict.

    Where the file is damaged the newest checkpoint tells it, and it is written anew. Raises `SettingsError` where no
    checkpoint does.
    """
    try:
        return plain(_read_config(out / CONFIG))
    except SettingsError as error:
        damage = f"{CONFIG} in {out.name!r} is damaged ({str(error).rstrip('.')})"
    try:
        saved = Checkpoints(out / CHECKPOINTS).last(say, tidy=False)
    except ModelError:
        saved = None
    if saved is None or "config" not in saved.facts:
        raise SettingsError(
            f"{damage}, and no checkpoint tells what it held: put back a copy of it, or begin anew in another out."
        )
    config = config_of(saved.facts["config"])
    keep_config(out, config)
    say(f"{damage}: it is written anew, as the checkpoint of step {saved.step} has it.")
    return plain(config)


def _silent(text: str) -> None:
    """For what nobody need know."""


def _read_config(path: Path) -> Config:
    """Raises `SettingsError` for a file that is not as it was written; one of an earlier version has no checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"it cannot be read: {error.strerror}") from None
    written = _SUM.match(content)
    if written and hashlib.sha256(content[written.end() :]).hexdigest() != written[1].decode():
        raise SettingsError("what it holds does not match its checksum")
    return read_config(path, say=_silent)  # an old name in it is nobody's to mend


# --- A run that begins with the weights of another, stopped or finished, or of a model: `initialize_from`.


Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """Weights by their names in the model, and whose they are. `facts`: of a run's checkpoint."""

    whose: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_start(source: str, names: Collection[str], say: Say) -> Start:
    """What a run's folder has, or what a model has of these tensors.

    A stopped run's weights are those of its newest checkpoint, a finished one's are its result's. Raises `ModelError`
    where there are none that can be read.
    """
    folder = Path(source).expanduser()
    finished = is_finished(folder)
    saved = _of_run(Checkpoints(folder / CHECKPOINTS), finished, say)
    if saved is not None:
        weights = {name: tensor for name, tensor in saved.tensors.items() if not is_of_optimizer(name)}
        return Start(f"the run {folder.name!r} after step {saved.step}", weights, saved.facts)
    if folder.is_dir() and (folder / CHECKPOINTS).is_dir() and not finished:
        raise ModelError(f"The run in {folder.name!r} has no checkpoint that can be read: name another.")
    return Start(f"the model {folder.name!r}", _of_model(source, names))


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a result."""
    return (folder / FACTS).exists() or (folder / "config.json").exists()


def _of_run(checkpoints: Checkpoints, finished: bool, say: Say) -> Saved | None:
    readers = [lambda: checkpoints.last(say, tidy=False), checkpoints.best]
    for read in reversed(readers) if finished else readers:
        try:
            if (saved := read()) is not None:
                return saved
        except ModelError as error:
            say(str(error))
    return None


def _of_model(name: str, names: Collection[str]) -> dict[str, Tensor]:
    from minichat.weights.checkpoint_io import read_checkpoint

    folder = find(name)
    if is_projection(folder):
        return {f"projection.{part}": tensor for part, tensor in read_projection(folder).tensors().items()}
    held = [read_checkpoint(folder / file) for file in weight_files(folder)]
    return {tensor: checkpoint.plain(tensor) for checkpoint in held for tensor in checkpoint if tensor in names}


@torch.no_grad()
def initialize(weights: Mapping[str, nn.Parameter], start: Start, say: Say) -> None:
    """Copy what trains from a start, and tell what came from there.

    Raises `SettingsError` where nothing of it trains here, where a run trained what does not, and for another shape.
    """
    given = start.tensors
    if start.facts and (others := given.keys() - weights.keys()):
        raise SettingsError(
            f"initialize_from: {start.whose} trained {some(others)}, which this run does not train: name the same "
            "parts in trainable."
        )
    found = [name for name in weights if name in given]
    if not found:
        raise SettingsError(f"initialize_from: {start.whose} has nothing of what trains here ({some(weights)}).")
    for name in found:
        if given[name].shape != weights[name].shape:
            raise SettingsError(
                f"initialize_from: {name} of {start.whose} has the shape {tuple(given[name].shape)}, but here it has "
                f"{tuple(weights[name].shape)}: they do not belong together."
            )
        if not given[name].isfinite().all():
            raise ModelError(f"initialize_from: {name} of {start.whose} holds values that are not finite.")
        weights[name].copy_(given[name])
    lacking = [name for name in weights if name not in given]
    rest = f"; {some(lacking)} begin as they are without it" if lacking else ""
    say(f"The weights are those of {start.whose}{rest}.")
