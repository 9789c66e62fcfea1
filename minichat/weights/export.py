"""A model of ours → what other programs load: `minichat export`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.device import DTYPES
from minichat.errors import ModelError, SettingsError
from minichat.fileio import new_folder, write_json
from minichat.prompt.template import EOS, OWN
from minichat.weights.adapter import copy_adapters, trained_adapters
from minichat.weights.checkpoint_io import Entry
from minichat.weights.hub import ADAPTER, check_header, is_projection, quiet, read_json, trained_adapter, weight_files
from minichat.weights.projection import export_projection, read_projection
from minichat.weights.registry import find

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig
    from minichat.weights.adapter import Adapter
    from minichat.weights.checkpoint_io import Checkpoint

FORMATS = ("projection", "blip2", "minichat", "llm")
#: What a model's folder holds beside its weights and config.json.
_BESIDE = (
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
    "qformer_tokenizer",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
#: Of them, what an LLM has, too: a processor is the whole model's, and so is a chat template that is not its own.
_OF_ALL = ("chat_template.jinja", "processor_config.json", "qformer_tokenizer")
_BESIDE_AN_LLM = tuple(name for name in _BESIDE if name not in _OF_ALL)
_LLM = "language_model."
_RENAMED = {"bridge.ln_vision.": "vision_model.post_layernorm.", "projection.": "language_projection.", "bridge.": ""}
#: An instructed Q-Former has its words, and the norm after them, in one part.
_RENAMED_INSTRUCTED = {
    "bridge.embeddings.": "qformer.embeddings.",
    "bridge.qformer.layernorm.": "qformer.embeddings.layernorm.",
    **_RENAMED,
}


def export(
    model: str,
    form: str,
    out: Path,
    verify: bool = False,
    dtype: str | None = None,
    without_llm: bool = False,
    adapter: Path | None = None,
) -> Path:
    """Write a model (a known name, a folder or a hub id) to the new folder `out`, whole or not at all.

    `form`: "projection", the trained part alone; "blip2", a whole `Blip2ForConditionalGeneration`; "minichat", a whole
    model of ours, LLM and trained projection in it, or a stage-1 model; or "llm", its LLM alone. `verify` records
    hashes of everything that the projection belongs to; the others have no place for them. `dtype`: of a "minichat", or
    of a projection's adapter; None: as they are stored. `without_llm`: a "minichat" goes on referring to its LLM.
    `adapter`: a PEFT folder that goes with a "projection" in place of the model's own.

    Raises `ModelError` for a model that is not whole, or cannot be written so, and `SettingsError` for another form.
    """
    if form not in FORMATS:
        raise SettingsError(f"format is {form!r}; it must be one of {', '.join(FORMATS)}.")
    if verify and form != "projection":
        raise SettingsError("--verify is for --format projection: the other formats have no place for hashes.")
    if dtype is not None and form not in ("minichat", "projection"):
        raise SettingsError("--dtype is for --format minichat and projection: the others keep what is stored.")
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if without_llm and form != "minichat":
        raise SettingsError("--without-llm is for --format minichat: a projection holds no LLM, the others need it.")
    if adapter is not None and form != "projection":
        raise SettingsError("--adapter is for --format projection: load what that writes, or export it again.")
    if form == "projection":
        return export_projection(model, out, verify, dtype, adapter)
    if form == "llm":
        return export_llm(model, out)
    return export_blip2(model, out) if form == "blip2" else export_minichat(model, out, dtype, without_llm)


@dataclass(frozen=True)
class _Held:
    """A model's folder, its configuration, its network without weights, and where each tensor is, by what name."""

    folder: Path
    config: MiniChatConfig
    network: Any
    tensors: dict[str, tuple[Checkpoint, str]]
    adapters: tuple[Adapter, ...] = ()

    def entry(
        self, name: str, written: str, change: Callable[[Any], Any] = lambda tensor: tensor, dtype: Any = None
    ) -> Entry:
        """A tensor as it is written, with what an adapter adds to it. `dtype`: None, the stored one."""
        checkpoint, stored = self.tensors[name]

        def make() -> Any:
            tensor = checkpoint[stored]
            whole = tensor
            for adapter in self.adapters:
                if name in adapter.changed():
                    whole = adapter.merged(name.removeprefix(adapter.prefix), whole.float())
            return change(whole.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor)

        return Entry(written, checkpoint.plain(stored).nbytes, make)


def _hold(model: str) -> _Held:
    """Open a model's files, its own, its LLM's and its projection's, and see that it is whole; reads headers alone."""
    import torch

    from minichat.model import MiniChatForConditionalGeneration
    from minichat.weights.check_config import building, check_parts, read_config
    from minichat.weights.checkpoint_io import read_checkpoint
    from minichat.weights.llm import referred_llm

    own = folder = find(model)
    trained = None
    if is_projection(folder):
        trained = read_projection(folder)
        folder = trained.base_folder()
        trained.check(folder)
    if (kind := read_json(folder, "config.json").get("model_type")) != "minichat":
        raise ModelError(f"{folder.name!r} holds a model of type {kind!r}, not 'minichat'.")
    config = read_config(folder)
    held: dict[str, tuple[Checkpoint, str]] = {}
    if config.llm:
        llm = referred_llm(config.llm, folder.name)
        held |= {f"{_LLM}{name}": (checkpoint, name) for name, checkpoint in llm.tensors().items()}
    for file in weight_files(folder):
        check_header(folder, file)
        checkpoint = read_checkpoint(folder / file)
        held |= {name: (checkpoint, name) for name in checkpoint}
    if trained is not None:
        held |= {f"projection.{name}": (trained.checkpoint, name) for name in ("weight", "bias")}
    check_parts(read_json(folder, "config.json"), held, f"config.json in {folder.name!r}")
    with building(f"config.json in {folder.name!r}"), torch.device("meta"):
        network = MiniChatForConditionalGeneration(config)
    _check_whole(folder, network, held)
    adapters = tuple(trained_adapters(own, folder).values())
    shapes = {name: c.plain(stored).shape for name, (c, stored) in held.items()} if adapters else {}
    for adapter in adapters:
        adapter.check_in(shapes, tied=config.text_config.tie_word_embeddings)
    return _Held(folder, config, network, held, adapters)


def export_minichat(model: str, out: Path, dtype: str | None = None, without_llm: bool = False) -> Path:
    """A folder of our own that refers to no other: vision side, projection and LLM together, or a stage-1 model.

    `dtype`: "float32", "bfloat16" or "float16" for all but the projection, which stays as it is; None: nothing changes,
    save that a stage-1 model is written in float32. `without_llm`: the folder refers to the LLM as the model did, and
    an adapter lies beside the vision side. Raises `ModelError` where the model holds its LLM itself.
    """
    import torch

    from minichat.weights.checkpoint_io import write_tensors
    from minichat.weights.qformer import is_stage1, read_stage1, write_stage1

    if is_stage1(folder := find(model)):
        stage1 = read_stage1(str(folder))
        return write_stage1(out, stage1.model.to(getattr(torch, dtype or "float32")), stage1.tokenizer)
    held = _hold(model)
    kept = {"projection.weight", "projection.bias"}
    cast = getattr(torch, dtype) if dtype else None
    config = read_json(held.folder, "config.json")
    if not without_llm:
        config.pop("llm", None)
    elif not config.get("llm"):
        raise ModelError(
            f"{held.folder.name!r} holds its LLM itself, and so will what is exported: leave --without-llm."
        )
    beside = copy_adapters({ADAPTER: trained_adapter(folder, held.folder)}, dtype)  # a Q-Former's is merged
    names = sorted(name for name in held.tensors if not (without_llm and name.startswith(_LLM)))
    entries = [held.entry(name, name, dtype=None if name in kept else cast) for name in names]
    with new_folder(out, ModelError) as made:
        _copy_beside(held.folder, made, _BESIDE)
        write_tensors(made, entries)
        if without_llm:
            beside(made)
        write_json(made / "config.json", config)
    return out


def export_blip2(model: str, out: Path) -> Path:
    """A folder that `transformers.Blip2ForConditionalGeneration` and `AutoProcessor` load, with no code of ours; of an
    instructed Q-Former `InstructBlipForConditionalGeneration`.

    Its logits are this model's in the columns of the vocabulary. BLIP-2 looks its slots up in the embedding, under the
    id of the token `<image>`: the tokenizer's next one, for which a row is added where the LLM has none. What we call
    `ln_vision` has transformers' eps of 1e-6 there, not 1e-5.

    The slot and the model's own `suppress_tokens` are in `generation_config.json`. BLIP-2's `generate` does not look at
    it by itself, and transformers reads no such setting from `text_config`, so a caller has to hand it over.
    """
    from transformers import Blip2Config, GenerationConfig, InstructBlipConfig

    from minichat.model.vision import EVA
    from minichat.weights.checkpoint_io import write_tensors

    held = _hold(model)
    folder, config, bridge = held.folder, held.config, held.config.bridge_config
    if bridge.kind != "qformer":
        raise ModelError(f"{folder.name!r} has no Q-Former, which BLIP-2 needs: export its projection instead.")
    if config.vision_config.model_type != EVA:
        raise ModelError(
            f"{folder.name!r} sees by a {config.vision_config.model_type!r}, but BLIP-2's vision encoder is {EVA!r}: "
            "export its projection, or --format minichat."
        )
    processor = _blip2_processor(folder)
    slot = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    rows = slot + 1 - config.text_config.vocab_size
    grown = _vocabulary_tensors(held.network) if rows > 0 else set()
    names = _RENAMED_INSTRUCTED if bridge.instructed else _RENAMED
    entries = [
        held.entry(name, _renamed(name, names), lambda tensor: _with_rows(tensor, rows))
        if name in grown
        else held.entry(name, _renamed(name, names))
        for name in sorted(held.tensors)
    ]
    kind = InstructBlipConfig if bridge.instructed else Blip2Config
    parts = {"vision_config": config.vision_config.to_dict(), "qformer_config": bridge.qformer.to_dict()}
    for part in parts.values():
        part.pop("model_type")
    theirs = kind(
        **parts,
        text_config=config.text_config.to_dict() | {"vocab_size": config.text_config.vocab_size + max(0, rows)},
        num_query_tokens=bridge.num_query_tokens,
        image_token_index=slot,
        architectures=[kind.__name__.replace("Config", "ForConditionalGeneration")],
    )
    with quiet():
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    generation.suppress_tokens = [*(generation.suppress_tokens or []), slot]
    with new_folder(out, ModelError) as made:
        write_tensors(made, entries)
        theirs.save_pretrained(made)
        generation.save_pretrained(made)
        with quiet():
            processor.save_pretrained(made)
    return out


def _blip2_processor(folder: Path) -> Any:
    """Transformers' own, which makes of a picture the same pixels as ours; its tokenizer has one more token, `<image>`.

    What BLIP-2 and InstructBLIP were published with begins and ends prompts as their templates do. Of a tokenizer
    transformers writes what it was made with, so that is told there.
    """
    from transformers import Blip2Processor, BlipImageProcessor, InstructBlipProcessor

    from minichat.prompt.processor import MiniChatProcessor

    with quiet():
        ours = MiniChatProcessor.from_pretrained(folder, local_files_only=True)
        template, tokenizer, pixels = ours.spelling, ours.tokenizer, ours.image_processor
        told: dict[str, Any] = {}
        if template.pictures_first:
            # InstructBLIP's pads word pieces as the LLM's, and those stand on the left; a T5's positions would move.
            told = {"padding_side": "left"} if template.begin and not ours.instructed else {}
            if template.begin == EOS:  # as LAVIS has it: `</s>` begins a prompt
                tokenizer.add_special_tokens({"bos_token": tokenizer.eos_token})
                tokenizer.add_bos_token = True
                told |= {"add_bos_token": True}
            if template.assistant_prefix == EOS:  # and ends one for T5's encoder
                tokenizer.add_eos_token = True
                told |= {"add_eos_token": True}
        tokenizer.init_kwargs |= told
        shown = BlipImageProcessor(size=pixels.size, image_mean=pixels.image_mean, image_std=pixels.image_std)
        if ours.instructed:
            return InstructBlipProcessor(shown, tokenizer, ours.word_pieces, num_query_tokens=ours.num_image_tokens)
        return Blip2Processor(shown, tokenizer, num_query_tokens=ours.num_image_tokens)


def export_llm(model: str, out: Path) -> Path:
    """The LLM as transformers knows it, to put another vision side before it (`convert --llm`)."""
    from minichat.weights.checkpoint_io import write_tensors

    held = _hold(model)
    prefix = _LLM
    config = held.config.text_config
    config.architectures = [type(held.network.language_model).__name__]
    config.dtype = next(c.plain(stored).dtype for name, (c, stored) in held.tensors.items() if name.startswith(prefix))
    entries = [held.entry(n, n.removeprefix(prefix)) for n in sorted(held.tensors) if n.startswith(prefix)]
    with new_folder(out, ModelError) as made:
        own = ("chat_template.jinja",) if held.config.template == OWN else ()
        _copy_beside(held.folder, made, (*_BESIDE_AN_LLM, *own))
        write_tensors(made, entries)
        config.save_pretrained(made)
    return out


def _copy_beside(folder: Path, made: Path, names: tuple[str, ...]) -> None:
    for file in folder.iterdir():
        if file.is_file() and file.name in names:
            shutil.copy(file, made / file.name)
        elif file.is_dir() and file.name in names:
            shutil.copytree(file, made / file.name)


def _check_whole(folder: Path, network: Any, held: dict[str, Any]) -> None:
    """Raise `ModelError`, naming it, for the first tensor that is missing, left over or of another shape."""
    wanted = network.state_dict()
    tied = set(getattr(network, "all_tied_weights_keys", None) or ())
    for name in sorted(wanted.keys() - held.keys() - tied):
        raise ModelError(f"The weights of {folder.name!r} lack {name}: they were not written whole.")
    for name, (checkpoint, stored) in sorted(held.items()):
        shape = tuple(checkpoint.plain(stored).shape)
        if name not in wanted or shape != tuple(wanted[name].shape):
            needed = tuple(wanted[name].shape) if name in wanted else "no such tensor"
            raise ModelError(f"The tensor {name} of {folder.name!r} is {shape}, but its config.json asks for {needed}.")


def _vocabulary_tensors(network: Any) -> set[str]:
    """The tensors with a row for each id."""
    modules = (network.get_input_embeddings(), network.get_output_embeddings())
    tensors = {id(tensor) for module in modules if module is not None for tensor in module.parameters()}
    return {name for name, tensor in network.named_parameters(remove_duplicate=False) if id(tensor) in tensors}


def _with_rows(tensor: Any, rows: int) -> Any:
    import torch

    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])


def _renamed(name: str, names: Mapping[str, str]) -> str:
    start = next((old for old in names if name.startswith(old)), "")
    return names.get(start, "") + name.removeprefix(start)
