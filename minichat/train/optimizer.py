"""AdamW over what trains, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minichat.train.config import OptimizerConfig

_PREFIX = "optimizer."


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a tied one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def make_optimizer(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; biases and other tensors of fewer than two dimensions do not decay."""
    decays = [weight for weight in weights.values() if weight.dim() >= 2]
    stays = [weight for weight in weights.values() if weight.dim() < 2]
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": stays, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.rate, betas=(config.beta1, config.beta2))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Make `rate` the learning rate of the next step, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as tensors: `optimizer.exp_avg.projection.weight` and the like."""
    return {
        f"{_PREFIX}{kind}.{name}": value
        for name, weight in weights.items()
        for kind, value in optimizer.state.get(weight, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_PREFIX):
            kind, _, name = key.removeprefix(_PREFIX).partition(".")
            state.setdefault(name, {})[kind] = value
    names = {id(weight): name for name, weight in weights.items()}
    whole: dict[str, Any] = optimizer.state_dict()
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    whole["state"] = {number: state[names[id(w)]] for number, w in enumerate(order) if names[id(w)] in state}
    optimizer.load_state_dict(whole)
