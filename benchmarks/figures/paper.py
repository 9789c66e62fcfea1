"""What all figures share: width, colours, and how a file of one is made small."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH = 8.5  # inches; a hundredth of one is a pixel of the page that shows the figure
SHARP = 2  # pixels of the file to a pixel of the page
INK, SOFT, FAINT = "#22303c", "#66737f", "#e9edf0"
TRAINED, FROZEN = "#f4a259", "#cfd8df"
QUERY, WORD = "#4a8fc4", "#f4a259"  # the two kinds that go through a Q-Former
SMALL, NORMAL, LARGE = 7.0, 8.0, 10.0  # points


class Missing(Exception):
    """A figure cannot be drawn, for what it shows is not there; the message says what."""


def sheet(height: float) -> Any:
    """An empty matplotlib `Figure`, `height` inches high. It needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def whole(figure: Any) -> Any:
    """Axes over all of a figure, without a frame, in inches from its upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    width, height = figure.get_size_inches()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def say(axes: Any, x: float, y: float, text: str, **look: Any) -> None:
    """A text whose middle line is at `y`; `look` as of matplotlib's `text`."""
    axes.text(x, y, text, **{"va": "center", "size": NORMAL, "color": INK, **look})


def picture(axes: Any, image: Image.Image, left: float, top: float, side: float) -> None:
    """A square picture on axes of `whole`."""
    axes.imshow(image, extent=(left, left + side, top + side, top), interpolation="antialiased", zorder=1)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim(), aspect="auto")


def write(figure: Any, path: Path, *, sharp: float = SHARP, colours: int = 128) -> None:
    """Put a figure into a PNG file of so many colours, a third of the bytes of one with all."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100 * sharp)
    page = Image.open(file).convert("RGB").quantize(colours, kmeans=1, dither=Image.Dither.NONE)
    palette = page.getpalette() or []
    lightest = max(range(0, len(palette), 3), key=lambda at: sum(palette[at : at + 3]))
    palette[lightest : lightest + 3] = 255, 255, 255  # paper is white, not nearly white
    page.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
