"""LoRA by PEFT: small matrices that train beside the LLM's frozen ones, and the folder that they leave.

They are PEFT's own layers, put into the LLM alone: PEFT's "all-linear" would take a joined model's vision side and
projection, too. What is saved is a plain PEFT adapter of the LLM, whatever stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minichat.disk import write_json
from minichat.errors import SettingsError, some
from minichat.hardware.memory import linear_layers
from minichat.weights.adapter import ADAPTER, CONFIG, WEIGHTS, read_adapter, trained_adapter
from minichat.weights.projection import is_projection, read_projection
from minichat.weights.writing import Entry, write_tensors
from minichat.weights.zoo import find

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.train.config import LoraConfig

_LLM, _NAME = "language_model.", "default"


def adapter_of(model: str) -> Path | None:
    """The folder of the adapter that a model (as `minichat.load` takes it) has; None where it has none."""
    folder = find(model)
    base = read_projection(folder).base_folder() if is_projection(folder) else folder
    return trained_adapter(folder, base)


def add_lora(model: MiniChatForConditionalGeneration, lora: LoraConfig, seed: int, adapter: Path | None = None) -> None:
    """Put trainable matrices beside the LLM's, in float32; B is zero, so that nothing changes before the first step.

    `adapter`: one to go on with. Raises `SettingsError` for layers that the LLM does not have, or an adapter of other
    settings.
    """
    from peft import inject_adapter_in_model

    llm: Any = model.language_model
    targets = _targets(llm, lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(lora, targets), llm, _NAME)
    added = {name: weight for name, weight in llm.named_parameters() if ".lora_" in name}
    for weight in added.values():
        weight.data = weight.data.float()  # PEFT makes them of the frozen matrix's dtype
        weight.requires_grad_(True)
    if adapter is not None:
        _go_on(added, adapter, lora, targets)
    model.train(model.training)


def _targets(llm: nn.Module, lora: LoraConfig) -> list[str]:
    """The last parts of the names of the linear layers that are meant. Raises `SettingsError` for one that is not."""
    linear = set(map(id, linear_layers(llm)))
    known = {name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if id(module) in linear}
    if unknown := set(lora.targets) - known:
        raise SettingsError(
            f"lora.targets names {some(unknown)}, but the LLM's linear layers are {', '.join(sorted(known))}."
        )
    return sorted(lora.targets or known)


def _peft_config(lora: LoraConfig, targets: list[str]) -> Any:
    from peft import LoraConfig as Peft

    return Peft(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)  # type: ignore[arg-type]


@torch.no_grad()
def _go_on(added: Mapping[str, nn.Parameter], folder: Path, lora: LoraConfig, targets: list[str]) -> None:
    """Begin with the matrices of an adapter that was trained before."""
    adapter = read_adapter(folder)
    named = {_written(name): weight for name, weight in added.items()}
    held = {name: tuple(adapter.checkpoint.plain(name).shape) for name in adapter.checkpoint}
    alpha = adapter.config.get("lora_alpha")
    if held != {name: tuple(weight.shape) for name, weight in named.items()} or alpha != lora.alpha:
        raise SettingsError(
            f"The model has an adapter of rank {adapter.config.get('r')}, alpha {alpha} and targets "
            f"{sorted(adapter.config.get('target_modules') or ())}, but lora asks for rank {lora.rank}, alpha "
            f"{lora.alpha:g} and {targets}: ask for the same to train it on, or merge it first, with minichat export "
            "--format minichat."
        )
    for name, weight in named.items():
        weight.copy_(adapter.checkpoint[name])


def _written(name: str) -> str:
    """What PEFT calls a matrix in an adapter's file, by its name in the LLM."""
    return f"base_model.model.{name}".replace(f".{_NAME}.", ".")


def parted_weights(weights: Mapping[str, nn.Parameter]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """What trains, by its names in the model → the adapter's matrices, by their names in the LLM, and the others."""
    adapter = {n.removeprefix(_LLM): w for n, w in weights.items() if n.startswith(_LLM) and ".lora_" in n}
    return adapter, {name: w for name, w in weights.items() if name.removeprefix(_LLM) not in adapter}


def write_lora(
    folder: Path, weights: Mapping[str, Tensor], lora: LoraConfig, model: MiniChatForConditionalGeneration
) -> None:
    """Write `folder`/adapter, which `peft.PeftModel.from_pretrained(llm, …)` opens."""
    made = folder / ADAPTER
    made.mkdir()
    held = {_written(name): weight.detach().float().cpu() for name, weight in weights.items()}
    write_tensors(made, [Entry(name, t.nbytes, lambda t=t: t) for name, t in sorted(held.items())], WEIGHTS[0])  # type: ignore[misc]
    settings = _peft_config(lora, sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights})).to_dict()
    settings |= {
        "inference_mode": True,
        "task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    }
    write_json(made / CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in sorted(settings.items())})


def lora_size(llm: nn.Module) -> tuple[int, int]:
    """The parameters of an LLM's adapter, and the bytes that a token keeps for their gradients in all layers, at most.

    Both matrices keep their input in float32. (Where the LLM itself is in float32, layers that read the same share it.)
    """
    inputs, results = {}, 0
    for name, module in llm.named_modules():
        if name.endswith(f".lora_A.{_NAME}"):
            layer: Any = module
            inputs[name] = layer.in_features
            results += layer.out_features
    count = sum(weight.numel() for name, weight in llm.named_parameters() if ".lora_" in name)
    return count, 4 * (sum(inputs.values()) + results)
