"""Scenes drawn by another program, in the same vocabulary.

What a model sees of a scene must not hang on how the generator it learnt from puts pixels. This drawer shares nothing
with `minichat.scenes.draw`: it asks of each point of a picture, several to a pixel, what lies there (signed distances,
as in ray tracing), has palettes, proportions, outlines, noise and textures of its own, and looks at the scene from
slightly aside where it is told to.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from minichat.scenes.world import Background, Scene, Thing

Grid = NDArray[np.float64]  # a value for each sample point, (K, K)

# Two ways to understand the colour words: as web pages name them, and as poster paints.
PALETTES = (
    {
        "red": "#e60000", "orange": "#ff8c00", "yellow": "#ffe600", "green": "#008a1c", "blue": "#0a3cff",
        "purple": "#800080", "pink": "#ffa6c9", "brown": "#8b4513", "black": "#000000", "white": "#ffffff",
        "gray": "#808080",
    },
    {
        "red": "#d32f2f", "orange": "#f57c00", "yellow": "#fbd84a", "green": "#43a047", "blue": "#1e63d0",
        "purple": "#7b2fa0", "pink": "#f48fb1", "brown": "#6d4428", "black": "#1c1c1e", "white": "#f4f4f2",
        "gray": "#8e8e90",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Manner:
    """How a scene is drawn.

    `outline`: width over the thing's radius. `texture`: strength of hatching and grain on the things, in 1/255.
    `light`: how much brighter one side of the picture is than the other. `tilt`: how far the corners are moved by the
    point of view, as a fraction of the side. `blur`: radius in hundredths of the side.
    """

    side: int = 128
    outline: float = 0.0
    texture: float = 0.0
    light: float = 0.0
    tilt: float = 0.0
    blur: float = 0.0
    jpeg: int | None = None

    def draw(self, scene: Scene, seed: int) -> Image.Image:
        return redraw(scene, self, seed)


MANNERS = {
    "another program": Manner(),
    "another program, outlined": Manner(outline=0.14),
    "another program, textured": Manner(texture=16),
    "another program, uneven light": Manner(light=0.16),
    "another program, from aside": Manner(tilt=0.06),
    "another program, blurred": Manner(blur=0.8),
    "another program, JPEG": Manner(side=200, jpeg=35),
    "another program, all of these": Manner(160, 0.1, 12, 0.1, 0.05, 0.4, 50),
}
STRAY = 8  # a paint is mixed this far from its code, in 1/255
SAMPLES = 3  # points across a pixel
SHIFT = 0.03  # the point of view moves no thing further: places and directions that are sure stay true


def redraw(scene: Scene, manner: Manner = Manner(), seed: int = 0) -> Image.Image:
    """Draw `scene` as an RGB picture. Equal arguments give equal pixels."""
    rng = random.Random(f"another program {seed}")
    noise = np.random.default_rng(rng.getrandbits(32))
    paints = PALETTES[rng.randrange(len(PALETTES))]
    palette = {word: _rgb(code) + [rng.uniform(-STRAY, STRAY) for _ in range(3)] for word, code in paints.items()}
    x, y = _points(scene, manner, rng)
    canvas = _background(scene.background, palette, x, y, rng, noise)
    for thing in scene.things:
        _put(canvas, thing, palette[thing.colour], manner, x, y, rng)
    if manner.light:
        angle = rng.uniform(0, 2 * math.pi)
        slope = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
        canvas *= (1 + manner.light * slope)[..., None]
    side = manner.side
    pixels = canvas.reshape(side, SAMPLES, side, SAMPLES, 3).mean((1, 3))  # (S, S, 3)
    picture = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), "RGB")
    if manner.blur:
        picture = picture.filter(ImageFilter.BoxBlur(manner.blur * side / 100))
    if manner.jpeg is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=manner.jpeg)
        picture = Image.open(buffer).convert("RGB")
    return picture


def _rgb(code: str) -> NDArray[np.float64]:
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.float64)


def _points(scene: Scene, manner: Manner, rng: random.Random) -> tuple[Grid, Grid]:
    """For each sample point of the picture the place in the scene that is seen there."""
    count = manner.side * SAMPLES
    steps = (np.arange(count) + 0.5) / count
    x, y = np.meshgrid(steps, steps)
    tilt = manner.tilt
    while tilt > 0.005:
        view = _homography([(rng.uniform(-tilt, tilt), rng.uniform(-tilt, tilt)) for _ in range(4)])
        moved = [view(np.array(t.x), np.array(t.y)) for t in scene.things]
        shifts = [max(abs(a - t.x), abs(b - t.y)) for (a, b), t in zip(moved, scene.things, strict=True)]
        if max(shifts) <= SHIFT:
            return view(x, y)
        tilt *= 0.9
    return x, y


def _homography(shifts: list[tuple[float, float]]) -> Callable[[Grid, Grid], tuple[Grid, Grid]]:
    """The projective map that moves the unit square's corners by `shifts` (Hartley and Zisserman, section 4.1)."""
    rows, wanted = [], []
    for (u, v), (a, b) in zip(((0, 0), (1, 0), (1, 1), (0, 1)), shifts, strict=True):
        s, t = u + a, v + b
        rows += [[u, v, 1, 0, 0, 0, -u * s, -v * s], [0, 0, 0, u, v, 1, -u * t, -v * t]]
        wanted += [s, t]
    h = np.linalg.solve(np.array(rows, np.float64), np.array(wanted, np.float64))

    def view(x: Grid, y: Grid) -> tuple[Grid, Grid]:
        depth = h[6] * x + h[7] * y + 1
        return (h[0] * x + h[1] * y + h[2]) / depth, (h[3] * x + h[4] * y + h[5]) / depth

    return view


def _background(
    background: Background,
    palette: dict[str, NDArray[np.float64]],
    x: Grid,
    y: Grid,
    rng: random.Random,
    noise: np.random.Generator,
) -> Grid:
    """The colour (K, K, 3) of every point."""
    first = palette[background.colours[0]]
    canvas = np.broadcast_to(first, (*x.shape, 3)).copy()
    if background.kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
        reach = (abs(math.cos(angle)) + abs(math.sin(angle))) / 2
        share = np.clip(along / (2 * reach) + 0.5, 0, 1)[..., None]
        canvas += share * (palette[background.colours[1]] - first)
    if background.kind == "noisy":
        cells = rng.choice((64, 96))
        column, row = ((np.clip(v, 0, 0.9999) * cells).astype(int) for v in (x, y))
        specks = noise.uniform(-1, 1, (cells, cells, 1)) * 42 + noise.uniform(-1, 1, (cells, cells, 3)) * 14
        canvas += specks[row, column]
    return canvas


def _put(
    canvas: Grid, thing: Thing, colour: NDArray[np.float64], manner: Manner, x: Grid, y: Grid, rng: random.Random
) -> None:
    """Colour the points that the thing covers."""
    turn = math.radians(thing.angle)
    near = np.hypot(x - thing.x, y - thing.y) < 1.02 * thing.radius
    dx, dy = (x[near] - thing.x) / thing.radius, (y[near] - thing.y) / thing.radius
    u = dx * math.cos(turn) + dy * math.sin(turn)
    v = dy * math.cos(turn) - dx * math.sin(turn)
    inside = DISTANCES[thing.shape](u, v)  # negative inside, in radii
    points = canvas[near]
    shade = np.zeros_like(u)
    if manner.texture:
        pitch, slant = rng.uniform(9, 16), rng.uniform(0, math.pi)
        shade = manner.texture * np.sin(pitch * (u * math.cos(slant) + v * math.sin(slant)))
    points[inside < 0] = (colour + shade[:, None])[inside < 0]
    if manner.outline:
        ink = np.array([235.0] * 3) if colour.sum() < 180 else np.zeros(3)
        points[(inside < 0) & (inside > -manner.outline)] = ink
    canvas[near] = points


def _polygon(corners: list[tuple[float, float]]) -> Callable[[Grid, Grid], Grid]:
    """Signed distance to a polygon: to its nearest edge, negative where a ray to the right crosses it an odd number of
    times."""

    def distance(u: Grid, v: Grid) -> Grid:
        nearest, within = np.full_like(u, np.inf), np.zeros(u.shape, bool)
        for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True):
            along = np.clip(((u - a) * (c - a) + (v - b) * (d - b)) / ((c - a) ** 2 + (d - b) ** 2), 0, 1)
            nearest = np.minimum(nearest, np.hypot(u - a - along * (c - a), v - b - along * (d - b)))
            if b != d:
                within ^= ((b > v) != (d > v)) & (u < a + (v - b) * (c - a) / (d - b))
        return np.where(within, -nearest, nearest)

    return distance


def _round(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners at even angles, the first at the top, `radii` taken in turn."""
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart(u: Grid, v: Grid) -> Grid:
    """Two discs and the wedge below them."""
    lobes = np.hypot(np.abs(u) - 0.44, v + 0.33) - 0.47
    return np.minimum(lobes, _polygon([(-0.86, -0.13), (0.0, -0.5), (0.86, -0.13), (0.0, 0.97)])(u, v))


def _cross(u: Grid, v: Grid) -> Grid:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.28, b - 0.95), np.maximum(b - 0.28, a - 0.95))


DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.98,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.23,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.7,
    "diamond": _polygon([(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]),
    "triangle": _polygon(_round(3, (1.0,))),
    "star": _polygon(_round(10, (1.0, 0.45))),
    "cross": _cross,
    "heart": _heart,
}
