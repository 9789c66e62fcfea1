"""A name, a folder or a hub id → a bot that is ready to talk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.weights.files import check_header, quiet, read_json, sentence, some, weight_files
from minichat.weights.projection import is_projection, read_projection
from minichat.weights.zoo import BUILT_IN, find

if TYPE_CHECKING:
    import torch

    from minichat.chat import MiniChat
    from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
    from minichat.prompt.processing import MiniChatProcessor

__all__ = ["BUILT_IN", "find", "load"]

_DTYPES = ("float32", "bfloat16", "float16")


def load(
    name: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> MiniChat:
    """Load a model with its processor.

    Args:
        name: a built-in model's name, a folder (a whole model, one that refers to its LLM, or a trained projection),
            or a hub id ("owner/name"), which is taken from the local cache where there is no network.
        device: "auto" (CUDA, else MPS, else CPU) or a device of PyTorch's.
        dtype: "auto" (CPU float32, CUDA bfloat16, MPS float16), "float32", "bfloat16" or "float16". The projection is
            always in float32.

    Raises:
        ModelError: if there is no such model, a file is missing or damaged, a tensor is missing, left over, of the
            wrong shape or not finite, or model and processor do not belong together.
        SettingsError: for a device or dtype that does not exist here.
    """
    folder = find(name)
    shown = os.fspath(name) if name in BUILT_IN else folder.name
    projection = None
    if is_projection(folder):
        projection = read_projection(folder)
        folder = projection.base_folder()
    reference = _check_files(folder)
    chosen_device = _choose_device(device)
    from minichat.chat import MiniChat

    if projection is not None:
        projection.check(folder)
    model = _load_model(folder, chosen_device, _choose_dtype(dtype, chosen_device), reference)
    if projection is not None:
        model.projection.load_state_dict(projection.tensors())
    processor = _load_processor(folder)
    _check_together(folder, model.config, processor)
    return MiniChat(model, processor, name=shown)


def _check_files(folder: Path) -> dict[str, str] | None:
    """Read what is small, the headers of the weights too, so that an error names its file.

    Returns how the folder refers to its LLM, if it does.
    """
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind != "minichat":
        raise ModelError(f"{folder.name!r} holds a model of type {kind!r}, not 'minichat': convert it first.")
    reference = config.get("llm")
    if reference is not None and not (
        isinstance(reference, dict) and all(isinstance(v, str) for v in reference.values())
    ):
        raise ModelError(f"llm in config.json of {folder.name!r} is {reference!r}; it must say where the LLM is.")
    for file in weight_files(folder):
        check_header(folder, file)
    return reference


def _choose_device(device: str | torch.device) -> torch.device:
    import torch

    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise SettingsError(f"device is {device!r}; it must be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'.") from None
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (chosen.index or 0) >= available.get(chosen.type, 0):
        raise SettingsError(f"device is {str(device)!r}, but PyTorch finds none here: use 'auto' or 'cpu'.")
    return chosen


def _choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    import torch

    by_name = {name: getattr(torch, name) for name in _DTYPES}
    if isinstance(dtype, str) and dtype == "auto":
        # A CPU computes in float32 about as fast as in half precision, and exactly.
        return {"cuda": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)
    if isinstance(dtype, torch.dtype) and dtype in by_name.values():
        return dtype
    if isinstance(dtype, str) and dtype in by_name:
        return by_name[dtype]
    raise SettingsError(f"dtype is {str(dtype)!r}; it must be 'auto', {', '.join(map(repr, _DTYPES))}.")


def _load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, reference: dict[str, str] | None
) -> MiniChatForConditionalGeneration:
    from minichat.model import MiniChatForConditionalGeneration

    on_device = {} if device.type == "cpu" else {"device_map": {"": device}}
    try:
        with quiet():
            source = _whole(folder) if reference is None else _referring(folder, reference)
            model, account = MiniChatForConditionalGeneration.from_pretrained(
                **source,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # reported below, with both shapes
                output_loading_info=True,
                **on_device,
            )
    except MiniChatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"The model in {folder.name!r} cannot be loaded: {sentence(error)}.") from error
    _check_account(folder, account)
    _check_finite(folder, model)
    return model


def _whole(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` loads: a folder that holds everything."""
    return {"pretrained_model_name_or_path": folder, "use_safetensors": True, "local_files_only": True}


def _referring(folder: Path, reference: dict[str, str]) -> dict[str, Any]:
    """What `from_pretrained` loads: this folder's tensors, and those of the LLM that it refers to."""
    from transformers import GenerationConfig

    from minichat.model import MiniChatConfig
    from minichat.weights.llm import referred_llm
    from minichat.weights.reading import read_checkpoint

    config = MiniChatConfig.from_pretrained(folder, local_files_only=True)
    config.llm = None  # what is saved of the loaded model holds its LLM
    own = [read_checkpoint(folder / file) for file in weight_files(folder)]
    words = referred_llm(reference, folder.name)
    state = words.raw("language_model.")
    for checkpoint in own:
        state |= checkpoint.raw
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return {
        "pretrained_model_name_or_path": None,
        "config": config,
        "state_dict": state,
        "generation_config": generation,
    }


def _check_account(folder: Path, account: dict[str, Any]) -> None:
    """Every tensor is used, and none is missing: a missing one would be left random."""
    for name, stored, wanted in sorted(account["mismatched_keys"]):
        raise ModelError(
            f"The tensor {name} of {folder.name!r} has the shape {tuple(stored)}, but config.json asks for "
            f"{tuple(wanted)}: weights and config.json do not belong together."
        )
    for what, names in (("lack", account["missing_keys"]), ("have left over", account["unexpected_keys"])):
        if names:
            raise ModelError(
                f"The weights of {folder.name!r} {what} {some(names)}: they do not belong to config.json, "
                "or were not written whole."
            )
    if account["error_msgs"]:
        raise ModelError(f"The weights of {folder.name!r} cannot be used: {'; '.join(account['error_msgs'])}.")


def _check_finite(folder: Path, model: MiniChatForConditionalGeneration) -> None:
    import torch

    tensors = {name: t for name, t in model.state_dict().items() if t.is_floating_point() and t.numel()}
    # A sum is finite exactly if all its terms are (no model comes near float32's range), and it makes no copy. One
    # transfer for all of them.
    sums = torch.stack([t.sum(dtype=torch.float32).to(model.device) for t in tensors.values()])
    bad = [name for name, finite in zip(tensors, sums.isfinite().tolist(), strict=True) if not finite]
    if bad:
        raise ModelError(
            f"The weights of {folder.name!r} hold values that are not finite, in {some(bad)}: they are damaged."
        )


def _load_processor(folder: Path) -> MiniChatProcessor:
    from minichat.prompt.processing import MiniChatProcessor

    try:
        with quiet():
            return MiniChatProcessor.from_pretrained(folder, local_files_only=True)
    except MiniChatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(f"The processor in {folder.name!r} cannot be loaded: {sentence(error)}.") from error


def _check_together(folder: Path, config: MiniChatConfig, processor: MiniChatProcessor) -> None:
    """Model and processor count alike."""
    pairs = {
        "template": (config.template, processor.template),
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
        raise ModelError(f"In {folder.name!r} the tokenizer has {words} ids but the LLM only {rows}.")
