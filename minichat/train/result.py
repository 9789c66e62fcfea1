"""What a run leaves behind: a projection's folder, or a whole model's where more than the projection trained.

What did not train is taken from the base model's files as it is stored there, whatever precision the run held it in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.disk import new_folder, write_json
from minichat.errors import ModelError
from minichat.train.files import OF_A_RUN, TRAINING
from minichat.train.network import top
from minichat.weights.files import WEIGHTS, read_json, weight_files
from minichat.weights.projection import FACTS, is_projection, read_projection, unpack, write_projection
from minichat.weights.zoo import find

_PARCEL = ".model"
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".md")


def write_result(
    out: Path,
    base: str,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Put trained weights, by their names in the model, into the run's folder `out`, so that `minichat.load` opens it.

    `base`: the model that the run began with, which may itself be a projection. `beside`: puts what else belongs to it
    into the folder, an adapter. Raises `ModelError` where the base is
    not there any more, or the disk does not take the result.
    """
    folder = find(base)
    started = read_projection(folder) if is_projection(folder) else None
    if set(weights) == {"projection.weight", "projection.bias"}:
        tensors = {name.removeprefix("projection."): weight for name, weight in weights.items()}
        write_projection(out, tensors, started.base_name() if started else base, facts=facts, into=True, beside=beside)
        return
    changed = {name: weight.detach().float().cpu() for name, weight in weights.items()}
    if started is not None:
        folder = started.base_folder()
        changed = {f"projection.{name}": tensor for name, tensor in started.tensors().items()} | changed
    _write_model(out, folder, changed, facts, beside)


def _write_model(
    out: Path,
    base: Path,
    changed: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    beside: Callable[[Path], None] | None,
) -> None:
    from minichat.weights.writing import Entry, write_tensors

    config = read_json(base, "config.json")
    stored = _stored(base)
    if config.get("llm") and any(top(name) == "language_model" for name in changed):
        stored |= _referred(base, config.pop("llm"))
    if unknown := sorted(set(changed) - set(stored)):
        raise ModelError(f"The base model {base.name!r} stores no {unknown[0]}: it is not the one that was trained.")
    entries = []
    for name, tensor in stored.items():
        tensor = changed.get(name, tensor)
        entries.append(Entry(name, tensor.nbytes, lambda tensor=tensor: tensor))  # type: ignore[misc]
    shutil.rmtree(out / _PARCEL, ignore_errors=True)  # left by a run that was killed here
    with new_folder(out / _PARCEL, ModelError) as made:
        for file in base.iterdir():
            if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name not in {FACTS, *OF_A_RUN}:
                shutil.copy(file, made / file.name)
        write_tensors(made, entries)
        if beside is not None:
            beside(made)
        write_json(made / TRAINING, dict(facts))
        write_json(made / "config.json", config)
    unpack(out / _PARCEL, out, last="config.json")


def _stored(folder: Path) -> dict[str, Tensor]:
    from minichat.weights.reading import read_checkpoint

    opened = [read_checkpoint(folder / file) for file in weight_files(folder, WEIGHTS)]
    return {name: checkpoint.plain(name) for checkpoint in opened for name in checkpoint}


def _referred(folder: Path, reference: dict[str, str]) -> dict[str, Tensor]:
    from minichat.weights.llm import referred_llm

    held = referred_llm(reference, folder.name).tensors()
    return {f"language_model.{name}": checkpoint.plain(name) for name, checkpoint in held.items()}


def versions() -> dict[str, str]:
    """Of the programs that a result depends on."""
    import accelerate
    import transformers

    import minichat

    return {
        "minichat": minichat.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
