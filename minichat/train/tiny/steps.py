"""The loop of the built-in model's trainer: stage, optimizers, journal, checkpoint."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from minichat.errors import ModelError


@dataclass(frozen=True)
class Stage:
    """How one stage runs. `samples` and `batch` count pictures (see) or dialogues (talk)."""

    name: str
    samples: int
    batch: int
    rate: float = 1e-3  # of both optimizers
    warmup: int = 200  # steps
    decay: float = 0.2  # the last share of the steps, over which the rate falls to zero
    weight_decay: float = 0.05
    save_every: int = 500  # steps


class Optimizers:
    """Muon (arXiv:2502.16982's scale) for the matrices of the layers, AdamW for embeddings, norms, biases and heads."""

    def __init__(self, modules: nn.Module, stage: Stage) -> None:
        named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
        layers = [p for name, p in named if p.ndim == 2 and "layer" in name]
        chosen = {id(p) for p in layers}
        rest = [p for _, p in named if id(p) not in chosen]
        self.stage = stage
        self.parameters = layers + rest
        self.members: list[torch.optim.Optimizer] = [
            torch.optim.Muon(layers, lr=stage.rate, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=stage.rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
        ]

    def step(self, step: int, steps: int) -> float:
        """One update at the schedule's rate, which is returned."""
        left = (steps - step) / max(1, int(steps * self.stage.decay))
        rate = self.stage.rate * min(1.0, (step + 1) / self.stage.warmup, left)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = rate
            member.step()
            member.zero_grad()
        return rate

    def state_dict(self) -> list[dict[str, Any]]:
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


class Journal:
    """Averages figures and writes a line of them to stderr and to `metrics.jsonl` every so many steps."""

    def __init__(self, path: Path, stage: Stage, every: int = 100) -> None:
        self.path, self.stage, self.every = path, stage, every
        self.figures: dict[str, list[float]] = {}
        self.since = time.monotonic()

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)
        if step % self.every:
            return
        now = time.monotonic()
        line: dict[str, Any] = {"stage": self.stage.name, "step": step, "samples": step * self.stage.batch}
        line |= {name: round(float(np.nanmean(values)), 4) for name, values in self.figures.items()}
        line["per_second"] = round(self.every * self.stage.batch / (now - self.since), 1)
        text = json.dumps(line) + "\n"
        sys.stderr.write(text)
        with self.path.open("a") as file:
            file.write(text)
        self.figures, self.since = {}, now


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one whole."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


Loss = Callable[[Any], tuple[Tensor, dict[str, float]]]  # a batch → its loss and the figures to report
Data = Callable[[int], IterableDataset[Any]]  # the step to start from → endless batches from there


def run(out: Path, stage: Stage, modules: nn.ModuleDict, data: Data, loss_of: Loss, workers: int = 1) -> None:
    """Train `modules` to the stage's end, from its checkpoint where there is one.

    Args:
        out: folder of `NAME.pt` (the checkpoint) and `metrics.jsonl`.
        stage: how to train.
        modules: what is trained and kept in the checkpoint; parameters without a gradient stay as they are.
        data: the step to start from → endless batches from there.
        loss_of: a batch → its loss and the figures to report.
        workers: processes that draw, 0 or 1 (two would each draw the same).

    Raises:
        ModelError: if the loss is not finite.
    """
    optimizers, journal = Optimizers(modules, stage), Journal(out / "metrics.jsonl", stage)
    checkpoint, step, steps = out / f"{stage.name}.pt", 0, stage.samples // stage.batch
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizers.load_state_dict(state["optimizers"])
        step = state["step"]
    loader = DataLoader(data(step), batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None)
    batches = iter(loader)
    while step < steps:
        loss, figures = loss_of(next(batches))
        if not torch.isfinite(loss):
            raise ModelError(f"The loss is {loss.item()} at step {step}: go on from {checkpoint} at a lower rate.")
        loss.backward()
        rate = optimizers.step(step, steps)
        step += 1
        journal.add(step, {"loss": loss.item(), "rate": rate, **figures})
        if step % stage.save_every == 0 or step == steps:
            save(checkpoint, {"modules": modules.state_dict(), "optimizers": optimizers.state_dict(), "step": step})
