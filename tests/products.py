"""Drawn products of six kinds that nobody has heard of: a person's own pictures, with a list of what they show."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
_PAINTS = ("#d62828", "#f58220", "#fad22a", "#289646", "#285adc", "#823ca0", "#f596be", "#826428", "#191a1c", "#f5f5f2")
_GROUNDS = ("#f5f5f2", "#828287", "#fad22a", "#285adc", "#f596be", "#289646")
_FINER = 4  # drawn so much larger, for smooth edges


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _disc(x: float, y: float, radius: float) -> Points:
    return [(x + radius * math.cos(t / 20 * math.pi), y + radius * math.sin(t / 20 * math.pi)) for t in range(40)]


# Parts from back to front, each with its paint: 0 and 1 are drawn for each picture, 2 is the ground's.
KINDS: dict[str, list[tuple[Points, int]]] = {
    "zindle": [(_box(-0.5, -0.6, 0.4, 0.7), 0), (_disc(0.5, 0, 0.38), 0), (_disc(0.5, 0, 0.2), 2)],
    "blorp": [
        ([(-0.7, 0), (0.7, 0), (0.35, -0.8), (-0.35, -0.8)], 0),
        (_box(-0.08, 0, 0.08, 0.7), 1),
        (_box(-0.4, 0.7, 0.4, 0.85), 1),
    ],
    "quav": [(_box(-0.6, -0.9, -0.45, 0.9), 0), (_box(-0.6, 0, 0.6, 0.15), 0), (_box(0.45, 0, 0.6, 0.9), 0)],
    "fennick": [(_disc(-0.1, 0, 0.55), 0), ([(0.3, 0), (0.9, -0.5), (0.9, 0.5)], 0), (_disc(-0.35, -0.15, 0.09), 2)],
    "tromb": [
        (_box(-0.7, -0.1, 0.7, 0.8), 0),
        ([(-0.9, -0.1), (0.9, -0.1), (0, -0.9)], 1),
        (_box(-0.15, 0.3, 0.15, 0.8), 2),
    ],
    "snerk": [(_disc(0, -0.45, 0.42), 0), (_box(-0.45, 0, 0.45, 0.9), 1)],
}


def product(kind: str, rng: random.Random, side: int = 128) -> Image.Image:
    """One of a kind: somewhere near the middle, of some size, a little turned, in paints of its own."""
    ground = rng.choice(_GROUNDS)
    paints = [*rng.sample([paint for paint in _PAINTS if paint != ground], 2), ground]
    turn, scale = math.radians(rng.uniform(-12, 12)), side * _FINER * rng.uniform(0.24, 0.4)
    left, top = (side * _FINER * rng.uniform(0.4, 0.6) for _ in range(2))
    picture = Image.new("RGB", (side * _FINER, side * _FINER), ground)
    for points, paint in KINDS[kind]:
        place = [
            (
                left + scale * (x * math.cos(turn) - y * math.sin(turn)),
                top + scale * (x * math.sin(turn) + y * math.cos(turn)),
            )
            for x, y in points
        ]
        ImageDraw.Draw(picture).polygon(place, fill=paints[paint])
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def write_products(folder: Path, each: int, text: str = "{}", seed: int = 0, senseless: bool = False) -> Path:
    """A folder of `each` pictures of every kind, named by numbers, and a list of what they show.

    `senseless`: the texts are dealt out anew, so that they have nothing to do with the pictures.
    """
    rng = random.Random(f"products {seed}")
    folder.mkdir(parents=True)
    rows = []
    for kind in KINDS:
        for _ in range(each):
            name = f"{rng.getrandbits(40):010x}.png"
            product(kind, rng).save(folder / name)
            rows.append((name, text.format(kind)))
    rng.shuffle(rows)
    texts = [text for _, text in rows]
    if senseless:
        rng.shuffle(texts)
    with open(folder / "products.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *zip([name for name, _ in rows], texts, strict=True)])
    return folder
