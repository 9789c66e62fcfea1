"""Draw the figures of the documentation again: `python -m benchmarks.figures losses attention --road runs/tiny`.

Without names all are drawn. What a figure shows may not be there yet, such as a run: that is said, and the figure is
left as it was; the program then ends with 1 if it was asked for by its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import attention, losses, masks, patches, stages, world
from benchmarks.figures.paper import SHARP, Missing, write


@dataclass(frozen=True)
class Figure:
    """How one is drawn, from the folder of a road's runs, and kept: pixels to a page's pixel, and colours."""

    draw: Callable[[Path], Any]
    sharp: float = SHARP
    colours: int = 128


FIGURES = {
    "masks": Figure(lambda road: masks.draw(), colours=32),
    "stages": Figure(lambda road: stages.draw(), colours=16),
    "description": Figure(lambda road: world.draw_description(), colours=256),
    "worlds": Figure(lambda road: world.draw_worlds(), sharp=1.25, colours=256),
    "patches": Figure(patches.draw),
    "losses": Figure(losses.draw, colours=32),
    "attention": Figure(attention.draw, sharp=1.5, colours=256),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; all of them by default")
    parser.add_argument("--road", type=Path, default=Path("runs/tiny"), help="the folder of the road's runs")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in FIGURES]:
        parser.error(f"there is no figure {unknown[0]!r}; there are {', '.join(FIGURES)}.")
    missing = False
    for name in options.names or FIGURES:
        figure, file = FIGURES[name], options.out / f"{name}.png"
        try:
            write(figure.draw(options.road), file, sharp=figure.sharp, colours=figure.colours)
        except Missing as reason:
            print(f"{name} is not drawn: {reason}.")
            missing = missing or name in options.names
        else:
            print(f"{file}  {file.stat().st_size / 1000:.0f} kB")
    return int(missing)


if __name__ == "__main__":
    raise SystemExit(main())
