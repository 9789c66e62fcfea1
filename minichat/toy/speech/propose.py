"""What to ask about a scene: programs of every operation, true and false as often as the scene allows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from minichat.toy.questions import CORNERS
from minichat.toy.speech.answers import Answer
from minichat.toy.speech.answers_places import FIRST
from minichat.toy.speech.nouns import ANYTHING, ATTRIBUTES, VALUES, Program, Things
from minichat.toy.speech.verdict import answer
from minichat.toy.world import BACKGROUNDS, COLOURS, DIRECTIONS, NUMBERS, OPPOSITE, Look, Name, Thing, named

SIDES = ("left", "right", "top", "bottom")
_TRIES = 12

#: Operations with how often they are drawn.
SHARES: dict[str, float] = {
    "exists": 10, "none": 2, "both exist": 2.5, "either exists": 1.5, "every": 3, "any": 2.5, "none are": 1,
    "both are": 2, "only": 3, "same": 2.5, "count": 10, "number is": 4, "more": 3, "as many": 1.5, "which more": 2,
    "how many more": 1, "kinds": 2.5, "common": 2, "query": 16, "verify": 8, "choose": 4, "tell": 1.5, "list": 4,
    "values": 3.5, "differ": 1.5, "repeats": 1.5, "sole": 2, "count choose": 1.5, "bigger": 3, "is bigger": 2.5,
    "alike": 4, "at": 4, "anything at": 2, "empty at": 0.7, "first": 6, "is first": 2,
    "beside": 5, "choose beside": 2.5, "where from": 3, "what beside": 4, "anything beside": 1.5, "count beside": 2,
    "nearest": 3, "next to": 1.5, "between": 2, "is between": 1.5, "further": 2.5, "order": 1.5,
    "ground": 2, "ground colour": 3.5, "ground kind": 2.5, "ground is": 4.5, "ground choose": 2, "names": 3,
    "caption": 2.5, "describe": 2.5, "story": 0.7,
}  # fmt: skip


class Proposer:
    """Draws programs about one scene."""

    def __init__(self, look: Look, rng: random.Random) -> None:
        self.look, self.rng = look, rng

    def propose(self, operation: str) -> tuple[Program, Answer] | None:
        """A program of the operation with its answer; None where the scene allows none.

        Where it can be so or not so, which of the two is wanted is drawn first.
        """
        wanted = self.rng.random() < 0.5
        spare: tuple[Program, Answer] | None = None
        for _ in range(_TRIES):
            program = _MAKERS[operation](self)
            if program is None:
                continue
            found = answer(program, self.look)
            if found is None:
                continue
            if found.yes in (None, wanted):
                return program, found
            spare = (program, found)
        return spare if self.rng.random() < 0.3 else None

    # --- sets

    def thing(self) -> Thing:
        return self.rng.choice(self.look.things)

    def one(self, thing: Thing | None = None, *, hide: str = "") -> Things | None:
        """A description that one thing alone answers and that does not tell `hide`.

        Now and then nothing answers it, or more than one does.
        """
        rng, look = self.rng, self.look
        which = rng.random()
        if thing is None and which < 0.07:
            return self._told(look.absent(rng), hide)
        thing = thing or self.thing()
        if which > 0.93:
            names: list[Name] = [(None, None, thing.shape), (None, thing.colour, None)]
            return self._told(rng.choice(names), hide)
        if which < 0.25:  # any name that means it alone, "the big one" among them
            alone = [
                Things.of(name)
                for size in (None, thing.size)
                for colour in (None, thing.colour)
                for shape in (None, thing.shape)
                if look.count[name := (size, colour, shape)] == 1 and any(name)
            ]
            alone = [things for things in alone if not getattr(things, hide, None)]
            return rng.choice(alone) if alone else None
        found = look.reference(thing, rng, size=hide != "size", colour=hide != "colour", shape=hide != "shape")
        return None if found is None else Things.of(found)

    def _told(self, name: Name, hide: str) -> Things | None:
        things = Things.of(name)
        things = things.having(hide, None) if hide in ATTRIBUTES else things
        return things if any(things.name) else None

    def pair(self) -> tuple[Things, Things] | None:
        """Descriptions of two different things."""
        if len(self.look.things) < 2:
            return None
        first, second = self.rng.sample(self.look.things, 2)
        one, other = self.one(first), self.one(second)
        if self.rng.random() < 0.05:
            other = Things.of(self.look.absent(self.rng))
        return None if one is None or other is None or one == other else (one, other)

    def some(self, *, plain: bool = False) -> Things:
        """A description of any number of things, none among them."""
        rng, look = self.rng, self.look
        which, thing = rng.random(), self.thing()
        if which < 0.3:
            name: Name = look.absent(rng) if rng.random() < 0.6 else rng.choice([
                (None, rng.choice(VALUES["colour"]), None), (None, None, rng.choice(VALUES["shape"])),
                (rng.choice(VALUES["size"]), None, thing.shape), (rng.choice(VALUES["size"]),
                thing.colour, None)])  # fmt: skip
        else:
            name = rng.choice([
                named(thing), (None, None, thing.shape), (None, None, thing.shape), (None, thing.colour, None),
                (None, thing.colour, None), (thing.size, None, None), (thing.size, None, thing.shape),
                (thing.size, thing.colour, None), (thing.size, thing.colour, thing.shape)])  # fmt: skip
        things = Things.of(name)
        if plain:
            return things
        which = rng.random()
        if which < 0.08:
            return replace(things, side=rng.choice(SIDES))
        if which < 0.13:
            return self.without(things)
        return things

    def without(self, things: Things = ANYTHING) -> Things:
        """Those of them that have not a colour, shape or size that something in the scene has."""
        free = [each for each in ATTRIBUTES if getattr(things, each) is None]
        if not free or things.also:
            return things
        if things.shape is None or things.colour is None:
            attribute = self.rng.choice(free)
            if things == ANYTHING or attribute != "size":
                return replace(things, without=getattr(self.thing(), attribute))
        return things

    def group(self) -> Things:
        """A description that two or more things answer, where there is one."""
        names = [name for name, number in self.look.count.items() if number > 1 and sum(map(bool, name)) == 1]
        if names and self.rng.random() < 0.85:
            return Things.of(self.rng.choice(names))
        return ANYTHING if self.rng.random() < 0.6 else self.some(plain=True)

    def attribute(self) -> str:
        return self.rng.choice(ATTRIBUTES)

    def value(self, attribute: str) -> str:
        """Half the time one that something in the scene has."""
        if self.rng.random() < 0.6:
            return str(getattr(self.thing(), attribute))
        return self.rng.choice(VALUES[attribute])


def _existing(proposer: Proposer) -> Program:
    return Program("exists", (proposer.without() if proposer.rng.random() < 0.1 else proposer.some(),))


def _none(proposer: Proposer) -> Program:
    return Program("none", (proposer.some(),))


def _two_sets(operation: str) -> Callable[[Proposer], Program | None]:
    def make(proposer: Proposer) -> Program | None:
        one, other = proposer.some(plain=True), proposer.some(plain=True)
        alike = any(
            value is not None and value == getattr(other, name)
            for name, value in zip(ATTRIBUTES, (one.colour, one.shape, one.size), strict=True)
        )
        return None if alike else Program(operation, (one, other))

    return make


def _quantified(operation: str) -> Callable[[Proposer], Program | None]:
    def make(proposer: Proposer) -> Program | None:
        things = proposer.group()
        if operation == "both are":
            pairs = [
                Things.of(name)
                for name, number in proposer.look.count.items()
                if number == 2 and sum(map(bool, name)) == 1
            ]
            if pairs and proposer.rng.random() < 0.9:
                things = proposer.rng.choice(pairs)
        free = [each for each in ATTRIBUTES if getattr(things, each) is None]
        if not free:
            return None
        attribute = proposer.rng.choice(free)
        if operation in ("same", "differ"):
            return Program(operation, (things,), (attribute,))
        if things == ANYTHING and operation != "every":
            return None
        return Program(operation, (things,), (attribute, proposer.value(attribute)))

    return make


def _only(proposer: Proposer) -> Program:
    rng, look = proposer.rng, proposer.look
    whole = [
        Things.of(name)
        for name, number in look.count.items()
        if number == len(look.things) and sum(map(bool, name)) == 1
    ]
    if whole and rng.random() < 0.8:
        return Program("only", (rng.choice(whole),))
    thing = proposer.thing()
    names: list[Name] = [(None, None, thing.shape), (None, thing.colour, None), (thing.size, None, None)]
    return Program("only", (Things.of(rng.choice(names)),))


def _counting(proposer: Proposer) -> Program:
    rng = proposer.rng
    which = rng.random()
    if which < 0.14:
        return Program("count", (ANYTHING,))
    if which < 0.24:
        return Program("count", (proposer.without(),))
    if which < 0.34:
        return Program("count", (Things(side=rng.choice(SIDES)),))
    if which < 0.46:
        one, other = proposer.some(plain=True), proposer.some(plain=True)
        shapes = one.shape and other.shape and not (one.colour or other.colour or one.size or other.size)
        colours = one.colour and other.colour and not (one.shape or other.shape or one.size or other.size)
        if one != other and (shapes or colours):
            return Program("count", (replace(one, also=other),))
    if which < 0.75 and (names := [name for name, number in proposer.look.count.items() if number > 1]):
        return Program("count", (Things.of(rng.choice(names)),))
    return Program("count", (proposer.some(),))


def _count_choose(proposer: Proposer) -> Program | None:
    """Are there two or three stars?"""
    things = proposer.group()
    number = len(proposer.look.things) if things == ANYTHING else proposer.look.number(things.name)
    other = number + proposer.rng.choice((-1, 1, 1, 2))
    if min(number, other) < 1 or max(number, other) > 7:
        return None
    low, high = sorted((number, other))
    return Program("count choose", (things,), (NUMBERS[low], NUMBERS[high]))


def _repeats(proposer: Proposer) -> Program | None:
    return Program("repeats", (), (proposer.attribute(),)) if len(proposer.look.things) > 1 else None


def _sole(proposer: Proposer) -> Program | None:
    thing = proposer.thing()
    things = proposer.one(thing)
    among: list[Name] = [(None, None, thing.shape), (None, thing.colour, None), (thing.size, None, None)]
    other = Things.of(proposer.rng.choice(among))
    return None if things is None or things == other else Program("sole", (things, other))


def _number_is(proposer: Proposer) -> Program:
    rng = proposer.rng
    things = ANYTHING if rng.random() < 0.3 else proposer.group() if rng.random() < 0.6 else proposer.some(plain=True)
    number = len(proposer.look.things) if things == ANYTHING else proposer.look.number(things.name)
    asked = max(1, number + rng.choice((-2, -1, -1, 0, 0, 0, 1, 1, 2)))
    how = rng.choice(("exactly", "exactly", "at least", "at most", "more than", "fewer than"))
    if asked == 1:
        how = rng.choice(("exactly", "more than"))
    return Program("number is", (things,), (how,), asked)


def _compared(operation: str) -> Callable[[Proposer], Program | None]:
    def make(proposer: Proposer) -> Program | None:
        rng, look = proposer.rng, proposer.look
        attribute = rng.choice(ATTRIBUTES)
        there = list(dict.fromkeys(str(getattr(thing, attribute)) for thing in look.things))
        first = rng.choice(there)
        others = [
            value for value in (there if len(there) > 1 and rng.random() < 0.8 else VALUES[attribute]) if value != first
        ]
        values = [first, rng.choice(others)]
        rng.shuffle(values)
        sets = tuple(ANYTHING.having(attribute, value) for value in values)
        return Program(
            operation,
            sets,
            (rng.choice(("more", "more", "fewer")),) if "more" in operation and operation != "how many more" else (),
        )

    return make


def _query(proposer: Proposer) -> Program | None:
    attribute = proposer.rng.choices((*ATTRIBUTES, "place"), (30, 27, 14, 29))[0]
    things = proposer.one(hide=attribute)
    return None if things is None else Program("query", (things,), (attribute,))


def _verify(proposer: Proposer) -> Program | None:
    rng = proposer.rng
    attribute = rng.choices((*ATTRIBUTES, "place", "half"), (26, 22, 14, 20, 18))[0]
    things = proposer.one(hide=attribute)
    if things is None:
        return None
    if attribute == "half":
        return Program("verify", (things,), (rng.choice(SIDES), "True"))
    value = rng.choice(CORNERS) if attribute == "place" else proposer.value(attribute)
    return Program("verify", (things,), (attribute, value))


def _choose(proposer: Proposer) -> Program | None:
    rng = proposer.rng
    attribute = rng.choice(("colour", "colour", "shape", "shape", "half"))
    if attribute == "half":
        things = proposer.one()
        sides = rng.choice((("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")))
        return None if things is None else Program("choose", (things,), ("half", *sides))
    thing = proposer.thing()
    things = proposer.one(thing, hide=attribute)
    true, other = str(getattr(thing, attribute)), proposer.value(attribute)
    if rng.random() < 0.08:
        true = rng.choice(VALUES[attribute])
    if things is None or true == other:
        return None
    return Program("choose", (things,), (attribute, *rng.sample((true, other), 2)))


def _tell(proposer: Proposer) -> Program | None:
    things = proposer.one()
    return None if things is None else Program("tell", (things,))


def _listed(proposer: Proposer) -> Program:
    rng = proposer.rng
    if rng.random() < 0.25:
        return Program("list", (proposer.without(),))
    if rng.random() < 0.2:
        return Program("list", (Things(side=rng.choice(SIDES)),))
    thing = proposer.thing()
    names: list[Name] = [(None, None, thing.shape), (None, thing.colour, None), (thing.size, None, None)]
    return Program("list", (Things.of(rng.choice(names)) if rng.random() < 0.85 else proposer.some(),))


def _values(proposer: Proposer) -> Program | None:
    things = ANYTHING if proposer.rng.random() < 0.6 else proposer.group()
    free = [each for each in ATTRIBUTES if getattr(things, each) is None]
    if not free:
        return None
    attribute = proposer.rng.choice(free)
    return Program("values", (things,), (attribute,))


def _pair(operation: str, *words: str) -> Callable[[Proposer], Program | None]:
    def make(proposer: Proposer) -> Program | None:
        pair = proposer.pair()
        if pair is None:
            return None
        if operation in ("bigger", "is bigger") and any(things.size for things in pair):
            return None
        return Program(operation, pair, (proposer.rng.choice(words),) if words else ())

    return make


def _alike(proposer: Proposer) -> Program | None:
    pair, attribute = proposer.pair(), proposer.attribute()
    if pair is None or any(getattr(things, attribute) for things in pair):
        return None
    return Program("alike", pair, (attribute,))


def _choose_beside(proposer: Proposer) -> Program | None:
    pair, way = proposer.pair(), proposer.rng.choice(DIRECTIONS)
    return None if pair is None else Program("choose beside", pair, (way, OPPOSITE[way]))


def _asked(proposer: Proposer) -> str:
    return proposer.rng.choices(("thing", *ATTRIBUTES), (62, 18, 14, 6))[0]


def _at(operation: str) -> Callable[[Proposer], Program]:
    def make(proposer: Proposer) -> Program:
        where = proposer.rng.choice((*CORNERS, *CORNERS, "left", "right", "top", "bottom")[:10])
        return Program(operation, (), (where, _asked(proposer)) if operation == "at" else (where,))

    return make


def _first(proposer: Proposer) -> Program | None:
    rng = proposer.rng
    which = rng.choice(
        (*FIRST, "largest", "smallest", "largest", "smallest", "leftmost", "rightmost", "topmost", "bottommost")
    )
    things = ANYTHING if rng.random() < 0.65 else proposer.group()
    attribute = rng.choices(("thing", "colour", "shape", "size", "place"), (30, 34, 20, 8, 8))[0]
    if getattr(things, attribute, None) or (which in ("largest", "smallest") and (attribute == "size" or things.size)):
        return None
    return Program("first", (things,), (which, attribute))


def _is_first(proposer: Proposer) -> Program | None:
    things = proposer.one()
    which = proposer.rng.choice((*list(FIRST)[:5], "largest", "smallest"))
    return None if things is None else Program("is first", (things, ANYTHING), (which,))


def _beside_one(operation: str) -> Callable[[Proposer], Program | None]:
    def make(proposer: Proposer) -> Program | None:
        things, way = proposer.one(), proposer.rng.choice(DIRECTIONS)
        if things is None:
            return None
        if operation == "nearest":
            return Program(operation, (things,), (_asked(proposer),))
        return Program(operation, (things,), (way, _asked(proposer)) if operation == "what beside" else (way,))

    return make


def _is_between(proposer: Proposer) -> Program | None:
    if len(proposer.look.things) < 3:
        return None
    three = [proposer.one(thing) for thing in proposer.rng.sample(proposer.look.things, 3)]
    if any(things is None for things in three) or len(set(three)) < 3:
        return None
    return Program("is between", tuple(things for things in three if things is not None))


def _order(proposer: Proposer) -> Program | None:
    return Program("order", (), (proposer.rng.choice(SIDES),)) if len(proposer.look.things) > 1 else None


def _ground_is(proposer: Proposer) -> Program:
    rng, scenery = proposer.rng, proposer.look.scene.background
    if rng.random() < 0.5:
        return Program("ground is", (), (scenery.kind if rng.random() < 0.4 else rng.choice(BACKGROUNDS),))
    colours = (*scenery.colours, *(thing.colour for thing in proposer.look.things), rng.choice(COLOURS))
    return Program("ground is", (), (rng.choice(colours),))


def _ground_choose(proposer: Proposer) -> Program:
    rng, scenery = proposer.rng, proposer.look.scene.background
    if rng.random() < 0.4:
        return Program("ground choose", (), tuple(rng.sample(BACKGROUNDS, 2)))
    true = rng.choice(scenery.colours)
    other = rng.choice([colour for colour in COLOURS if colour != true])
    return Program("ground choose", (), tuple(rng.sample((true, other), 2)))


def _whole(operation: str) -> Callable[[Proposer], Program]:
    return lambda proposer: Program(operation)


_MAKERS: dict[str, Callable[[Proposer], Program | None]] = {
    "exists": _existing, "none": _none, "both exist": _two_sets("both exist"),
    "either exists": _two_sets("either exists"), "every": _quantified("every"), "any": _quantified("any"),
    "none are": _quantified("none are"), "both are": _quantified("both are"),
    "only": _only, "same": _quantified("same"),
    "differ": _quantified("differ"), "repeats": _repeats, "sole": _sole, "count choose": _count_choose,
    "count": _counting, "number is": _number_is, "more": _compared("more"), "as many": _compared("as many"),
    "which more": _compared("which more"), "how many more": _compared("how many more"),
    "kinds": lambda p: Program("kinds", (), (p.attribute(),)),
    "common": lambda p: Program("common", (), (p.rng.choice(("colour", "shape")),)),
    "query": _query, "verify": _verify, "choose": _choose, "tell": _tell, "list": _listed, "values": _values,
    "bigger": _pair("bigger", "larger", "smaller"), "is bigger": _pair("is bigger", "larger", "smaller"),
    "alike": _alike,
    "at": _at("at"), "anything at": _at("anything at"), "empty at": _at("empty at"), "first": _first,
    "is first": _is_first, "beside": _pair("beside", *DIRECTIONS), "choose beside": _choose_beside,
    "where from": _pair("where from"), "what beside": _beside_one("what beside"),
    "anything beside": _beside_one("anything beside"), "count beside": _beside_one("count beside"),
    "nearest": _beside_one("nearest"), "next to": _pair("next to"), "between": _pair("between"),
    "is between": _is_between, "further": _pair("further", *DIRECTIONS), "order": _order,
    "ground": _whole("ground"), "ground colour": _whole("ground colour"), "ground kind": _whole("ground kind"),
    "ground is": _ground_is, "ground choose": _ground_choose, "names": _whole("names"), "caption": _whole("caption"),
    "describe": _whole("describe"), "story": _whole("story"),
}  # fmt: skip
