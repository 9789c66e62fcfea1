"""Which parts train. Frozen is frozen: no gradient, and no dropout either, also after `model.train()`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from minichat.errors import SettingsError


def set_trainable(model: nn.Module, parts: Iterable[str] = ("projection",)) -> dict[str, int]:
    """Let the named parts train and freeze the rest.

    A part is a module or a parameter by its dotted name: "projection", "bridge.query_tokens", "language_model". No
    part at all freezes everything. Returns the number of parameters of each part, and of the rest under "frozen".
    Raises `SettingsError` where a name is not one of the model's.
    """
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    # A tied weight has several names and is one parameter: it trains when any of them is asked for.
    names = dict(model.named_parameters(remove_duplicate=False))
    counts = dict.fromkeys((*parts, "frozen"), 0)
    owner: dict[int, str] = {}
    for part in parts:
        held = [weight for name, weight in names.items() if name == part or name.startswith(f"{part}.")]
        if not held:
            known = ", ".join(name for name, _ in model.named_children())
            raise SettingsError(
                f"trainable: this model has no part {part!r}; its parts are {known}, and what is in them."
            )
        for weight in held:
            owner.setdefault(id(weight), part)
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in owner)
        counts[owner.get(id(weight), "frozen")] += weight.numel()
    model.train(model.training)
    return counts


def rest_frozen_parts(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen into eval mode, as deep down as they are."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        # A frozen LLM passes gradients on to the projection. transformers checkpoints a layer only in train mode, so
        # the layer itself keeps the mark; the dropouts are in its children.
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                layer.training = True
    else:
        for child in module.children():
            rest_frozen_parts(child)
