"""The LLM of a converted model, and hashes of all that a model holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from minichat.errors import ModelError, some
from minichat.weights.adapter import Adapter, read_adapter
from minichat.weights.check_config import WITH_EYES, asked_by, building, check_depth, check_values, decided_by
from minichat.weights.checkpoint_io import Checkpoint, fingerprint, read_checkpoint
from minichat.weights.hub import (
    WEIGHTS,
    cached,
    find_folder,
    has_adapter,
    is_gguf,
    quiet,
    read_json,
    verify,
    weight_files,
)
from minichat.weights.known_models import KNOWN_LLMS, packaged_folder, unpacked

# --- The LLM of a converted model: found, looked at before anything runs, referred to or copied.


_PICKLES = "pytorch_model.bin"
#: Of a repository on the hub: nothing that could run. Where there are no safetensors, `PICKLED` too.
FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
PICKLED = "pytorch_model*.bin"
_WITHIN = "language_model."  # how the names of an LLM's tensors begin in a whole model, ours or a BLIP-2


@dataclass(frozen=True)
class Llm:
    """An LLM's folder, its configuration, and its open files."""

    name: str  # the folder, the GGUF file, the hub id, or the name of a packaged LLM
    folder: Path
    config: PreTrainedConfig
    checkpoints: tuple[Checkpoint, ...]
    adapter: Adapter | None = None  # what lies beside it, or was asked for: it is added to the tensors as they are read
    prefix: str = ""  # of its tensors' names in the files: those of a whole BLIP-2 hold its eyes, too

    @property
    def rows(self) -> int:
        """Of its embedding as it is stored; its configuration may ask for more."""
        held = self.tensors()
        return min((held[name].plain(name).shape[0] for name in self.vocabulary_tensors()), default=0)

    def vocabulary_tensors(self) -> set[str]:
        """Those of its tensors that have a row for each id."""
        kind = AutoModelForSeq2SeqLM if self.config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = kind.from_config(self.config)
        modules = (model.get_input_embeddings(), model.get_output_embeddings())
        ids = {id(tensor) for module in modules if module is not None for tensor in module.parameters()}
        return {n for n, t in model.named_parameters(remove_duplicate=False) if id(t) in ids} & self.tensors().keys()

    def tensors(self) -> dict[str, Checkpoint]:
        """Name → the file that holds it; without buffers that follow from the configuration."""
        held = {name: checkpoint for checkpoint in self.checkpoints for name in checkpoint}
        from minichat.weights.key_map import LLM_UNUSED

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
    prefix = _WITHIN if read_json(folder, "config.json").get("model_type") in WITH_EYES else ""
    opened = tuple(_within(read_checkpoint(folder / file), prefix) for file in files)
    llm = Llm(name, folder, config, opened, prefix=prefix)
    _check(llm)
    return llm if adapter is None else _adapted(llm, adapter)


def _within(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """What of a file has names that begin so, without that beginning."""
    held = {name.removeprefix(prefix): raw for name, raw in checkpoint.raw.items() if name.startswith(prefix)}
    return Checkpoint(checkpoint.file, held, checkpoint.extras)


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
    stored, where = _stored_config(folder), f"config.json of the LLM {folder.name!r}"
    if stored.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"model_type in {where} is {stored.get('model_type')!r}, which transformers does not know: use 'llama', or "
            "what the LLM is."
        )
    check_values(stored, where)
    with building(where), quiet():
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type in WITH_EYES:
            config = config.text_config
        elif not config.is_encoder_decoder and config.get_text_config() is not config:
            raise ModelError(
                f"{folder.name!r} is of type {config.model_type!r}, which has more than an LLM in it: give one that "
                "reads text alone (of Gemma 3 the smallest, of type 'gemma3_text')."
            )
        config.name_or_path = ""  # no path of this machine in what is written
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        known = type(config) in kind._model_mapping
    if not known:
        raise ModelError(
            f"{folder.name!r} is of type {config.model_type!r}, but the LLM must be one that writes, such as 'llama' "
            "or 't5'."
        )
    return config


def _stored_config(folder: Path) -> dict[str, Any]:
    """An LLM's `config.json` as it is stored; of a whole BLIP-2 the part of its LLM."""
    stored = read_json(folder, "config.json")
    return {"model_type": "opt", **stored.get("text_config", {})} if stored.get("model_type") in WITH_EYES else stored


def _check(llm: Llm) -> None:
    """Whole, by its headers. Other types than LLaMA may store tensors under names that transformers changes on load."""
    held, whole = llm.tensors(), llm.config.model_type == "llama"
    shapes = {name: tuple(checkpoint.plain(name).shape) for name, checkpoint in sorted(held.items())}
    stored, where = _stored_config(llm.folder), f"config.json of the LLM {llm.folder.name!r}"
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
        stored = [file.plain(name) for file in files for name in file if name.startswith(_WITHIN)]
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
