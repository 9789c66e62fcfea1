"""What can be learnt: a stage is a `loss(batch)`, a list of what trains, and what its batches are made of.

The loop is the same for all stages. A loss is a *sum*, over `count(batch)` things, so that a step's mean is over all
processes and all the parts in which its gradient is accumulated.
"""

from __future__ import annotations

from minichat.errors import SettingsError
from minichat.train.language import Language
from minichat.train.naming import Naming
from minichat.train.pretraining import Pretraining
from minichat.train.replies import Replies
from minichat.train.stage import Stage
from minichat.train.vision import Vision

STAGES: dict[str, type[Stage]] = {
    "replies": Replies,
    "pretraining": Pretraining,
    "vision": Vision,
    "language": Language,
    "naming": Naming,
}


def stage_of(name: str) -> type[Stage]:
    """The stage of this name. Raises `SettingsError` for one that does not exist."""
    if name not in STAGES:
        raise SettingsError(f"stage is {name!r}; it must be one of {', '.join(STAGES)}.")
    return STAGES[name]
