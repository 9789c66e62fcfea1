"""The synthetic world: a scene and its description at 32 places, and a sheet of the ways in which pictures look."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from PIL import Image

from benchmarks.figures.paper import FAINT, INK, LARGE, SMALL, SOFT, WIDTH, picture, say, sheet, whole
from minichat.toy import off_distribution
from minichat.toy.captions import CELLS, COLUMNS, NONE, ROWS, Bag, description
from minichat.toy.evaluate import DRAWINGS, MANNERS, held_out_scene
from minichat.toy.world import RGB, Scene, Style, draw

SHOWN = 1027  # the held-out scene of the figures: one of its six things is told in two cells


def draw_description() -> Any:
    """A scene with its cells, and the words of each of the 32 places."""
    scene, _ = held_out_scene(SHOWN)
    *cells, background, number = description(scene)
    side, top = 3.3, 0.5
    figure = sheet(top + side + 0.78)
    axes = whole(figure)
    picture(axes, draw(scene, 660, SHOWN), 0.1, top, side)
    _grid(axes, 0.1, top, side, side, "white", 0.9)
    for thing in scene.things:
        axes.plot([0.1 + thing.x * side], [top + thing.y * side], "+", color="white", markersize=9, markeredgewidth=2.6)
        axes.plot([0.1 + thing.x * side], [top + thing.y * side], "+", color=INK, markersize=8, markeredgewidth=1.2)
    left = 3.65
    width = WIDTH - left - 0.1
    for place in range(CELLS):
        _cell(
            axes,
            cells[place],
            left + place % COLUMNS * width / COLUMNS,
            top + place // COLUMNS * side / ROWS,
            width / COLUMNS,
            side / ROWS,
        )
    _grid(axes, left, top, width, side, SOFT, 0.5)
    say(axes, 0.1, 0.3, "the picture, 5 × 6 cells", size=LARGE, weight="bold")
    say(axes, left, 0.3, "what its 32 places hold", size=LARGE, weight="bold")
    _last(axes, left, top + side + 0.14, width, (background, number))
    told = "+  a thing's centre decides about its cell;\nnear to a border it is told on both sides."
    say(axes, 0.1, top + side + 0.3, told, color=SOFT)
    return figure


def _grid(axes: Any, left: float, top: float, width: float, height: float, colour: str, thick: float) -> None:
    for column in range(COLUMNS + 1):
        at = left + column * width / COLUMNS
        axes.plot([at, at], [top, top + height], color=colour, linewidth=thick, zorder=3)
    for row in range(ROWS + 1):
        at = top + row * height / ROWS
        axes.plot([left, left + width], [at, at], color=colour, linewidth=thick, zorder=3)


def _cell(axes: Any, bag: Bag, left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    middle = left + width / 2, top + height / 2
    if bag == (NONE,):
        say(axes, *middle, NONE, ha="center", size=SMALL, color="#b5bec6")
        return
    size, colour, shape, *place = bag
    axes.add_patch(Rectangle((left, top), width, height, facecolor=FAINT))
    axes.add_patch(Rectangle((left, top), 0.08, height, facecolor=_rgb(colour)))
    text = f"{size} {colour}\n{shape}\n{' '.join(place)}"
    say(axes, middle[0] + 0.04, middle[1], text, ha="center", size=SMALL, linespacing=1.25)


def _last(axes: Any, left: float, top: float, width: float, bags: tuple[Bag, ...]) -> None:
    """The two places behind the cells."""
    from matplotlib.patches import Rectangle

    edge = left
    for bag, share, name in zip(bags, (0.6, 0.4), ("background", "number"), strict=True):
        axes.add_patch(Rectangle((edge, top), share * width, 0.3, facecolor=FAINT, edgecolor=SOFT, linewidth=0.5))
        say(axes, edge + share * width / 2, top + 0.15, " ".join(bag), ha="center", size=SMALL)
        say(axes, edge + share * width / 2, top + 0.4, name, ha="center", size=SMALL, color=SOFT)
        edge += share * width


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in RGB[colour])


# The contact sheet.

_ACROSS = 9
Named = tuple[str, Image.Image]


def draw_worlds() -> Any:
    """Rows of pictures: what is learned from, and what is only measured with."""
    rows = [
        ("The synthetic world, as training draws it: sharp or soft, clean or rough", _trained()),
        ("One scene, in several drawings by the same program", _drawings()),
        ("That scene by another program: for measuring only", _redrawn()),
        ("Not of the synthetic world: kinds that training shows", _foreign(off_distribution.KINDS)),
        ("Not of the synthetic world: other kinds, for measuring only", _foreign(off_distribution.HELD_OUT_KINDS)),
    ]
    step = WIDTH / _ACROSS
    high = step + 0.46
    figure = sheet(high * len(rows))
    axes = whole(figure)
    for row, (title, shown) in enumerate(rows):
        top = row * high
        say(axes, 0.08, top + 0.17, title, size=LARGE, weight="bold")
        for number, (name, image) in enumerate(shown):
            left = number * step + 0.04
            picture(axes, image, left, top + 0.32, step - 0.08)
            middle = left + (step - 0.08) / 2
            say(axes, middle, top + 0.32 + step - 0.01, name, size=SMALL - 0.5, color=SOFT, ha="center")
    return figure


def _trained() -> list[Named]:
    """Scenes and styles at random, as `minichat.toy.dataset` has them."""
    shown = []
    for number in range(_ACROSS):
        rng = random.Random(f"shown {number}")
        scene, _ = held_out_scene(200 + number)
        style = Style.random(rng)
        shown.append((_manner(style), draw(scene, 96, rng.getrandbits(32), style)))
    return shown


def _manner(style: Style) -> str:
    """What can be seen of a style."""
    marks = (
        (style.blur > 0, "blurred"),
        (style.jpeg is not None, f"JPEG {style.jpeg}"),
        (style.oversample == 1, "jagged"),
    )
    return ", ".join(mark for is_so, mark in marks if is_so) or "clean"


def _scene() -> Scene:
    return held_out_scene(SHOWN)[0]


def _drawings() -> list[Named]:
    return [(name, way.draw(_scene(), SHOWN)) for name, way in list(DRAWINGS.items())[:_ACROSS]]


def _redrawn() -> list[Named]:
    named = ((name.removeprefix("another program").strip(" ,") or "plain", way) for name, way in MANNERS.items())
    return [(name, manner.draw(_scene(), SHOWN)) for name, manner in named]


def _foreign(kinds: Iterable[str]) -> list[Named]:
    return [(kind, off_distribution.Foreign(kind, 1).open()) for kind in kinds]
