"""The model as a run holds it: what trains in float32, the rest frozen in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minichat.errors import SettingsError
from minichat.hardware.quantization import half
from minichat.model.freezing import set_trainable
from minichat.train.config import LoraConfig, ModelConfig
from minichat.train.lora import adapter_of, add_lora

if TYPE_CHECKING:
    from minichat.chat import MiniChat


def top(part: str) -> str:
    """The part of the model that a dotted name is in."""
    return part.split(".")[0]


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name; "auto": on CUDA bfloat16, or float16 where that is emulated; float32 elsewhere.

    Raises `SettingsError` for float16 off CUDA: its small gradients need a scaler, which PyTorch has for CUDA alone.
    """
    if name == "auto":
        return half(device) if device.type == "cuda" else torch.float32
    if name == "float16" and device.type != "cuda":
        raise SettingsError(f"model.dtype is float16, which trains on CUDA alone, not on {device.type}: use bfloat16.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def open_bot(
    config: ModelConfig,
    trainable: tuple[str, ...],
    device: torch.device,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> MiniChat:
    """Load a model to train the named parts of it, and an adapter of its LLM where `lora` is given.

    A part of which anything trains is in float32 as a whole; the others are in `config.dtype`. Raises what
    `minichat.load` raises, and `SettingsError` for a part that the model does not have.
    """
    from minichat.load import load

    dtype = precision(config.dtype, device)
    learning = {top(part) for part in trainable}
    wanted = {"vision_model": precision(config.vision_dtype or config.dtype, device), "bridge": dtype}
    wanted |= dict.fromkeys(learning & wanted.keys(), torch.float32)
    # All in the LLM's precision: in another, it would be in memory twice as large for a moment. And it is left as it is
    # then, so that it is trained with as it is served: some of its buffers stay in float32.
    loaded = torch.float32 if "language_model" in learning else dtype
    options: dict[str, Any] = {} if config.quantize is None else {"quantize": config.quantize}
    adapter = adapter_of(config.name)
    if adapter is not None and "language_model" in learning:
        raise SettingsError(
            f"trainable names the language_model, but {config.name!r} has an adapter beside it: merge it first, with "
            "minichat export --format minichat."
        )
    bot = load(config.name, device=device, dtype=loaded, merge_adapter=lora is None, **options)
    model = bot.model
    set_trainable(model, trainable)
    if lora is not None:
        add_lora(model, lora, seed, adapter)
    other = {name: precise for name, precise in wanted.items() if precise != loaded}
    for name, precise in other.items():
        model.get_submodule(name).to(precise)
    if other:
        _put_back(model, config.name, other.keys())
    if config.quantize == "4bit":
        _keep_unpacked(model)
    model.bridge.register_forward_pre_hook(_as_the_bridge)
    save_memory(model, config)
    return bot


@torch.no_grad()
def _put_back(model: nn.Module, name: str, parts: Container[str]) -> None:
    """These parts' tensors as the model's own folder holds them, not as they were rounded when it was loaded."""
    from minichat.weights.files import weight_files
    from minichat.weights.projection import is_projection, read_projection
    from minichat.weights.reading import read_checkpoint
    from minichat.weights.zoo import find

    folder = find(name)
    folder = read_projection(folder).base_folder() if is_projection(folder) else folder
    held = model.state_dict()
    for file in weight_files(folder):
        checkpoint = read_checkpoint(folder / file)
        for stored in (stored for stored in checkpoint if top(stored) in parts):
            held[stored].copy_(checkpoint[stored])


def _keep_unpacked(model: nn.Module) -> None:
    """Keep 4-bit matrices in the form that gradients pass through.

    On a CPU with AVX-512 and bfloat16, bitsandbytes 0.50 packs a matrix that is used without a gradient, as for a
    validation loss, and from then on lets none through, in silence.
    """
    from bitsandbytes.nn import modules

    for module in model.modules():
        if isinstance(module, modules.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _as_the_bridge(bridge: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Patches in the bridge's own precision; the vision encoder may be in another."""
    dtype = next((weight.dtype for weight in bridge.parameters()), inputs[0].dtype)
    return (inputs[0].to(dtype), *inputs[1:])


def save_memory(model: nn.Module, config: ModelConfig) -> None:
    """Gradient checkpointing and drop path; both are marked on layers, so they come before `model.train()`."""
    wanted = (("language_model", config.checkpoint_llm), ("vision_model", config.vision_checkpoint))
    for name in (name for name, checkpointed in wanted if checkpointed):
        part: Any = model.get_submodule(name)
        if not getattr(part, "supports_gradient_checkpointing", False):
            raise SettingsError(f"The {name} of this model cannot be checkpointed: leave that setting out.")
        # Its name in transformers from 5.23 on, or before.
        enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.vision_drop_path:
        drop_path(model.get_submodule("vision_model.encoder.layers"), config.vision_drop_path)


def drop_path(layers: nn.Module, share: float) -> None:
    """Leave whole residual branches out while training, picture by picture (arXiv:1603.09382).

    The share rises from 0 at the first layer to `share` at the last, as in EVA's ViT.
    """
    blocks = list(layers.children())
    for depth, block in enumerate(blocks):
        rate = share * depth / max(1, len(blocks) - 1)
        for branch in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            branch.register_forward_hook(_dropping(rate))


def _dropping(rate: float) -> Any:
    def hook(branch: nn.Module, inputs: Any, output: Any) -> Any:
        if not branch.training or rate == 0:
            return output
        hidden = output[0] if isinstance(output, tuple) else output  # (I, P, W)
        kept = torch.rand(len(hidden), 1, 1, device=hidden.device) >= rate
        hidden = hidden * (kept / (1 - rate)).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook
