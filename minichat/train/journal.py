"""The figures of a run: `metrics.jsonl`, a line for each step, and trackers beside it.

Losses stay on the device until they are asked for: reading one makes the program wait for all that comes before it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minichat.disk import replace_file, told
from minichat.errors import ModelError, SettingsError
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
        self._digest = hashlib.sha256()  # of all lines, written or not
        #: Lines that the disk did not take yet; a checkpoint holds them.
        self.unwritten: list[Line] = []

    def rewind(self, step: int, unwritten: Sequence[Line] = ()) -> list[int]:
        """Forget what was written after `step`: it will be done again.

        `unwritten`: what the checkpoint holds of lines that the disk did not take. Returns the numbers of lines that
        are none, and go too: a torn one, or damaged ones. Raises `SettingsError` where the disk does not take the rest.
        """
        if not self._together.first:
            return []
        found = _lines(self._path)
        kept = [raw for raw, line in found if line is not None and line["step"] <= step]
        content = b"".join(raw + b"\n" for raw in kept) + _spelled(unwritten)
        if self._path.exists() or content:
            with told(self._path.name, SettingsError):
                replace_file(self._path, content)
        self._digest = hashlib.sha256(content)
        return [number for number, (_, line) in enumerate(found, start=1) if line is None]

    def checksum(self) -> str:
        """SHA-256 of all lines so far."""
        return self._digest.hexdigest()

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
        lines, wrong = list[Line](), None
        for entry, parts, norm in zip(entries, losses, norms, strict=True):
            loss = sum(parts)
            if not math.isfinite(loss) or not (math.isfinite(norm) or self._overflow):
                wrong = entry, loss
                break
            line = {"step": entry.step, "loss": loss}
            if self._terms:
                line |= zip(self._terms, parts, strict=True)
            lines.append(line | {"rate": entry.rate, "norm": norm, "items": entry.items, "tokens": entry.tokens})
        self.write(*lines)
        if wrong is not None:
            raise ModelError(self._culprit(*wrong, where))

    def recent(self) -> list[Line]:
        """The steps' lines since this was last asked."""
        lines, self._recent = [line for line in self._recent if "loss" in line], []
        return lines

    def write(self, *lines: Line) -> None:
        """Append lines, and hand their figures to the trackers.

        Raises `SettingsError` where the disk does not take them; they are tried again with the next.
        """
        self._recent += lines
        if not self._together.first:
            return
        self.unwritten += lines
        self._digest.update(_spelled(lines))
        for line in lines:
            self._track({name: value for name, value in line.items() if name != "step"}, int(line["step"]))
        with told(self._path.name, SettingsError):
            self._append(_spelled(self.unwritten))
        self.unwritten = []

    def _append(self, content: bytes) -> None:
        """All of it or nothing."""
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

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
    """The lines of a `metrics.jsonl`, without those that are damaged; none where there is no such file."""
    return [line for _, line in _lines(path) if line is not None]


def _lines(path: Path) -> list[tuple[bytes, Line | None]]:
    """Each line as it is, and what it says, or None where it is not what a step wrote."""
    if not path.exists():
        return []
    return [(raw, _parsed(raw)) for raw in path.read_bytes().splitlines()]


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    known = isinstance(line, dict) and all(type(value) in (int, float) for value in line.values())
    whole = known and "step" in line and ("validation_loss" in line or {"loss", "items", "tokens"} <= line.keys())
    return line if whole else None


def _spelled(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
