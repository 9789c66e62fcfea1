"""Captions of a scene, short and detailed, and the facts that a caption states.

Things are named in reading order, so that a scene has few right captions and a small model can learn them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from minichat.scenes.truth import (
    DIRECTIONS,
    NUMBERS,
    Look,
    at,
    background_colours,
    beside,
    full,
    listed,
    named,
    offset,
    place,
    plural,
    reading_order,
    some,
    toward,
    words,
)
from minichat.scenes.world import COLOURS, SHAPES, Scene, Thing

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
_SHAPE_WORDS = {form: shape for shape in SHAPES for form in (shape, plural(shape))}
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
