"""A LoRA adapter in PEFT's layout (`adapter_config.json` and its weights), and the matrices that it changes.

LoRA (arXiv:2106.09685, section 4.1) adds to a frozen matrix W (out, in) the product of two small ones, scaled:
W + s · B A, with A (r, in), B (out, r), and s = alpha / r, or alpha / √r where it is rank-stabilised
(arXiv:2312.03732). Both are read as PEFT writes them; what PEFT knows beyond that is refused by name.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minichat.errors import ModelError, SettingsError, some
from minichat.fileio import write_json
from minichat.weights.checkpoint_io import Checkpoint, Entry, read_checkpoint, write_tensors
from minichat.weights.hub import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    QFORMER_ADAPTER,
    read_json,
    trained_adapter,
)

_LLM = "language_model."
#: The parts that may have an adapter: the folder that it is in, and what their tensors' names begin with.
PLACES = {"language_model": (ADAPTER, _LLM), "bridge": (QFORMER_ADAPTER, "bridge.qformer.")}
_PREFIX = "base_model.model."
_ORIGINAL = "llama_model."  # before it, in what MiniGPT-v2's training saves
# `lora_A.default.weight` is how a run that was saved whole spells it.
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(\.\w+)?\.weight")
#: Keys that change what the matrices mean, and the values that change nothing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "megatron_config": (None,),
}


@dataclass(frozen=True)
class Factors:
    """What is added to one matrix: `scale` · B A, transposed where the matrix is stored (in, out)."""

    a: str  # the tensors' names in the file
    b: str
    scale: float
    transposed: bool


class Adapter:
    """An adapter's folder, read and found to be sound; not yet whether it fits an LLM.

    `factors` and `whole` go by the LLM's own tensors' names: what is added to them, and what is put in their place
    (PEFT's `modules_to_save`). `prefix`: what these names begin with in a model; of a Q-Former, that of the Q-Former.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], checkpoint: Checkpoint, factors: dict[str, Factors], whole: set[str]
    ) -> None:
        self.folder, self.config, self.checkpoint = folder, config, checkpoint
        self.factors, self.whole = factors, whole
        self.prefix = _LLM

    def check_in(self, shapes: Mapping[str, Iterable[int]], tied: bool = False) -> None:
        """As `check`, by the shapes of a whole model's tensors. `tied`: the LLM's."""
        held = {n.removeprefix(self.prefix): tuple(s) for n, s in shapes.items() if n.startswith(self.prefix)}
        self.check(held, tied and self.prefix == _LLM)

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool = False) -> None:
        """Raise `ModelError` unless each tensor that it changes is one of the LLM's, and of a shape that fits.

        `shapes`: of the LLM's stored tensors. `tied`: its output layer is its embedding.
        """
        name, of = self.folder.name, "LLM" if self.prefix == _LLM else "Q-Former"
        if tied and (alone := (self.factors.keys() | self.whole) & {"lm_head.weight", "model.embed_tokens.weight"}):
            raise ModelError(
                f"The adapter {name!r} changes {some(alone)}, but this LLM's embedding and output layer are one "
                "matrix: merge it with PEFT, and give the merged LLM."
            )
        if unknown := (self.factors.keys() | self.whole) - shapes.keys():
            raise ModelError(f"The adapter {name!r} changes {some(unknown)}, which this {of} does not have.")
        for tensor, held in self.factors.items():
            a, b = (tuple(self.checkpoint.plain(factor).shape) for factor in (held.a, held.b))
            needed = (b[0], a[1])[:: -1 if held.transposed else 1]
            if shapes[tensor] != needed:
                raise ModelError(
                    f"The adapter {name!r} adds a matrix of {needed} to {tensor}, which is {shapes[tensor]}: it was "
                    f"trained on another {of}."
                )
        for tensor in self.whole:
            stored = tuple(self.checkpoint.plain(_PREFIX + tensor).shape)
            if stored != shapes[tensor]:
                raise ModelError(f"The adapter {name!r} holds {tensor} of {stored}, which is {shapes[tensor]} here.")

    def changed(self) -> set[str]:
        """The names, in a model, of the tensors that it adds to, or replaces."""
        return {self.prefix + name for name in self.factors.keys() | self.whole}

    def changes(self, name: str) -> bool:
        """Whether it adds to, or replaces, the LLM's tensor of this name."""
        return name in self.factors or name in self.whole

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """The LLM's tensor of this name with what the adapter adds, summed in float32, in the tensor's own dtype."""
        if name in self.whole:
            return self.checkpoint[_PREFIX + name].to(tensor.dtype)
        if name not in self.factors:
            return tensor
        held = self.factors[name]
        added = held.scale * (self.checkpoint[held.b].float() @ self.checkpoint[held.a].float())  # (out, in)
        return (tensor.float() + (added.T if held.transposed else added)).to(tensor.dtype)


def copy_adapters(adapters: Mapping[str, Path | None], dtype: str | None = None) -> Callable[[Path], None]:
    """What puts adapters into another folder, as folders of these names, their matrices in `dtype`."""

    def copy(folder: Path) -> None:
        for name, adapter in adapters.items():
            if adapter is not None:
                shutil.copytree(adapter, folder / name)
                if dtype is not None:
                    _rewrite(folder / name, dtype)

    return copy


def _rewrite(folder: Path, dtype: str) -> None:
    import torch

    held = read_adapter(folder).checkpoint
    tensors = {name: held[name].to(getattr(torch, dtype)) for name in sorted(held)}
    for name in ADAPTER_WEIGHTS:
        (folder / name).unlink(missing_ok=True)
    write_tensors(folder, [Entry(n, t.nbytes, lambda t=t: t) for n, t in tensors.items()], ADAPTER_WEIGHTS[0])  # type: ignore[misc]


def adding(adapters: list[Adapter]) -> Callable[[str, Tensor], Tensor]:
    """What adds these adapters, in float32, to a tensor of a model as it is read; those of other parts stay."""

    def add(name: str, tensor: Tensor) -> Tensor:
        for adapter in adapters:
            own = name.removeprefix(adapter.prefix)
            if name != own and adapter.changes(own):
                tensor = adapter.merged(own, tensor.float())
        return tensor

    return add


def trained_adapters(*folders: Path) -> dict[str, Adapter]:
    """Part of a model → the adapter that was trained of it, as `trained_adapter` finds them. Raises `ModelError`."""
    found = {}
    for part, (kind, prefix) in PLACES.items():
        if (place := trained_adapter(*folders, kind=kind)) is not None:
            found[part] = read_adapter(place)
            found[part].prefix = prefix
    return found


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter's folder: its configuration and the headers of its weights.

    Raises `ModelError`, naming the file or the key, for an adapter that is not whole, is damaged, or is of a kind that
    is more than a sum of matrices (DoRA, trained biases, prompts …).
    """
    config = read_json(folder, ADAPTER_CONFIG)
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise ModelError(
                f"The adapter {folder.name!r} has {key} {config[key]!r}, which is more than LoRA's sum of two "
                "matrices: merge it with PEFT, and give the merged LLM."
            )
    file = next((name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"The adapter {folder.name!r} has no {ADAPTER_WEIGHTS[0]}: it is not whole.")
    return _parsed(folder, config, read_checkpoint(folder / file))


def _parsed(folder: Path, config: dict[str, Any], checkpoint: Checkpoint) -> Adapter:
    """What each matrix of an adapter is added to. Raises `ModelError` as `read_adapter` does."""
    pairs: dict[str, dict[str, str]] = {}
    whole = set()
    for key in checkpoint:
        found = _FACTOR.fullmatch(key)
        if not key.startswith(_PREFIX) or (found is None and ".lora_" in key):
            raise ModelError(f"The adapter {folder.name!r} holds {key}, which is no LoRA matrix of a linear layer.")
        if found is None:
            whole.add(key.removeprefix(_PREFIX))
        else:
            pairs.setdefault(found["module"].removeprefix(_PREFIX), {})[found["factor"]] = key
    factors = {}
    for module, pair in pairs.items():
        if len(pair) != 2:
            raise ModelError(f"The adapter {folder.name!r} has one of the two matrices of {module}: it is not whole.")
        a, b = (tuple(checkpoint.plain(pair[factor]).shape) for factor in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ModelError(f"The matrices of {module} in the adapter {folder.name!r} are {a} and {b}: no product.")
        scale = _scale(folder, config, module, rank=a[0])
        factors[f"{module}.weight"] = Factors(pair["A"], pair["B"], scale, bool(config.get("fan_in_fan_out")))
    if not factors and not whole:
        raise ModelError(f"The adapter {folder.name!r} holds no matrices: it is not whole.")
    return Adapter(folder, config, checkpoint, factors, whole)


def _scale(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, with the alpha of the pattern that names this module, if one does (PEFT's `alpha_pattern`)."""
    alpha = config.get("lora_alpha")
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ModelError(f"lora_alpha in {ADAPTER_CONFIG} of {folder.name!r} is {alpha!r}: it must be a number.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def split_lora(trained: Checkpoint, alpha: float | None) -> tuple[Adapter | None, Checkpoint]:
    """The LoRA matrices among what MiniGPT-v2's training saved, as an adapter of the LLM, and the rest.

    They are spelled as peft 0.2 had them (`lora_A.weight`, which later versions of the original pass over in silence)
    or as later ones (`lora_A.default.weight`). r is told by their shapes, alpha by the run's configuration, which the
    file holds, or by `alpha`.

    Raises `ModelError` for matrices without their other half or that are there twice, `SettingsError` where nothing
    tells alpha.
    """
    held = {name: raw for name, raw in trained.raw.items() if name.startswith(_ORIGINAL) and ".lora_" in name}
    rest = Checkpoint(trained.file, {n: raw for n, raw in trained.raw.items() if n not in held}, trained.extras)
    if not held:
        return None, rest
    named = {name.removeprefix(_ORIGINAL).replace(".default.", "."): raw for name, raw in held.items()}
    if len(named) != len(held):
        raise ModelError(
            f"{trained.file} holds LoRA matrices in both spellings, with and without '.default': give one."
        )
    config = trained.extras.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    recorded = model.get("lora_alpha") if isinstance(model, dict) else None
    alpha = alpha or recorded
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise SettingsError(
            f"{trained.file} holds LoRA matrices, and does not say by which alpha they are scaled: give --lora-alpha "
            "(MiniGPT-v2's is 16)."
        )
    checkpoint = Checkpoint(trained.file, named, {})
    ranks = {checkpoint.plain(name).shape[0] for name in checkpoint if ".lora_A." in name}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": max(ranks, default=0),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in named}),
    }
    return _parsed(Path(trained.file), settings, checkpoint), rest


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write `folder`/adapter as PEFT does."""
    made = folder / ADAPTER
    made.mkdir()

    def maker(name: str) -> Callable[[], Tensor]:
        return lambda: adapter.checkpoint[name]

    held = adapter.checkpoint
    write_tensors(made, [Entry(n, held.plain(n).nbytes, maker(n)) for n in sorted(held)], ADAPTER_WEIGHTS[0])
    write_json(made / ADAPTER_CONFIG, adapter.config)
