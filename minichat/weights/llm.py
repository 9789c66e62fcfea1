"""The LLM of a converted model, LoRA adapters in PEFT's layout, and hashes of all that a model holds."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from minichat.errors import ModelError, some
from minichat.weights.check_config import asked_by, building, check_depth, check_values, decided_by
from minichat.weights.checkpoint_io import Checkpoint, fingerprint, read_checkpoint
from minichat.weights.gguf import is_gguf
from minichat.weights.hub import WEIGHTS, cached, find_folder, quiet, read_json, verify, weight_files
from minichat.weights.key_map import LLM_UNUSED
from minichat.weights.known_models import KNOWN_LLMS, packaged_folder, unpacked

# --- A LoRA adapter in PEFT's layout (`adapter_config.json` and its weights), and the matrices that it changes.
#
# LoRA (arXiv:2106.09685, section 4.1) adds to a frozen matrix W (out, in) the product of two small ones, scaled: W + s
# · B A, with A (r, in), B (out, r), and s = alpha / r, or alpha / √r where it is rank-stabilised (arXiv:2312.03732).
# Both are read as PEFT writes them; what PEFT knows beyond that is refused by name.


_LLM = "language_model."
ADAPTER = "adapter"  # the folder of a trained adapter, beside a projection or in a model's folder
CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
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
    (PEFT's `modules_to_save`).
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], checkpoint: Checkpoint, factors: dict[str, Factors], whole: set[str]
    ) -> None:
        self.folder, self.config, self.checkpoint = folder, config, checkpoint
        self.factors, self.whole = factors, whole

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool = False) -> None:
        """Raise `ModelError` unless each tensor that it changes is one of the LLM's, and of a shape that fits.

        `shapes`: of the LLM's stored tensors. `tied`: its output layer is its embedding.
        """
        name = self.folder.name
        if tied and (alone := self.whole & {"lm_head.weight", "model.embed_tokens.weight"}):
            raise ModelError(
                f"The adapter {name!r} replaces {some(alone)}, but this LLM's embedding and output layer are one "
                "matrix: merge it with PEFT, and give the merged LLM."
            )
        if unknown := (self.factors.keys() | self.whole) - shapes.keys():
            raise ModelError(f"The adapter {name!r} changes {some(unknown)}, which this LLM does not have.")
        for tensor, held in self.factors.items():
            a, b = (tuple(self.checkpoint.plain(factor).shape) for factor in (held.a, held.b))
            needed = (b[0], a[1])[:: -1 if held.transposed else 1]
            if shapes[tensor] != needed:
                raise ModelError(
                    f"The adapter {name!r} adds a matrix of {needed} to {tensor}, which is {shapes[tensor]}: it was "
                    "trained on another LLM."
                )
        for tensor in self.whole:
            stored = tuple(self.checkpoint.plain(_PREFIX + tensor).shape)
            if stored != shapes[tensor]:
                raise ModelError(f"The adapter {name!r} holds {tensor} of {stored}, which is {shapes[tensor]} here.")

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


def copy_adapter(adapter: Path | None, dtype: str | None = None) -> Callable[[Path], None] | None:
    """What puts this adapter's folder into another folder, its matrices in `dtype`; None where there is none."""
    if adapter is None:
        return None

    def copy(folder: Path) -> None:
        shutil.copytree(adapter, folder / ADAPTER)
        if dtype is not None:
            _rewrite(folder / ADAPTER, dtype)

    return copy


def _rewrite(folder: Path, dtype: str) -> None:
    import torch

    from minichat.weights.checkpoint_io import Entry, write_tensors

    held = read_adapter(folder).checkpoint
    tensors = {name: held[name].to(getattr(torch, dtype)) for name in sorted(held)}
    for name in ADAPTER_WEIGHTS:
        (folder / name).unlink(missing_ok=True)
    write_tensors(folder, [Entry(n, t.nbytes, lambda t=t: t) for n, t in tensors.items()], ADAPTER_WEIGHTS[0])  # type: ignore[misc]


def trained_adapter(*folders: Path) -> Path | None:
    """The adapter that was trained with a projection, or of the model that it stands on: the first of these folders
    that has one."""
    return next((folder / ADAPTER for folder in folders if has_adapter(folder / ADAPTER)), None)


def adding(adapters: list[Adapter]) -> Callable[[str, Tensor], Tensor]:
    """What adds these adapters, in float32, to a tensor of a model as it is read; those of other parts stay."""

    def add(name: str, tensor: Tensor) -> Tensor:
        own = name.removeprefix(_LLM)
        for adapter in adapters:
            if name != own and adapter.changes(own):
                tensor = adapter.merged(own, tensor.float())
        return tensor

    return add


def has_adapter(folder: Path) -> bool:
    """Whether a PEFT adapter lies in this folder."""
    return (folder / CONFIG).is_file() or any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter's folder: its configuration and the headers of its weights.

    Raises `ModelError`, naming the file or the key, for an adapter that is not whole, is damaged, or is of a kind that
    is more than a sum of matrices (DoRA, trained biases, prompts …).
    """
    from minichat.weights.checkpoint_io import read_checkpoint

    config = read_json(folder, CONFIG)
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise ModelError(
                f"The adapter {folder.name!r} has {key} {config[key]!r}, which is more than LoRA's sum of two "
                "matrices: merge it with PEFT, and give the merged LLM."
            )
    file = next((name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"The adapter {folder.name!r} has no {ADAPTER_WEIGHTS[0]}: it is not whole.")
    checkpoint = read_checkpoint(folder / file)
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
        raise ModelError(f"lora_alpha in {CONFIG} of {folder.name!r} is {alpha!r}: it must be a number.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


# --- The LLM of a converted model: found, looked at before anything runs, referred to or copied.


_PICKLES = "pytorch_model.bin"
#: Of a repository on the hub: nothing that could run. Where there are no safetensors, `PICKLED` too.
FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")
PICKLED = "pytorch_model*.bin"


@dataclass(frozen=True)
class Llm:
    """An LLM's folder, its configuration, and its open files."""

    name: str  # the folder, the GGUF file, the hub id, or the name of a packaged LLM
    folder: Path
    config: PreTrainedConfig
    checkpoints: tuple[Checkpoint, ...]
    adapter: Adapter | None = None  # what lies beside it, or was asked for: it is added to the tensors as they are read

    def tensors(self) -> dict[str, Checkpoint]:
        """Name → the file that holds it; without buffers that follow from the configuration."""
        held = {name: checkpoint for checkpoint in self.checkpoints for name in checkpoint}
        return {n: c for n, c in held.items() if not any(fnmatchcase(n, glob) for glob in LLM_UNUSED)}

    def reference(self) -> dict[str, str]:
        """How a converted model refers to this LLM."""
        if self.name in KNOWN_LLMS:
            where = {"name": self.name}
        elif (path := Path(self.name).expanduser()).exists():
            where = {"path": str(path.resolve())}
        else:
            where = {"id": self.name, "revision": (self.adapter.folder if self.adapter else self.folder).name}
        return {**where, "fingerprint": self.fingerprint()}

    @property
    def shown(self) -> str:
        """How to speak of it: without a path of this machine."""
        return Path(self.name).expanduser().resolve().name if Path(self.name).expanduser().exists() else self.name

    def verify(self) -> None:
        """Hash what came from the hub. Raises `ModelError` for a file that is not what was published."""
        verify(self.folder, [checkpoint.file for checkpoint in self.checkpoints])
        if self.adapter is not None:
            verify(self.adapter.folder, [self.adapter.checkpoint.file])

    def fingerprint(self, whole: bool = False) -> str:
        held = [(name, checkpoint.plain(name)) for name, checkpoint in self.tensors().items()]
        if self.adapter is not None:
            scales = [str(part.scale) for part in self.adapter.factors.values()]
            held += [(f"{name} {scales}", self.adapter.checkpoint.plain(name)) for name in self.adapter.checkpoint]
        return fingerprint(held, whole)


class _Merged(Checkpoint):
    """A file of an LLM whose tensors have an adapter added to them when they are read."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        super().__init__(checkpoint.file, checkpoint.raw, checkpoint.extras)
        self._adapter = adapter

    def __getitem__(self, name: str) -> Tensor:
        return self._adapter.merged(name, super().__getitem__(name))


def find_llm(name: str, revision: str | None = None) -> Llm:
    """Find an LLM and open its files; only headers are read. One in a GGUF file is unpacked first, once.

    A PEFT adapter that lies beside the LLM belongs to it; a folder that holds an adapter alone names its LLM.

    Raises `ModelError` for one that is missing, not whole, or no decoder-only LLM of transformers'.
    """
    folder = _folder(name, revision)
    adapter = read_adapter(folder) if has_adapter(folder) else None
    if adapter is not None and not (folder / "config.json").is_file() and _base(folder) is None:
        return _adapted(replace(_base_of(adapter), name=name), adapter)
    config = _config(folder)
    files = weight_files(folder, _base(folder) or WEIGHTS)
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"The LLM {folder.name!r} has no {file}: some of its weights are missing.")
    llm = Llm(name, folder, config, tuple(read_checkpoint(folder / file) for file in files))
    _check(llm)
    return llm if adapter is None else _adapted(llm, adapter)


def _adapted(llm: Llm, adapter: Adapter) -> Llm:
    """The LLM with the adapter. Raises `ModelError` where it does not fit."""
    shapes = {name: tuple(checkpoint.plain(name).shape) for name, checkpoint in llm.tensors().items()}
    adapter.check(shapes, tied=bool(llm.config.tie_word_embeddings) and "lm_head.weight" not in shapes)
    return replace(llm, checkpoints=tuple(_Merged(each, adapter) for each in llm.checkpoints), adapter=adapter)


def _base_of(adapter: Adapter) -> Llm:
    """The LLM that an adapter's folder names."""
    base, own = adapter.config.get("base_model_name_or_path"), adapter.folder.name
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{own!r} holds an adapter alone, and its adapter_config.json names no base_model_name_or_path: put the "
            "adapter's files beside the LLM that it belongs to."
        )
    beside = adapter.folder / base
    try:
        llm = find_llm(str(beside) if beside.is_dir() else base)
    except ModelError as error:
        raise ModelError(
            f"{own!r} holds an adapter alone, and the LLM that it belongs to cannot be used ({error}): correct its "
            "base_model_name_or_path, or put the adapter's files beside the LLM."
        ) from None
    if llm.adapter is not None:
        raise ModelError(
            f"The LLM of the adapter {own!r} has another adapter beside it: merge that one with PEFT first."
        )
    return llm


def _folder(name: str, revision: str | None) -> Path:
    if name in KNOWN_LLMS:
        return packaged_folder(KNOWN_LLMS[name])
    path = Path(name).expanduser()
    if is_gguf(path) or (path.suffix == ".gguf" and path.is_file()):
        return unpacked(path)
    if Path(name).expanduser().is_dir():
        return find_folder(name, "The LLM", FILES)
    kept = None if revision is None else cached(name, revision)
    if kept is not None and (base := _base(kept)) and all((kept / file).is_file() for file in weight_files(kept, base)):
        return kept
    folder = find_folder(name, "The LLM", FILES, revision)
    if _base(folder) != WEIGHTS:  # a repository that has pickles alone
        folder = find_folder(name, "The LLM", [*FILES, PICKLED], revision)
    return folder


def _base(folder: Path) -> str | None:
    """What the weights' files are called, or None where there are none."""
    bases = (WEIGHTS, _PICKLES)
    return next((b for b in bases if (folder / b).is_file() or (folder / f"{b}.index.json").is_file()), None)


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file() and (held := sorted(folder.glob("*.gguf"))):
        raise ModelError(
            f"The LLM {folder.name!r} is a folder of GGUF files: give one of them, such as {held[0].name}."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"The LLM {folder.name!r} has no config.json: it is not a model, or not a whole one.")
    stored, where = read_json(folder, "config.json"), f"config.json of the LLM {folder.name!r}"
    if stored.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"model_type in {where} is {stored.get('model_type')!r}, which transformers does not know: use 'llama', or "
            "what the LLM is."
        )
    check_values(stored, where)
    with building(where), quiet():
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
        config.name_or_path = ""  # no path of this machine in what is written
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        known = type(config) in kind._model_mapping
    if not known:
        raise ModelError(
            f"{folder.name!r} is of type {config.model_type!r}, but the LLM must be one that writes, such as 'llama' "
            "or 't5'."
        )
    return config


def _check(llm: Llm) -> None:
    """Whole, by its headers. Other types than LLaMA may store tensors under names that transformers changes on load."""
    held, whole = llm.tensors(), llm.config.model_type == "llama"
    shapes = {name: tuple(checkpoint.plain(name).shape) for name, checkpoint in sorted(held.items())}
    stored, where = read_json(llm.folder, "config.json"), f"config.json of the LLM {llm.folder.name!r}"
    check_depth(stored, held, where, exact=whole)
    kind = AutoModelForSeq2SeqLM if llm.config.is_encoder_decoder else AutoModelForCausalLM
    with building(where), quiet(), torch.device("meta"):
        model = kind.from_config(llm.config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not whole:  # a file may hold the LLM without its output layer, whose names then begin further down
        top = f"{model.base_model_prefix}."
        shapes = {name if name in wanted else top + name: shape for name, shape in shapes.items()}
        layers = {name for name in shapes if any(step.isdecimal() for step in name.split("."))}
        if layers and not layers & wanted.keys():
            raise ModelError(
                f"The LLM {llm.folder.name!r} holds {some(held)}, but model_type in its config.json is "
                f"{llm.config.model_type!r}, which has other tensors: they do not belong together."
            )
    for name in sorted(shapes.keys() & wanted.keys()):
        shape = shapes[name]
        if shape != wanted[name]:
            by = asked_by(stored, name, shape, wanted[name])
            raise ModelError(
                f"The tensor {name} of the LLM {llm.folder.name!r} has the shape {shape}, but its config.json asks for "
                f"{wanted[name]} ({by}): they do not belong together."
            )
    if not whole:
        return
    optional = {"lm_head.weight"} if llm.config.tie_word_embeddings else set()
    if missing := wanted.keys() - held.keys() - optional:
        raise ModelError(
            f"The LLM {llm.folder.name!r} lacks {some(missing)}{decided_by(missing)}: its weights are not whole."
        )
    if unknown := held.keys() - wanted.keys():
        raise ModelError(f"The LLM {llm.folder.name!r} holds {some(unknown)}, which its config.json knows nothing of.")


def referred_llm(reference: dict[str, str], model: str) -> Llm:
    """The LLM that a folder named `model` refers to. Raises `ModelError` if it is gone or is not the same any more."""
    name = str(reference.get("path") or reference.get("id") or reference.get("name") or "")
    shown = Path(name).name if "path" in reference else name
    try:
        llm = find_llm(name, reference.get("revision"))
    except ModelError as error:
        raise ModelError(
            f"{model!r} refers to its LLM {shown!r}, which cannot be used: {str(error).replace(name, shown)}"
        ) from None
    wanted, found = str(reference.get("fingerprint")), llm.fingerprint()
    if found != wanted:
        raise ModelError(
            f"{model!r} was made with an LLM {shown!r} of the fingerprint {wanted[:12]}, but the one that is there has "
            f"{found[:12]}: put the LLM back, or convert again."
        )
    return llm


def llm_dtypes(folder: Path, reference: dict[str, str] | None) -> set[torch.dtype]:
    """The dtypes in which the matrices of a model's LLM are stored, in its folder or where that refers to."""
    from minichat.weights.checkpoint_io import read_checkpoint

    if reference is not None:
        stored = [checkpoint.plain(name) for name, checkpoint in referred_llm(reference, folder.name).tensors().items()]
    else:
        files = [read_checkpoint(folder / file) for file in weight_files(folder)]
        stored = [file.plain(name) for file in files for name in file if name.startswith(_LLM)]
    return {tensor.dtype for tensor in stored if tensor.dim() == 2}


RECORD = "conversion.json"  # what a converted model was made of, in its folder
RECORDED = "sha256"  # part → hash: in a projection's `minichat.json`, or in a converted model's record
PARTS = ("vision_model", "bridge", "projection", "language_model")


def hashes(folder: Path, model: str | None = None) -> dict[str, str]:
    """The SHA-256 of each part of the model in `folder`: of its names, dtypes, shapes and bytes as they are stored.

    An LLM that is referred to is read, too. `model`: what to call the folder in an error, if not by its name.
    """
    from minichat.weights.checkpoint_io import fingerprint, read_checkpoint

    held = [read_checkpoint(folder / file) for file in weight_files(folder)]
    tensors = {name: checkpoint.plain(name) for checkpoint in held for name in checkpoint}
    found = {}
    for part in PARTS:
        own = [(name.removeprefix(f"{part}."), t) for name, t in tensors.items() if name.startswith(f"{part}.")]
        if own or part != "language_model":
            found[part] = fingerprint(own, whole=True)
    reference = read_json(folder, "config.json").get("llm")
    if reference:
        found["language_model"] = referred_llm(reference, model or folder.name).fingerprint(whole=True)
    return found
