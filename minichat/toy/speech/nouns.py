"""What can be meant, as operations on sets of things, and noun phrases for those things."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from minichat.toy.world import COLOURS, NUMBERS, SHAPES, SIZES, Look, Name, Thing, half, matches, plural_shape
from minichat.toy.world import words as spelled

# --- What can be meant: an operation on sets of things, as in CLEVR's functional programs (arXiv:1612.06890).
#
# A program says nothing of words. `minichat.toy.speech.answers` runs it on a scene; the wordings say it.


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
        text = text if number == 1 else plural_shape(text)
        if things.without is not None:
            verb = "is" if number == 1 else "are"
            word = things.without
            if word in SHAPES:
                word = f"a {word}" if number == 1 else plural_shape(word)
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


# --- Noun phrases: the many ways in which people name what is in a picture, the picture itself, and places in it.


# The first word is the most usual; the rest come now and then.
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "dot", "disk"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "three-sided shape", "three-cornered shape", "triangular shape"),
    "star": ("star", "five-pointed star", "star symbol"),
    "heart": ("heart", "love heart", "heart symbol"),
    "ring": ("ring", "donut", "hoop", "doughnut", "annulus"),
    "cross": ("cross", "plus sign", "plus", "plus symbol", "plus shape"),
    "diamond": ("diamond", "rhombus", "lozenge"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {"purple": ("purple", "violet")}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "large": ("large", "big", "big", "huge", "giant"),
    "small": ("small", "little", "tiny", "small", "teeny"),
}
HEADS = ("object", "thing", "shape", "item", "figure", "one", "element", "form", "symbol", "piece")
_HEAD_WEIGHTS = (5, 6, 6, 3, 2, 3, 1, 1, 0.6, 0.6)
PICTURES = (
    "picture", "image", "pic", "photo", "drawing", "scene", "illustration", "graphic", "photograph", "painting",
    "sketch", "artwork", "snapshot",
)  # fmt: skip
_PICTURE_WEIGHTS = (8, 8, 4, 2, 2, 2, 0.5, 0.5, 0.4, 0.4, 0.4, 0.3, 0.3)

_PLACES: dict[str, tuple[str, ...]] = {
    "centre": (
        "in the centre", "in the middle", "at the centre", "right in the middle", "in the very middle", "dead centre",
        "in the middle of the {pic}", "at the centre of the {pic}", "in the central part", "in the central area",
        "smack in the middle", "right at the centre", "in the middle part", "in the centre of the {pic}",
    ),
    "": (
        "at the {}", "in the {}", "in the {} corner", "in the {} corner of the {pic}", "in the {} part", "on the {}",
        "in the {} of the {pic}", "at the {} corner", "up in the {} corner", "in the {} area", "in the {} section",
        "in the {} region", "over in the {} corner", "at the {} of the {pic}", "in the corner at the {}",
    ),
}  # fmt: skip
_SIDES: dict[str, tuple[str, ...]] = {
    "across": (
        "in the {} half", "on the {} side", "in the {} half of the {pic}", "on the {} half", "on the {}",
        "on the {} side of the {pic}", "on the {}-hand side", "to the {} of the middle", "in the {} part",
        "over on the {}", "in the {}-hand half", "{} of the middle",
    ),
    "down": (
        "in the {} half", "in the {} half of the {pic}", "in the {} part of the {pic}", "in the {} part",
        "on the {} half", "in the {} section of the {pic}", "in the {} area",
    ),
}  # fmt: skip
DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": (
        "left of",
        "to the left of",
        "on the left of",
        "on the left side of",
        "on the left-hand side of",
        "further left than",
    ),
    "right": (
        "right of",
        "to the right of",
        "on the right of",
        "on the right side of",
        "on the right-hand side of",
        "further right than",
    ),
    "above": ("above", "over", "higher than", "higher up than", "further up than"),
    "below": ("below", "under", "beneath", "underneath", "lower than", "further down than"),
}
FURTHER: dict[str, tuple[str, ...]] = {
    "left": (
        "further left",
        "more to the left",
        "farther to the left",
        "closer to the left edge",
        "nearer the left edge",
    ),
    "right": (
        "further right",
        "more to the right",
        "farther to the right",
        "closer to the right edge",
        "nearer the right edge",
    ),
    "above": ("higher", "higher up", "further up", "closer to the top", "nearer the top", "farther up"),
    "below": ("lower", "lower down", "further down", "closer to the bottom", "nearer the bottom", "farther down"),
}
# {x}: what is sought, without an article.
FIRST_WORDS: dict[str, tuple[str, ...]] = {
    "leftmost": (
        "leftmost {x}", "{x} furthest to the left", "{x} furthest left", "left-most {x}", "{x} that is farthest left",
        "first {x} from the left", "{x} most to the left", "{x} nearest the left edge", "furthest left {x}",
    ),
    "rightmost": (
        "rightmost {x}", "{x} furthest to the right", "{x} furthest right", "right-most {x}",
        "{x} that is farthest right", "first {x} from the right", "{x} most to the right",
        "{x} nearest the right edge", "furthest right {x}",
    ),
    "topmost": (
        "topmost {x}", "highest {x}", "uppermost {x}", "{x} nearest the top", "top {x}", "{x} closest to the top",
        "{x} that is highest up", "{x} furthest up", "first {x} from the top", "{x} nearest to the top edge",
    ),
    "bottommost": (
        "lowest {x}", "bottommost {x}", "{x} nearest the bottom", "bottom {x}", "{x} closest to the bottom",
        "{x} that is furthest down", "lowermost {x}", "{x} lowest down", "first {x} from the bottom",
    ),
    "centre": (
        "{x} closest to the middle", "{x} nearest the centre", "most central {x}", "{x} closest to the centre",
        "{x} nearest to the middle", "{x} nearest the middle", "centremost {x}", "{x} most in the middle",
    ),
    "largest": ("largest {x}", "biggest {x}", "largest {x}", "biggest {x}", "{x} that is the largest"),
    "smallest": ("smallest {x}", "tiniest {x}", "smallest {x}", "littlest {x}", "{x} that is the tiniest"),
}  # fmt: skip
_CORNER_FIRST = ("{x} closest to the {c} corner", "{x} nearest the {c} corner", "{x} nearest to the {c}")

#: Manners in which something comes after the noun.
TRAILING = frozenset({"that is", "in colour", "that is large", "without"})


class Unsayable(Exception):
    """There is no such phrase for what is meant."""


_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "sheep": "sheep",
    "fish": "fish", "knife": "knives",
}  # fmt: skip


def plural(noun: str) -> str:
    """The plural of any noun that is said, of this world or not."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "es" if noun.endswith(("s", "x", "ch", "sh")) else noun + "s"


def article(text: str) -> str:
    """With "a" or "an"."""
    vowel = (text[0] in "aeiou" and not text.startswith(("uni", "one"))) or text.startswith("hour")
    return f"{'an' if vowel else 'a'} {text}"


class Nouns:
    """Draws phrases. `manners` gathers what was unusual about them: a part of what a form is.

    `which`: of several pictures the one that is meant, such as "first" or "new".
    """

    def __init__(self, rng: random.Random, which: str | None = None) -> None:
        self.rng, self.which = rng, which
        self.manners: set[str] = set()

    # --- words

    def _usual(self, words: tuple[str, ...], often: float) -> str:
        if len(words) == 1 or self.rng.random() < often:
            return words[0]
        word = self.rng.choice(words[1:])
        self.manners.add(word)
        return word

    def shape(self, shape: str) -> str:
        rare = shape in ("triangle", "star", "heart")
        return self._usual(SHAPE_WORDS[shape], 0.93 if rare else 0.75)

    def colour(self, colour: str) -> str:
        return self._usual(COLOUR_WORDS.get(colour, (colour,)), 0.8)

    def size(self, size: str) -> str:
        return self.rng.choice(SIZE_WORDS[size])

    def word(self, value: str) -> str:
        """A colour, shape or size by one of its names."""
        return {"colour": self.colour, "shape": self.shape, "size": self.size}[kind_of(value)](value)

    def head(self) -> str:
        """A word for a thing of any shape."""
        return self.rng.choices(HEADS, _HEAD_WEIGHTS)[0]

    def picture(self) -> str:
        noun = self.rng.choices(PICTURES, _PICTURE_WEIGHTS)[0]
        return f"{self.which} {noun}" if self.which else noun

    # --- phrases

    def bare(self, things: Things, *, many: bool = False) -> str:
        """Without an article: "small red star", "thing that's red", "star-shaped ones", "things other than stars"."""
        if things.also is not None:
            return self._joined(things)
        rng, after = self.rng, []
        size = self.size(things.size) if things.size else None
        colour = self.colour(things.colour) if things.colour else None
        which = rng.random()
        if things.shape is None:
            head = self.head()
            if head == "one" and not (size or colour):
                head = "thing"
        elif which < 0.06:
            self.manners.add("shaped")
            link = rng.choice(("-", " "))
            head = f"{things.shape}{link}shaped {rng.choice(('thing', 'object', 'one', 'figure'))}"
        elif which < 0.09:
            self.manners.add("shape after shape")
            head = f"{things.shape} shape"
        else:
            head = self.shape(things.shape)
        head = plural(head) if many else head
        is_, which = ("are" if many else "is"), rng.random()
        if colour and not size and which < 0.12:
            self.manners.add("that is")
            link = rng.choice((f"that {is_}", "that's" if not many else "that are", f"which {is_}"))
            after.append(f"{link} {colour}")
            colour = None
        elif colour and which < 0.16:
            self.manners.add("coloured")
            colour += rng.choice(("-coloured", " coloured"))
        elif colour and things.shape is not None and which < 0.19:
            self.manners.add("in colour")
            after.append(f"in {colour}")
            colour = None
        elif size and not colour and which < 0.08:
            self.manners.add("that is large")
            after.append(f"that {is_} {self.size(things.size or 'large')}")
            size = None
        elif size and colour and which > 0.95:
            self.manners.add("red small")
            size, colour = colour, size
        if things.without is not None:
            self.manners.add("without")
            after.append(self._without(things.without, many))
        if things.side is not None:
            after.append(self.side(things.side))
        return " ".join(part for part in (size, colour, head, *after) if part)

    def _joined(self, things: Things) -> str:
        """ "circles and squares", "red or blue things"."""
        first, second = replace(things, also=None, side=None), replace(things.also or things, side=None)
        if first.colour and second.colour and not (first.shape or second.shape):
            text = f"{self.colour(first.colour)} or {self.colour(second.colour)} {plural(self.head())}"
        else:
            link = self.rng.choice((" and ", " or "))
            text = self.bare(first, many=True) + link + self.bare(second, many=True)
        return f"{text} {self.side(things.side)}" if things.side else text

    def _without(self, word: str, many: bool) -> str:
        rng = self.rng
        if word in SHAPES:
            noun = self.shape(word)
            n_t = rng.choice(("are not", "aren't")) if many else rng.choice(("is not", "isn't"))
            some = plural(noun) if many else article(noun)
            return rng.choice((
                f"that {n_t} {some}", f"other than {plural(noun)}", f"besides {plural(noun)}",
                f"apart from {plural(noun)}", f"which {n_t} {some}",
            ))  # fmt: skip
        said = self.word(word)
        n_t = rng.choice(("are not", "aren't")) if many else rng.choice(("is not", "isn't"))
        return rng.choice((f"that {n_t} {said}", f"which {n_t} {said}", f"other than {said} ones", f"not {said}"))

    def the(self, things: Things) -> str:
        """One thing that is meant: "the red star", "that star", "the one that's red"."""
        which = self.rng.random()
        if which < 0.04:
            self.manners.add("that star")
            return self.rng.choice(("that ", "this ")) + self.bare(replace(things, side=None))
        return "the " + self.bare(things)

    def a(self, things: Things) -> str:
        """Any of them: "a red star"."""
        if things.also is not None:
            raise Unsayable
        text = self.bare(things)
        return article(text.replace("one ", "thing ", 1) if text.startswith("one ") else text)

    def many(self, things: Things) -> str:
        return self.bare(things, many=True)

    def whose(self, things: Things) -> str:
        """The possessive: "the red star's"."""
        if things.side or things.without or things.also:
            raise Unsayable
        words = [self.size(things.size) if things.size else "", self.colour(things.colour) if things.colour else ""]
        head = self.shape(things.shape) if things.shape else self.rng.choice(("thing", "object", "shape"))
        self.manners.add("whose")
        return "the " + " ".join(word for word in (*words, head) if word) + ("'" if head.endswith("s") else "'s")

    def adj(self, things: Things) -> str:
        """What comes after "anything": "red", "that is not a star"; of a shape there is no such phrase."""
        if things.shape or things.also or not (things.colour or things.size or things.without):
            raise Unsayable
        words = [self.size(things.size) if things.size else "", self.colour(things.colour) if things.colour else ""]
        if things.without:
            words.append(self._without(things.without, False))
        if things.side:
            words.append(self.side(things.side))
        return " ".join(word for word in words if word)

    def first(self, things: Things, which: str) -> str:
        """ "the leftmost star", "the biggest thing", "the one closest to the top left corner"."""
        sought = "one" if self.rng.random() < 0.15 and things == Things() else self.bare(replace(things, side=None))
        if which in FIRST_WORDS:
            text = self.rng.choice(FIRST_WORDS[which])
            if (" that " in sought or " which " in sought or " other " in sought) and not text.endswith("{x}"):
                raise Unsayable
            text = text.format(x=sought)
        else:
            if " " in sought and ("that" in sought or "which" in sought):
                raise Unsayable
            text = self.rng.choice(_CORNER_FIRST).format(x=sought, c=which)
        return f"the {text} {self.side(things.side)}" if things.side else f"the {text}"

    # --- places

    def at(self, place: str) -> str:
        """One of the nine places with its preposition."""
        rng = self.rng
        text = rng.choice(_PLACES.get(place) or _PLACES[""])
        if place == "top left" or place == "top right":
            place = place if rng.random() < 0.75 else place.replace("top", "upper")
        elif place.startswith("bottom"):
            text = text.replace("up in", "down in")
            place = place if rng.random() < 0.75 else place.replace("bottom", "lower")
        if " " in place and rng.random() < 0.12:
            place += "-hand" if "corner" in text or "part" in text else ""
        return text.format(place, pic=self.picture())

    def side(self, side: str) -> str:
        """A half of the picture with its preposition."""
        across = side in ("left", "right")
        if not across and self.rng.random() < 0.2:
            side = "upper" if side == "top" else "lower"
        return self.rng.choice(_SIDES["across" if across else "down"]).format(side, pic=self.picture())

    def here(self) -> str:
        """ "in the picture", "here"."""
        pic = self.picture()
        if self.which:
            return self.rng.choice((f"in the {pic}", f"in the {self.which} one", f"on the {pic}"))
        return self.rng.choice((
            f"in the {pic}", f"in this {pic}", "here", f"in the {pic}", f"on the {pic}", f"on this {pic}",
            f"in that {pic}",
        ))  # fmt: skip
