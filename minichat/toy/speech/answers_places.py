"""What is true of places, of how things lie to each other, of numbers, and of two things compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from minichat.toy.speech.answers import Answer, Run, confirm, each_told, missing, one_of, sentence, stated, the, valued
from minichat.toy.speech.nouns import ANYTHING, Program, called, matching, there_are
from minichat.toy.world import (
    MARGIN,
    NUMBERS,
    OPPOSITE,
    SIZES,
    Look,
    Thing,
    at,
    beside,
    join,
    listed,
    named,
    offset,
    plural_shape,
    possible_places,
    some,
    sure_place,
    toward,
)

# --- What is true of places, of how things lie to each other, and of which is the first along a line.


ALMOST = 0.04  # this far on the other side of another, a thing is surely not in the direction that is asked about
AHEAD = 0.06  # so much further along an axis is clearly further
NEARER = 0.08  # so much nearer is clearly nearer
TOUCHING, APART = 0.12, 0.3  # from edge to edge: surely next to each other, surely not
LINE, OFF_LINE = 0.12, 0.25  # from the line between two things: surely between them, surely not

#: Where "the leftmost", "the one nearest to the middle" and so on lie: along a direction, or near a point (x, y).
FIRST: dict[str, str | tuple[float, float]] = {
    "leftmost": "left", "rightmost": "right", "topmost": "above", "bottommost": "below", "centre": (0.5, 0.5),
    "top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1),
}  # fmt: skip


def here(look: Look, where: str) -> list[Thing] | None:
    """The things in one of the nine places; None where it could be disputed of one."""
    sure = [thing for thing in look.things if sure_place(thing) == where]
    possible = [thing for thing in look.things if where in possible_places(thing)]
    return sure if len(sure) == len(possible) else None


def toward_things(look: Look, thing: Thing, direction: str) -> list[Thing] | None:
    """The things in `direction` of `thing`; None where it could be disputed of one."""
    near = [other for other in look.things if other is not thing and offset(other, thing, direction) > -ALMOST]
    clear = [other for other in near if offset(other, thing, direction) >= MARGIN]
    return clear if len(near) == len(clear) else None


def first(look: Look, among: Sequence[Thing], which: str) -> Thing | None:
    """The leftmost of them, the one nearest to the middle, and so on; None where two are almost as far."""
    where = FIRST[which]

    def distance(thing: Thing) -> float:
        if isinstance(where, tuple):
            return math.dist((thing.x, thing.y), where)
        return {"left": thing.x, "right": -thing.x, "above": thing.y, "below": -thing.y}[where]

    order = sorted(among, key=distance)
    margin = NEARER if isinstance(where, tuple) else AHEAD
    return None if len(order) > 1 and distance(order[1]) - distance(order[0]) < margin else order[0]


def nearest(look: Look, thing: Thing, among: Sequence[Thing]) -> Thing | None:
    """The one of them that is nearest to `thing`, by centres; None where two are almost as near."""
    order = sorted(among, key=lambda other: math.dist((other.x, other.y), (thing.x, thing.y)))
    distances = [math.dist((other.x, other.y), (thing.x, thing.y)) for other in order]
    return None if len(order) > 1 and distances[1] - distances[0] < NEARER else order[0]


def is_between(thing: Thing, one: Thing, other: Thing) -> bool | None:
    """Whether `thing` lies between two others, near the line that joins them; None where it could be disputed."""
    across, down = other.x - one.x, other.y - one.y
    length = math.hypot(across, down)
    along = ((thing.x - one.x) * across + (thing.y - one.y) * down) / length**2
    off = abs((thing.x - one.x) * down - (thing.y - one.y) * across) / length
    if 0.2 <= along <= 0.8 and off <= LINE:
        return True
    return False if along < 0 or along > 1 or off > OFF_LINE else None


def pointed(thing: Thing, attribute: str) -> Answer | None:
    """The thing that was asked for, or what was asked of it; None for a place that could be disputed."""
    if attribute == "thing":
        return Answer(sentence(f"the {thing.colour} {thing.shape}"), None, ("things",), named(thing))
    where = valued(attribute, thing)
    if where is None:
        return None
    told = stated(attribute, where)
    text = told if attribute == "place" else f"it is {told}"
    return Answer(sentence(text), None, (attribute,), where)


def _all_pointed(found: Sequence[Thing], attribute: str) -> Answer | None:
    """The things that were asked for, or of each what was asked of them."""
    if attribute == "thing":
        return Answer(sentence(listed(found)), None, ("things",), tuple(map(named, found)))
    if len(found) == 1:
        return pointed(found[0], attribute)
    told = each_told([stated(attribute, str(valued(attribute, thing))) for thing in found])
    return Answer(sentence(f"there are {NUMBERS[len(found)]}: {told}"), None, (attribute,))


def _at(program: Program, look: Look) -> Answer | None:
    """What is at the top left? words: (place,), and what is asked of it."""
    where, attribute = program.words
    found = here(look, where)
    if found is None:
        return None
    if not found:
        return Answer(f"There is nothing {at(where)}.", None, ("none",), ())
    return _all_pointed(found, attribute)


def _anything_at(program: Program, look: Look) -> Answer | None:
    (where,) = program.words
    found = here(look, where)
    if found is None:
        return None
    verb = "are" if len(found) > 1 and named(found[0]) == named(found[1]) else "is"
    return confirm(bool(found), f"there {verb} {listed(found)}" if found else "", "there is nothing there")


def _empty_at(program: Program, look: Look) -> Answer | None:
    """Is the top left empty?"""
    answer = _anything_at(program, look)
    if answer is None:
        return None
    return confirm(not answer.yes, answer.reply.split(", ", 1)[1][:-1])


def _first(program: Program, look: Look) -> Answer | None:
    """What colour is the leftmost star? words: (which, attribute)."""
    (things,), (which, attribute) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things)
    if which in ("largest", "smallest"):
        size = "large" if which == "largest" else "small"
        among = [thing for thing in found if thing.size == size]
        if len(found) == 1:
            among = found
        if len(among) == 1:
            return pointed(among[0], attribute)
        if not among:
            every = "both" if len(found) == 2 else "all"
            return Answer(sentence(f"they are {every} {found[0].size}: {listed(found)}"), None, ("size",), ())
        verb = f"there are {NUMBERS[len(among)]} {size} ones: {listed(among)}"
        return Answer(sentence(verb), None, ("things",), tuple(map(named, among)))
    thing = first(look, found, which)
    return None if thing is None else pointed(thing, attribute)


def _is_first(program: Program, look: Look) -> Answer | None:
    """Is the star the leftmost thing? things: the one, and those among which it is sought."""
    (things, among), (which,) = program.things, program.words
    thing = one_of(look, things)
    if not isinstance(thing, Thing):
        return missing(things, yes_no=True) if thing is not None and thing.asked == ("none",) else thing
    every = matching(look, among)
    if every is None or thing not in every or len(every) == 1:
        return None
    if which in ("largest", "smallest"):
        size = "large" if which == "largest" else "small"
        best = [other for other in every if other.size == size]
        if len(best) != 1:
            return None
        found: Thing | None = best[0]
    else:
        found = first(look, every, which)
    if found is None:
        return None
    clause = f"the {found.colour} {found.shape} is"
    return confirm(found is thing, "it is", clause)


def _beside(program: Program, look: Look) -> Answer | None:
    """Is the star left of the ring? words: (direction,)."""
    pair = _two(program, look, yes_no=True)
    if not isinstance(pair, tuple):
        return pair
    (direction,) = program.words
    there = beside(*pair, direction)
    if there is None:
        return None
    other = the(program.things[1])
    return confirm(there, f"it is {toward(direction)} {other}", f"it is {toward(OPPOSITE[direction])} {other}")


def _two(program: Program, look: Look, *, yes_no: bool = False) -> tuple[Thing, Thing] | Answer | None:
    found = []
    for things in program.things[:2]:
        one = one_of(look, things)
        if not isinstance(one, Thing):
            return missing(things, yes_no=True) if yes_no and one is not None and one.asked == ("none",) else one
        found.append(one)
    return None if found[0] is found[1] else (found[0], found[1])


def _choose_beside(program: Program, look: Look) -> Answer | None:
    """Is the star above or below the ring? words: a direction and its opposite."""
    pair = _two(program, look)
    if not isinstance(pair, tuple):
        return pair
    there = beside(*pair, program.words[0])
    if there is None:
        return None
    way = program.words[0] if there else program.words[1]
    return Answer(f"It is {toward(way)} {the(program.things[1])}.", None, ("direction",), way)


def _where_from(program: Program, look: Look) -> Answer | None:
    """Where is the star relative to the ring?"""
    pair = _two(program, look)
    if not isinstance(pair, tuple):
        return pair
    ways = [way for way in ("above", "below", "left", "right") if beside(*pair, way)]
    aside = [abs(offset(*pair, way)) for way in ("right", "below")]
    if not ways or any(MARGIN - ALMOST < step < MARGIN for step in aside):
        return None
    told = " and ".join(toward(way) if way == ways[-1] else way for way in ways)
    return Answer(sentence(f"{told} {the(program.things[1])}"), None, ("direction",), tuple(ways))


def _what_beside(program: Program, look: Look) -> Answer | None:
    """What is left of the star? words: (direction, what is asked of it)."""
    (things,), (direction, attribute) = program.things, program.words
    thing = one_of(look, things)
    if not isinstance(thing, Thing):
        return thing
    found = toward_things(look, thing, direction)
    if found is None:
        return None
    if not found:
        return Answer("Nothing.", None, ("none",), ())
    return _all_pointed(found, attribute)


def _anything_beside(program: Program, look: Look) -> Answer | None:
    (things,), (direction,) = program.things, program.words
    thing = one_of(look, things)
    if not isinstance(thing, Thing):
        return missing(things, yes_no=True) if thing is not None and thing.asked == ("none",) else thing
    found = toward_things(look, thing, direction)
    if found is None:
        return None
    verb = "are" if len(found) > 1 and named(found[0]) == named(found[1]) else "is"
    nothing = f"there is nothing {toward(program.words[0])} {the(things)}"
    return confirm(bool(found), f"there {verb} {listed(found)}" if found else "", nothing)


def _count_beside(program: Program, look: Look) -> Answer | None:
    """How many things are left of the star?"""
    thing = one_of(look, program.things[0])
    if not isinstance(thing, Thing):
        return thing
    found = toward_things(look, thing, program.words[0])
    if found is None:
        return None
    told = f"{there_are(ANYTHING, len(found), counted=True)} {toward(program.words[0])} {the(program.things[0])}"
    return Answer(sentence(told), None, ("number",), len(found))


def _nearest(program: Program, look: Look) -> Answer | None:
    """What is closest to the star? words: (what is asked of it,)."""
    thing = one_of(look, program.things[0])
    if not isinstance(thing, Thing):
        return thing
    others = [other for other in look.things if other is not thing]
    if not others:
        return Answer("Nothing, it is the only object.", None, ("none",), ())
    found = nearest(look, thing, others)
    return None if found is None else pointed(found, program.words[0])


def _next_to(program: Program, look: Look) -> Answer | None:
    """Is the star next to the ring?"""
    pair = _two(program, look, yes_no=True)
    if not isinstance(pair, tuple):
        return pair
    one, other = pair
    gap = math.dist((one.x, one.y), (other.x, other.y)) - one.radius - other.radius
    if TOUCHING < gap < APART:
        return None
    return confirm(gap <= TOUCHING, "they are close together", "they are far apart")


def _between(program: Program, look: Look) -> Answer | None:
    """What is between the star and the ring?"""
    pair = _two(program, look)
    if not isinstance(pair, tuple):
        return pair
    others = [thing for thing in look.things if thing not in pair]
    there = [is_between(thing, *pair) for thing in others]
    if None in there:
        return None
    found = [thing for thing, inside in zip(others, there, strict=True) if inside]
    if not found:
        return Answer("Nothing.", None, ("none",), ())
    return Answer(sentence(listed(found)), None, ("things",), tuple(map(named, found)))


def _is_between(program: Program, look: Look) -> Answer | None:
    """Is the heart between the star and the ring? things: the heart, the star, the ring."""
    found = []
    for things in program.things:
        one = one_of(look, things)
        if not isinstance(one, Thing):
            return missing(things, yes_no=True) if one is not None and one.asked == ("none",) else one
        found.append(one)
    if len({id(thing) for thing in found}) < 3:
        return None
    inside = is_between(*found)
    if inside is None:
        return None
    return confirm(inside, "it is between them", "it is not between them")


def _further(program: Program, look: Look) -> Answer | None:
    """Which is higher, the star or the ring? words: (direction,)."""
    pair = _two(program, look)
    if not isinstance(pair, tuple):
        return pair
    there = beside(*pair, program.words[0])
    if there is None:
        return None
    return Answer(sentence(the(program.things[0 if there else 1])), None, ("things",), 0 if there else 1)


def _order(program: Program, look: Look) -> Answer | None:
    """Name the things from left to right. words: (where it begins,)."""
    (start,) = program.words
    axis = "x" if start in ("left", "right") else "y"
    order = sorted(look.things, key=lambda thing: getattr(thing, axis), reverse=start in ("right", "bottom"))
    places = [getattr(thing, axis) for thing in order]
    if any(abs(b - a) < AHEAD for a, b in pairwise(places)):
        return None
    told = [some(named(thing)) for thing in order]
    return Answer(sentence(", ".join(told)), None, ("things",), tuple(map(named, order)))


PLACE_ANSWERS: dict[str, Run] = {
    "at": _at, "anything at": _anything_at, "empty at": _empty_at, "first": _first, "is first": _is_first,
    "beside": _beside, "choose beside": _choose_beside, "where from": _where_from, "what beside": _what_beside,
    "anything beside": _anything_beside, "count beside": _count_beside, "nearest": _nearest, "next to": _next_to,
    "between": _between, "is between": _is_between, "further": _further, "order": _order,
}  # fmt: skip


# --- What is true of numbers, and of two things that are compared.


# --- numbers


def _count(program: Program, look: Look) -> Answer | None:
    (things,) = program.things
    found = matching(look, things)
    if found is None:
        return None
    return Answer(sentence(there_are(things, len(found), counted=True)), None, ("number",), len(found))


COMPARED: dict[str, Callable[[int, int], bool]] = {
    "exactly": lambda number, asked: number == asked,
    "at least": lambda number, asked: number >= asked,
    "at most": lambda number, asked: number <= asked,
    "more than": lambda number, asked: number > asked,
    "fewer than": lambda number, asked: number < asked,
}


def _number_is(program: Program, look: Look) -> Answer | None:
    """Are there at least three stars? words: (how,), and a number."""
    (things,), (how,) = program.things, program.words
    found = matching(look, things)
    if found is None or program.number is None:
        return None
    return confirm(COMPARED[how](len(found), program.number), there_are(things, len(found), counted=True))


def _two_numbers(program: Program, look: Look) -> tuple[int, int, str] | None:
    first, second = (matching(look, things) for things in program.things)
    if first is None or second is None:
        return None
    told = [
        f"{NUMBERS[len(found)] if found else 'no'} {called(things, 1 if len(found) == 1 else 2)}"
        for things, found in zip(program.things, (first, second), strict=True)
    ]
    verb = "is" if len(first) == 1 else "are"
    return len(first), len(second), f"there {verb} {told[0]} and {told[1]}"


def _more(program: Program, look: Look) -> Answer | None:
    """Are there more stars than rings? words: more or fewer."""
    both = _two_numbers(program, look)
    if both is None:
        return None
    one, other, told = both
    return confirm(one > other if program.words == ("more",) else one < other, told)


def _as_many(program: Program, look: Look) -> Answer | None:
    both = _two_numbers(program, look)
    return None if both is None else confirm(both[0] == both[1], both[2])


def _which_more(program: Program, look: Look) -> Answer | None:
    """Are there more stars or more rings?"""
    both = _two_numbers(program, look)
    if both is None:
        return None
    one, other, told = both
    if one == other:
        return Answer(f"Neither, {told}.", None, ("number",), "neither")
    most = (one > other) == (program.words == ("more",))
    name = called(program.things[0 if most else 1], 2)
    return Answer(f"{sentence(name)[:-1]}, {told}.", None, ("number",), 0 if most else 1)


def _how_many_more(program: Program, look: Look) -> Answer | None:
    both = _two_numbers(program, look)
    if both is None:
        return None
    one, other, told = both
    if one <= other:
        return Answer(f"None, {told}.", None, ("number",), 0)
    return Answer(f"{NUMBERS[one - other].capitalize()} more, {told}.", None, ("number",), one - other)


def _kinds(program: Program, look: Look) -> Answer | None:
    """How many different colours are there?"""
    (attribute,) = program.words
    found = list(dict.fromkeys(str(valued(attribute, thing)) for thing in look.things))
    told = join([f"{value}" for value in found])
    return Answer(sentence(f"{NUMBERS[len(found)]}: {told}"), None, ("number", attribute), len(found))


def _common(program: Program, look: Look) -> Answer | None:
    """Which colour is there most of?"""
    (attribute,) = program.words
    values = [str(valued(attribute, thing)) for thing in look.things]
    most = max(map(values.count, values))
    found = [value for value in dict.fromkeys(values) if values.count(value) == most]
    if len(values) == 1:
        return Answer(f"There is only {some(named(look.things[0]))}.", None, (attribute,), tuple(found))
    if len(found) == 1:
        clause = there_are(ANYTHING.having(attribute, found[0]), most)
        return Answer(f"{found[0].capitalize()}, {clause}.", None, (attribute,), tuple(found))
    if most == 1:
        return Answer(f"None, each {attribute} is there once.", None, ("none",), ())
    each = f"{NUMBERS[most]} of each"
    return Answer(f"{sentence(join(found))[:-1]}, there are {each}.", None, (attribute,), tuple(found))


# --- two things


def _pair(program: Program, look: Look, *, yes_no: bool = False) -> tuple[Thing, Thing] | Answer | None:
    """The two things that are meant, or what is to be said where one is missing or not one alone."""
    found = []
    for things in program.things:
        one = one_of(look, things)
        if not isinstance(one, Thing):
            return missing(things, yes_no=True) if yes_no and one is not None and one.asked == ("none",) else one
        found.append(one)
    return None if found[0] is found[1] else (found[0], found[1])


def _bigger(program: Program, look: Look) -> Answer | None:
    """Which is larger, the star or the ring? words: larger or smaller."""
    pair = _pair(program, look)
    if not isinstance(pair, tuple):
        return pair
    first, second = pair
    if first.size == second.size:
        return Answer(f"Neither, both are {first.size}.", None, ("size",), "neither")
    chosen = 0 if (first.size == SIZES[1]) == (program.words == ("larger",)) else 1
    return Answer(sentence(the(program.things[chosen])), None, ("things",), chosen)


def _is_bigger(program: Program, look: Look) -> Answer | None:
    """Is the star larger than the ring?"""
    pair = _pair(program, look, yes_no=True)
    if not isinstance(pair, tuple):
        return pair
    first, second = pair
    if first.size == second.size:
        return confirm(False, f"both are {first.size}")
    truth = (first.size == SIZES[1]) == (program.words == ("larger",))
    one, other = map(the, program.things)
    return confirm(truth, f"{one} is {first.size} and {other} is {second.size}")


def _alike(program: Program, look: Look) -> Answer | None:
    """Are the star and the ring the same colour? words: (attribute,)."""
    pair = _pair(program, look, yes_no=True)
    if not isinstance(pair, tuple):
        return pair
    (attribute,) = program.words
    first, second = (stated(attribute, str(valued(attribute, thing))) for thing in pair)
    if first == second:
        return confirm(True, f"both are {plural_shape(first[2:]) if attribute == 'shape' else first}")
    one, other = map(the, program.things)
    return confirm(False, f"{one} is {first} and {other} is {second}")


COMPARED_ANSWERS: dict[str, Run] = {
    "count": _count, "count choose": _count, "number is": _number_is, "more": _more, "as many": _as_many,
    "which more": _which_more, "how many more": _how_many_more, "kinds": _kinds, "common": _common, "bigger": _bigger,
    "is bigger": _is_bigger, "alike": _alike,
}  # fmt: skip
