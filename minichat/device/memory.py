"""How much memory a model needs, which forms of it fit, and what is done when memory runs out."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minichat.device.placement import QUANTIZED, Device, Machine, Placement, choose, look
from minichat.errors import MiniChatError, ModelError, SettingsError

if TYPE_CHECKING:
    from torch import nn

    from minichat.model import MiniChatConfig


# --- Whether memory ran out, the machine's or an accelerator's: the one rule for it, and what is done about it.


# What PyTorch says in a RuntimeError of no class of its own. CUDA's, ROCm's and XPU's allocators raise
# `torch.OutOfMemoryError`, but their libraries do not, nor does MPS ("MPS backend out of memory"). The CPU's allocator
# (c10/core/impl/alloc_cpu.cpp) says "can't allocate memory" on Linux and macOS, "not enough memory" on Windows.
_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # without importing torch
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(said.lower() in text for said in _TEXTS)


@contextmanager
def memory_errors(make: Callable[[], MiniChatError]) -> Iterator[None]:
    """Raise the error that `make` returns where memory runs out within the block."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise make() from None


def free_memory() -> None:
    """Give back what PyTorch keeps of an accelerator's memory though nothing uses it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


# --- How much memory a model needs, computed from its configuration alone: no weights are read.
#
# docs/MEMORY.md has the formulae in one place, and the estimates beside measured peaks.


MIB, GIB = 1024**2, 1024**3
CONTEXT = 2048  # tokens of a conversation, where nothing else is said

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a parameter in bitsandbytes: 8 bits; 4 bits with a float32 scale for every 64 (QLoRA, arXiv:2305.14314, section 3).
_BYTES_QUANTIZED = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
_BYTES_OF_ROW = {"8bit": 4, "4bit": 0}  # a float32 scale for each row (LLM.int8(), arXiv:2208.07339, section 2.1)
# What a process holds that has read the libraries and used them, apart from any model, see docs/MEMORY.md. On the
# processor it was measured: PyTorch's build for CUDA is larger, even where it finds no GPU, and bitsandbytes is added.
_BASE = {"cpu": 385 * MIB, "cuda": 600 * MIB, "mps": 300 * MIB}
_CUDA_BUILD, _BITSANDBYTES = 355 * MIB, 50 * MIB
# Quantizing one matrix on the processor holds copies of it in other precisions, in bytes of a parameter. Measured.
_QUANTIZING = {"8bit": 10, "4bit": 14}


@dataclass(frozen=True)
class Needs:
    """Bytes that a model needs on the device that it runs on."""

    weights: Mapping[str, int]  # of each part
    cache: int  # the LLM's keys and values for the whole context
    working: int  # what comes and goes: the most of loading, encoding pictures, and reading the prompt
    base: int  # the libraries, or a GPU's own context, without any model
    activations: int = 0  # in training: what the LLM keeps of a batch for the way back
    optimizer: int = 0  # in training: gradients, and AdamW's two moments

    @property
    def model(self) -> int:
        """What the model adds to a process that runs already."""
        return sum(self.weights.values()) + self.cache + self.working + self.activations + self.optimizer

    @property
    def total(self) -> int:
        return self.model + self.base

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {gib(size)}" for part, size in self.weights.items())
        rest = {
            "key-value cache": self.cache,
            "activations": self.activations,
            "gradients and optimizer": self.optimizer,
            "working memory": self.working,
            "libraries": self.base,
        }
        listed = "".join(f", {what} {gib(size)}" for what, size in rest.items() if size)
        return f"{gib(self.total)}: weights {gib(sum(self.weights.values()))} ({parts}){listed}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


def gib(size: float) -> str:
    """Bytes as a person reads them: GiB, with three figures."""
    return f"{size / GIB:.1f} GiB" if size >= 10 * GIB else f"{size / GIB:.2f} GiB"


def estimate(
    config: MiniChatConfig,
    *,
    dtype: str = "bfloat16",
    quantize: str | None = None,
    context: int = CONTEXT,
    batch: int = 1,
    device: str = "cpu",
) -> Needs:
    """What a model needs to be loaded and to answer.

    Args:
        config: the model's; no weights are needed.
        dtype: "float32", "bfloat16" or "float16", of all that is not quantized; the projection is in float32.
        quantize: None, "8bit" or "4bit": the LLM's linear layers; embedding, output layer and norms are not.
        context: tokens of a conversation, pictures and reply included.
        batch: conversations at once, one picture in each.
        device: "cpu", "cuda" or "mps".

    Raises:
        SettingsError: for a setting that does not exist or is out of range.
    """
    _check(dtype, quantize, context, batch, device)
    size, text = _BYTES[dtype], config.text_config
    parts = _count(config)
    cache = batch * context * cache_per_token(text, size)
    working = max(
        parts["language_model"].largest_linear * _QUANTIZING[quantize] if quantize and device == "cpu" else 0,
        batch * _encoding(config, size),
        cache // text.num_hidden_layers + _reading(text, batch, context, size, quantize == "8bit" and device == "cpu"),
    )
    return Needs(
        weights={name: part.size(name, size, quantize) for name, part in parts.items()},
        cache=cache,
        working=working,
        base=_libraries(device, quantize),
    )


def training_needs(
    config: MiniChatConfig,
    batch: int,
    length: int,
    checkpointing: bool,
    *,
    dtype: str = "bfloat16",
    quantize: str | None = None,
    device: str = "cpu",
    adapter: tuple[int, int] | None = None,
    qformer: tuple[int, int] | None = None,
) -> Needs:
    """What one training step of the projection needs, everything else frozen.

    `length` is of a row in tokens, pictures included, with one picture in each row; at the worst, every one of its
    tokens is supervised. With `checkpointing` a block keeps what comes in alone, and one block at a time the rest. The
    projection, its gradient and AdamW's two moments are in float32 (arXiv:1711.05101, algorithm 2). `adapter`, if LoRA
    trains, too: its parameters, in float32, and the bytes that a token keeps for them in all layers. `qformer`: the
    same of a Q-Former's adapter, with the bytes that a picture keeps.

    Raises `SettingsError` as `estimate` does.
    """
    _check(dtype, quantize, length, batch, device)
    size, text = _BYTES[dtype], config.text_config
    parts = _count(config)
    tokens, layers = batch * length, text.num_hidden_layers
    block = tokens * _kept_for_backward(text, size)
    kept = layers * tokens * text.hidden_size * size + block if checkpointing else layers * block
    kept += tokens * text.hidden_size * 4  # the last norm's input
    added, of_token = adapter or (0, 0)
    kept += tokens * of_token // (layers if checkpointing else 1)
    in_qformer, of_picture = qformer or (0, 0)
    kept += batch * of_picture
    added += in_qformer
    # The logits, their gradient in pieces and whole (`minichat.model.loss`), and the gradient's way through a block.
    logits = 3 * tokens * text.vocab_size * size
    return Needs(
        weights={name: part.size(name, size, quantize) for name, part in parts.items()}
        | ({"adapter": 4 * added} if added else {}),
        cache=0,
        working=max(batch * _encoding(config, size), logits, _reading(text, batch, length, size)),
        base=_libraries(device, quantize),
        activations=kept,
        optimizer=3 * 4 * (parts["projection"].plain + added),
    )


def kept_in_qformer(config: MiniChatConfig, tokens: int, patches: int, size: int) -> int:
    """Bytes that a frozen Q-Former keeps for each picture while a gradient is to pass through it, in `size` bytes each.

    `tokens`: its queries, and the words that it reads. In each layer queries, keys, values and result of the attention,
    also of that to the `patches` where there is one, its probabilities, the inner layer before its activation, and each
    norm's input in float32.
    """
    q = config.bridge_config.qformer
    crossed = -(-q.num_hidden_layers // q.cross_attention_frequency)
    layer = size * tokens * (4 * q.hidden_size + q.intermediate_size) + 2 * 4 * tokens * q.hidden_size
    layer += size * q.num_attention_heads * tokens**2
    across = size * (2 * tokens + 2 * patches) * q.hidden_size + 4 * tokens * q.hidden_size
    across += size * q.num_attention_heads * tokens * patches
    return q.num_hidden_layers * layer + crossed * across


def _kept_for_backward(text: Any, size: int) -> int:
    """Bytes that a block of a frozen LLaMA keeps for each token while a gradient is to pass through it.

    Queries, keys, values and the attention's result; in the gated MLP the gate, its activation and the values; in each
    of two norms its input in float32. A frozen linear layer keeps no input. (Counted with PyTorch's
    `saved_tensors_hooks`; Korthikanti et al., arXiv:2205.05198, section 4, count 34 bytes · width where all trains.)
    """
    heads, kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return size * (2 * (heads + kv_heads) * width + 3 * _inner(text)) + 2 * 4 * text.hidden_size


def _libraries(device: str, quantize: str | None) -> int:
    """Bytes of the libraries; on a GPU, which has none of them, of its own context."""
    import torch

    if device != "cpu":
        return _BASE[device]
    return _BASE["cpu"] + (_CUDA_BUILD if torch.version.cuda else 0) + (_BITSANDBYTES if quantize else 0)


def _inner(text: Any) -> int:
    """The width inside an LLM's MLP, which T5 calls d_ff."""
    return getattr(text, "intermediate_size", None) or getattr(text, "d_ff", None) or 4 * text.hidden_size


def _check(dtype: str, quantize: str | None, context: int, batch: int, device: str) -> None:
    for name, value, known in (
        ("dtype", dtype, tuple(_BYTES)),
        ("quantize", quantize, (None, *QUANTIZED)),
        ("device", device, tuple(_BASE)),
    ):
        if value not in known:
            raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")
    for name, count in (("context", context), ("batch", batch)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SettingsError(f"{name} is {count!r}; it must be a whole number from 1.")


@dataclass(frozen=True)
class _Part:
    """Parameters of a part of the network."""

    plain: int  # never quantized
    linear: int = 0  # in the LLM's linear layers …
    rows: int = 0  # … which have so many rows together
    largest_linear: int = 0

    def size(self, name: str, of_parameter: int, quantize: str | None) -> int:
        if name == "projection":
            of_parameter = 4
        if quantize is None:
            return (self.plain + self.linear) * of_parameter
        quantized = self.linear * _BYTES_QUANTIZED[quantize] + self.rows * _BYTES_OF_ROW[quantize]
        return self.plain * of_parameter + round(quantized)


def _count(config: MiniChatConfig) -> dict[str, _Part]:
    """Part → its parameters, counted on a network without memory; a tied one is counted once."""
    return _counted(config.to_json_string(use_diff=False))


@lru_cache(maxsize=64)  # each form of a model is estimated
def _counted(config: str) -> dict[str, _Part]:
    import torch

    from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration

    with torch.device("meta"):
        model = MiniChatForConditionalGeneration(MiniChatConfig(**json.loads(config)))
    parts = {name: _Part(_parameters(part)) for name, part in model.named_children()}
    linears = linear_layers(model.language_model)
    in_linears = sum(layer.weight.numel() for layer in linears)
    parts["language_model"] = _Part(
        plain=parts["language_model"].plain - in_linears,
        linear=in_linears,
        rows=sum(layer.out_features for layer in linears),
        largest_linear=max((layer.weight.numel() for layer in linears), default=0),
    )
    return parts


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear_layers(llm: nn.Module) -> list[nn.Linear]:
    """The layers that bitsandbytes makes small: all linear ones but the output layer."""
    from torch import nn

    output = llm.get_output_embeddings()  # type: ignore[operator]
    return [module for module in llm.modules() if type(module) is nn.Linear and module is not output]


def cache_per_token(text: Any, size: int) -> int:
    """Bytes of one token's keys and values in all layers of an LLM: 2 · layers · key-value heads · their width."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * size


def _encoding(config: MiniChatConfig, size: int) -> int:
    """Bytes that come and go while one picture is encoded: a block's widest moment, its MLP or its attention.

    In the MLP the residual, its norm, and the inner layer before and after its activation; in attention the residual,
    its norm, queries, keys and values twice (one matrix, then by heads) and the result.
    """
    from minichat.model.vision import inner_width, leading_tokens, picture_side

    vision = config.vision_config
    width, inner = vision.hidden_size, inner_width(vision)
    pixels = 3 * picture_side(vision) ** 2
    return size * ((leading_tokens(vision) + config.num_patches) * max(2 * width + 2 * inner, 9 * width) + pixels)


def _reading(text: Any, batch: int, context: int, size: int, in_8_bits: bool = False) -> int:
    """Bytes that come and go while the LLM reads a prompt: a block's widest moment, and the last position's logits.

    In a gated MLP the residual, its norm, and the inner layer three times: the gate, the values and their product; in
    a norm the residual, and it thrice in float32. Attention holds no scores: PyTorch computes them in pieces (SDPA).
    `in_8_bits`, on the processor, the values come as int32 and go through two float32 copies, beside the gate, and the
    input is there in float16 and in 8 bits, too (bitsandbytes' `int8_scaled_mm`). Rows of unequal length have a mask of
    context × context, and T5 a bias of that size for each head.
    """
    width, inner = text.hidden_size, _inner(text)
    block = max(size * (2 * width + 3 * inner), (2 * size + 12) * width)
    if in_8_bits:
        block = max(block, (2 * size + 2 + 1) * width + (size + 4 + 2 * 4) * inner)
    mask = context * context * size if batch > 1 else 0
    bias = text.num_attention_heads * context * context * size if text.is_encoder_decoder else 0
    return batch * (context * block + mask + text.vocab_size * (size + 4)) + bias


# --- Which forms of a model fit into the memory that is here, the best first, and what to try where none does.


IGNORE = "MINICHAT_IGNORE_MEMORY"
_MARGIN = 0.15  # an estimate may be off by so much: what exceeds the memory by less is not refused
_SHORT = 512  # tokens of the conversation that must at least be possible


@dataclass(frozen=True)
class Choice:
    """One form of a model on the devices that are here."""

    device: str | None  # as `load` takes it; None where a device map decides
    dtype: str
    quantize: str | None
    device_map: str | None
    needs: Needs
    available: int  # bytes, on all devices that it would be on
    where: str

    @property
    def fits(self) -> bool:
        return self.needs.total <= self.available

    @property
    def arguments(self) -> dict[str, str]:
        """What `minichat.load` is given."""
        given = {
            "device": self.device,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "device_map": self.device_map,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def flags(self) -> str:
        """What the command line is given."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.arguments.items())

    def __str__(self) -> str:
        return f"{self.quantize or self.dtype} on {self.where}"


def choices(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> list[Choice]:
    """All forms that could be tried here, the best first.

    On GPUs: bfloat16, 8 bits, 4 bits, each on one and then spread over all; then bfloat16 on the GPUs and the processor
    together. On the processor: float32 where there is no GPU (exact, and about as fast), bfloat16, 8 bits, 4 bits.
    """
    cpu, gpus = machine.devices[-1], machine.gpus
    found: list[tuple[tuple[Device, ...], str, str | None]] = []
    if gpus:
        roomiest = (max(gpus, key=lambda gpu: gpu.available),)
        on_gpus = [roomiest, gpus] if len(gpus) > 1 else [roomiest]
        found += [(places, "bfloat16", quantize) for quantize in (None, *QUANTIZED) for places in on_gpus]
        found.append(((*gpus, cpu), "bfloat16", None))
    found += [((device,), "float16", None) for device in machine.devices if device.name == "mps"]
    if not found:
        found.append(((cpu,), "float32", None))
    found += [((cpu,), "bfloat16", quantize) for quantize in (None, *QUANTIZED)]
    return [_choice(config, places, dtype, quantize, context, batch) for places, dtype, quantize in found]


def default(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> Choice:
    """What `minichat.load` takes where nothing is asked for."""
    placement = choose()
    places = (machine.device(str(placement.device)),)
    return _choice(config, places, str(placement.dtype).removeprefix("torch."), None, context, batch)


def _choice(
    config: MiniChatConfig,
    places: tuple[Device, ...],
    dtype: str,
    quantize: str | None,
    context: int,
    batch: int,
) -> Choice:
    """A form on these places; several are a device map."""
    needs = estimate(config, dtype=dtype, quantize=quantize, context=context, batch=batch, device=places[0].kind)
    return Choice(
        device=places[0].name if len(places) == 1 else None,
        dtype=dtype,
        quantize=quantize,
        device_map=None if len(places) == 1 else "auto",
        needs=needs,
        available=sum(place.available for place in places),
        where=" and ".join(place.name for place in places),
    )


def best(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> Choice | None:
    """The first choice that fits."""
    return next((choice for choice in choices(config, machine, context, batch) if choice.fits), None)


def check_fits(config: MiniChatConfig, name: str, placement: Placement, machine: Machine | None = None) -> None:
    """Before a model is loaded: raise `ModelError`, with both sizes and the next thing to try, where it cannot fit.

    What is short by less than the estimate may be wrong is not refused, nor anything while the environment variable
    MINICHAT_IGNORE_MEMORY is set. `machine` is what is here now.
    """
    if os.environ.get(IGNORE):
        return
    here = machine or look(placement.device if placement.device_map is None else None)
    places = _places(here, placement)
    dtype = str(placement.dtype).removeprefix("torch.")
    wanted = _choice(config, places, dtype, placement.quantize, _SHORT, 1)
    needs = wanted.needs.model
    if needs * (1 - _MARGIN) <= wanted.available:
        return
    raise ModelError(
        f"{name!r} needs about {gib(needs)} of memory in {placement.quantize or dtype}, but {gib(wanted.available)} is "
        f"free on {wanted.where}: {_next(config, machine or look())}, or set {IGNORE}=1 to try all the same."
    )


def _places(machine: Machine, placement: Placement) -> tuple[Device, ...]:
    """Where the model would be."""
    spread = placement.device_map
    if spread is None:
        return (machine.device(str(placement.device)),)
    if isinstance(spread, str):  # "auto": the GPUs in their order, then the processor, unless it is quantized
        return machine.gpus if placement.quantize and machine.gpus else (*machine.gpus, machine.devices[-1])
    named = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in spread.values()}
    used = {machine.device(place).name for place in named}
    return tuple(place for place in machine.devices if place.name in used)


def _next(config: MiniChatConfig, machine: Machine) -> str:
    """What to try: the best form that fits."""
    if found := best(config, machine, _SHORT):
        given = ", ".join(f'{name}="{value}"' for name, value in found.arguments.items())
        return f"try {given}, which needs {gib(found.needs.model)}"
    least = min(choice.needs.model for choice in choices(config, machine, _SHORT))
    return f"use a smaller model, since this one needs {gib(least)} at the least, or close other programs"
