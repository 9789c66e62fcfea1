"""What is said before a run: what trains, on what, for how long."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from minichat.hardware.machine import look
from minichat.hardware.memory import gib
from minichat.train.config import Config


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def parts(model: nn.Module) -> list[tuple[str, str]]:
    """What trains and what is frozen, with its parameters and precision."""
    trains, frozen = [], []
    for name, part in model.named_children():
        weights = list(part.parameters())
        learnt = [weight for weight in weights if weight.requires_grad]
        if learnt:
            trains.append(_line(name, learnt, whole=len(learnt) == len(weights)))
        if len(learnt) < len(weights):
            frozen.append(_line(name, [w for w in weights if not w.requires_grad], whole=not learnt))
    return [("trains", "; ".join(trains)), ("frozen", "; ".join(frozen) or "nothing")]


def _line(name: str, weights: Sequence[nn.Parameter], whole: bool) -> str:
    types = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    # bitsandbytes packs two parameters of 4 bits into a number.
    count = sum(weight.numel() * (2 if type(weight).__name__ == "Params4bit" else 1) for weight in weights)
    return f"{name}{'' if whole else ' in part'} {count:,} ({', '.join(types)})"


def samples(
    facts: Mapping[str, Any], held_out: Mapping[str, Any] | None, padding: float | None
) -> list[tuple[str, str]]:
    """The data set, as its feed knows it."""
    if facts["samples"] is None:
        rows = [("samples", "a stream")]
    else:
        share = facts["supervised_tokens"] / max(1, facts["tokens"])
        rows = [
            ("samples", f"{facts['samples']:,} with {facts['pictures']:,} pictures"),
            ("supervised", f"{facts['supervised_tokens']:,} of {facts['tokens']:,} tokens ({share:.0%})"),
            ("cut", f"{facts['samples_cut']:,} samples are over the length limit: what is beyond it is left out"),
        ]
    if padding is not None:
        rows.append(("padding", f"{padding:.1%} of the positions that are computed"))
    if held_out:
        rows.append(("validation", f"{held_out['samples']:,} samples, {held_out['supervised_tokens']:,} tokens"))
    return rows


def portions(config: Config, steps: int, of_an_epoch: int | None, processes: int, at_once: int) -> tuple[str, str]:
    """The steps, and how one is divided."""
    epochs = (
        ""
        if of_an_epoch is None
        else f" ({f'{steps / of_an_epoch:,.1f}'.removesuffix('.0')} epochs of {of_an_epoch:,})"
    )
    batch = config.run.batch_size
    divided = f"batch {batch} = {processes} process{'es' if processes > 1 else ''}, {at_once} rows at once on each"
    return "steps", f"{steps:,}{epochs}; {divided}"


def memory(expected: int | None, device: torch.device) -> list[tuple[str, str]]:
    """What is expected to be needed, and what is free."""
    if expected is None:
        return []
    name = device.type if device.type == "cpu" else str(device)
    free = look(device).device(name).available
    return [("memory", f"{gib(expected)} expected on {name}, where {gib(free)} are free")]


def duration(seconds: float) -> str:
    """In words, to two places."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def memory_used(device: torch.device) -> int:
    """The most bytes held at any time so far: on the accelerator, or by this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
