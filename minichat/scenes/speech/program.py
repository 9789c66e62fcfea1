"""What can be meant: an operation on sets of things, as in CLEVR's functional programs (arXiv:1612.06890).

A program says nothing of words. `minichat.scenes.speech.answers` runs it on a scene; the wordings say it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from minichat.scenes.truth import NUMBERS, Look, Name, half, matches, plural
from minichat.scenes.truth import words as spelled
from minichat.scenes.world import COLOURS, SHAPES, SIZES, Thing

ATTRIBUTES = ("colour", "shape", "size")
VALUES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}


@dataclass(frozen=True)
class Things:
    """A description of things; what is None or empty is left open.

    `without`: a colour, shape or size that they have not; `side`: the half of the picture that they are in; `also`:
    those of another description count, too.
    """

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    without: str | None = None
    side: str | None = None
    also: Things | None = None

    @property
    def name(self) -> Name:
        return self.size, self.colour, self.shape

    @classmethod
    def of(cls, name: Name) -> Things:
        return cls(*name)

    def having(self, attribute: str, value: str | None) -> Things:
        """Those of them that are so, too."""
        return replace(self, **{attribute: value})  # type: ignore[arg-type]


ANYTHING = Things()


@dataclass(frozen=True)
class Program:
    """An operation, the sets that it is about, words (an attribute, a value, a place, a direction), and a number."""

    operation: str
    things: tuple[Things, ...] = ()
    words: tuple[str, ...] = ()
    number: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Program:
        """What `to_dict` wrote; what is left open may be left out."""
        things = tuple(_things(each) for each in record.get("things", ()))
        return cls(record["operation"], things, tuple(record.get("words", ())), record.get("number"))


def _things(record: dict[str, Any]) -> Things:
    also = record.get("also")
    return Things(**{**record, "also": _things(also) if also else None})


def kind_of(word: str) -> str:
    """The attribute that a word is a value of."""
    return next(attribute for attribute, values in VALUES.items() if word in values)


def matching(look: Look, things: Things) -> list[Thing] | None:
    """The things that answer the description, in reading order; None where it could be disputed of one."""
    if things.also is not None:
        first, second = matching(look, replace(things, also=None)), matching(look, things.also)
        if first is None or second is None:
            return None
        return [thing for thing in look.things if thing in first or thing in second]
    found = [thing for thing in look.things if matches(thing, things.name)]
    if things.without is not None:
        attribute = kind_of(things.without)
        found = [thing for thing in found if getattr(thing, attribute) != things.without]
    if things.side is not None:
        there = [half(thing, things.side) for thing in found]
        if None in there:
            return None
        found = [thing for thing, inside in zip(found, there, strict=True) if inside]
    return found


def called(things: Things, number: int = 1) -> str:
    """As the assistant calls them: "red star", "objects that are not red", "circles and squares in the left half"."""
    if things.also is not None:
        first, second = replace(things, also=None, side=None), replace(things.also, side=None)
        link = "and" if number > 1 else "or"
        if first == Things(colour=first.colour) and second == Things(colour=second.colour):
            text = f"{first.colour} {link} {second.colour} object{'' if number == 1 else 's'}"
        else:
            text = f"{called(first, number)} {link} {called(second, number)}"
    else:
        text = spelled(things.name)
        text = text if number == 1 else plural(text)
        if things.without is not None:
            verb = "is" if number == 1 else "are"
            word = things.without
            if word in SHAPES:
                word = f"a {word}" if number == 1 else plural(word)
            text += f" that {verb} not {word}"
    return f"{text} in the {things.side} half" if things.side else text


def numbered(things: Things, number: int) -> str:
    """With its number: "a red star", "no stars", "three objects that are not red"."""
    if number == 1:
        text = called(things)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    return f"{NUMBERS[number]} {called(things, number)}" if number else f"no {called(things)}"


def there_are(things: Things, number: int, *, counted: bool = False) -> str:
    """ "there is a red star", "there are three stars"; `counted`: "there is one red star", "there are no stars"."""
    if counted and number < 2:
        return f"there is one {called(things)}" if number else f"there are no {called(things, 0)}"
    return f"there {'are' if number > 1 else 'is'} {numbered(things, number)}"
