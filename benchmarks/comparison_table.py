"""What came of a comparison: its figures as a table, as JSON and as a plot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms import Comparison, Row
from minichat.evaluate.metrics import Figure

_COLOURS = ("#2f6fb0", "#d07a2d", "#3f8f5f", "#8a4fa0", "#9a9a9a", "#222222")

Measured = list[tuple[Row, dict[str, Figure]]]


def measured(comparison: Comparison) -> Measured:
    """The figures of all rows, by column."""
    return [(row, {column: there.read() for column, there in row.figures.items()}) for row in comparison.rows]


def columns(found: Measured) -> list[str]:
    return list(dict.fromkeys(column for _, figures in found for column in figures))


def table(comparison: Comparison, found: Measured, steps: int, count: int) -> str:
    """In Markdown; of so many steps (0: nothing was trained) and held-out scenes."""
    names = columns(found)
    trained = f"{steps:,} steps, " if steps else ""
    lines = [
        f"{comparison.title} ({trained}{count:,} held-out scenes)",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for row, figures in found:
        lines.append(f"| {row.name} | " + " | ".join(_cell(figures.get(name)) for name in names) + " |")
    reach = max((_reach(figure) for _, figures in found for figure in figures.values()), default=0.0)
    lines += ["", f"The 95 % intervals reach {100 * reach:.1f} points to a side at most. Each arm was trained once."]
    return "\n".join(lines) + "\n"


def _cell(figure: Figure | None) -> str:
    return "–" if figure is None or figure.value is None else f"{figure.value:.1%}".replace("%", " %")


def _reach(figure: Figure) -> float:
    interval = figure.interval()
    return (
        0.0 if interval is None or figure.value is None else max(figure.value - interval[0], interval[1] - figure.value)
    )


def facts(comparison: Comparison, found: Measured, plan: dict[str, Any]) -> dict[str, Any]:
    """All of it as JSON: the figures with their intervals, and the commands."""
    return {
        "comparison": comparison.name,
        "title": comparison.title,
        **plan,
        "rows": [
            {
                "name": row.name,
                **({} if row.x is None else {"x": row.x, "series": row.series}),
                "figures": {
                    name: {"value": figure.value, "count": figure.count, "interval": figure.interval()}
                    for name, figure in figures.items()
                },
            }
            for row, figures in found
        ],
        "commands": {arm.name: [str(command) for command in arm.commands] for arm in comparison.arms},
    }


def plot(path: Path, comparison: Comparison, found: Measured) -> None:
    """Lines where the rows have an `x`, else bars; with the 95 % intervals. Drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    lines = all(row.x is not None for row, _ in found)
    sheet = Sheet(
        figsize=(8, 4.5 if lines else 1.5 + 0.22 * len(found) * len(comparison.plotted)), layout="constrained"
    )
    FigureCanvasAgg(sheet)
    axes = sheet.add_subplot()
    axes.set_title(comparison.title, fontsize="medium")
    (_lines if lines else _bars)(axes, comparison, found)
    axes.grid(alpha=0.3)
    sheet.legend(loc="outside lower center", ncols=3, fontsize="small")
    sheet.savefig(path, dpi=120, metadata={"Software": None})


def _lines(axes: Any, comparison: Comparison, found: Measured) -> None:
    series = list(dict.fromkeys(row.series for row, _ in found))
    drawn = [(name, column) for name in series for column in comparison.plotted]
    for colour, (name, column) in zip(itertools.cycle(_COLOURS), drawn, strict=False):
        points = [(row.x, figures[column]) for row, figures in found if row.series == name and column in figures]
        values, reach = _percents([figure for _, figure in points])
        label = ", ".join(part for part in (name, column if len(comparison.plotted) > 1 else "") if part)
        axes.errorbar([x for x, _ in points], values, yerr=reach, marker="o", capsize=3, color=colour, label=label)
    axes.set_xlabel(comparison.axis)
    axes.set_ylabel("per cent")
    axes.set_ylim(0, 100)


def _bars(axes: Any, comparison: Comparison, found: Measured) -> None:
    height = 0.8 / len(comparison.plotted)
    for number, column in enumerate(comparison.plotted):
        places = [place for place, (_, figures) in enumerate(found) if column in figures]
        values, reach = _percents([found[place][1][column] for place in places])
        down = [place - 0.4 + height * (number + 0.5) for place in places]
        axes.barh(down, values, height=height, xerr=reach, capsize=2, color=_COLOURS[number], label=column)
    axes.set_yticks(range(len(found)), [row.name for row, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("per cent")


def _percents(figures: Sequence[Figure]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach down and up."""
    values = [figure.value or 0.0 for figure in figures]
    ends = [figure.interval() or (value, value) for figure, value in zip(figures, values, strict=True)]
    down = [100 * max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    up = [100 * max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return [100 * value for value in values], [down, up]
