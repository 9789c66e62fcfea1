"""A folder of weights → the network, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from minichat.errors import MiniChatError, ModelError, sentence, some
from minichat.hardware.advice import check_fits
from minichat.hardware.placement import Placement, outline
from minichat.hardware.quantization import suit_cpu
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.weights.adapter import Adapter
from minichat.weights.files import quiet, read_json, weight_files
from minichat.weights.llm import referred_llm
from minichat.weights.streaming import Stream, large_apart
from minichat.weights.values import asked_by, building, check_parts, check_values, decided_by, read_config

_GENERATION = "generation_config.json"
_LLM = "language_model."


def load_network(
    folder: Path, placement: Placement, reference: dict[str, str] | None = None, adapter: Adapter | None = None
) -> MiniChatForConditionalGeneration:
    """The network in `folder`, with the LLM that it refers to, if it does; placed and quantized as asked for.

    `adapter`: added to the LLM's matrices as they are read, in float32, before they become what was asked for.

    Raises `ModelError`, naming it, for a tensor that is missing, left over, of the wrong shape or not finite, and where
    memory is short; `SettingsError` for a placement that does not fit this network.
    """
    adapters: list[Adapter] = []  # the LLM's own, then the trained one
    stream = Stream(placement.dtype, placement.as_stored, _adding(adapters))
    try:
        with quiet(), large_apart() if placement.quantize is not None else nullcontext():
            config = read_config(folder)
            config.llm = None  # what is saved of the loaded model holds its LLM
            generation = _generation_config(folder)
            if reference is not None:
                llm = referred_llm(reference, folder.name)
                adapters += [llm.adapter] if llm.adapter is not None else []
                for checkpoint in llm.checkpoints:
                    held = [name for name, holder in llm.tensors().items() if holder is checkpoint]
                    stream.add(llm.folder / checkpoint.file, _LLM, held)
            for file in weight_files(folder):
                stream.add(folder / file)
            if adapter is not None:
                shapes = {n.removeprefix(_LLM): t.shape for n, t in stream.tensors.items() if n.startswith(_LLM)}
                adapters.append(adapter)
                adapter.check(shapes, tied=config.text_config.tie_word_embeddings)
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


def _adding(adapters: list[Adapter]) -> Callable[[str, Tensor], Tensor]:
    def add(name: str, tensor: Tensor) -> Tensor:
        own = name.removeprefix(_LLM)
        for adapter in adapters:
            if name != own and adapter.changes(own):
                tensor = adapter.merged(own, tensor.float())
        return tensor

    return add


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
