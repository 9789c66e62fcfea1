"""A run that begins with the weights of another, stopped or finished, or of a model: `initialize_from`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minichat.errors import ModelError, SettingsError, some
from minichat.train.checkpoint import Checkpoints, Saved
from minichat.train.files import CHECKPOINTS
from minichat.train.optimizer import is_of_optimizer
from minichat.weights.files import weight_files
from minichat.weights.projection import FACTS, is_projection, read_projection
from minichat.weights.zoo import find

if TYPE_CHECKING:
    from torch import Tensor

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
    from minichat.weights.reading import read_checkpoint

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
