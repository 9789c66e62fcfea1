"""MiniGPT-v2's task words (arXiv:2310.09478): `[refer]`, `[identify]` and `[grounding]`, with boxes in hundredths.

A box is `{<x1><y1><x2><y2>}`: left, top, right and bottom, each from 0 to 100 of the picture's side.
"""

from __future__ import annotations

import math
import random
import re

from minichat.scenes.captions import setting
from minichat.scenes.draw import POLYGONS
from minichat.scenes.speech.nouns import Nouns
from minichat.scenes.speech.program import Things, matching, numbered
from minichat.scenes.speech.propose import Proposer
from minichat.scenes.truth import Look, join, named, some
from minichat.scenes.world import Scene, Thing

Box = tuple[int, int, int, int]
_BOX = re.compile(r"\{<(\d+)><(\d+)><(\d+)><(\d+)>\}")


def box(thing: Thing) -> Box:
    """The smallest upright box round a thing as it is drawn."""
    turn = math.radians(thing.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = POLYGONS.get(thing.shape)
    if corners is None:  # a circle or a ring
        left, top, right, bottom = -1.0, -1.0, 1.0, 1.0
    else:
        xs = [a * cos - b * sin for a, b in corners]
        ys = [a * sin + b * cos for a, b in corners]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    sides = (thing.x + left * thing.radius, thing.y + top * thing.radius,
             thing.x + right * thing.radius, thing.y + bottom * thing.radius)  # fmt: skip
    one, two, three, four = (min(100, max(0, round(100 * side))) for side in sides)
    return one, two, three, four


def spelled(where: Box) -> str:
    """ "{<12><30><45><63>}"."""
    return "{" + "".join(f"<{side}>" for side in where) + "}"


def read_boxes(text: str) -> list[Box]:
    """The boxes that a text spells."""
    return [(int(m[1]), int(m[2]), int(m[3]), int(m[4])) for m in _BOX.finditer(text)]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    whole = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared / whole if whole else 0.0


def refer(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """ "[refer] the small red star" → its box, those of all that answer, or that there is none."""
    proposer = Proposer(Look(scene), rng)
    things = proposer.one() or proposer.some(plain=True)
    nouns = Nouns(rng)
    text = rng.choice((nouns.the, nouns.the, nouns.bare, nouns.a))(things)
    frame = rng.choice(
        (
            "[refer] {x}",
            "[refer] {x}",
            "[refer] where is {x}?",
            "[refer] give me the location of {x}",
            "[refer] {x}?",
            "[refer] from this image, tell me the location of {x}",
            "[refer] could you tell me the location for {x}?",
            "[refer] where can i locate {x}?",
        )
    )
    return frame.format(x=text), referred(scene, things)


def referred(scene: Scene, things: Things) -> str:
    """The reply to `[refer]`."""
    found = matching(Look(scene), things) or []
    return " ".join(spelled(box(thing)) for thing in found) or f"There is {numbered(things, 0)}."


def identify(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """ "[identify] {<…>}" → what is there; the box may be a little off."""
    thing = rng.choice(scene.things)
    one, two, three, four = (min(100, max(0, side + rng.randint(-2, 2))) for side in box(thing))
    frame = rng.choice(
        (
            "[identify] {x}",
            "[identify] {x}",
            "[identify] what is this {x}",
            "[identify] what object is in this location {x}",
            "[identify] identify the object present at this location {x}",
            "[identify] describe this object in {x}",
        )
    )
    told = some((thing.size, thing.colour, thing.shape))
    return frame.replace("{x}", spelled((one, two, three, four))), f"{told.capitalize()}."


def grounding(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """ "[grounding] describe the picture" → a caption in which each thing has its box."""
    frame = rng.choice(
        (
            "describe this image as detailed as possible",
            "describe the picture",
            "please describe this image in detail",
            "what is in the picture?",
            "can you provide a description of the image?",
            "give me a caption",
            "describe what you see",
        )
    )
    return f"[grounding] {frame}", grounded(scene)


def grounded(scene: Scene) -> str:
    """The reply to `[grounding]`."""
    told = [f"<p>{some(named(thing))}</p> {spelled(box(thing))}" for thing in Look(scene).things]
    return f"{join(told)} {setting(scene)}."


def task(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One of the three."""
    which = rng.random()
    if which < 0.5 and (referring := refer(scene, rng)) is not None:
        return referring
    return identify(scene, rng) if which < 0.8 else grounding(scene, rng)
