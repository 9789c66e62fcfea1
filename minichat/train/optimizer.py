"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from minichat.device.placement import computes_bfloat16
from minichat.errors import SettingsError, some
from minichat.train.config import OptimizerConfig

# --- The learning-rate schedule.


def lr_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """The schedule: the learning rate of step `step` of `steps`, counted from 0.

    A linear warm-up from `warmup_lr` to `lr` over the first `warmup_steps`, then a cosine from `lr` to `min_lr` that is
    measured over all steps, so that it joins a little below `lr` (as the runs of MiniGPT-4 did: its
    `minigpt4/common/optims.py::LinearWarmupCosineLRScheduler`).
    """
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * step / steps))


def lr_scales(names: Iterable[str], config: OptimizerConfig) -> dict[str, float]:
    """By which the schedule is multiplied for each parameter: 1, or `lr_by_part`'s rate over `lr`.

    The first pattern that matches counts. Raises `SettingsError` for a pattern that no parameter is left for.
    """
    scales, used = {}, set[str]()
    for name in names:
        pattern = next((part for part in config.lr_by_part if _is_in(name, part)), None)
        scales[name] = 1.0 if pattern is None else config.lr_by_part[pattern] / config.lr
        used |= set() if pattern is None else {pattern}
    for part in config.lr_by_part:
        if part not in used:
            earlier = any(_is_in(name, part) for name in scales)
            why = (
                "what it matches is matched by a pattern before it" if earlier else "nothing that trains has that name"
            )
            raise SettingsError(
                f"optimizer.lr_by_part: {part!r} is of no use, since {why} (what trains is {some(scales)})."
            )
    return scales


def _is_in(name: str, part: str) -> bool:
    """Whether a parameter is the part or in it, as `trainable` names parts; `*` stands for anything."""
    return fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*")


# --- AdamW over what trains, or Muon over its matrices, and their state as named tensors.


_PREFIX = "optimizer."


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a tied one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def make_optimizer(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; biases and other tensors of fewer than two dimensions do not decay. Or Muon for the layers' matrices.

    Parameters of one learning rate are groups of their own; `set_lr` moves all.
    """
    if config.name == "muon":
        return MuonAndAdamW(weights, config)
    groups = []
    for scale, part in _by_scale(weights, config):
        decays = [weight for weight in part.values() if weight.dim() >= 2]
        stays = [weight for weight in part.values() if weight.dim() < 2]
        groups.append({"params": decays, "weight_decay": config.weight_decay, "lr_scale": scale})
        groups.append({"params": stays, "weight_decay": 0.0, "lr_scale": scale})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2))


def _by_scale(
    weights: Mapping[str, nn.Parameter], config: OptimizerConfig
) -> Iterator[tuple[float, dict[str, nn.Parameter]]]:
    scales = lr_scales(weights, config)
    for scale in dict.fromkeys(scales.values()):
        yield scale, {name: weight for name, weight in weights.items() if scales[name] == scale}


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which orthogonalises in float32 on a processor that only emulates bfloat16.

    PyTorch's does so in bfloat16 everywhere, which was three quarters of the built-in LLaMA's time for a step there.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if computes_bfloat16() or any(w.device.type != "cpu" for group in self.param_groups for w in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean
                update = _orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def _orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly U·Vᵀ of a matrix U·S·Vᵀ, by the Newton–Schulz iteration of Muon (kellerjordan.github.io/posts/muon)."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonAndAdamW(torch.optim.Optimizer):
    """PyTorch's Muon for the matrices of layers, and its AdamW for embeddings, heads, norms and biases.

    Both at the same rate, as Muon's update is scaled to be as long as AdamW's (arXiv:2502.16982, section 2.2). Raises
    `SettingsError` where no layer's matrix trains.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        groups: list[dict[str, Any]] = []
        self._inner: list[Any] = []
        for scale, part in _by_scale(weights, config):
            matrices = {name: w for name, w in part.items() if w.dim() == 2 and _IN_LAYER.search(name)}
            others = [weight for name, weight in part.items() if name not in matrices]
            if matrices:
                held = list(matrices.values())
                groups.append({"params": held, "weight_decay": config.weight_decay, "lr_scale": scale})
                self._inner.append(Muon(held, lr=config.lr, adjust_lr_fn="match_rms_adamw"))
            if others:
                groups.append({"params": others, "weight_decay": 0.0, "lr_scale": scale})
                self._inner.append(torch.optim.AdamW(others, lr=config.lr, betas=(config.beta1, config.beta2)))
        if not any(isinstance(inner, torch.optim.Muon) for inner in self._inner):
            raise SettingsError(
                "optimizer.name is muon, which is for the matrices of layers, and none trains: leave it out."
            )
        super().__init__(groups, {"lr": config.lr})

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


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Make `lr` the learning rate of the next step, times each group's scale, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


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
