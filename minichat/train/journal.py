"""The figures of a run: `metrics.jsonl`, a line for each step, and trackers beside it.

Losses stay on the device until they are asked for: reading one makes the program wait for all that comes before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minichat.disk import replace_file
from minichat.errors import ModelError
from minichat.train.together import Together

Line = dict[str, float]
Track = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Entry:
    """One step, not yet read from the device. `losses`: this process's share, part by part, each () or (terms,)."""

    step: int
    losses: list[Tensor]
    norm: Tensor
    rate: float
    items: int
    tokens: int


class Journal:
    """Writes what the steps gave, and finds the one whose loss is no number."""

    def __init__(
        self,
        path: Path,
        together: Together,
        track: Track,
        *,
        terms: Sequence[str] = (),
        norms_may_overflow: bool = False,
    ) -> None:
        """What a journal is kept of.

        Args:
            path: `metrics.jsonl`.
            together: the processes that share a step.
            track: is given each line's figures and its step.
            terms: names of the losses of which a step's is the sum, where there are several.
            norms_may_overflow: with a gradient scaler they do now and then, and such a step is left out.
        """
        self._terms = tuple(terms)
        self._path = path
        self._together = together
        self._track = track
        self._overflow = norms_may_overflow
        self._waiting: list[Entry] = []
        self._recent: list[Line] = []

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`: it will be done again. A torn last line goes too."""
        if not self._together.first or not self._path.exists():
            return
        kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        replace_file(self._path, "".join(line + "\n" for line in kept).encode())

    def add(self, entry: Entry) -> None:
        self._waiting.append(entry)

    def flush(self, where: Callable[[int], list[list[str]]]) -> None:
        """Read the figures of the steps since the last time from the device, and write them.

        `where` gives the places of a step's rows. Raises `ModelError`, naming those, for a step whose loss or gradient
        is not finite.
        """
        entries, self._waiting = self._waiting, []
        if not entries:
            return
        none = torch.zeros(len(self._terms) or 1, device=entries[0].norm.device)
        local = [sum((part.view(-1) for part in e.losses), none) for e in entries]
        losses = self._together.add(torch.stack(local)).tolist()  # entries × terms
        norms = torch.stack([e.norm for e in entries]).tolist()
        for entry, parts, norm in zip(entries, losses, norms, strict=True):
            loss = sum(parts)
            if not math.isfinite(loss) or not (math.isfinite(norm) or self._overflow):
                raise ModelError(self._culprit(entry, loss, where))
            line = {"step": entry.step, "loss": loss}
            if self._terms:
                line |= zip(self._terms, parts, strict=True)
            self.write(line | {"rate": entry.rate, "norm": norm, "items": entry.items, "tokens": entry.tokens})

    def recent(self) -> list[Line]:
        """The steps' lines since this was last asked."""
        lines, self._recent = [line for line in self._recent if "loss" in line], []
        return lines

    def write(self, line: Line) -> None:
        """Append a line, and hand its figures to the trackers."""
        self._recent.append(line)
        if not self._together.first:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._track({name: value for name, value in line.items() if name != "step"}, int(line["step"]))

    def _culprit(self, entry: Entry, loss: float, where: Callable[[int], list[list[str]]]) -> str:
        # There may be fewer parts than there are of other steps, where records of a stream could not be read.
        places = [
            place
            for some, part in zip(where(entry.step - 1), entry.losses, strict=False)
            if not math.isfinite(part.sum().item())
            for place in some
        ]
        named = self._together.listed(places)
        what = f"The loss is {loss}" if not math.isfinite(loss) else "The gradient is not finite"
        from_there = f", from {named}" if named else ""
        return (
            f"{what} at step {entry.step}{from_there}: the checkpoints are from before it, and "
            "would come to it again. Mend these records or lower optimizer.rate, and begin anew in another out."
        )


def read_metrics(path: Path) -> list[Line]:
    """The lines of a `metrics.jsonl`; none where there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
