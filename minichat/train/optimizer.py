"""AdamW over what trains, or Muon over its matrices, and their state as named tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minichat.errors import SettingsError
from minichat.train.config import OptimizerConfig

_PREFIX = "optimizer."


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a tied one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def make_optimizer(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; biases and other tensors of fewer than two dimensions do not decay. Or Muon for the layers' matrices."""
    if config.matrices == "muon":
        return MuonAndAdamW(weights, config)
    decays = [weight for weight in weights.values() if weight.dim() >= 2]
    stays = [weight for weight in weights.values() if weight.dim() < 2]
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": stays, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.rate, betas=(config.beta1, config.beta2))


class MuonAndAdamW(torch.optim.Optimizer):
    """PyTorch's Muon for the matrices of layers, and its AdamW for embeddings, heads, norms and biases.

    Both at the same rate, as Muon's update is scaled to be as long as AdamW's (arXiv:2502.16982, section 2.2). Raises
    `SettingsError` where no layer's matrix trains.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        matrices = [weight for name, weight in weights.items() if weight.dim() == 2 and _IN_LAYER.search(name)]
        if not matrices:
            raise SettingsError(
                "optimizer.matrices is muon, which is for the matrices of layers, and none trains: leave it out."
            )
        chosen = set(map(id, matrices))
        others = [weight for weight in weights.values() if id(weight) not in chosen]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}]
        self._inner: list[Any] = [torch.optim.Muon(matrices, lr=config.rate, adjust_lr_fn="match_rms_adamw")]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
            self._inner.append(torch.optim.AdamW(others, lr=config.rate, betas=(config.beta1, config.beta2)))
        super().__init__(groups, {"lr": config.rate})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inner = self._inner[len(self.param_groups)]
        super().add_param_group(inner.defaults | param_group)
        self._share()

    def _share(self) -> None:
        """The two keep their state, and find their rates, in what this optimizer saves."""
        for inner, group in zip(self._inner, self.param_groups, strict=False):  # the second is not there at first
            inner.param_groups, inner.state = [group], self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for inner in self._inner:
            inner.step()


_IN_LAYER = re.compile(r"\blayers?\.\d+\.")


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


def is_of_optimizer(name: str) -> bool:
    """Whether a tensor of a checkpoint is of the optimizer's state."""
    return name.startswith(_PREFIX)


def load_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if is_of_optimizer(key):
            kind, _, name = key.removeprefix(_PREFIX).partition(".")
            state.setdefault(name, {})[kind] = value
    names = {id(weight): name for name, weight in weights.items()}
    whole: dict[str, Any] = optimizer.state_dict()
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    whole["state"] = {number: state[names[id(w)]] for number, w in enumerate(order) if names[id(w)] in state}
    optimizer.load_state_dict(whole)
