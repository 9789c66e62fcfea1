"""What can be learnt: a stage is a `loss(batch)`, a list of what trains, and what its batches are made of.

The loop is the same for all stages. A loss is a *sum*, over `count(batch)` things, so that a step's mean is over all
processes and all the parts in which its gradient is accumulated.
"""

from __future__ import annotations

from pkgutil import resolve_name

from minichat.errors import SettingsError
from minichat.train.stage import Stage

#: Where each stage is; it is imported when it is asked for.
STAGES = {
    "replies": "minichat.train.replies:Replies",
    "pretraining": "minichat.train.pretraining:Pretraining",
    "vision": "minichat.train.vision:Vision",
    "language": "minichat.train.language:Language",
    "naming": "minichat.train.naming:Naming",
}


def stage_of(name: str) -> type[Stage]:
    """The stage of this name. Raises `SettingsError` for one that does not exist."""
    if name not in STAGES:
        raise SettingsError(f"stage is {name!r}; it must be one of {', '.join(STAGES)}.")
    stage: type[Stage] = resolve_name(STAGES[name])
    return stage
