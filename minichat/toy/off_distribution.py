"""Pictures that are not of the synthetic world: drawn for teaching, and others to measure whether a model says so."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from minichat.evaluate.metrics import Figure, Outcome, share
from minichat.evaluate.replies import Ask, Shown, Teller
from minichat.toy.captions import DETAILED_REQUESTS, LIST_REQUESTS, SHORT_REQUESTS, STORY_REQUESTS, plain_words
from minichat.toy.evaluate import Drawn, held_out_scene

# --- What is not of the synthetic world: some kinds of such pictures, and what is said of them instead of inventing
# shapes.
#
# `OUTSIDE` is what a model is taught to say; `says_outside` hears it in a reply. The kinds here are for teaching.
# Those that `minichat.toy.off_distribution` draws are others, lest a model be measured on what it has learned by heart.


OUTSIDE = "This is not a picture of drawn shapes, so I cannot say what is in it."
_HEARD = ("not a picture of drawn shapes", "no picture of drawn shapes", "no drawn shapes")

_QUESTIONS = (
    "How many objects are there?", "How many objects do you see?", "What colour is the background?",
    "What is at the top left?", "What is in the centre?", "Is there a red star in the picture?", "Do you see a circle?",
    "What does the background look like?", "Count the objects.", "Is there anything at the bottom right?",
)  # fmt: skip
REQUESTS = (*LIST_REQUESTS, *SHORT_REQUESTS, *DETAILED_REQUESTS, *STORY_REQUESTS, *_QUESTIONS)


def says_outside(reply: str) -> bool:
    """Whether a reply says that the picture is not of the synthetic world."""
    text = plain_words(reply)
    return any(phrase in text for phrase in _HEARD)


def outside_picture(rng: random.Random, size: int = 96, kind: str | None = None) -> Image.Image:
    """An RGB picture of `size` × `size` pixels that shows no drawn shapes; of a kind at random when None."""
    return KINDS[kind or rng.choice(tuple(KINDS))](rng, size)


# What the kinds are made of; shapes: S the side.


def colour(rng: random.Random, low: int = 0, high: int = 255) -> tuple[int, int, int]:
    """Any colour."""
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def unlike(rng: random.Random, count: int) -> list[tuple[int, int, int]]:
    """So many colours, each easily told from the one before."""
    chosen = [colour(rng)]
    while len(chosen) < count:
        other = colour(rng)
        if sum(abs(a - b) for a, b in zip(chosen[-1], other, strict=True)) > 150:
            chosen.append(other)
    return chosen


def picture(values: NDArray[np.float64]) -> Image.Image:
    """Values (S, S, 3) from 0 to 255 as a picture."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "RGB")


def clouds(rng: random.Random, size: int, slope: float, stretch: float = 1.0) -> NDArray[np.float64]:
    """Random values (S, S) from 0 to 1 whose spectrum falls with the frequency to the power of `slope`.

    1 to 2 looks like clouds and stone. `stretch`: above 1, drawn out sideways like grass or brushed metal.
    """
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((size, size))
    down, across = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size) * stretch, indexing="ij")
    frequency = np.maximum(np.hypot(down, across), 1 / size)
    smooth = np.fft.ifft2(np.fft.fft2(noise) / frequency**slope).real
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def mixed(values: NDArray[np.float64], colours: Sequence[tuple[int, int, int]]) -> NDArray[np.float64]:
    """Values (S, S) from 0 to 1 → colours (S, S, 3) along a ramp."""
    at = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, at, [c[channel] for c in colours]) for channel in range(3)], axis=-1)


def _static(rng: random.Random, size: int) -> Image.Image:
    """Every pixel, or block of pixels, by itself; grey or in colour."""
    grain = rng.choice((1, 2, 3))
    cells = -(-size // grain)
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(0, 255, (cells, cells, rng.choice((1, 3))))
    whole = noise.repeat(grain, 0).repeat(grain, 1)[:size, :size]
    return picture(np.broadcast_to(whole, (size, size, 3)).astype(np.float64))


def _clouds(rng: random.Random, size: int) -> Image.Image:
    ramp = unlike(rng, rng.randint(2, 4))
    return picture(mixed(clouds(rng, size, rng.uniform(0.9, 1.8)), ramp))


def _stripes(rng: random.Random, size: int) -> Image.Image:
    """Stripes in one direction or two, as of cloth."""
    ramp = np.arange(size) / size
    values = np.zeros((size, size, 3))
    for _ in range(rng.choice((1, 2))):
        angle, pitch = rng.uniform(0, math.pi), rng.uniform(5, 16)
        along = ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle)
        wave = np.sin(2 * math.pi * pitch * along + rng.uniform(0, 6)) / 2 + 0.5
        values += mixed(wave if rng.random() < 0.5 else np.rint(wave), unlike(rng, 2))
    values *= 255 / values.max()
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 14), (size, size, 1))
    return picture(values + grain)


def _page(rng: random.Random, size: int) -> Image.Image:
    """Lines of words on paper."""
    paper, ink = colour(rng, 215, 255), colour(rng, 0, 70)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    page = Image.new("RGB", (size, size), paper)
    pen = ImageDraw.Draw(page)
    height = rng.uniform(0.06, 0.13) * size
    font = ImageFont.load_default(height)
    top = rng.uniform(0.01, 0.08) * size
    while top < size:
        line = " ".join(_word(rng) for _ in range(rng.randint(2, 9)))
        pen.text((rng.choice((0.03, 0.05, 0.09)) * size, top), line, fill=ink, font=font)
        top += height * rng.uniform(1.15, 1.5)
    return page


def _word(rng: random.Random) -> str:
    letters = "".join(rng.choice("abcdefghijklmnoprstuvwyz") for _ in range(rng.randint(1, 9)))
    return letters.capitalize() if rng.random() < 0.15 else letters


def _landscape(rng: random.Random, size: int) -> Image.Image:
    """A sky, and ridges one before the other, each rougher and darker than the one behind it."""
    sky = [colour(rng, 120, 255), colour(rng, 150, 255)]
    rows = np.arange(size)[:, None] / size
    values = mixed(np.broadcast_to(rows, (size, size)), sky) + 40 * (clouds(rng, size, 1.6)[..., None] - 0.5)
    ridges = rng.randint(2, 4)
    for ridge in range(ridges):
        base = 0.35 + 0.6 * ridge / ridges
        edge = base + rng.uniform(0.1, 0.3) * (clouds(rng, size, 1.8)[0] - 0.5)
        ground = mixed(clouds(rng, size, 1.1), [colour(rng, 10, 120), colour(rng, 40, 170)])
        values = np.where((rows > edge[None, :])[..., None], ground, values)
    return picture(values).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8) * size / 96))


def _foliage(rng: random.Random, size: int) -> Image.Image:
    """A close view out of focus: blots of light and leaf over each other."""
    view = picture(mixed(clouds(rng, size, 1.5), [colour(rng, 0, 90), colour(rng, 30, 160), colour(rng, 90, 255)]))
    pen = ImageDraw.Draw(view, "RGBA")
    for _ in range(rng.randint(60, 140)):
        x, y = rng.uniform(0, size), rng.uniform(0, size)
        length, angle = rng.uniform(0.05, 0.2) * size, rng.uniform(0, 2 * math.pi)
        tip = x + length * math.cos(angle), y + length * math.sin(angle)
        width = rng.randint(1, max(2, size // 24))
        pen.line((x, y, *tip), fill=(*colour(rng, 10, 220), rng.randint(60, 200)), width=width)
    return view.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5) * size / 96))


KINDS: dict[str, Callable[[random.Random, int], Image.Image]] = {
    "static": _static, "clouds": _clouds, "stripes": _stripes, "page": _page, "landscape": _landscape,
    "foliage": _foliage,
}  # fmt: skip


# --- Pictures that are not of the synthetic world: does a model say so, and does it say so of synthetic scenes, too?
#
# The kinds drawn here are none of those that `minichat.toy.off_distribution` has for teaching; figures for both stand
# side by side. `OwnOutside` is for a folder of a user's own, photographs for one.


OUTSIDE_TOKENS = 48
_WORDS = (
    "the", "of", "and", "to", "in", "news", "city", "year", "says", "new", "plan", "after", "more", "from", "will",
    "over", "time", "people", "rain", "market",
)  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """A picture that is not of the synthetic world."""

    kind: str
    seed: int
    side: int = 96

    def open(self) -> Image.Image:
        draw = {**KINDS, **HELD_OUT_KINDS}[self.kind]
        return draw(random.Random(f"held out outside {self.kind} {self.seed}"), self.side)


def _salt(rng: random.Random, size: int) -> Image.Image:
    """Black and white grains on one colour, as of a bad line."""
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(0, 1, (size, size, 1))
    share_ = rng.uniform(0.15, 0.35)
    values = np.where(noise < share_, 0.0, np.where(noise > 1 - share_, 255.0, np.array(colour(rng), float)))
    return picture(values)


def _rows(rng: random.Random, size: int) -> Image.Image:
    """A torn television picture: rows that are shifted against each other."""
    noise = np.random.default_rng(rng.getrandbits(32))
    values = mixed(clouds(rng, size, 0.8, stretch=8), [colour(rng), colour(rng), colour(rng)])
    for row in range(size):
        values[row] = np.roll(values[row], int(noise.integers(-size // 6, size // 6)), axis=0)
    return picture(values + noise.normal(0, 25, (size, 1, 1)))


def _bricks(rng: random.Random, size: int) -> Image.Image:
    rows = rng.randint(7, 12)
    height, width = size / rows, size / rows * rng.uniform(1.8, 2.6)
    wall = Image.new("RGB", (size, size), colour(rng, 150, 220))
    pen = ImageDraw.Draw(wall)
    clay = rng.randint(110, 200), rng.randint(50, 110), rng.randint(30, 90)
    for row in range(rows + 1):
        for column in range(-1, int(size / width) + 2):
            left, top = (column + 0.5 * (row % 2)) * width, row * height
            shade = rng.uniform(0.75, 1.2)
            fill = tuple(min(255, int(channel * shade)) for channel in clay)
            pen.rectangle((left + 1, top + 1, left + width - 1, top + height - 1), fill=fill)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 12, (size, size, 1))
    return picture(np.asarray(wall, np.float64) + grain)


def _wood(rng: random.Random, size: int) -> Image.Image:
    """Rings cut along the grain."""
    warp = clouds(rng, size, 1.7, stretch=3)
    rings = np.sin(2 * math.pi * rng.uniform(4, 9) * (warp + np.arange(size)[:, None] / size)) / 2 + 0.5
    grain = clouds(rng, size, 0.6, stretch=0.1)
    dark = rng.randint(60, 110), rng.randint(35, 65), rng.randint(15, 40)
    light = tuple(min(255, channel + rng.randint(70, 110)) for channel in dark)
    return picture(mixed(0.8 * rings + 0.2 * grain, [dark, (light[0], light[1], light[2])]))


def _cells(rng: random.Random, size: int) -> Image.Image:
    """Leather, dry mud: the plane divided among random points (Voronoi), with dark borders."""
    noise = np.random.default_rng(rng.getrandbits(32))
    points = noise.uniform(0, size, (rng.randint(60, 120), 2))
    down, across = np.mgrid[0:size, 0:size]
    distance = np.hypot(down[..., None] - points[:, 0], across[..., None] - points[:, 1])
    nearest = np.sort(distance, axis=-1)
    shade = noise.uniform(0.6, 1.0, len(points))[distance.argmin(-1)]
    values = np.array(colour(rng, 60, 230), float) * shade[..., None]
    return picture(np.where((nearest[..., 1] - nearest[..., 0] < size / 48)[..., None], values * 0.3, values))


def _columns(rng: random.Random, size: int) -> Image.Image:
    """A newspaper: a headline, and columns of small print."""
    page = Image.new("RGB", (size, size), colour(rng, 205, 240))
    pen = ImageDraw.Draw(page)
    headline = " ".join(rng.sample(_WORDS, 3)).upper()
    pen.text((size * 0.03, size * 0.01), headline, fill=(15, 15, 15), font=ImageFont.load_default(size * 0.13))
    font, columns = ImageFont.load_default(size * 0.055), rng.choice((2, 3))
    for column in range(columns):
        edge = Image.new("L", (int(size / columns * 0.93), size), 0)
        ink = ImageDraw.Draw(edge)
        for line in range(15):
            ink.text((0, line * size * 0.062), " ".join(rng.choice(_WORDS) for _ in range(9)), fill=235, font=font)
        page.paste((25, 25, 30), (int((column / columns + 0.02) * size), int(size * 0.2)), edge)
    return page


def _handwriting(rng: random.Random, size: int) -> Image.Image:
    """Lines of loops on ruled paper."""
    page = Image.new("RGB", (size, size), colour(rng, 225, 255))
    pen = ImageDraw.Draw(page)
    ink, lines = colour(rng, 0, 90), rng.randint(4, 7)
    for line in range(lines):
        base = (line + 0.6) * size / lines
        pen.line((0, base, size, base), fill=(190, 205, 230))
        x, phase, reach = rng.uniform(2, 8), 0.0, size / lines * 0.3
        last = (x, base)
        while x < size * rng.uniform(0.8, 1.0):
            phase += rng.uniform(0.4, 0.9)
            x += size * 0.009 + 0.6 * math.cos(phase)
            at = x, base - reach * (0.5 + 0.5 * math.sin(phase)) * rng.uniform(0.5, 1.2)
            if rng.random() < 0.95:
                pen.line((*last, *at), fill=ink, width=max(1, size // 90))
            last = at
    return page


def _night(rng: random.Random, size: int) -> Image.Image:
    """A town by night: dark blocks with lit windows, out of focus."""
    view = picture(mixed(np.broadcast_to(np.arange(size)[:, None] / size, (size, size)),
                         [colour(rng, 0, 40), colour(rng, 20, 80)]))  # fmt: skip
    pen = ImageDraw.Draw(view)
    left = 0.0
    while left < size:
        width, top = rng.uniform(0.08, 0.2) * size, rng.uniform(0.2, 0.75) * size
        pen.rectangle((left, top, left + width, size), fill=colour(rng, 5, 35))
        for _ in range(rng.randint(4, 25)):
            x, y = rng.uniform(left + 1, left + width - 2), rng.uniform(top + 1, size)
            pen.rectangle((x, y, x + size / 80, y + size / 60), fill=(rng.randint(180, 255), rng.randint(150, 230), 90))
        left += width
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 8, (size, size, 3))
    return picture(np.asarray(view.filter(ImageFilter.GaussianBlur(0.5 * size / 96)), np.float64) + noise)


def _forest(rng: random.Random, size: int) -> Image.Image:
    """Trunks before a bright mist, grass below."""
    values = mixed(clouds(rng, size, 1.3), [colour(rng, 90, 180), colour(rng, 150, 245)])
    columns = np.arange(size)
    for _ in range(rng.randint(6, 14)):
        at, width = rng.uniform(0, size), rng.uniform(0.015, 0.06) * size
        bend = at + size * 0.05 * (clouds(rng, size, 1.9)[0] - 0.5)
        trunk = np.abs(columns[None, :] - bend[:, None]) < width
        bark = mixed(clouds(rng, size, 0.9, stretch=0.15), [colour(rng, 5, 60), colour(rng, 40, 110)])
        values = np.where(trunk[..., None], bark, values)
    grass = mixed(clouds(rng, size, 0.7, stretch=3), [(20, 45, 15), (90, 140, 60)])
    ground = np.arange(size)[:, None] / size > rng.uniform(0.65, 0.85)
    return picture(np.where(ground[..., None], grass, values))


HELD_OUT_KINDS: dict[str, Callable[[random.Random, int], Image.Image]] = {
    "salt and pepper": _salt, "torn rows": _rows, "bricks": _bricks, "wood": _wood, "cells": _cells,
    "newspaper": _columns, "handwriting": _handwriting, "town by night": _night, "forest": _forest,
}  # fmt: skip


@dataclass(frozen=True)
class SceneOutside:
    """As many foreign pictures as scenes, `count` of each, and the same requests about both."""

    count: int
    seed: int = 0
    asked: tuple[tuple[str, Shown, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"held out outside {self.seed}")
        kinds = [*KINDS, *HELD_OUT_KINDS]
        asked: list[tuple[str, Shown, str]] = []
        for index in range(self.count):
            kind, request = kinds[index % len(kinds)], rng.choice(REQUESTS)
            asked.append((kind, Foreign(kind, index), request))
            asked.append(("", Drawn(held_out_scene(index, self.seed)[0], index), request))
        object.__setattr__(self, "asked", tuple(asked))

    def content(self) -> Iterator[str]:
        for kind, shown, request in self.asked:
            yield json.dumps([kind, shown.scene.to_dict() if isinstance(shown, Drawn) else str(shown), request])

    def take(self, teller: Teller) -> Outcome:
        replies = teller.replies([Ask(request, (shown,)) for _, shown, request in self.asked], OUTSIDE_TOKENS)
        records = [
            {"kind": kind or "scene", "request": request, "reply": reply.text, "recognised": says_outside(reply.text)}
            for (kind, _, request), reply in zip(self.asked, replies, strict=True)
        ]
        foreign = [r for r in records if r["kind"] != "scene"]
        figures: dict[str, Figure] = {
            "recognised": _heard(foreign),
            "false alarms": _heard([r for r in records if r["kind"] == "scene"]),
            "recognised, of kinds for teaching": _heard([r for r in foreign if r["kind"] in KINDS]),
            "recognised, of other kinds": _heard([r for r in foreign if r["kind"] in HELD_OUT_KINDS]),
        }
        for kind in dict.fromkeys(str(r["kind"]) for r in foreign):
            figures[f"recognised: {kind}"] = _heard([r for r in foreign if r["kind"] == kind])
        return Outcome(figures, records)


@dataclass(frozen=True)
class OwnOutside:
    """A user's pictures, none of which is of the synthetic world, each shown with every request; `name` for the record.

    A picture counts once, as the share of requests at which it is recognised: its replies are mostly alike.
    """

    pictures: tuple[tuple[str, Shown], ...]

    def content(self) -> Iterator[str]:
        yield from (name for name, _ in self.pictures)
        yield from REQUESTS

    def take(self, teller: Teller) -> Outcome:
        asks = [Ask(request, (shown,)) for _, shown in self.pictures for request in REQUESTS]
        replies = teller.replies(asks, OUTSIDE_TOKENS)
        names = [name for name, _ in self.pictures for _ in REQUESTS]
        records = [
            {"picture": name, "request": ask.text, "reply": reply.text, "recognised": says_outside(reply.text)}
            for name, ask, reply in zip(names, asks, replies, strict=True)
        ]
        each = [records[start : start + len(REQUESTS)] for start in range(0, len(records), len(REQUESTS))]
        return Outcome({"recognised": share(_heard(of_one).value or 0.0 for of_one in each)}, records)


def _heard(records: Sequence[dict[str, Any]]) -> Figure:
    return share(bool(record["recognised"]) for record in records)
