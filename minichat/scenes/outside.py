"""What is not of the drawn world: some kinds of such pictures, and what is said of them instead of inventing shapes.

`OUTSIDE` is what a model is taught to say; `says_outside` hears it in a reply. The kinds here are for teaching. Those
that `minichat.evaluate.outside` draws are others, lest a model be measured on what it has learnt by heart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from minichat.scenes.captions import DETAILED_REQUESTS, LIST_REQUESTS, SHORT_REQUESTS, plain_words
from minichat.scenes.stories import REQUESTS as STORY_REQUESTS

OUTSIDE = "This is not a picture of drawn shapes, so I cannot say what is in it."
_HEARD = ("not a picture of drawn shapes", "no picture of drawn shapes", "no drawn shapes")

_QUESTIONS = (
    "How many objects are there?", "How many objects do you see?", "What colour is the background?",
    "What is at the top left?", "What is in the centre?", "Is there a red star in the picture?", "Do you see a circle?",
    "What does the background look like?", "Count the objects.", "Is there anything at the bottom right?",
)  # fmt: skip
REQUESTS = (*LIST_REQUESTS, *SHORT_REQUESTS, *DETAILED_REQUESTS, *STORY_REQUESTS, *_QUESTIONS)


def says_outside(reply: str) -> bool:
    """Whether a reply says that the picture is not of the drawn world."""
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
