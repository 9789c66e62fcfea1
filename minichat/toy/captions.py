"""Texts about a scene: captions, descriptions place by place, stories, and what one types to find it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from minichat.toy.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    LINES,
    MAX_THINGS,
    NUMBERS,
    SHAPES,
    SIZES,
    Look,
    Name,
    Scene,
    Thing,
    at,
    background_colours,
    beside,
    full,
    join,
    listed,
    matches,
    named,
    offset,
    place,
    plural_shape,
    reading_order,
    some,
    toward,
    words,
)

# --- Captions of a scene, short and detailed, and the facts that a caption states.
#
# Things are named in reading order, so that a scene has few right captions and a small model can learn them.


SHORT_REQUESTS = (
    "Write a caption for this picture.", "Give me a short caption.", "Describe the picture briefly.",
    "Describe the picture in one sentence.", "Sum up the picture.", "What does the picture show?",
    "A short description of this image, please.", "What is this a picture of?", "Caption this image.",
)  # fmt: skip
LIST_REQUESTS = (
    "What is in the picture?", "What do you see?", "Which objects are in the picture?",
    "What can you see in this picture?",
    "What objects do you see?", "List the objects in the picture.", "What is this?", "Name everything in the picture.",
)  # fmt: skip
DETAILED_REQUESTS = (
    "Describe the picture.", "Describe this image.", "Describe this image in detail.",
    "Describe the picture in detail.",
    "Take a look at this image and describe what you notice.", "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?", "Tell me everything about the picture.",
    "Give me a detailed description of this picture.", "Please describe what you see in detail.",
    "Tell me about this picture.",
)  # fmt: skip


def setting(scene: Scene) -> str:
    """ "on a plain white background", "on a background that goes from red to blue"."""
    colours = background_colours(scene.background)
    if scene.background.kind == "gradient":
        return f"on a background that goes from {colours[0]} to {colours[1]}"
    return f"on a {scene.background.kind} {colours[0]} background"


def listing(scene: Scene) -> str:
    """All things of a scene, equal neighbours together: "A red star, two blue circles and a green ring."."""
    text = listed(reading_order(scene.things))
    return f"{text[0].upper()}{text[1:]}."


def short(scene: Scene, rng: random.Random) -> str:
    """One sentence that names every thing, equal neighbours together, and the background."""
    text = f"{listed(reading_order(scene.things))} {setting(scene)}."
    return f"The picture shows {text}" if rng.random() < 0.3 else text[0].upper() + text[1:]


def detailed(scene: Scene, rng: random.Random) -> str:
    """The number of things and the background, each thing with size, colour, shape and place, one or two relations."""
    look = Look(scene)
    number = len(look.things)
    sentences = [f"The picture shows {NUMBERS[number]} object{'s' if number > 1 else ''} {setting(scene)}."]
    for thing in look.things:
        what = some(full(thing))
        sentences.append(f"{what[0].upper()}{what[1:]} is {at(place(thing))}.")
    neighbours = _neighbours(look)
    for first, second, direction in rng.sample(neighbours, min(len(neighbours), rng.choice((1, 2)))):
        sentences.append(f"The {words(named(first))} is {toward(direction)} the {words(named(second))}.")
    return " ".join(sentences)


def _neighbours(look: Look) -> list[tuple[Thing, Thing, str]]:
    """Things that follow each other in reading order, both with a name of their own, and how they clearly lie."""
    found = []
    things = [thing for thing in look.things if look.count[named(thing)] == 1]
    for first, second in pairwise(things):
        direction = max(DIRECTIONS, key=lambda way: offset(first, second, way))
        if beside(first, second, direction):
            found.append((first, second, direction))
    return found


@dataclass(frozen=True)
class Facts:
    """What a text states: how many of each colour and shape, how many objects in all (None: not said), the background.

    A colour or a shape that is named without the other is None in its pair.
    """

    things: Counter[tuple[str | None, str | None]]
    total: int | None
    background: tuple[str | None, tuple[str, ...]]


_NUMBER = {word: value for value, word in enumerate(NUMBERS)} | {"a": 1, "an": 1, "no": 0, "both": 2, "single": 1}
_SHAPE_WORDS = {form: shape for shape in SHAPES for form in (shape, plural_shape(shape))}
_SHAPE = "|".join(sorted(_SHAPE_WORDS, key=len, reverse=True)) + "|objects?|things?|shapes?|ones?"
_COLOUR = "|".join(COLOURS)
_PHRASE = re.compile(
    rf"\b(?:(?P<number>\d+|{'|'.join(_NUMBER)}|the)\s+)?"
    rf"(?P<size>(?:(?:small|large|big|little|tiny)\s+)?)"
    rf"(?:(?P<colour>{_COLOUR})\s+)?(?P<shape>{_SHAPE})\b"
)
_SETTING = re.compile(
    rf"(?:(?P<kind>plain|noisy)\s+)?(?P<colour>{_COLOUR})\s+background"
    r"|(?:background|gradient)\s+(?:that\s+)?(?:is\s+|goes\s+)?(?:a\s+gradient\s+)?"
    rf"from\s+(?P<first>{_COLOUR})\s+to\s+(?P<last>{_COLOUR})"
    rf"|background\s+is\s+(?:(?P<kind2>plain|noisy)\s+)?(?P<colour2>{_COLOUR})"
)


def plain_words(text: str) -> str:
    """Lower case, one spelling: what `facts` and `score` read."""
    return text.lower().replace("grey", "gray").replace("colour", "color").replace("center", "centre").replace("’", "'")


def facts(text: str) -> Facts:
    """Read objects, total and background out of a caption.

    "The red star" speaks of one that was named before: it adds one only where none was.
    """
    text = plain_words(text)
    background: tuple[str | None, tuple[str, ...]] = (None, ())
    if match := _SETTING.search(text):
        if match["first"]:
            background = ("gradient", tuple(sorted((match["first"], match["last"]), key=COLOURS.index)))
        else:
            background = (match["kind"] or match["kind2"], (match["colour"] or match["colour2"],))
        text = text[: match.start()] + " . " + text[match.end() :]
    things: Counter[tuple[str | None, str | None]] = Counter()
    total = None
    again = set()
    for match in _PHRASE.finditer(text):
        number = match["number"]
        key = (match["colour"], _SHAPE_WORDS.get(match["shape"]))
        if number in (None, "the"):
            again.add(key)
            continue
        value = int(number) if number.isdigit() else _NUMBER[number]
        if key == (None, None):
            total = value if total is None and not match["size"] else total
        elif value:
            things[key] += value
    for colour, shape in again - {(None, None)}:
        known = any(colour in (None, c) and shape in (None, s) for c, s in things)
        if not known:
            things[colour, shape] += 1
    return Facts(things, total, background)


# --- A scene in words, place by place: what the image tokens of a picture of it should come to mean.
#
# A language model that never saw a picture can learn from these how to talk about one (`minichat.toy.train_lm`).


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


def description(scene: Scene, rng: random.Random | None = None, *, copies: bool = True) -> list[Bag]:
    """The words of each of a picture's 32 tokens: its cells, its background, and how many things there are.

    A cell has the words of the thing whose centre is in it or within `EDGE` of it, and `<none>` without one.

    Args:
        rng: tell it as one may who looks less sharply: edges are wider or narrower, and places off by one level.
        copies: tell a thing near a border in both cells; without, once.
    """
    cells: dict[int, Bag] = {}
    told: list[tuple[Thing, list[int]]] = [(thing, list(_cells(thing, _blurred(EDGE, rng)))) for thing in scene.things]
    for thing, around in sorted(
        told, key=lambda pair: _from_middle(pair[0])
    ):  # two in a cell: the nearer to its middle
        free = next((cell for cell in around if cell not in cells), None)
        if free is not None:
            cells[free] = words_of(thing, rng)
    for thing, around in told if copies else ():
        for cell in around:
            if cell not in cells:
                cells[cell] = words_of(thing, rng)
    background = (scene.background.kind, *background_colours(scene.background))
    return [cells.get(cell, (NONE,)) for cell in range(CELLS)] + [background, (NUMBERS[len(scene.things)],)]


def outside_description() -> list[Bag]:
    """The same for a picture that is not of the synthetic world."""
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


# --- Short stories whose characters are the things of a scene. Whatever they say of size, colour, shape, place is
# true.


STORY_REQUESTS = (
    "Tell me a story about the picture.", "Write a short story about this picture.",
    "Make up a story about the picture.",
    "Can you tell me a story about these shapes?", "Tell a little story about what you see.",
)  # fmt: skip
_ALONE = ("It was often lonely.", "It liked the quiet.")
_WISH = ("One day it dreamed of a friend.", "One day it danced all by itself.")
_MEET = (
    "One day {a} and {b} met and became friends.", "One day {a} asked {b} to play.", "One day {a} sang a song for {b}.",
)  # fmt: skip
_END = ("From then on, they were never lonely.", "They all laughed and were happy.")


def story(scene: Scene, rng: random.Random) -> str:
    """Three to five sentences; every thing of the scene comes into it."""
    look = Look(scene)
    hero = look.things[0]
    sentences = [f"Once upon a time, {some(full(hero))} lived {_land(scene)}.", f"Its home was {at(place(hero))}."]
    if len(look.things) == 1:
        return " ".join([*sentences, rng.choice(_ALONE), rng.choice(_WISH)])
    friend = look.things[1]
    sentences.append(f"{_capital(some(full(friend)))} lived {_near(friend, hero)}.")
    twins = named(hero) == named(friend)
    a = "the first one" if twins else "the " + words(named(hero))
    b = "the other one" if twins else "the " + words(named(friend))
    sentences.append(rng.choice(_MEET).format(a=a, b=b))
    rest = look.things[2:]
    if rest:
        sentences.append(f"{_capital(listed(rest))} watched them and {'was' if len(rest) == 1 else 'were'} happy.")
    else:
        sentences.append(rng.choice(_END).replace("all ", ""))
    return " ".join(sentences)


def _land(scene: Scene) -> str:
    colours = background_colours(scene.background)
    if scene.background.kind == "gradient":
        return f"in a land that went from {colours[0]} to {colours[1]}"
    return f"in a {scene.background.kind} {colours[0]} land"


def _near(thing: Thing, other: Thing) -> str:
    for direction in ("right", "below", "left", "above"):
        if beside(thing, other, direction):
            return f"{toward(direction)} it"
    return "close to it"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- A curated style to fine-tune on: every reply is a page of a picture book, a full description and then a story.
#
# The built-in model describes when it is asked to describe, and tells a story when it is asked for one. In this style
# it does both, in one long reply, when it is asked to describe.


STORYBOOK_REQUESTS = DETAILED_REQUESTS
_PAGE = re.compile(r"(The picture shows .+\.) (Once upon a time, .+\.)", re.DOTALL)


def page(scene: Scene, rng: random.Random) -> str:
    """The description and the story, as one reply."""
    return f"{detailed(scene, rng)} {story(scene, rng)}"


def halves(reply: str) -> tuple[str, str] | None:
    """A reply's description and its story; None where it is not in this style, or did not come to its end."""
    found = _PAGE.fullmatch(reply)
    return (found[1], found[2]) if found else None


# --- What one types to find a picture: some of what is there, or how two things lie. And a picture that is nearly
# right.
#
# A caption names all that a picture shows; who looks for one says a part of it: "a red star left of a blue circle".


_RELATIONS = 0.5  # of what is wanted; the rest names things alone


@dataclass(frozen=True)
class Wanted:
    """Things by their names, no two alike; the first lies in `direction` of the second, where that is said."""

    names: tuple[Name, ...]
    direction: str | None = None
    setting: str | None = None
    """The background, as captions tell it."""

    @property
    def text(self) -> str:
        """As one types it: "a red star left of a blue circle", "a small ring and a heart on a plain red background"."""
        things = [some(name) for name in self.names]
        said = join(things) if self.direction is None else f"{things[0]} {toward(self.direction)} {things[1]}"
        return said if self.setting is None else f"{said} {self.setting}"

    def shown_in(self, scene: Scene) -> bool:
        """Whether a picture of the scene is one that was looked for."""
        if self.setting not in (None, setting(scene)):
            return False
        found = [[thing for thing in scene.things if matches(thing, name)] for name in self.names]
        if self.direction is None:
            return all(found)
        return any(beside(one, other, self.direction) for one in found[0] for other in found[1])


def wanted(scene: Scene, rng: random.Random) -> Wanted:
    """Something that the scene shows."""
    look = Look(scene)
    where = setting(scene) if rng.random() < 0.25 else None
    of = full if rng.random() < 0.25 else named
    if rng.random() < _RELATIONS:
        alone = [thing for thing in look.things if look.count[named(thing)] == 1]
        lying = [(a, b, way) for a in alone for b in alone for way in DIRECTIONS if a is not b and beside(a, b, way)]
        if lying:
            one, other, way = rng.choice(lying)
            return Wanted((of(one), of(other)), way, where)
    names = list(dict.fromkeys(map(of, look.things)))
    if len(names) == 1:  # alone, it would be in many pictures
        where = setting(scene)
    return Wanted(tuple(rng.sample(names, min(len(names), rng.choice((2, 2, 3))))), None, where)


def nearly(scene: Scene, said: Wanted, rng: random.Random) -> tuple[Scene, Wanted]:
    """A scene that lacks little of what is wanted of this one, and the words for what it has instead.

    A relation is mirrored; of things alone two exchange their colours, or one gets another colour or shape. Learned
    together, the two teach to look at what is said of which thing, and where.
    """
    if said.direction is not None:
        turned = tuple(_mirrored(thing, said.direction) for thing in scene.things)
        return replace(scene, things=turned), replace(said, names=said.names[::-1])
    first, *others = rng.sample(said.names, len(said.names))
    for other in others[:1]:
        if first[1] != other[1] and first[2] != other[2] and rng.random() < 0.5:
            change = {first: (first[0], other[1], first[2]), other: (other[0], first[1], other[2])}
            return _changed(scene, said, change)
    size, colour, shape = first
    if rng.random() < 0.5:
        taken = {colour, *scene.background.colours}
        new: Name = (size, rng.choice([name for name in COLOURS if name not in taken]), shape)
    else:
        new = (size, colour, rng.choice([name for name in SHAPES if name != shape]))
    return _changed(scene, said, {first: new})


def _changed(scene: Scene, said: Wanted, change: dict[Name, Name]) -> tuple[Scene, Wanted]:
    """All things of a name get another's colour and shape."""
    names = tuple(dict.fromkeys(change.get(name, name) for name in said.names))
    return replace(scene, things=tuple(_as(thing, change) for thing in scene.things)), replace(said, names=names)


def _as(thing: Thing, change: dict[Name, Name]) -> Thing:
    for old, (_, colour, shape) in change.items():
        if matches(thing, old) and colour and shape:
            return replace(thing, colour=colour, shape=shape, angle=thing.angle if shape == thing.shape else 0.0)
    return thing


def _mirrored(thing: Thing, direction: str) -> Thing:
    if direction in ("left", "right"):
        return replace(thing, x=1 - thing.x)
    return replace(thing, y=1 - thing.y)
