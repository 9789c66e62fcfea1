"""Figures: what was measured, on how many, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minichat.evaluate.results import Results

Z = 1.96  # the normal distribution's 97.5 % point: intervals hold 95 %
HARDLY = 0.1  # a smaller difference to the blank picture may be none


Kind = Literal["share", "rate", "score"]


@dataclass(frozen=True)
class Figure:
    """A value, or None where there was nothing to measure.

    A "share" is one of `count` like things, and so has an interval; a "rate" lies between 0 and 1, too, but is no such
    share (F1, BLEU); a "score" has a scale of its own (CIDEr-D).
    """

    value: float | None
    count: int
    kind: Kind = "share"

    def interval(self) -> tuple[float, float] | None:
        """Of a share, the 95 % interval (Wilson, Journal of the American Statistical Association 22, 1927)."""
        if self.kind != "share" or self.value is None or self.count == 0:
            return None
        n, p = self.count, self.value
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        reach = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class Outcome:
    """What one task found: figures by name, and a record of each question for those who want to look closer.

    `headline` names the figure that falls where the pictures are not seen; None where none is sure to. `results` are
    the replies in the forms of official programs.
    """

    figures: dict[str, Figure]
    records: list[dict[str, Any]] = field(default_factory=list)
    headline: str | None = None
    results: list[Results] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A figure beside what the same questions gave with blank pictures."""

    task: str
    name: str
    seen: Figure
    blank: Figure | None = None


def share(values: Iterable[float]) -> Figure:
    """The mean of truths, or of accuracies between 0 and 1."""
    listed = [float(value) for value in values]
    return Figure(sum(listed) / len(listed) if listed else None, len(listed))


def mean(values: Sequence[float], kind: Kind = "rate") -> Figure:
    """The mean of scores."""
    return Figure(sum(values) / len(values) if values else None, len(values), kind)


def ratio(part: int, whole: int) -> Figure:
    """`part` of `whole`."""
    return Figure(part / whole if whole else None, whole)


def by_kind(scored: Iterable[tuple[str, float]], overall: str = "overall") -> dict[str, Figure]:
    """The share for each kind, in the order in which they first come, and over all."""
    kinds: dict[str, list[float]] = {}
    for kind, value in scored:
        kinds.setdefault(kind, []).append(value)
    every = [value for values in kinds.values() for value in values]
    return {kind: share(values) for kind, values in kinds.items()} | {overall: share(every)}


def lines(task: str, seen: Mapping[str, Figure], blank: Mapping[str, Figure] | None) -> list[Line]:
    """Each figure beside the one of the same name."""
    return [Line(task, name, figure, (blank or {}).get(name)) for name, figure in seen.items()]


def is_blind(line: Line) -> bool:
    """Whether the pictures made hardly any difference, and none that could not be chance."""
    if line.blank is None or line.blank.value is None or line.seen.value is None:
        return False
    interval = line.seen.interval()
    by_chance = interval is None or interval[0] <= line.blank.value
    return by_chance and line.seen.value < line.blank.value + HARDLY
