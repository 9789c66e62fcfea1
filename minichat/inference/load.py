"""A name, a folder or a hub id → a network with every tensor accounted for → a bot that is ready to talk."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from minichat.device.memory import check_fits
from minichat.device.placement import Placement, choose, outline, suit_cpu
from minichat.errors import UNFETCHED, MiniChatError, ModelError, SettingsError, sentence, some
from minichat.inference.bot import MiniChat
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.model.vision import picture_side
from minichat.weights.adapter import Adapter, adding, trained_adapters
from minichat.weights.check_config import asked_by, building, check_parts, check_values, decided_by, read_config
from minichat.weights.checkpoint_io import Stream, large_apart
from minichat.weights.hub import (
    ADAPTERS,
    adapters_of,
    check_header,
    has_trained,
    is_pointer,
    is_projection,
    quiet,
    read_json,
    weight_files,
)
from minichat.weights.known_models import KNOWN, WHOLE, KnownModel, WholeModel
from minichat.weights.llm import llm_dtypes, referred_llm
from minichat.weights.projection import read_projection, verify_weights
from minichat.weights.registry import AUTO, BUILT_IN, default_model, find, is_here

if TYPE_CHECKING:
    from minichat.prompt.processor import MiniChatProcessor


# --- A folder of weights → the network, every tensor accounted for.


_GENERATION = "generation_config.json"
_LLM = "language_model."


def load_network(
    folder: Path, placement: Placement, reference: dict[str, str] | None = None, trained: Sequence[Adapter] = ()
) -> MiniChatForConditionalGeneration:
    """The network in `folder`, with the LLM that it refers to, if it does; placed and quantized as asked for.

    `trained`: adapters, added to the matrices as they are read, in float32, before they become what was asked for.

    Raises `ModelError`, naming it, for a tensor that is missing, left over, of the wrong shape or not finite, and where
    memory is short; `SettingsError` for a placement that does not fit this network.
    """
    try:
        with quiet(), large_apart() if placement.quantize is not None else nullcontext():
            config = read_config(folder)
            config.llm = None  # what is saved of the loaded model holds its LLM
            generation = _generation_config(folder)
            stream = _stream(folder, placement, reference, trained, config)
            _check_shapes(folder, stream, config)
            check_fits(config, folder.name, placement)
            model, account = MiniChatForConditionalGeneration.from_pretrained(
                None,
                config=config,
                state_dict=stream.tensors,
                generation_config=generation,
                ignore_mismatched_sizes=True,  # reported below, with both shapes
                output_loading_info=True,
                **placement.options(config),
            )
    except MiniChatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"The model in {folder.name!r} cannot be loaded: {sentence(error)}.") from error
    _check_account(folder, account)
    _check_values(folder, stream)
    if placement.quantize == "4bit" and placement.device.type == "cpu":
        suit_cpu(model)
    return model


def _stream(
    folder: Path,
    placement: Placement,
    reference: dict[str, str] | None,
    trained: Sequence[Adapter],
    config: MiniChatConfig,
) -> Stream:
    """The tensors of the model in `folder`, to be read with what its adapters add. Raises as `load_network` does."""
    adapters: list[Adapter] = []  # the LLM's own, then the trained ones
    changes = adding(adapters) if trained or reference is not None else None
    stream = Stream(placement.dtype, placement.as_stored, changes)
    if reference is not None:
        llm = referred_llm(reference, folder.name)
        adapters += [llm.adapter] if llm.adapter is not None else []
        for checkpoint in llm.checkpoints:
            held = [name for name, holder in llm.tensors().items() if holder is checkpoint]
            stream.add(llm.folder / checkpoint.file, _LLM, held, llm.prefix)
    for file in weight_files(folder):
        stream.add(folder / file)
    shapes = {name: tensor.shape for name, tensor in stream.tensors.items()} if trained else {}
    for adapter in trained:
        adapters.append(adapter)
        adapter.check_in(shapes, tied=config.text_config.tie_word_embeddings)
    return stream


def _generation_config(folder: Path) -> GenerationConfig | None:
    if not (folder / _GENERATION).is_file():  # there need not be one
        return None
    where = f"{_GENERATION} in {folder.name!r}"
    check_values(read_json(folder, _GENERATION), where)
    with building(where):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _check_account(folder: Path, account: dict[str, Any]) -> None:
    """Every tensor is used, and none is missing: a missing one would be left random."""
    for name, stored, wanted in sorted(account["mismatched_keys"]):
        _refuse_shape(folder, name, stored, wanted)
    for what, names in (("lack", account["missing_keys"]), ("have left over", account["unexpected_keys"])):
        if names:
            raise ModelError(
                f"The weights of {folder.name!r} {what} {some(names)}: they do not belong to config.json"
                f"{decided_by(names)}, or were not written whole."
            )
    if account["error_msgs"]:
        raise ModelError(f"The weights of {folder.name!r} cannot be used: {'; '.join(account['error_msgs'])}.")


def _check_shapes(folder: Path, stream: Stream, config: MiniChatConfig) -> None:
    """Depths and shapes against the tensors that are there, before any is made."""
    stored, where = read_json(folder, "config.json"), f"config.json in {folder.name!r}"
    check_parts(stored, stream.tensors, where)
    with building(where):
        wanted = {name: tuple(tensor.shape) for name, tensor in outline(config).state_dict().items()}
    for name in sorted(wanted.keys() & stream.tensors.keys()):
        if (held := stream.tensors[name].shape) != wanted[name]:
            _refuse_shape(folder, name, held, wanted[name], asked_by(stored, name, held, wanted[name]))


def _refuse_shape(folder: Path, name: str, stored: Iterable[int], wanted: Iterable[int], by: str = "") -> None:
    raise ModelError(
        f"The tensor {name} of {folder.name!r} has the shape {tuple(stored)}, but config.json asks for "
        f"{tuple(wanted)}{f' ({by})' * bool(by)}: weights and config.json do not belong together."
    )


def _check_values(folder: Path, stream: Stream) -> None:
    if stream.not_finite:
        raise ModelError(
            f"The weights of {folder.name!r} hold values that are not finite, in {some(stream.not_finite)}: they are "
            "damaged."
        )
    if stream.too_large:
        raise ModelError(
            f"The weights of {folder.name!r} hold values that float16 cannot, in {some(stream.too_large)}: use "
            "dtype='bfloat16' or 'float32'."
        )


# --- A name, a folder or a hub id → a bot that is ready to talk.


def load(
    name: str | os.PathLike[str] = AUTO,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device_map: Mapping[str, Any] | str | None = None,
    verify: bool = False,
    merge_adapter: bool | Collection[str] = True,
) -> MiniChat:
    """Load a model with its processor.

    Args:
        name: a built-in model's name, a folder (a whole model, one that refers to its LLM, or a trained projection),
            or a hub id ("owner/name"), which is taken from the local cache where there is no network. "auto": the
            built-in model, minichat-tiny.
        device: "auto" (CUDA, else MPS, else CPU) or a device of PyTorch's.
        dtype: "auto", "float32", "bfloat16" or "float16". "auto": on CUDA bfloat16, or float16 where that is only
            emulated; on MPS float16; on a CPU float32, or bfloat16 for an LLM that is stored so where the processor
            computes in it natively (the built-in models stay in float32). The projection is always in float32.
        quantize: "8bit" or "4bit" stores the LLM's matrices so, and nothing else; it needs bitsandbytes.
        device_map: where the LLM goes if it does not fit on `device`: "auto" fills the GPUs and then the CPU, a dict
            says it for each part ("language_model.model.layers.0": 1). The vision side stays whole on `device`.
        verify: hold all weights against the hashes that `--verify` recorded when the folder was made.
        merge_adapter: add what was trained with the projection to the matrices of the LLM (its folder `adapter`) and
            of the Q-Former (`adapter_qformer`). False leaves them as the base model has them, for whoever attaches the
            adapters by PEFT; "language_model" and "bridge" in a list: these alone.

    Raises:
        ModelError: if there is no such model, a file is missing or damaged, a tensor is missing, left over, of the
            wrong shape or not finite, or model and processor do not belong together; if memory is short, and then
            before a known model is fetched.
        SettingsError: for a device, dtype, quantization or map that does not exist here or does not fit.
    """
    if not isinstance(name, str | os.PathLike):
        raise ModelError(f"name is {name!r}: it must be a name, a folder or a hub id.")
    placement = choose(device, dtype, quantize, device_map)
    name = default_model() if name == AUTO else name
    _check_room(os.fspath(name), placement)
    folder = own = find(name)
    shown = os.fspath(name) if name in BUILT_IN else folder.name
    projection = None
    if is_projection(folder):
        projection = read_projection(folder)
        _check_room(projection.base_name(), placement)
        folder = projection.base_folder()
    reference = _check_files(folder)
    if projection is not None:
        projection.check(folder)
    if verify:
        verify_weights(folder, projection)
    built_in = name in BUILT_IN or (projection is not None and projection.base_name() in BUILT_IN)
    if dtype == "auto" and not built_in and llm_dtypes(folder, reference) == {torch.bfloat16}:
        placement = placement.for_bfloat16()
    adapters = trained_adapters(own, folder) if merge_adapter and has_trained(own, folder) else {}
    if not isinstance(merge_adapter, bool):
        adapters = {part: adapter for part, adapter in adapters.items() if part in merge_adapter}
    model = load_network(folder, placement, reference, tuple(adapters.values()))
    if projection is not None:
        model.projection.load_state_dict(projection.tensors())
    processor = _load_processor(folder)
    _check_together(folder, model.config, processor)
    bot = MiniChat(model, processor, name=shown)
    if merge_adapter is True:
        bot.adapters = _Beside(bot, folder, placement, reference, tuple(adapters.values()))
    return bot


# --- Several adapters beside one model, swapped without loading what they have in common.


class _Beside:
    """`minichat.inference.bot.Adapters` of a model in a folder."""

    def __init__(
        self,
        bot: MiniChat,
        folder: Path,
        placement: Placement,
        reference: dict[str, str] | None,
        trained: Sequence[Adapter],
    ) -> None:
        self._bot, self._folder, self._placement = bot, folder, placement
        self._reference, self._trained = reference, trained

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(place.name for place in adapters_of(self._folder)))

    def use(self, name: str | os.PathLike[str] | None) -> None:
        if self._placement.quantize is not None or self._placement.device_map is not None:
            raise SettingsError(
                "An LLM that is quantized, or spread by a device map, keeps its adapter: load it again with the other."
            )
        own = self._folder if name is None else self._find(os.fspath(name))
        projection = None
        if own != self._folder:
            projection = read_projection(own)
            projection.check(self._folder)
        trained = tuple(trained_adapters(own, self._folder).values())
        stream = _stream(self._folder, self._placement, self._reference, trained, read_config(self._folder))
        changed = {name for adapter in (*self._trained, *trained) for name in adapter.changed()}
        whole = projection.tensors() if projection is not None else None
        held = self._bot.model.state_dict()
        with self._bot.step_lock, torch.no_grad():
            for part in sorted(changed):
                held[part].copy_(stream.tensors[part][...])
            for part in ("weight", "bias"):
                at = f"projection.{part}"
                held[at].copy_(stream.tensors[at][...] if whole is None else whole[part])
        self._trained = trained

    def _find(self, name: str) -> Path:
        if (beside := self._folder / ADAPTERS / name).is_dir():
            return beside
        folder = Path(name).expanduser()
        if not is_projection(folder):
            raise ModelError(
                f"{self._folder.name!r} has no adapter {name!r} ({some(self) or 'none'}), and it is no folder of a "
                "run: choose one of bot.adapters."
            )
        return folder


def load_processor(name: str | os.PathLike[str]) -> tuple[MiniChatProcessor, int | None]:
    """A model's processor, and how many tokens its LLM can read (None: its configuration does not say).

    `name` is as in `load`, and so are the errors; the weights stay where they are.
    """
    folder = find(name)
    if is_projection(folder):
        folder = read_projection(folder).base_folder()
    _check_files(folder)
    config = read_config(folder)
    processor = _load_processor(folder)
    _check_together(folder, config, processor)
    return processor, getattr(config.text_config, "max_position_embeddings", None)


def _check_room(name: str, placement: Placement) -> None:
    """Raise `ModelError` where a known model that is not here yet would not fit into memory once it was fetched."""
    by_name: dict[str, KnownModel | WholeModel] = {**KNOWN, **WHOLE, **{m.repository.id: m for m in WHOLE.values()}}
    known = by_name.get(name)
    if known is None or (isinstance(known, KnownModel) and is_here(known)):
        return
    from minichat.device.memory import check_fits

    check_fits(known.config(), name, placement)


def _check_files(folder: Path) -> dict[str, str] | None:
    """Read what is small, the headers of the weights too, so that an error names its file.

    Returns how the folder refers to its LLM, if it does.
    """
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if config.get("architectures") == ["Blip2ForImageTextRetrieval"]:
        raise ModelError(f"{folder.name!r} is no chat model: it finds pictures (minichat search).")
    if kind != "minichat":
        raise ModelError(f"{folder.name!r} holds a model of model_type {kind!r}, not 'minichat': convert it first.")
    reference = config.get("llm")
    if reference is not None and not (
        isinstance(reference, dict) and all(isinstance(v, str) for v in reference.values())
    ):
        raise ModelError(f"llm in config.json of {folder.name!r} is {reference!r}; it must say where the LLM is.")
    check_values(config, f"config.json in {folder.name!r}")
    for file in weight_files(folder):
        check_header(folder, file)
    return reference


def _load_processor(folder: Path) -> MiniChatProcessor:
    from minichat.prompt.processor import MiniChatProcessor

    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file() and is_pointer(folder / name):
            raise ModelError(f"{name} in {folder.name!r} {UNFETCHED}.")
    try:
        with quiet():
            return MiniChatProcessor.from_pretrained(folder, local_files_only=True)
    except ModelError:
        raise
    except MiniChatError as error:
        raise ModelError(f"The processor in {folder.name!r} cannot be used: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged tokenizer.json may raise anything, also a bare Exception
        raise ModelError(f"The processor in {folder.name!r} cannot be loaded: {sentence(error)}.") from error


def _check_together(folder: Path, config: MiniChatConfig, processor: MiniChatProcessor) -> None:
    """Model and processor count alike."""
    pairs = {
        "template": (config.template, processor.template),
        "picture size": (picture_side(config.vision_config), processor.image_processor.size["height"]),
        "number of image tokens": (config.num_image_tokens, processor.num_image_tokens),
        "image slot's id": (config.image_token_index, processor.image_token_id),
    }
    for what, (of_model, of_processor) in pairs.items():
        if of_model != of_processor:
            raise ModelError(
                f"In {folder.name!r} the model's {what} is {of_model!r} but the processor's is {of_processor!r}: "
                "they do not belong together."
            )
    rows, words = config.text_config.vocab_size, processor.content_tokenizer.vocab_size
    if words > rows:
        raise ModelError(f"In {folder.name!r} the tokenizer has {words} ids but the LLM only {rows} (vocab_size).")
