"""The synthetic world: what a scene is made of, a picture of it, and what is plainly true of it."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# --- The synthetic world: what a scene is made of, and a seeded sampler of scenes.
#
# Coordinates are fractions of the picture's side: x to the right, y downwards, so a scene can be drawn at any size.


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


# --- From a scene to a picture, with Pillow.
#
# Each thing is a mask drawn several times too large in its own box, reduced, and pasted: edges are antialiased and the
# cost is that of the boxes, not of the picture.


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


# --- What is plainly true of a scene: how many things answer a description, where they are, how two of them lie.
#
# Everything that is said about a scene goes through here, so that captions, questions and dialogues agree. What a
# person could dispute (a thing near the border between two places, two things almost level) is left unsaid: the tests
# of place and direction answer None there.


Name = tuple[str | None, str | None, str | None]  # (size, colour, shape); None: any

THIRDS = (0.36, 0.64)  # borders between left, centre and right, and between top, centre and bottom
BORDER = 0.04  # a centre nearer than this to a border of places is nowhere for sure
HALVES = (0.46, 0.54)  # surely in the left half; surely in the right half
MARGIN = 0.12  # two centres this far apart along an axis are clearly one beside the other
LINES = 6  # in which a picture is read

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
DIRECTIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def plural_shape(noun: str) -> str:
    """The plural of a shape or a general noun of this world."""
    return noun + "es" if noun.endswith("s") else noun + "s"


@lru_cache(maxsize=4096)
def words(name: Name, noun: str = "object") -> str:
    """`(None, "red", "star")` as "red star"; without a shape, `noun` stands in."""
    size, colour, shape = name
    return " ".join(word for word in (size, colour, shape or noun) if word)


@lru_cache(maxsize=4096)
def some(name: Name, number: int = 1, noun: str = "object") -> str:
    """With its article or number: "a red star", "an orange ring", "no red star", "three red stars"."""
    text = words(name, noun)
    if number == 0:
        return "no " + text
    if number > 1:
        return f"{NUMBERS[number]} {plural_shape(text)}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def named(thing: Thing) -> Name:
    """The thing's colour and shape."""
    return (None, thing.colour, thing.shape)


def listed(things: Iterable[Thing]) -> str:
    """Each thing in its turn, equal neighbours together: "a red star, two blue circles and a red star".

    To name all equal things with the first of them, one would have to count ahead.
    """
    return join([some(name, len(list(equal))) for name, equal in groupby(things, named)])


def full(thing: Thing) -> Name:
    """The thing's size, colour and shape."""
    return (thing.size, thing.colour, thing.shape)


def join(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def at(place: str) -> str:
    """The place with its preposition: "at the top left", "on the right", "in the centre"."""
    return {"left": "on the left", "right": "on the right", "centre": "in the centre"}.get(place, "at the " + place)


def toward(direction: str) -> str:
    """ "left" as "left of"; "above" as it is."""
    return direction + " of" if direction in ("left", "right") else direction


def place(thing: Thing) -> str:
    """The nearest of the nine places."""
    return _place_name(_third(thing.x), _third(thing.y))


def sure_place(thing: Thing) -> str | None:
    """The thing's place, or None when its centre is too near to a border between places."""
    if any(abs(value - border) < BORDER for value in (thing.x, thing.y) for border in THIRDS):
        return None
    return place(thing)


def possible_places(thing: Thing) -> set[str]:
    """Every place that a person might name for the thing."""
    columns = {_third(thing.x - BORDER), _third(thing.x + BORDER)}
    rows = {_third(thing.y - BORDER), _third(thing.y + BORDER)}
    return {_place_name(column, row) for column in columns for row in rows}


def _third(value: float) -> int:
    return 0 if value < THIRDS[0] else 1 if value < THIRDS[1] else 2


def _place_name(column: int, row: int) -> str:
    return PLACES[row * 3 + column]


def half(thing: Thing, side: str) -> bool | None:
    """Whether the thing is in the "left", "right", "top" or "bottom" half; None near the middle."""
    value = thing.x if side in ("left", "right") else thing.y
    if value < HALVES[0]:
        return side in ("left", "top")
    if value > HALVES[1]:
        return side in ("right", "bottom")
    return None


def offset(thing: Thing, other: Thing, direction: str) -> float:
    """How far `thing` lies in `direction` of `other`, as a fraction of the side; negative on the other side."""
    if direction in ("left", "right"):
        step = thing.x - other.x
        return step if direction == "right" else -step
    step = thing.y - other.y
    return step if direction == "below" else -step


def beside(thing: Thing, other: Thing, direction: str) -> bool | None:
    """Whether `thing` is clearly in `direction` of `other` (True), clearly on the other side (False), or neither."""
    step = offset(thing, other, direction)
    return True if step >= MARGIN else False if step <= -MARGIN else None


def reading_order(things: Iterable[Thing]) -> list[Thing]:
    """Line by line from the top, left to right in each of `LINES`: the order in which captions name things.

    It is the order in which a picture's image tokens tell them (`minichat.toy.captions`), so what is to be named
    next can be looked up. By the three rows of places, things of two lines would have to be sorted first.
    """
    return sorted(things, key=lambda thing: (int(thing.y * LINES), thing.x))


def background_colours(background: Background) -> tuple[str, ...]:
    """The background's colours in the fixed order of the world: which way a gradient runs is left to the drawing."""
    return tuple(sorted(background.colours, key=COLOURS.index))


def background_words(background: Background) -> str:
    """ "plain white", "noisy gray", "a gradient from red to blue"."""
    colours = background_colours(background)
    if background.kind == "gradient":
        return f"a gradient from {colours[0]} to {colours[1]}"
    return f"{background.kind} {colours[0]}"


class Look:
    """A scene with what is asked of it again and again counted once.

    `things` are in reading order; `count[name]` is how many things answer a name, for every name of at least one thing.
    """

    __slots__ = ("scene", "things", "count")

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.things = reading_order(scene.things)
        count: dict[Name, int] = {}
        for thing in self.things:
            for size in (None, thing.size):
                for colour in (None, thing.colour):
                    for shape in (None, thing.shape):
                        name = (size, colour, shape)
                        count[name] = count.get(name, 0) + 1
        self.count = count

    def number(self, name: Name) -> int:
        """How many things answer `name`."""
        return self.count.get(name, 0)

    def matching(self, name: Name) -> list[Thing]:
        """The things that answer `name`, in reading order."""
        return [thing for thing in self.things if matches(thing, name)]

    def reference(
        self, thing: Thing, rng: random.Random, *, size: bool = True, colour: bool = True, shape: bool = True
    ) -> Name | None:
        """A name that only `thing` answers, or None; `size`, `colour`, `shape` say what it may mention.

        Colour and shape together come first where allowed, then one of them; a size is added only where it is needed.
        """
        colours, shapes = ((None, thing.colour) if colour else (None,)), ((None, thing.shape) if shape else (None,))
        plain = [(None, c, s) for c in colours for s in shapes if (c or s) and self.count[None, c, s] == 1]
        if plain:
            return plain[-1] if rng.random() < 0.6 else rng.choice(plain)
        if not size:
            return None
        sized = [(thing.size, c, s) for c in colours for s in shapes if self.count[thing.size, c, s] == 1]
        return sized[-1] if sized else None

    def absent(self, rng: random.Random) -> Name:
        """A colour and shape that are not there together; half the time both are there, where the scene allows it."""
        colours = {thing.colour for thing in self.things}
        shapes = {thing.shape for thing in self.things}
        if rng.random() < 0.5:
            crossed: list[Name] = [
                (None, colour, shape)
                for colour in COLOURS
                if colour in colours
                for shape in SHAPES
                if shape in shapes and (None, colour, shape) not in self.count
            ]
            if crossed:
                return rng.choice(crossed)
        while True:
            colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
            which = rng.random()  # a third each: the colour is there, the shape is there, chance
            if which < 1 / 3:
                colour = rng.choice(self.things).colour
            elif which < 2 / 3:
                shape = rng.choice(self.things).shape
            name = (None, colour, shape)
            if name not in self.count and not (colour in colours and shape in shapes):
                return name


def matches(thing: Thing, name: Name) -> bool:
    """Whether the thing answers the name."""
    size, colour, shape = name
    return size in (None, thing.size) and colour in (None, thing.colour) and shape in (None, thing.shape)
