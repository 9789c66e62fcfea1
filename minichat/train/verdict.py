"""Whether a run made its model better: said at its end, with the losses before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minichat.train.config import OptimizerConfig
    from minichat.train.run import Standing

_WORSE = 1.001  # times the validation loss before; less is rounding
_WORSE_TRAINING = 1.1  # times the training loss of the first steps: batches differ
_FEW = 10  # steps at each end


def verdict(standing: Standing, metrics: Sequence[Mapping[str, float]], optimizer: OptimizerConfig) -> str | None:
    """What to say of a run that ended above where it began, or nothing.

    Where there is a validation loss it alone counts, otherwise the training loss.
    """
    before, best, last = standing.began, standing.best, standing.last
    if before is not None and last is not None and math.isfinite(best):
        if best > before * _WORSE:
            return (
                f"Training made it worse: the validation loss was {before:.4g} before the first step and {best:.4g} at "
                f"best, after step {standing.best_step}. {_advice(optimizer)}"
            )
        if last > before * _WORSE:
            return (
                f"Training diverged after step {standing.best_step}: the validation loss was {before:.4g} before the "
                f"first step, {best:.4g} at best, and is {last:.4g} at the end. {_advice(optimizer)}"
            )
        return None
    losses = [line["loss"] for line in metrics if "loss" in line]
    few = max(1, min(_FEW, len(losses) // 10))
    if len(losses) <= few:
        return None
    first, end = (sum(some) / few for some in (losses[:few], losses[-few:]))
    if end <= first * _WORSE_TRAINING:
        return None
    return (
        f"Training made it worse: the loss was {first:.4g} at first and is {end:.4g} at the end. {_advice(optimizer)} "
        "With data.validation, the best weights on the way are kept."
    )


def _advice(optimizer: OptimizerConfig) -> str:
    return (
        f"Lower optimizer.rate ({optimizer.rate:g}), or lengthen its warm-up (optimizer.warmup_steps is "
        f"{optimizer.warmup_steps})."
    )
