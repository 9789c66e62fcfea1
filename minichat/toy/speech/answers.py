"""What is true: a program run on a scene, as the assistant says it.

A yes/no question begins with Yes or No and goes on with what is so. Where the question takes for granted what is not
so ("the green star", of none or of two), the reply says that instead. What could be disputed has no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minichat.toy.speech.nouns import ANYTHING, Program, Things, called, kind_of, matching, numbered, there_are
from minichat.toy.world import NUMBERS, Look, Thing, at, half, join, listed, named, plural_shape, some, sure_place

#: What a reply may have to tell; a reader of replies looks for these.
ASKED = ("colour", "shape", "size", "place", "number", "direction", "ground", "things", "none", "scene")


@dataclass(frozen=True)
class Answer:
    """`reply`: what the assistant says; `yes`: whether it begins with Yes, None where neither is due; `asked`: what a
    right reply must tell beside that; `value`: the same for programs that read it."""

    reply: str
    yes: bool | None = None
    asked: tuple[str, ...] = ()
    value: object = None


Run = Callable[[Program, Look], Answer | None]


def confirm(truth: bool, yes: str, no: str | None = None, asked: tuple[str, ...] = ()) -> Answer:
    """Yes or No, and a clause that says how it is."""
    clause = yes if truth or no is None else no
    return Answer(f"{'Yes' if truth else 'No'}, {clause}.", truth, asked, truth)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def missing(things: Things, *, yes_no: bool = False) -> Answer:
    """What is asked about is not there."""
    clause = there_are(things, 0)
    return Answer(f"No, {clause}." if yes_no else sentence(clause), False if yes_no else None, ("none",))


def valued(attribute: str, thing: Thing) -> str | None:
    """The thing's colour, shape, size or place; None for a place that could be disputed."""
    if attribute == "place":
        return sure_place(thing)
    if attribute in ("left", "right", "top", "bottom"):
        there = half(thing, attribute)
        return None if there is None else str(there)
    return str(getattr(thing, attribute))


def stated(attribute: str, value: str) -> str:
    """After "it is": "red", "a star", "large", "at the top left"."""
    if attribute == "shape":
        return f"a {value}"
    return at(value) if attribute == "place" else value


def several(things: Things, values: Sequence[str]) -> str:
    """Of more than one thing: "both stars are red", "there are two stars: one is red, one is blue"."""
    name, number = called(things, 2), len(values)
    if len(set(values)) == 1:
        every = "both" if number == 2 else f"all {NUMBERS[number]}"
        value = values[0]
        is_shape = value.startswith("a ")
        return f"{every} {name} are {plural_shape(value[2:]) if is_shape else value}"
    return f"there are {NUMBERS[number]} {name}: {each_told(values)}"


def each_told(values: Sequence[str]) -> str:
    """ "one is red, one is blue", "two are stars, one is a ring"."""
    told = []
    for value in dict.fromkeys(values):
        number = values.count(value)
        many = plural_shape(value[2:]) if value.startswith("a ") else value
        told.append(f"one is {value}" if number == 1 else f"{NUMBERS[number]} are {many}")
    return ", ".join(told)


def the(things: Things) -> str:
    return f"the {called(things)}"


def one_of(look: Look, things: Things) -> Thing | Answer | None:
    """The one thing that is meant, or what is to be said where there are none or several; None: disputed."""
    found = matching(look, things)
    if found is None:
        return None
    if len(found) == 1:
        return found[0]
    if not found:
        return missing(things)
    return Answer(sentence(there_are(things, len(found))), None, ("number",))


# --- existence and quantifiers


def _exists(program: Program, look: Look) -> Answer | None:
    (things,) = program.things
    found = matching(look, things)
    if found is None:
        return None
    return confirm(bool(found), _there_is(look, things, len(found)))


def _there_is(look: Look, things: Things, number: int) -> str:
    """How many of them there are; where nothing is other than a kind, that there is only this kind."""
    if number or things.without is None or any(things.name) or things.side:
        return there_are(things, number)
    if len(look.things) == 1:
        return f"there is only {some(named(look.things[0]))}"
    return f"there are only {called(ANYTHING.having(kind_of(things.without), things.without), 2)}"


def _none(program: Program, look: Look) -> Answer | None:
    """Is there no star? Are there no stars?"""
    (things,) = program.things
    found = matching(look, things)
    if found is None:
        return None
    return confirm(not found, there_are(things, len(found)))


def _exist_both(program: Program, look: Look) -> Answer | None:
    first, second = (matching(look, things) for things in program.things)
    if first is None or second is None:
        return None
    one, other = (numbered(t, len(f)) for t, f in zip(program.things, (first, second), strict=True))
    if first and second:
        return confirm(True, f"there {'are' if len(first) > 1 else 'is'} {one} and {other}")
    if not first and not second:
        a, b = (numbered(things, 1) for things in program.things)
        return confirm(False, f"there is neither {a} nor {b}")
    here, gone = (one, other) if first else (other, one)
    return confirm(False, f"there {'are' if len(first or second) > 1 else 'is'} {here} but {gone}")


def _exist_either(program: Program, look: Look) -> Answer | None:
    both = _exist_both(program, look)
    if both is None or "neither" in both.reply:
        return both
    first, second = (matching(look, things) or [] for things in program.things)
    if first and second:
        return both
    here = 0 if first else 1
    return confirm(True, there_are(program.things[here], len(first or second)))


def _every(program: Program, look: Look) -> Answer | None:
    """Are all stars red? words: (attribute, value)."""
    (things,), (attribute, value) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things, yes_no=True)
    values = [valued(attribute, thing) for thing in found]
    right = values.count(value)
    if len(found) == 1:
        told = stated(attribute, str(values[0]))
        return confirm(right == 1, f"the only {called(things)} is {told}")
    if right == len(found):
        return confirm(True, several(things, [stated(attribute, value)] * right))
    return confirm(False, _of_them(right, things, attribute, value, len(found)))


def _of_them(right: int, things: Things, attribute: str, value: str, total: int) -> str:
    """ "none of the stars is red", "only one of the three stars is red"."""
    name = f"the {called(things, 2)}" if total > 1 else the(things)
    if right == 0:
        return f"none of {name} is {stated(attribute, value)}"
    told = plural_shape(value) if attribute == "shape" and right > 1 else stated(attribute, value)
    verb = "is" if right == 1 else "are"
    return f"{NUMBERS[right]} of the {NUMBERS[total]} {called(things, 2)} {verb} {told}"


def _any(program: Program, look: Look) -> Answer | None:
    """Are any of the stars red? Is one of them?"""
    (things,), (attribute, value) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things, yes_no=True)
    right = sum(valued(attribute, thing) == value for thing in found)
    if len(found) == 1:
        told = stated(attribute, str(valued(attribute, found[0])))
        return confirm(right == 1, f"the only {called(things)} is {told}")
    if right == len(found):
        return confirm(True, several(things, [stated(attribute, value)] * right))
    return confirm(right > 0, _of_them(right, things, attribute, value, len(found)))


def _none_are(program: Program, look: Look) -> Answer | None:
    """Is none of the stars red?"""
    answer = _any(program, look)
    if answer is None or answer.yes is None:
        return answer
    if answer.asked:
        return answer
    return confirm(not answer.yes, answer.reply.split(", ", 1)[1][:-1])


def _both_are(program: Program, look: Look) -> Answer | None:
    """Are both stars red? There may be more or fewer than two."""
    (things,), (attribute, value) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if len(found) == 2:
        right = [valued(attribute, thing) == value for thing in found]
        if all(right):
            return confirm(True, several(things, [stated(attribute, value)] * 2))
        values = [stated(attribute, str(valued(attribute, thing))) for thing in found]
        clause = f"both are {plural_shape(values[0][2:]) if attribute == 'shape' else values[0]}"
        return confirm(False, clause if values[0] == values[1] else f"one is {values[0]}, one is {values[1]}")
    if not found:
        return missing(things, yes_no=True)
    only = "only " if len(found) == 1 else ""
    verb = "is" if len(found) == 1 else "are"
    name = called(things, len(found))
    return Answer(f"There {verb} {only}{NUMBERS[len(found)]} {name}.", None, ("number",))


def _only(program: Program, look: Look) -> Answer | None:
    """Are there only stars? Is everything red?"""
    (things,) = program.things
    found = matching(look, things)
    if found is None:
        return None
    total, right = len(look.things), len(found)
    if total == 1:
        return confirm(right == 1, f"there is only {some(named(look.things[0]))}")
    if right == total:
        return confirm(True, f"there are only {called(things, 2)}")
    if right == 0:
        return confirm(False, there_are(things, 0))
    verb = "is" if right == 1 else "are"
    attribute = next(
        (each for each in ("colour", "size") if things == ANYTHING.having(each, getattr(things, each))), ""
    )
    name = getattr(things, attribute) if attribute else numbered(things, 1) if right == 1 else called(things, 2)
    return confirm(False, f"only {NUMBERS[right]} of the {NUMBERS[total]} objects {verb} {name}")


def _same(program: Program, look: Look) -> Answer | None:
    """Are all stars the same colour? words: (attribute,)."""
    (things,), (attribute,) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things, yes_no=True)
    values = [str(valued(attribute, thing)) for thing in found]
    different = list(dict.fromkeys(values))
    if len(found) == 1:
        return Answer(
            f"There is only one {called(things)}, and it is {stated(attribute, values[0])}.", None, ("number",)
        )
    if len(different) == 1:
        return confirm(True, several(things, [stated(attribute, value) for value in values]))
    return confirm(False, f"they are {join([plural_shape(v) if attribute == 'shape' else v for v in different])}")


def _differ(program: Program, look: Look) -> Answer | None:
    """Is there more than one colour? Do the stars differ in size?"""
    same = _same(program, look)
    if same is None or same.yes is None or same.asked:
        return same
    return confirm(not same.yes, same.reply.split(", ", 1)[1][:-1])


def _repeats(program: Program, look: Look) -> Answer | None:
    """Do two things have the same colour?"""
    (attribute,) = program.words
    values = [str(valued(attribute, thing)) for thing in look.things]
    most = max(values, key=values.count)
    if values.count(most) == 1:
        return confirm(False, f"each {attribute} is there once")
    return confirm(True, there_are(ANYTHING.having(attribute, most), values.count(most)))


def _sole(program: Program, look: Look) -> Answer | None:
    """Is the star the only red thing? things: the one, and those among which it may be alone."""
    one = one_of(look, program.things[0])
    if not isinstance(one, Thing):
        return missing(program.things[0], yes_no=True) if one is not None and one.asked == ("none",) else one
    every = matching(look, program.things[1])
    if not every or one not in every:
        return None
    alone = len(every) == 1
    return confirm(alone, f"it is the only {called(program.things[1])}", there_are(program.things[1], len(every)))


# --- attributes of one thing


def _query(program: Program, look: Look) -> Answer | None:
    """What colour is the star? words: (attribute,), place among them."""
    (things,), (attribute,) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things)
    values = [valued(attribute, thing) for thing in found]
    told = [stated(attribute, value) for value in values if value is not None]
    if len(told) < len(values):
        return None
    if len(told) > 1:
        return Answer(sentence(several(things, told)), None, (attribute,), tuple(values))
    return Answer(sentence(told[0] if attribute == "place" else f"it is {told[0]}"), None, (attribute,), values[0])


def _verify(program: Program, look: Look) -> Answer | None:
    """Is the star red? Is it at the top left? Is it in the left half? words: (attribute, value)."""
    (things,), (attribute, value) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things, yes_no=True)
    values = [valued(attribute, thing) for thing in found]
    if None in values:
        return None
    told = [_half_told(attribute, str(v)) or stated(attribute, str(v)) for v in values]
    if len(found) == 1:
        return confirm(values[0] == value, f"it is {told[0]}")
    if len(set(values)) == 1:
        return confirm(values[0] == value, several(things, told))
    return Answer(sentence(several(things, told)), None, (attribute if attribute in ASKED else "place",))


_OTHER = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def _half_told(side: str, inside: str) -> str | None:
    if side not in _OTHER:
        return None
    return f"in the {side if inside == 'True' else _OTHER[side]} half"


def _choose(program: Program, look: Look) -> Answer | None:
    """Is the star red or blue? Is it in the left or the right half? words: (attribute, value, value)."""
    (things,), (attribute, *values) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things)
    true = [valued(values[0] if attribute == "half" else attribute, thing) for thing in found]
    if None in true:
        return None
    told = [(_half_told(values[0], str(v)) if attribute == "half" else None) or stated(attribute, str(v)) for v in true]
    dimension = "place" if attribute == "half" else attribute
    if len(found) > 1:
        return Answer(sentence(several(things, told)), None, (dimension,))
    neither = attribute != "half" and true[0] not in values
    return Answer(f"{'Neither, it' if neither else 'It'} is {told[0]}.", None, (dimension,), true[0])


def _tell(program: Program, look: Look) -> Answer | None:
    """Tell me about the star."""
    found = one_of(look, program.things[0])
    if not isinstance(found, Thing):
        return found
    where = sure_place(found)
    if where is None:
        return None
    text = f"it is {some((found.size, found.colour, found.shape))} {at(where)}"
    return Answer(sentence(text), None, ("colour", "shape", "size", "place"))


def _list(program: Program, look: Look) -> Answer | None:
    """What is red? Which things are large? Name the stars."""
    (things,) = program.things
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return Answer(sentence(_there_is(look, things, 0)), None, ("none",), ())
    return Answer(sentence(listed(found)), None, ("things",), tuple(map(named, found)))


def _values(program: Program, look: Look) -> Answer | None:
    """What colours are there? What colours are the stars?"""
    (things,), (attribute,) = program.things, program.words
    found = matching(look, things)
    if found is None:
        return None
    if not found:
        return missing(things)
    values = [str(valued(attribute, thing)) for thing in found]
    different = list(dict.fromkeys(values))
    if attribute == "shape":
        return Answer(sentence(join([some((None, None, v), values.count(v)) for v in different])), None, ("shape",))
    if things == ANYTHING:
        return Answer(sentence(join(different)), None, (attribute,))
    if len(different) == 1 and len(values) == 1:
        return Answer(f"It is {values[0]}.", None, (attribute,))
    if len(different) == 1:
        return Answer(f"They are {'both' if len(values) == 2 else 'all'} {values[0]}.", None, (attribute,))
    return Answer(sentence(join(different)), None, (attribute,))


THING_ANSWERS: dict[str, Run] = {
    "exists": _exists, "none": _none, "both exist": _exist_both, "either exists": _exist_either, "every": _every,
    "any": _any, "none are": _none_are, "both are": _both_are, "only": _only, "same": _same, "differ": _differ,
    "repeats": _repeats, "sole": _sole, "query": _query, "verify": _verify, "choose": _choose, "tell": _tell,
    "list": _list, "values": _values,
}  # fmt: skip
