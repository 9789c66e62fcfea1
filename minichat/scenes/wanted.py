"""What one types to find a picture: some of what is there, or how two things lie. And a picture that is nearly right.

A caption names all that a picture shows; who looks for one says a part of it: "a red star left of a blue circle".
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from minichat.scenes.captions import setting
from minichat.scenes.truth import DIRECTIONS, Look, Name, beside, full, join, matches, named, some, toward
from minichat.scenes.world import COLOURS, SHAPES, Scene, Thing

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

    A relation is mirrored; of things alone two exchange their colours, or one gets another colour or shape. Learnt
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
