"""A scene in words, place by place: what the image tokens of a picture of it should come to mean.

A language model that never saw a picture can learn from these how to talk about one (`minichat.train.language`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from minichat.scenes.truth import LINES, NUMBERS, background_colours, reading_order
from minichat.scenes.world import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, SIZES, Scene, Thing

COLUMNS, ROWS = 5, LINES  # of cells, one token each, in reading order; then the background's and the number's
CELLS = COLUMNS * ROWS
TOKENS = CELLS + 2
LEVELS = 30  # of places along each axis; the borders of cells are borders of levels
EDGE = 0.03  # a thing whose centre is this near to a cell is told there, too: who looks need not decide which it is in
NONE, OUTSIDE = "<none>", "<outside>"
PLACES = tuple(f"<{axis}{level}>" for axis in "xy" for level in range(LEVELS))

#: Words that need a symbol of their own in a tokenizer, and all words of descriptions.
SYMBOLS = (*PLACES, NONE, OUTSIDE)
WORDS = (*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *NUMBERS[1 : MAX_THINGS + 1], *SYMBOLS)

Bag = tuple[str, ...]


def description(scene: Scene, rng: random.Random | None = None) -> list[Bag]:
    """The words of each of a picture's 32 tokens: its cells, its background, and how many things there are.

    A cell has the words of the thing whose centre is in it or within `EDGE` of it, and `<none>` without one.

    Args:
        rng: tell it as one may who looks less sharply: edges are wider or narrower, and places off by one level.
    """
    cells: dict[int, Bag] = {}
    told: list[tuple[Thing, list[int]]] = [(thing, list(_cells(thing, _blurred(EDGE, rng)))) for thing in scene.things]
    for thing, around in sorted(
        told, key=lambda pair: _from_middle(pair[0])
    ):  # two in a cell: the nearer to its middle
        free = next((cell for cell in around if cell not in cells), None)
        if free is not None:
            cells[free] = words_of(thing, rng)
    for thing, around in told:
        for cell in around:
            if cell not in cells:
                cells[cell] = words_of(thing, rng)
    background = (scene.background.kind, *background_colours(scene.background))
    return [cells.get(cell, (NONE,)) for cell in range(CELLS)] + [background, (NUMBERS[len(scene.things)],)]


def outside_description() -> list[Bag]:
    """The same for a picture that is not of the drawn world."""
    return [(OUTSIDE,)] * TOKENS


def words_of(thing: Thing, rng: random.Random | None = None) -> Bag:
    """Size, colour, shape, and where its centre is: `("large", "red", "star", "<x7>", "<y3>")`."""
    x, y = (_level(place, rng) for place in (thing.x, thing.y))
    return (thing.size, thing.colour, thing.shape, f"<x{x}>", f"<y{y}>")


def _level(place: float, rng: random.Random | None) -> int:
    """A coordinate, a fraction of the side, as one of the levels."""
    if rng is not None:
        place += rng.gauss(0, 0.35 / LEVELS)
    return min(LEVELS - 1, max(0, int(place * LEVELS)))


def _blurred(edge: float, rng: random.Random | None) -> float:
    return edge if rng is None else edge + rng.uniform(-0.02, 0.02)


def _cells(thing: Thing, edge: float) -> Iterator[int]:
    """The cells within `edge` of the thing's centre, its own first."""
    own = int(thing.y * ROWS) * COLUMNS + int(thing.x * COLUMNS)
    yield own
    for row in range(ROWS):
        for column in range(COLUMNS):
            across, down = abs(thing.x * COLUMNS - column - 0.5) - 0.5, abs(thing.y * ROWS - row - 0.5) - 0.5
            cell = row * COLUMNS + column
            if cell != own and across < edge * COLUMNS and down < edge * ROWS:
                yield cell


def _from_middle(thing: Thing) -> float:
    """How far the thing's centre is from the middle of its cell."""
    return max(abs(thing.x * COLUMNS % 1 - 0.5), abs(thing.y * ROWS % 1 - 0.5))


def reading(scene: Scene) -> str:
    """The description as a reply: cell by cell, then the background and the number.

    "<none><none> large red star<x7><y3> … <none> plain white two." As in Kosmos-2 (arXiv:2306.14824), places are words.
    """
    *cells, background, number = description(scene)
    told = "".join(bag[0] if bag == (NONE,) else " " + " ".join(bag[:3]) + "".join(bag[3:]) for bag in cells)
    return f"{told} {' '.join(background)} {number[0]}.".strip()


READING_REQUESTS = ("Read the picture.", "Read this picture.", "Read it cell by cell.")


def inventory(scene: Scene) -> str:
    """The things and their places in reading order, then the background and the number, in plain words.

    "large red star x7 y3, small blue ring x12 y20. plain white. two."
    """
    things = []
    for thing in reading_order(scene.things):
        size, colour, shape, x, y = words_of(thing)
        things.append(f"{size} {colour} {shape} {x.strip('<>')} {y.strip('<>')}")
    background = " ".join((scene.background.kind, *background_colours(scene.background)))
    return f"{', '.join(things)}. {background}. {NUMBERS[len(things)]}."
