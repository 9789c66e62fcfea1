"""An LLM's matrices in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from minichat.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from minichat.model import MiniChatForConditionalGeneration

QUANTIZED = ("8bit", "4bit")
NEEDED = "bitsandbytes>=0.50"


def check_quantize(quantize: str | None) -> None:
    """Raise `SettingsError` unless it is None, or "8bit" or "4bit" and bitsandbytes is installed."""
    if quantize is None:
        return
    if quantize not in QUANTIZED:
        raise SettingsError(f"quantize is {quantize!r}; it must be None, {' or '.join(map(repr, QUANTIZED))}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(
            f"quantize is {quantize!r}, which needs bitsandbytes: install it with `pip install '{NEEDED}'`."
        )


def half(device: torch.device) -> torch.dtype:
    """The half precision that a device computes in: bfloat16; on MPS, and on GPUs that only emulate it, float16.

    Such are T4 and V100: PyTorch counts them among those that have bfloat16, and they are many times slower in it.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device) if device.index is not None else nullcontext():
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.bfloat16


def settings(network: MiniChatForConditionalGeneration, quantize: str, compute: torch.dtype) -> Any:
    """transformers' `BitsAndBytesConfig` for a network: its LLM's matrices, the head excepted, and nothing else.

    8 bits are LLM.int8() (arXiv:2208.07339); 4 bits are NF4 (arXiv:2305.14314), computed with in `compute`.
    """
    from transformers import BitsAndBytesConfig

    _open()
    head = network.get_output_embeddings()
    heads = [name for name, module in network.named_modules() if module is head]
    others = [name for name, module in network.named_children() if module is not network.language_model]
    # Patterns from the beginning of a name: transformers also takes what is listed for the end of one.
    whole = [f"^{name}" for name in (*others, *heads)]
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=whole,
    )


def _open() -> None:
    """Import bitsandbytes, without its remarks on optional kernels, and later on each product in 8 bits."""
    log = logging.getLogger("bitsandbytes")
    if log.level == logging.NOTSET:
        log.setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"bitsandbytes is installed but cannot be used ({reason}): install it anew with "
            f"`pip install --force-reinstall '{NEEDED}'`."
        ) from None


def suit_cpu(network: MiniChatForConditionalGeneration) -> None:
    """Let every 4-bit matrix on a CPU be used.

    With AVX-512 and bfloat16, bitsandbytes 0.50 packs a matrix when it is first used, but only one of a multiple of 32
    rows and 64 columns: any other fails there.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False
