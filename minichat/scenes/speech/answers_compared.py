"""What is true of numbers, and of two things that are compared."""

from __future__ import annotations

from collections.abc import Callable

from minichat.scenes.speech.answers import Answer, Run, confirm, missing, one_of, sentence, stated, the, valued
from minichat.scenes.speech.program import ANYTHING, Program, called, matching, there_are
from minichat.scenes.truth import NUMBERS, Look, join, named, plural, some
from minichat.scenes.world import SIZES, Thing

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
        return confirm(True, f"both are {plural(first[2:]) if attribute == 'shape' else first}")
    one, other = map(the, program.things)
    return confirm(False, f"{one} is {first} and {other} is {second}")


ANSWERS: dict[str, Run] = {
    "count": _count, "count choose": _count, "number is": _number_is, "more": _more, "as many": _as_many,
    "which more": _which_more, "how many more": _how_many_more, "kinds": _kinds, "common": _common, "bigger": _bigger,
    "is bigger": _is_bigger, "alike": _alike,
}  # fmt: skip
