"""The learning rate of each step."""

from __future__ import annotations

import math

from minichat.train.config import OptimizerConfig


def rate_of(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step `step` of `steps`, counted from 0.

    A linear warm-up from `warmup_rate` to `rate` over the first `warmup_steps`, then a cosine from `rate` to `floor`
    that is measured over all steps, so that it joins a little below `rate` (as the runs of MiniGPT-4 did: its
    `minigpt4/common/optims.py::LinearWarmupCosineLRScheduler`).
    """
    if step < config.warmup_steps:
        return config.warmup_rate + (config.rate - config.warmup_rate) * step / config.warmup_steps
    return config.floor + (config.rate - config.floor) * 0.5 * (1 + math.cos(math.pi * step / steps))
