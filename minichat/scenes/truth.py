"""What is plainly true of a scene: how many things answer a description, where they are, how two of them lie.

Everything that is said about a scene goes through here, so that captions, questions and dialogues agree. What a person
could dispute (a thing near the border between two places, two things almost level) is left unsaid: the tests of place
and direction answer None there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby

from minichat.scenes.world import COLOURS, SHAPES, Background, Scene, Thing

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


def plural(noun: str) -> str:
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
        return f"{NUMBERS[number]} {plural(text)}"
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
    return _place(_third(thing.x), _third(thing.y))


def sure_place(thing: Thing) -> str | None:
    """The thing's place, or None when its centre is too near to a border between places."""
    if any(abs(value - border) < BORDER for value in (thing.x, thing.y) for border in THIRDS):
        return None
    return place(thing)


def possible_places(thing: Thing) -> set[str]:
    """Every place that a person might name for the thing."""
    columns = {_third(thing.x - BORDER), _third(thing.x + BORDER)}
    rows = {_third(thing.y - BORDER), _third(thing.y + BORDER)}
    return {_place(column, row) for column in columns for row in rows}


def _third(value: float) -> int:
    return 0 if value < THIRDS[0] else 1 if value < THIRDS[1] else 2


def _place(column: int, row: int) -> str:
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

    It is the order in which a picture's image tokens tell them (`minichat.scenes.description`), so what is to be named
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
