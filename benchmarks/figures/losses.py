"""The losses of the road's runs, step by step, from the `metrics.jsonl` that each run leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures.paper import INK, LARGE, NORMAL, QUERY, SMALL, SOFT, TRAINED, Missing, sheet
from benchmarks.figures.stages import ROAD
from minichat.train.checkpoint import METRICS
from minichat.train.config import Config, read_config

STAGES = tuple(sorted(file.stem for file in ROAD.glob("*.yaml")))
_COUNTED = {
    "vision": "per picture",
    "language": "per token",
    "qformer": "per pair",
    "word_alignment": "per picture",
    "finetune": "per token",
}
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20)
_FEWER = (0.01, 0.1, 1, 10, 100)  # where the others would stand too close
_COLUMNS = 4
LAST = 50  # steps whose mean is written into a panel


@dataclass(frozen=True)
class Curve:
    """A run's losses at its steps, and what it was told, if that is there, too."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    config: Config | None = None


def read(road: Path) -> list[Curve]:
    """The runs in the folder `road` that have begun. A stage that has not is left out, which is said on stdout.

    A last line that is being written is left out, too: a run may be going on.
    """
    curves = []
    for name in STAGES:
        file = road / name / METRICS
        written = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if file.is_file() else []
        lines = [line for line in map(json.loads, written) if "loss" in line]
        if not lines:
            print(f"losses: {name} is left out, for there is no step in {file}")
            continue
        told = road / name / "config.yaml"
        steps, losses = (int(line["step"]) for line in lines), (line["loss"] for line in lines)
        curves.append(Curve(name, tuple(steps), tuple(losses), read_config(told) if told.is_file() else None))
    return curves


def smooth(losses: tuple[float, ...], reach: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each step the mean of it and of `reach` before and after it, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    at = np.arange(len(losses))
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(losses))
    return np.asarray((sums[last] - sums[first]) / (last - first))


def draw(road: Path) -> Any:
    """A panel for each stage. Raises `Missing` where no stage has begun."""
    curves = read(road)
    if not curves:
        raise Missing(f"no run of the road has a metrics.jsonl in {road}")
    rows = -(-len(curves) // _COLUMNS)
    figure = sheet(0.6 + 1.95 * rows)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.08)
    for number, curve in enumerate(curves):
        _panel(figure.add_subplot(rows, min(_COLUMNS, len(curves)), number + 1), curve)
    _legend(figure)
    return figure


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=QUERY, alpha=0.35, linewidth=0.8, label="the loss of each step"),
        Line2D([], [], color=QUERY, linewidth=1.6, label="their running mean"),
        Line2D(
            [],
            [],
            color=TRAINED,
            linewidth=1,
            linestyle=(0, (3, 2)),
            label="before it three things at most, then all scenes",
        ),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=NORMAL, frameon=False, labelcolor=INK)


def _panel(axes: Any, curve: Curve) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    steps, losses = np.array(curve.steps), np.array(curve.losses)
    mean = smooth(curve.losses, max(8, len(losses) // 60))
    axes.plot(steps, losses, color=QUERY, alpha=0.22, linewidth=0.5, rasterized=True)
    axes.plot(steps, mean, color=QUERY, linewidth=1.6)
    axes.set_yscale("log")
    low, high = np.percentile(losses, 0.5) * 0.85, losses.max() * 1.15
    axes.set_ylim(low, high)
    ticks = _FEWER if high > 200 * low else _TICKS
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(labelsize=SMALL, colors=SOFT, length=2)
    axes.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(curve.name.replace("_", " "), size=LARGE, weight="bold", color=INK, loc="left")
    reached = f"{'so far' if _going(curve) else 'at the end'} {losses[-LAST:].mean():.2f}"
    axes.text(0.97, 0.95, reached, transform=axes.transAxes, ha="right", va="top", size=NORMAL, color=INK)
    if curve.config is None:
        axes.set_xlabel("step", size=SMALL, color=SOFT)
        return
    easy, batch = _easy(curve.config), curve.config.run.batch_size
    if easy and easy / batch < steps[-1]:
        axes.axvline(easy / batch, color=TRAINED, linewidth=1, linestyle=(0, (3, 2)))
    axes.set_xlabel(f"step of {curve.config.run.max_steps:,}, {batch} at once", size=SMALL, color=SOFT)
    axes.set_ylabel(_COUNTED[curve.config.stage], size=SMALL, color=SOFT)


def _going(curve: Curve) -> bool:
    """Whether the run has not come to its last step."""
    return curve.config is not None and curve.steps[-1] < (curve.config.run.max_steps or 0)


def _easy(config: Config) -> int:
    """So many examples at the beginning show three things at most."""
    return max((int(source.options.get("easy", 0)) for source in config.data.train), default=0)
