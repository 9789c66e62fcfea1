"""A name, a folder or a hub id → a bot that is ready to talk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.errors import MiniChatError, ModelError, sentence
from minichat.hardware.placement import Placement, choose
from minichat.weights.adapter import read_adapter, trained_adapter
from minichat.weights.fetch import is_here
from minichat.weights.files import check_header, quiet, read_json, weight_files
from minichat.weights.known import KNOWN
from minichat.weights.projection import is_projection, read_projection
from minichat.weights.values import check_values, read_config
from minichat.weights.zoo import AUTO, BUILT_IN, default_model, find

if TYPE_CHECKING:
    import torch

    from minichat.chat import MiniChat
    from minichat.model import MiniChatConfig
    from minichat.prompt.processing import MiniChatProcessor

__all__ = ["BUILT_IN", "find", "load"]


def load(
    name: str | os.PathLike[str] = AUTO,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device_map: Mapping[str, Any] | str | None = None,
    verify: bool = False,
    merge_adapter: bool = True,
) -> MiniChat:
    """Load a model with its processor.

    Args:
        name: a built-in model's name, a folder (a whole model, one that refers to its LLM, or a trained projection),
            or a hub id ("owner/name"), which is taken from the local cache where there is no network. "auto": the
            built-in model minichat-small where its LLM is on this machine, else minichat-tiny.
        device: "auto" (CUDA, else MPS, else CPU) or a device of PyTorch's.
        dtype: "auto" (CPU float32; CUDA bfloat16, or float16 where that is only emulated; MPS float16), "float32",
            "bfloat16" or "float16". The projection is always in float32.
        quantize: "8bit" or "4bit" stores the LLM's matrices so, and nothing else; it needs bitsandbytes.
        device_map: where the LLM goes if it does not fit on `device`: "auto" fills the GPUs and then the CPU, a dict
            says it for each part ("language_model.model.layers.0": 1). The vision side stays whole on `device`.
        verify: hold all weights against the hashes that `--verify` recorded when the folder was made.
        merge_adapter: add an adapter that was trained with the projection (its folder `adapter`) to the LLM's matrices.
            False leaves them as the base model has them, for whoever attaches the adapter by PEFT.

    Raises:
        ModelError: if there is no such model, a file is missing or damaged, a tensor is missing, left over, of the
            wrong shape or not finite, or model and processor do not belong together; if memory is short, and then
            before a known model is fetched.
        SettingsError: for a device, dtype, quantization or map that does not exist here or does not fit.
    """
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
    from minichat.chat import MiniChat
    from minichat.weights.loading import load_network
    from minichat.weights.verifying import verify as check_hashes

    if projection is not None:
        projection.check(folder)
    if verify:
        check_hashes(folder, projection)
    trained = trained_adapter(own, folder) if merge_adapter else None
    model = load_network(folder, placement, reference, None if trained is None else read_adapter(trained))
    if projection is not None:
        model.projection.load_state_dict(projection.tensors())
    processor = _load_processor(folder)
    _check_together(folder, model.config, processor)
    return MiniChat(model, processor, name=shown)


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
    if name not in KNOWN or is_here(KNOWN[name]):
        return
    from minichat.hardware.advice import check_fits

    check_fits(KNOWN[name].config(), name, placement)


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
    from minichat.prompt.processing import MiniChatProcessor

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
        "picture size": (config.vision_config.image_size, processor.image_processor.size["height"]),
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
