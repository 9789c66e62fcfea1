"""Figures as pictures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minichat.evaluate.figures import Figure, Line

_SEEN, _BLANK, _OTHER = "#2f6fb0", "#222222", "#d07a2d"


def plot(path: Path, title: str, lines: Sequence[Line]) -> None:
    """One bar for each share or rate, with its 95 % interval; a mark where the blank picture stands."""
    rows = [line for line in lines if line.seen.kind != "score" and line.seen.value is not None]
    figure, axes = _axes(len(rows), title)
    for place, line in enumerate(rows):
        _bar(axes, place, line.seen, 0.7, _SEEN)
        if line.blank is not None and line.blank.value is not None:
            axes.plot([100 * line.blank.value] * 2, [place - 0.42, place + 0.42], color=_BLANK, linewidth=3)
    axes.plot([], [], color=_BLANK, linewidth=3, label="blank picture")
    _finish(figure, axes, [line.name for line in rows], path)


def plot_two(path: Path, title: str, names: tuple[str, str], rows: Sequence[tuple[str, Figure, Figure]]) -> None:
    """Two runs' bars beside each other."""
    drawn = [row for row in rows if all(f.kind != "score" and f.value is not None for f in row[1:])]
    figure, axes = _axes(1.6 * len(drawn), title)
    for place, (_, first, second) in enumerate(drawn):
        _bar(axes, place - 0.2, first, 0.38, _SEEN)
        _bar(axes, place + 0.2, second, 0.38, _OTHER)
    for name, colour in zip(names, (_SEEN, _OTHER), strict=True):
        axes.barh([], [], color=colour, label=name)
    _finish(figure, axes, [name for name, _, _ in drawn], path)


def _axes(rows: float, title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    figure = Sheet(figsize=(8, 1.2 + 0.28 * max(rows, 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _bar(axes: Any, place: float, figure: Figure, height: float, colour: str) -> None:
    value = 100 * (figure.value or 0.0)
    axes.barh([place], [value], height=height, color=colour)
    if interval := figure.interval():
        reach = [[max(0.0, value - 100 * interval[0])], [max(0.0, 100 * interval[1] - value)]]
        axes.errorbar([value], [place], xerr=reach, color="black", linewidth=1, capsize=2)


def _finish(figure: Any, axes: Any, names: Sequence[str], path: Path) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("per cent")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower right", fontsize="small", ncols=2)
    figure.savefig(path, dpi=120, metadata={"Software": None})
