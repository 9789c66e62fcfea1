"""What this machine can run: its memory, what each model needs of it, which form to take, and what is missing.

Nothing is loaded or fetched, save the configuration of a hub id that is asked for and not in the cache.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.device.memory import CONTEXT, Choice, Needs, best, default, estimate, gib
from minichat.device.placement import NEEDED, QUANTIZED, Machine, look
from minichat.errors import MiniChatError, ModelError, sentence
from minichat.weights import hub
from minichat.weights.check_config import WITH_EYES, whole_config
from minichat.weights.hub import HUB_ID, WEIGHTS, files_folder, from_hub, is_projection, quiet, read_json, weight_files
from minichat.weights.known_models import JOINED, KNOWN, WHOLE, KnownModel, PublishedFile, Repository, llm_at_hand
from minichat.weights.projection import read_projection
from minichat.weights.registry import BUILT_IN, find, is_here, joined_config, llm_of
from minichat.weights.vision import vision_files

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig

FORMS = ("float32", "bfloat16", *QUANTIZED)
_LIBRARIES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True)
class Finding:
    """What was found out about one model."""

    name: str
    needs: Mapping[str, Needs]  # by form, on the device that `load` takes by itself
    default: Choice  # what `load` takes by itself
    advised: Choice | None  # the best form that fits; None where none does
    missing: tuple[str, ...]  # what is not here, for a person

    def as_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes."""
        return {
            "name": self.name,
            "needs": {form: needs.as_dict() for form, needs in self.needs.items()},
            "default": _as_dict(self.default),
            "advised": self.advised and _as_dict(self.advised),
            "missing": list(self.missing),
        }


@dataclass(frozen=True)
class Report:
    """All that `minichat doctor` says."""

    machine: Machine
    versions: Mapping[str, str | None]  # None: not installed
    context: int
    batch: int
    models: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes."""
        return {
            "devices": [asdict(device) for device in self.machine.devices],
            "versions": dict(self.versions),
            "context": self.context,
            "batch": self.batch,
            "models": [model.as_dict() for model in self.models],
        }

    def __str__(self) -> str:
        return "\n".join(
            [
                "Memory here",
                *_table([(d.name, f"{gib(d.total)}, {gib(d.available)} free", d.title) for d in self.machine.devices]),
                "",
                "Versions: " + ", ".join(f"{name} {version or 'none'}" for name, version in self.versions.items()),
                "",
                f"Memory needed on {self.models[0].default.where}, for {_conversations(self.batch, self.context)}",
                *_table(
                    [
                        ("", *FORMS),
                        *((m.name, *(gib(m.needs[form].total) for form in FORMS)) for m in self.models),
                    ]
                ),
                "",
                "What to do",
                *(f"  {line}" for model in self.models for line in _advice(model)),
            ]
        )


def examine(model: str | None = None, *, context: int = CONTEXT, batch: int = 1) -> Report:
    """Look at this machine, and at one model or at all that can be loaded by name.

    Args:
        model: a known name, a folder or a hub id of a model or a trained projection, of which config.json is enough;
            or an LLM's, which is taken as it would be with MiniGPT-4's vision side.
        context: tokens of a conversation, pictures and reply included; no more than the model's own limit counts.
        batch: conversations at once, as in captioning.

    Raises:
        ModelError: for a model that is not there, or a configuration that cannot be used.
        SettingsError: for a context or batch out of range.
    """
    machine = look()
    names = [*BUILT_IN, *WHOLE, *KNOWN] if model is None else [model]
    found = tuple(_examine(name, machine, context, batch) for name in names)
    return Report(machine, versions(), context, batch, found)


def versions() -> dict[str, str | None]:
    """What is installed, and the CUDA that PyTorch was built for."""
    import torch

    found: dict[str, str | None] = {"minichat": _version("minichat"), "python": platform.python_version()}
    found |= {library: _version(library) for library in _LIBRARIES}
    return found | {"cuda": torch.version.cuda}


def read_config(name: str) -> MiniChatConfig:
    """A model's configuration; its weights may be elsewhere. Raises `ModelError` as `examine` does."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    from minichat.model import MiniChatConfig

    if name in KNOWN or name in WHOLE:
        return (KNOWN.get(name) or WHOLE[name]).config()
    if name in JOINED:
        return joined_config(JOINED[name])
    folder = _folder(name)
    if is_projection(folder):
        return read_config(read_projection(folder).base_name())
    stored = read_json(folder, "config.json")
    kind = stored.get("model_type")
    try:
        with quiet():
            if kind == "minichat":
                return MiniChatConfig.from_pretrained(folder, local_files_only=True)
            if kind in WITH_EYES:
                return whole_config(stored)
            if kind in {
                **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
                **MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            }:  # the vision side's own defaults are MiniGPT-4's
                return MiniChatConfig(text_config=stored)
    except MiniChatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"config.json of {folder.name!r} cannot be used: {sentence(error)}.") from None
    raise ModelError(f"{folder.name!r} holds a model of type {kind!r}, neither 'minichat' nor an LLM.")


def _folder(name: str) -> Path:
    """Where a model's configuration is: `find`, but a hub's repository need not be fetched whole."""
    if HUB_ID.fullmatch(name) and not Path(name).expanduser().exists():
        return from_hub(name, ["*.json"], f"There is no model {name!r}: it is no folder that exists,")
    return find(name)


def _examine(name: str, machine: Machine, context: int, batch: int) -> Finding:
    config = read_config(name)
    limit = getattr(config.text_config, "max_position_embeddings", None)
    context = min(context, limit) if limit else context
    by_itself = default(config, machine, context, batch)
    kind = machine.device(str(by_itself.device)).kind
    needs = {}
    for form in FORMS:
        quantize = form if form in QUANTIZED else None
        dtype = "bfloat16" if quantize else form
        needs[form] = estimate(config, dtype=dtype, quantize=quantize, context=context, batch=batch, device=kind)
    advised = by_itself if by_itself.fits else best(config, machine, context, batch)
    missing = _missing(KNOWN[name]) if name in KNOWN else []
    llm = llm_of(name)
    if llm is not None and not llm_at_hand(llm):
        missing.append(f"the LLM {llm.name} (minichat models fetch {name})")
    if advised is not None and advised.quantize and _version("bitsandbytes") is None:
        missing.append(f"bitsandbytes (pip install '{NEEDED}')")
    shown = Path(name).name if Path(name).is_dir() else name
    return Finding(shown, needs, by_itself, advised, tuple(missing))


def _missing(model: KnownModel) -> list[str]:
    """The published parts of a model that are not on this machine; asks nobody."""
    if is_here(model):
        return []
    vit = files_folder() / model.vit.name
    parts = {f"the projection {model.projection.name}": _file_is_here(model.projection)}
    if vit.is_file():
        if model.qformer is not None:
            parts[f"the Q-Former {model.qformer.name}"] = _file_is_here(model.qformer)
    else:
        blip2 = _repository_is_here(model.blip2, lambda folder: vision_files(folder, model.qformer is not None))
        parts[f"the vision side {model.blip2.id}"] = blip2
    parts[f"the LLM {model.llm.id}"] = _repository_is_here(model.llm, _llm_files)
    return [part for part, here in parts.items() if not here]


def _file_is_here(file: PublishedFile) -> bool:
    return (files_folder() / file.name).is_file() or (file.hub is not None and hub.file_is_here(file.hub))


def _llm_files(folder: Path) -> list[str]:
    return weight_files(folder, WEIGHTS if any(folder.glob("*.safetensors*")) else "pytorch_model.bin")


def _repository_is_here(repository: Repository, needed: Callable[[Path], list[str]]) -> bool:
    put = files_folder() / repository.id.rpartition("/")[2]
    folder = put if put.is_dir() else hub.cached(repository.id, "main")
    if folder is None:
        return False
    try:
        return all((folder / file).is_file() for file in needed(folder))
    except ModelError:  # a damaged index: loading says so
        return False


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _as_dict(choice: Choice) -> dict[str, Any]:
    facts = {"on": choice.where, "arguments": choice.arguments, "flags": choice.flags}
    return {**facts, "needs": choice.needs.total, "available": choice.available, "fits": choice.fits}


def _advice(model: Finding) -> Iterator[str]:
    """What a person should know and do about one model, a line each."""
    taken, advised = model.default, model.advised
    yield f"{model.name}"
    sizes = f"{gib(taken.needs.total)} of {gib(taken.available)}"
    if taken.fits:
        yield f"  fits as it is loaded by itself, {taken} ({sizes}); no flags are needed"
    elif advised is not None:
        yield f"  does not fit as it is loaded by itself, {taken} ({sizes})"
        yield f"  use {advised.flags} ({gib(advised.needs.total)} of {gib(advised.available)})"
    else:
        yield f"  does not fit here in any form ({sizes} in {taken})"
    if model.missing:
        yield f"  missing: {', '.join(model.missing)}"


def _conversations(batch: int, context: int) -> str:
    several = f"{batch} conversations at once" if batch > 1 else "one conversation"
    return f"{several} of {context:,} tokens"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligned columns: the first to the left, the last as it is, those between to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]).rstrip())
    return lines
