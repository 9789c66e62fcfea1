"""Who sees whom in the Q-Former, under each objective of stage 1: the model's own masks, drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures.paper import FAINT, LARGE, QUERY, SMALL, SOFT, WIDTH, WORD, say, sheet, whole
from minichat.model.qformer_pretrain import bidirectional, multimodal_causal, unimodal

QUERIES = 4  # a model has 32; the rule is the same
TEXT = ("a", "red", "star", "[SEP]")


@dataclass(frozen=True)
class Objective:
    """One of the three: its mask, what a text begins with under it, and what becomes of what comes out."""

    name: str
    mask: Callable[[int, Tensor], Tensor]
    first: str
    asks: str
    read: str


OBJECTIVES = {
    "itc": Objective("contrast", unimodal, "[CLS]", "Which text belongs to it?", "the query nearest to [CLS]"),
    "itm": Objective("matching", bidirectional, "[CLS]", "Are these two a pair?", "all queries, averaged"),
    "itg": Objective("generation", multimodal_causal, "[DEC]", "What is the next word?", "the words' guesses"),
}


def seen(objective: Objective) -> Tensor:
    """Whether a row sees a column (n + T, n + T), n queries before T words: what the model computes for such a text."""
    return objective.mask(QUERIES, torch.ones(1, 1 + len(TEXT), dtype=torch.long))[0, 0]


def draw() -> Any:
    """The three masks side by side."""
    cell, left, gap, top = 0.232, 0.62, 0.62, 1.06
    count = QUERIES + 1 + len(TEXT)
    figure = sheet(top + count * cell + 0.78)
    axes = whole(figure)
    for number, name in enumerate(OBJECTIVES):
        _panel(axes, name, left + number * (count * cell + gap), top, cell)
    _legend(axes, top + count * cell + 0.58)
    return figure


def _panel(axes: Any, name: str, left: float, top: float, cell: float) -> None:
    from matplotlib.patches import Rectangle

    objective = OBJECTIVES[name]
    sees = seen(objective)
    names = [*(f"query {number + 1}" for number in range(QUERIES)), objective.first, *TEXT]
    side, middle = len(names) * cell, left + len(names) * cell / 2
    say(axes, middle, 0.16, f"{objective.name} ({name.upper()})", ha="center", size=LARGE, weight="bold")
    say(axes, middle, 0.37, objective.asks, ha="center", color=SOFT, style="italic")
    for row, token in enumerate(names):
        colour = QUERY if row < QUERIES else "#b8651b"
        at = top + (row + 0.5) * cell
        say(axes, left - 0.05, at, token, ha="right", size=SMALL, color=colour)
        across = left + (row + 0.5) * cell
        say(axes, across, top - 0.05, token, ha="center", va="bottom", size=SMALL, color=colour, rotation=90)
        for column in range(len(names)):
            kind = QUERY if column < QUERIES else WORD
            fill = kind if sees[row, column] else FAINT
            place = left + column * cell, top + row * cell
            axes.add_patch(Rectangle(place, cell, cell, facecolor=fill, edgecolor="white", linewidth=1.2))
    border = QUERIES * cell
    axes.plot([left, left + side], [top + border] * 2, color="white", linewidth=3.5)
    axes.plot([left + border] * 2, [top, top + side], color="white", linewidth=3.5)
    say(axes, middle, top + side + 0.2, f"the loss reads {objective.read}", ha="center")


def _legend(axes: Any, at: float) -> None:
    from matplotlib.patches import Rectangle

    shown = ((QUERY, "sees a query"), (WORD, "sees a word"), (FAINT, "does not see"))
    say(axes, 0.12, at, "A row looks at columns:")
    for number, (colour, meaning) in enumerate(shown):
        left = 2.0 + 1.25 * number
        axes.add_patch(Rectangle((left, at - 0.075), 0.15, 0.15, facecolor=colour))
        say(axes, left + 0.22, at, meaning)
    say(axes, WIDTH - 0.12, at, "The picture's patches are seen by queries alone.", ha="right", color=SOFT)
