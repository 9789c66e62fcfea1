"""What a text says of a scene, held against the scene: what is right, what is missed, what is invented.

As CHAIR does for COCO (Rohrbach et al., arXiv:1809.02156): the share of the objects named that are not there, and the
share of the texts that name such a one. Here colours, numbers, sizes and places are held against the truth, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from minichat.evaluate.figures import Figure, ratio, share
from minichat.scenes.captions import Facts, facts, plain_words
from minichat.scenes.truth import PLACES, at, background_colours, beside, named, place
from minichat.scenes.world import COLOURS, SHAPES, SIZES, Scene, Thing

Named = tuple[str | None, str | None]  # colour, shape; None where the text names the other alone


@dataclass(frozen=True)
class Tally:
    """`there`: how many there are; `said`: how many were named; `right`: how many of those are there."""

    there: int
    said: int
    right: int

    @property
    def missed(self) -> int:
        return self.there - self.right

    @property
    def invented(self) -> int:
        return self.said - self.right


def tally(said: Counter[Named], there: Counter[Named]) -> Tally:
    """Match what was named with what is there, one with one; what names colour and shape first."""
    left = there.copy()
    right = 0
    for (colour, shape), number in sorted(said.items(), key=lambda item: item[0].count(None)):
        for _ in range(number):
            fits = [key for key in left if colour in (None, key[0]) and shape in (None, key[1])]
            if fits:
                right += 1
                left -= Counter({fits[0]: 1})
    return Tally(there.total(), said.total(), right)


@dataclass
class Check:
    """One text held against its scene."""

    objects: Tally
    colours: Tally
    number: bool
    background: bool | None  # None: the text says nothing of it
    sizes: list[bool] = field(default_factory=list)  # of the objects that are there once by that name
    places: list[bool] = field(default_factory=list)
    relations: list[bool] = field(default_factory=list)


_A = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_THE = rf"the ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_SPOTS = {at(spot): spot for spot in PLACES}
_SIZED = re.compile(rf"\b{_A}\b")
_PLACED = re.compile(rf"\b{_A} is ({'|'.join(sorted(_SPOTS, key=len, reverse=True))})\b")
_RELATED = re.compile(rf"\b{_THE} is (left of|right of|above|below) {_THE}\b")


def check(text: str, scene: Scene) -> Check:
    """Hold a caption or a story against its scene."""
    stated = facts(_as_caption(text))
    there = Counter[Named]((thing.colour, thing.shape) for thing in scene.things)
    number = stated.total if stated.total is not None else stated.things.total()
    found = Check(
        objects=tally(stated.things, there),
        colours=tally(_part(stated.things, 0), _part(there, 0)),
        number=number == len(scene.things),
        background=_background(stated, scene),
    )
    words = plain_words(text).replace("color", "colour")
    alone = {key: thing for key, number in there.items() if number == 1 for thing in scene.things if _key(thing) == key}
    for size, colour, shape in _SIZED.findall(words):
        if thing := alone.get((colour, shape)):
            found.sizes.append(thing.size == size)
    for _, colour, shape, spot in _PLACED.findall(words):
        if thing := alone.get((colour, shape)):
            found.places.append(place(thing) == _SPOTS[spot])
    for colour, shape, way, other_colour, other_shape in _RELATED.findall(words):
        one, other = alone.get((colour, shape)), alone.get((other_colour, other_shape))
        true = one is not None and other is not None and beside(one, other, way.removesuffix(" of")) is True
        found.relations.append(true)
    return found


def _key(thing: Thing) -> Named:
    return named(thing)[1:]


def _part(things: Counter[Named], which: int) -> Counter[Named]:
    """Colours alone, or shapes."""
    parts: Counter[Named] = Counter()
    for key, number in things.items():
        if key[which] is not None:
            parts[(key[0], None) if which == 0 else (None, key[1])] += number
    return parts


def _background(stated: Facts, scene: Scene) -> bool | None:
    kind, colours = stated.background
    if not colours:
        return None
    return kind in (None, scene.background.kind) and colours == background_colours(scene.background)


def _as_caption(text: str) -> str:
    """A story's land is a caption's background."""
    text = re.sub(r"\bland that went from\b", "background that goes from", text)
    return re.sub(r"\bland\b", "background", text)


def fact_figures(checks: Sequence[Check], prefix: str = "") -> dict[str, Figure]:
    """What of all that is there was said rightly, and what of all that was said is not so."""
    objects, colours = _sum(c.objects for c in checks), _sum(c.colours for c in checks)
    figures = {
        "objects right": ratio(objects.right, objects.there),
        "objects missed": ratio(objects.missed, objects.there),
        "objects invented": ratio(objects.invented, objects.said),
        "texts that invent an object": share(c.objects.invented > 0 for c in checks),
        "colours right": ratio(colours.right, colours.there),
        "colours missed": ratio(colours.missed, colours.there),
        "colours invented": ratio(colours.invented, colours.said),
        "number right": share(c.number for c in checks),
        "background right": share(c.background is True for c in checks),
        "sizes right": share(right for c in checks for right in c.sizes),
        "places right": share(right for c in checks for right in c.places),
        "relations right": share(right for c in checks for right in c.relations),
    }
    return {prefix + name: figure for name, figure in figures.items() if figure.count}


def _sum(tallies: Iterable[Tally]) -> Tally:
    listed = list(tallies)
    return Tally(sum(t.there for t in listed), sum(t.said for t in listed), sum(t.right for t in listed))
