"""From a scene to a picture, with Pillow.

Each thing is a mask drawn several times too large in its own box, reduced, and pasted: edges are antialiased and the
cost is that of the boxes, not of the picture.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from minichat.scenes.world import Background, Scene, Thing

RGB = {
    "red": (220, 40, 40), "orange": (245, 140, 30), "yellow": (245, 222, 50), "green": (45, 160, 70),
    "blue": (45, 90, 215), "purple": (130, 55, 170), "pink": (250, 155, 200), "brown": (120, 72, 38),
    "black": (20, 20, 22), "white": (248, 248, 248), "gray": (140, 140, 140),
}  # fmt: skip
RING_HOLE = 0.55  # inner radius over outer radius


@dataclass(frozen=True)
class Style:
    """How a scene is drawn; what is true of the scene does not depend on it.

    `oversample`: edges are drawn this many times too large (1: hard edges). `blur`: radius in hundredths of the side.
    `jpeg`: quality, or None. `edge`: width of outlines over the thing's radius. `outline`: all, none, or (None) as the
    scene says. `jitter`: how far each colour may stray, in 1/255.
    """

    oversample: int = 3
    blur: float = 0.0
    jpeg: int | None = None
    edge: float = 0.16
    outline: bool | None = None
    jitter: int = 12

    @classmethod
    def random(cls, rng: random.Random) -> Style:
        """A style as a training set wants it: mostly clean, now and then rough."""
        return cls(
            oversample=rng.choice((1, 2, 3, 3, 4)),
            blur=rng.uniform(0.2, 0.9) if rng.random() < 0.25 else 0.0,
            jpeg=rng.randint(40, 95) if rng.random() < 0.25 else None,
            edge=rng.uniform(0.1, 0.22),
            jitter=rng.choice((4, 12, 18)),
        )


def draw(scene: Scene, size: int = 96, seed: int = 0, style: Style = Style()) -> Image.Image:
    """Draw `scene` as an RGB picture of `size` × `size` pixels. Equal arguments give equal pixels."""
    rng = random.Random(seed)
    picture = _background(scene.background, size, rng, style.jitter)
    for thing in scene.things:
        _paste(picture, thing, _shade(thing.colour, rng, style.jitter), style)
    if style.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(style.blur * size / 100))
    if style.jpeg is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=style.jpeg)
        picture = Image.open(buffer).convert("RGB")
    return picture


def _shade(colour: str, rng: random.Random, jitter: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + rng.randint(-jitter, jitter))) for channel in RGB[colour])
    return red, green, blue


def _background(background: Background, size: int, rng: random.Random, jitter: int) -> Image.Image:
    first = _shade(background.colours[0], rng, jitter)
    if background.kind == "plain":
        return Image.new("RGB", (size, size), first)
    if background.kind == "gradient":
        last = _shade(background.colours[1], rng, jitter)
        angle = rng.uniform(0, 2 * math.pi)
        ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        along = ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle)
        along = (along - along.min()) / (along.max() - along.min())  # (S, S) from 0 to 1 across the picture
        start, end = np.array(first, np.float32), np.array(last, np.float32)
        pixels = start + along[..., None] * (end - start)
        return Image.fromarray(pixels.astype(np.uint8), "RGB")
    noise = np.random.default_rng(rng.getrandbits(32))
    grain = max(1, round(size / 48))  # the grain is a share of the side: a large drawing looks like a small one
    cells = -(-size // grain)
    speckle = noise.normal(0, 26, (cells, cells, 1)) + noise.normal(0, 10, (cells, cells, 3))
    speckle = speckle.repeat(grain, 0).repeat(grain, 1)[:size, :size]
    return Image.fromarray(np.clip(np.array(first) + speckle, 0, 255).astype(np.uint8), "RGB")


def _paste(picture: Image.Image, thing: Thing, colour: tuple[int, int, int], style: Style) -> None:
    size = picture.width
    radius = thing.radius * size
    left, top = int(thing.x * size - radius) - 1, int(thing.y * size - radius) - 1
    box = int(2 * radius) + 4
    centre = thing.x * size - left, thing.y * size - top
    outline = thing.outline if style.outline is None else style.outline
    if outline:
        dark = sum(colour) < 150  # a black thing gets a light edge, every other one a darker shade of itself
        edge = tuple(channel + 90 if dark else int(channel * 0.5) for channel in colour)
        picture.paste(edge, (left, top), _mask(thing, box, centre, radius, 0.0, style.oversample))
    inset = style.edge if outline else 0.0
    picture.paste(colour, (left, top), _mask(thing, box, centre, radius, inset, style.oversample))


def _mask(
    thing: Thing, box: int, centre: tuple[float, float], radius: float, inset: float, oversample: int
) -> Image.Image:
    """The thing as an L picture of `box` pixels, shrunk from its edges by `inset` of the radius."""
    mask = Image.new("L", (box * oversample, box * oversample))
    pen = ImageDraw.Draw(mask)
    x, y = centre[0] * oversample, centre[1] * oversample
    reach = radius * oversample
    if thing.shape in ("circle", "ring"):
        _disc(pen, x, y, reach * (1 - inset), 255)
        if thing.shape == "ring":
            _disc(pen, x, y, reach * (RING_HOLE + inset * 0.5), 0)
    else:
        scale = reach * (1 - inset * (1.6 if thing.shape in ("star", "cross") else 1.3))
        turn = math.radians(thing.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        pen.polygon(
            [(x + scale * (a * cos - b * sin), y + scale * (a * sin + b * cos)) for a, b in POLYGONS[thing.shape]],
            fill=255,
        )
    return mask.reduce(oversample) if oversample > 1 else mask


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, value: int) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)


def _polar(radii: list[float], start: float = -90.0) -> list[tuple[float, float]]:
    step = 2 * math.pi / len(radii)
    first = math.radians(start)
    return [(r * math.cos(first + i * step), r * math.sin(first + i * step)) for i, r in enumerate(radii)]


def _heart(points: int = 28) -> list[tuple[float, float]]:
    """The usual heart curve, x = 16 sin³ t, y = 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t, fitted to the unit circle."""
    outline = []
    for index in range(points):
        t = 2 * math.pi * index / points
        a = 16 * math.sin(t) ** 3
        b = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 2.5
        outline.append((a / 18.1, b / 18.1))
    return outline


_ARM = 0.33  # half the width of a cross's arm
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": _polar([1.0] * 4, -45),
    "triangle": _polar([1.0] * 3),
    "star": _polar([1.0, 0.42] * 5),
    "diamond": [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    "cross": [
        (a * 0.95, b * 0.95)
        for a, b in (
            (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
            (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
        )
    ],
    "heart": _heart(),
}  # fmt: skip
