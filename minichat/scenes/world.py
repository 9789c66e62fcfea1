"""The drawn world: what a scene is made of, and a seeded sampler of scenes.

Coordinates are fractions of the picture's side: x to the right, y downwards, so a scene can be drawn at any size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "gradient", "noisy")

# Radii of the bounding circle. A small thing is at least a seventh of the side across; no size lies in between.
RADII = {"small": (0.075, 0.1), "large": (0.14, 0.2)}
MAX_THINGS = 6
GAP = 0.02  # free space between two bounding circles, and between a circle and the edge

# A square on its corner would be a diamond and a cross on its arms an X: these turn a little, the others freely.
TURNS = {"square": 15, "diamond": 12, "triangle": 25, "heart": 20, "cross": 20, "star": 36, "circle": 0, "ring": 0}


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y`: centre; `radius`: of the bounding circle; `angle`: degrees; `outline`: has a drawn edge."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    outline: bool = False


@dataclass(frozen=True)
class Background:
    """`plain` and `noisy` have one colour, `gradient` runs from its first to its second."""

    kind: str
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Things on a background. No two things overlap, and none has a colour of the background."""

    things: tuple[Thing, ...]
    background: Background

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form that `from_dict` reads back equal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Scene:
        background = Background(record["background"]["kind"], tuple(record["background"]["colours"]))
        return cls(tuple(Thing(**thing) for thing in record["things"]), background)


def random_scene(
    rng: random.Random,
    *,
    things: int | None = None,
    sizes: Sequence[str] = SIZES,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> Scene:
    """Draw a scene at random.

    Args:
        rng: the source of all randomness; equal states give equal scenes.
        things: number of objects, 1 to 6; at random when None.
        sizes: the sizes to choose from.
        backgrounds: the kinds of background to choose from.
    """
    background = _random_background(rng, backgrounds)
    free = [colour for colour in COLOURS if colour not in background.colours]
    count = rng.randint(1, MAX_THINGS) if things is None else things
    kinds = _random_kinds(rng, count, free)
    chosen = [rng.choice(sizes) for _ in kinds]
    while True:
        circles = _place(rng, chosen)
        if circles is not None:
            break
        if "small" in sizes:  # too crowded: one large thing becomes small
            chosen[chosen.index("large")] = "small"
    placed = [
        Thing(shape, colour, size, x, y, radius, rng.uniform(-TURNS[shape], TURNS[shape]), rng.random() < 0.35)
        for (shape, colour), size, (x, y, radius) in zip(kinds, chosen, circles, strict=True)
    ]
    return Scene(tuple(placed), background)


def _random_background(rng: random.Random, kinds: Sequence[str]) -> Background:
    kind = rng.choice(kinds)
    return Background(kind, tuple(rng.sample(COLOURS, 2 if kind == "gradient" else 1)))


def _random_kinds(rng: random.Random, count: int, colours: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of shape and colour. A third of the later ones repeat an earlier shape, colour, or both, so that there is
    something to count and to tell apart."""
    kinds: list[tuple[str, str]] = []
    for _ in range(count):
        shape, colour = rng.choice(SHAPES), rng.choice(colours)
        if kinds and rng.random() < 0.34:
            old_shape, old_colour = rng.choice(kinds)
            shape, colour = rng.choice([(old_shape, colour), (shape, old_colour), (old_shape, old_colour)])
        kinds.append((shape, colour))
    return kinds


def _place(rng: random.Random, sizes: Sequence[str]) -> list[tuple[float, float, float]] | None:
    """Circles (x, y, radius) that keep their distance, in the order of `sizes`; None when they do not fit."""
    radii = [rng.uniform(*RADII[size]) for size in sizes]
    circles: dict[int, tuple[float, float, float]] = {}
    for index in sorted(range(len(radii)), key=lambda i: -radii[i]):  # the largest first, while there is room
        radius = radii[index]
        for _ in range(60):
            x, y = (rng.uniform(radius + GAP, 1 - radius - GAP) for _ in range(2))
            if all(math.hypot(x - a, y - b) >= radius + r + GAP for a, b, r in circles.values()):
                circles[index] = (x, y, radius)
                break
        else:
            return None
    return [circles[index] for index in range(len(radii))]
