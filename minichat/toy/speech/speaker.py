"""A program in a person's words: phrases for its slots, the core of its meaning, a frame round it."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files

from minichat.toy.speech.grammar import (
    CONFIRM,
    INDIRECT,
    LEADS,
    TAILS,
    WHOLE_WORDINGS,
    WITH_ABOUT,
    WITH_ME,
    WITH_PHRASES,
    Wh,
    Wording,
    drawn,
    tidy,
    widened,
)
from minichat.toy.speech.nouns import (
    ANYTHING,
    ATTRIBUTES,
    DIRECTION_WORDS,
    FURTHER,
    TRAILING,
    Nouns,
    Program,
    Unsayable,
    article,
    kind_of,
    plural,
)
from minichat.toy.speech.wordings_places import NUMBER_WORDINGS, PLACE_WORDINGS
from minichat.toy.speech.wordings_things import THING_WORDINGS
from minichat.toy.world import BACKGROUNDS, COLOURS, NUMBERS, SHAPES

# --- The composition split: combinations of a meaning with a form that training never shows, so that they can be
# asked.
#
# Each meaning and each form is trained; only some of their pairs are not. Which, follows from their names alone.


ONE_IN = 12
#: Forms that a meaning has by itself, or that say nothing: there is no combination to hold out.
OWN = frozenset({"ask", "bare", "order", "doubt", "tag", "without"})


def is_held_out(meaning: str, forms: Iterable[str]) -> bool:
    """Whether a question of this meaning, with these forms in it, is kept from training."""
    return any(zlib.crc32(f"{meaning} | {form}".encode()) % ONE_IN == 0 for form in forms if form not in OWN)


# --- What goes into the slots of a core: phrases for a program's things and words, drawn anew for each question.


HOW: dict[str, tuple[str, ...]] = {
    "exactly": ("exactly", "precisely", "just", ""),
    "at least": ("at least", "at least", "no fewer than", "a minimum of", "not fewer than", "no less than"),
    "at most": ("at most", "at most", "no more than", "a maximum of", "not more than", "up to"),
    "more than": ("more than", "more than", "over"),
    "fewer than": ("fewer than", "less than", "under"),
}
HOW_ONE = {"exactly": ("only", "just", "exactly"), "more than": ("more than",)}
KINDS: dict[str, tuple[str, ...]] = {
    "plain": (
        "plain", "plain", "solid", "uniform", "a single colour", "one solid colour", "a plain colour", "monochrome",
        "evenly coloured", "one even colour", "all one colour",
    ),
    "noisy": ("noisy", "noisy", "grainy", "speckled", "textured", "full of noise", "full of grain"),
    "gradient": (
        "a gradient", "a gradient", "a colour gradient", "a blend of two colours", "fading from one colour to another",
        "changing from one colour to another", "a fade between two colours", "graded", "made of two colours",
    ),
}  # fmt: skip
GROUND_ADJECTIVES = {
    "plain": ("plain", "solid", "uniform", "monochrome", "single-coloured"),
    "noisy": ("noisy", "grainy", "speckled", "textured"),
    "gradient": ("gradient", "graded", "two-coloured", "two-colour", "blended"),
}  # fmt: skip
_DOES = {
    "gradient": (
        "change colour", "fade", "go from one colour to another", "have two colours", "have more than one colour",
        "blend two colours", "shade from one colour into another", "turn from one colour into another",
    ),
    "noisy": ("have noise", "have grain", "have a grain", "have specks", "look speckled"),
}  # fmt: skip
_ALONG = {
    "left": (
        "from left to right",
        "left to right",
        "from the left to the right",
        "starting from the left",
        "beginning at the left",
    ),
    "right": ("from right to left", "right to left", "starting from the right", "beginning at the right"),
    "top": (
        "from top to bottom",
        "top to bottom",
        "from the top down",
        "starting at the top",
        "from the top downwards",
    ),
    "bottom": (
        "from bottom to top",
        "bottom to top",
        "from the bottom up",
        "starting at the bottom",
        "from the bottom upwards",
    ),
}
PLACED = {
    "left": ("on the left", "to the left", "left", "on the left side", "left of the other"),
    "right": ("on the right", "to the right", "right", "on the right side", "right of the other"),
    "above": ("above", "on top", "above the other", "over the other one"),
    "below": ("below", "underneath", "below the other", "under the other one"),
}  # fmt: skip
ITS_SIDE = {
    "left": ("to its left", "on its left", "on its left side", "to the left of it", "left of it"),
    "right": ("to its right", "on its right", "on its right side", "to the right of it", "right of it"),
    "above": ("above it", "over it"), "below": ("below it", "under it", "beneath it", "underneath it"),
}  # fmt: skip
_GROUNDS = (
    "the background", "background", "the backdrop", "the background of the {pic}", "its background", "the back",
    "the bg", "the canvas", "the page", "the wallpaper", "the area behind the shapes",
)  # fmt: skip
_GROUND_WEIGHTS = (12, 1, 1, 2, 1, 1, 0.7, 0.7, 0.3, 0.3, 0.4)
_COMPARED = {
    "more": ("more",), "fewer": ("fewer", "fewer", "less"), "larger": ("larger", "bigger"),
    "smaller": ("smaller", "smaller", "tinier"),
}  # fmt: skip


class Slots(dict[str, str]):
    """Fills slots as they are asked for. `it`: a pronoun in the place of the first set's phrase."""

    def __init__(self, program: Program, nouns: Nouns, it: str | None = None) -> None:
        super().__init__()
        self.program, self.nouns, self.rng, self.it = program, nouns, nouns.rng, it

    def __missing__(self, name: str) -> str:
        stem = name.rstrip("23") if name not in _WORDS else name
        number = int(name[len(stem) :] or 1) - 1
        text = self._phrase(stem, number) if stem in _PHRASES else _WORDS[name](self)
        if name != "pic":
            self[name] = text
        return text

    def _phrase(self, stem: str, number: int) -> str:
        things, nouns = self.program.things[number], self.nouns
        if self.it is not None and number == 0:
            if stem == "the":
                return self.it
            if stem == "whose" and self.it == "it":
                return "its"
            raise Unsayable
        return str(getattr(nouns, stem)(things))

    # --- words

    @property
    def value(self) -> str:
        return self.program.words[1]

    def said(self, index: int, form: str) -> str:
        """A value: `form` "is" ("a star"), "are" ("stars") or "word" ("star")."""
        value = self.program.words[index]
        if value in SHAPES:
            word = self.nouns.shape(value)
            return {"is": article(word), "are": plural(word), "word": word}[form]
        if value in COLOURS:
            return self.nouns.colour(value)
        if value in ("large", "small"):
            word = self.nouns.size(value)
            one = form == "is" and self.rng.random() < 0.1
            return f"a {word} one" if one else word
        if form == "word":
            return value
        return self.nouns.at(value)

    def attribute(self) -> str:
        return next(word for word in reversed(self.program.words) if word in ATTRIBUTES)

    def predicate(self, *, many: bool, index: int = 0) -> str:
        """What a set is, after "are" or "is": "red", "stars", "not red"."""
        things = self.program.things[index]
        if things.also or things.side:
            raise Unsayable
        if things.without:
            if any(things.name):
                raise Unsayable
            word = self.nouns.word(things.without)
            if things.without in SHAPES:
                word = plural(word) if many else article(word)
            return f"not {word}"
        given = [word for word in things.name if word]
        if not given:
            raise Unsayable
        if things.shape is None and len(given) == 1:
            return self.nouns.word(given[0])
        return self.nouns.many(things) if many else self.nouns.a(things)

    def others(self) -> str:
        things = self.program.things[0]
        if things.without is None or any(things.name) or things.side:
            raise Unsayable
        word = self.nouns.word(things.without)
        return plural(word) if kind_of(things.without) == "shape" else f"{word} {self.rng.choice(('ones', 'things'))}"

    def how(self) -> str:
        how = self.program.words[0]
        return self.rng.choice((HOW_ONE if self.program.number == 1 else HOW)[how])

    def number(self) -> str:
        number = self.program.number or 0
        return NUMBERS[number] if self.rng.random() < 0.75 else str(number)

    def compared(self, index: int = 0) -> str:
        return self.rng.choice(_COMPARED[self.program.words[index]])

    def ground(self) -> str:
        text = self.rng.choices(_GROUNDS, _GROUND_WEIGHTS)[0]
        return text.format(pic=self.nouns.picture())

    def kind(self, index: int) -> str:
        return self.rng.choice(KINDS[self.program.words[index]])

    def does(self) -> str:
        kind = self.program.words[0]
        if kind not in _DOES:
            raise Unsayable
        return self.rng.choice(_DOES[kind])

    def direction(self, index: int) -> str:
        return self.rng.choice(DIRECTION_WORDS[self.program.words[index]][:-1])

    def further(self, index: int) -> str:
        return self.rng.choice(FURTHER[self.program.words[index]])

    def half(self) -> str:
        return self.nouns.side(self.program.words[0])


_PHRASES = ("the", "a", "many", "bare", "whose", "adj")
_WORDS: dict[str, Callable[[Slots], str]] = {
    "pic": lambda slots: slots.nouns.picture(),
    "a_pic": lambda slots: article(slots.nouns.picture()),
    "is": lambda slots: slots.said(1, "is"),
    "are": lambda slots: slots.said(1, "are"),
    "word": lambda slots: slots.said(0 if slots.program.operation.startswith("ground") else 1, "word"),
    "a_word": lambda slots: article(slots.said(0, "word")),
    "a_word2": lambda slots: article(slots.said(1, "word")),
    "is2": lambda slots: slots.said(2, "is"),
    "word2": lambda slots: slots.said(1 if slots.program.operation.startswith("ground") else 2, "word"),
    "are1": lambda slots: slots.predicate(many=True),
    "is1": lambda slots: slots.predicate(many=False),
    "others": Slots.others,
    "is_2": lambda slots: slots.predicate(many=False, index=1),
    "n1": lambda slots: slots.program.words[0],
    "n2": lambda slots: slots.program.words[1],
    "placed": lambda slots: slots.rng.choice(PLACED[slots.program.words[0]]),
    "itsside": lambda slots: slots.rng.choice(ITS_SIDE[slots.program.words[0]]),
    "how": Slots.how,
    "n": Slots.number,
    "more": Slots.compared,
    "larger": Slots.compared,
    "greater": lambda slots: "greater" if slots.program.words[0] == "more" else "smaller",
    "commoner": lambda slots: "more common" if slots.program.words[0] == "more" else "less common",
    "attr": Slots.attribute,
    "attrs": lambda slots: plural(slots.attribute()),
    "what": Slots.attribute,
    "kind": lambda slots: (
        slots.kind(0)
        if slots.program.operation.startswith("ground")
        else slots.rng.choice(("objects", "things", "shapes", "items"))
    ),
    "kind2": lambda slots: slots.kind(1),
    "a_ground": lambda slots: article(slots.rng.choice(GROUND_ADJECTIVES[slots.program.words[0]])) + " background",
    "does": Slots.does,
    "ground": Slots.ground,
    "at": lambda slots: slots.nouns.at(next(word for word in slots.program.words if word != "place")),
    "half": Slots.half,
    "to": lambda slots: slots.direction(0),
    "tov": lambda slots: slots.direction(1),
    "further": lambda slots: slots.further(0),
    "furtherv": lambda slots: slots.further(1),
    "first": lambda slots: slots.nouns.first(slots.program.things[-1], slots.program.words[0]),
    "along": lambda slots: slots.rng.choice(_ALONG[slots.program.words[0]]),
}


# --- A program in a person's words: the core of its meaning, a frame round it, and how it is written.


WORDINGS: dict[str, Wording] = widened(
    {**THING_WORDINGS, **NUMBER_WORDINGS, **PLACE_WORDINGS, **WHOLE_WORDINGS},
    (files("minichat") / "assets" / "wordings.txt").read_text(encoding="utf-8"),
)

_TOPICS: dict[str, tuple[str, ...]] = {
    "existence": ("exists", "none", "both exist", "either exists", "every", "any", "none are", "both are", "only",
    "sole"),
    "colour": ("query colour", "choose colour"),
    "shape": ("query shape", "choose shape", "tell"),
    "size": ("query size", "bigger", "is bigger"),
    "count": (
        "count", "number is", "number is one", "more", "count choose", "as many", "which more", "how many more",
        "kinds", "common",
        "count beside",
    ),
    "position": (
        "query place", "verify place", "verify half", "choose half", "at", "at what", "anything at", "empty at",
        "first", "first what", "first place", "is first", "order",
    ),
    "relation": (
        "beside", "choose beside", "where from", "what beside", "what beside what", "anything beside", "nearest",
        "nearest what", "next to", "between", "is between", "further",
    ),
    "background": (
        "ground", "ground colour", "ground kind", "ground is kind", "ground is colour", "ground choose colour",
        "ground choose kind",
    ),
    "caption": ("names", "caption", "describe", "story"),
    "listing": ("list", "values"),
}  # fmt: skip
_TOPIC = {meaning: topic for topic, meanings in _TOPICS.items() for meaning in meanings}
TOPICS = tuple(_TOPICS)

# Meanings whose questions say where already, or are about the picture as a whole: " in the picture" is not added.
_PLACED = {
    "names", "caption", "describe", "story", "at", "at what", "anything at", "empty at", "order", "verify place",
    "verify half", "choose half", "tell",
}  # fmt: skip
_TRIES = 60
_NAMING = re.compile(r"\{(the|a|many|bare|whose|adj|are1|is1|others|first)\}")


@dataclass(frozen=True)
class Utterance:
    """What was said. `manner`: the frame; `styles`: what was unusual about its phrases."""

    text: str
    meaning: str
    manner: str
    styles: frozenset[str]

    @property
    def held_out(self) -> bool:
        """Whether this combination of meaning and form is kept from training."""
        return is_held_out(self.meaning, {self.manner, *self.styles})


def meaning(program: Program) -> str:
    """The key of the program's wordings."""
    operation, words = program.operation, program.words
    if operation in ("query", "choose") and words[0] in (*ATTRIBUTES, "place", "half"):
        return f"{operation} {words[0]}"
    if operation == "verify" and words[0] not in ATTRIBUTES:
        return "verify place" if words[0] == "place" else "verify half"
    if operation in ("at", "what beside", "nearest", "first"):
        asked = words[-1]
        return operation if asked == "thing" else f"{operation} place" if asked == "place" else f"{operation} what"
    if operation in ("ground is", "ground choose"):
        return f"{operation} {'kind' if words[0] in BACKGROUNDS else 'colour'}"
    if operation == "number is" and program.number == 1:
        return "number is one"
    return operation


def topic(program: Program) -> str:
    """What the question is about, as figures are reported."""
    key = meaning(program)
    if key in ("verify", "same", "alike", "differ", "repeats"):
        return program.words[0]
    return _TOPIC[key]


def speak(
    program: Program,
    rng: random.Random,
    *,
    held_out: bool | None = False,
    it: str | None = None,
    which: str | None = None,
) -> Utterance:
    """Word a program.

    Args:
        held_out: whether to speak in combinations that are kept from training; None: in any.
        it: a pronoun ("it", "that one") in the place of the first thing's phrase.
        which: of several pictures the one that is meant ("first", "new"); the text then says so.

    Raises `Unsayable` where there is no such wording.
    """
    key = meaning(program)
    wording = WORDINGS[key]
    for _ in range(_TRIES):
        nouns = Nouns(rng, which)
        try:
            text, manner = _worded(key, wording, Slots(program, nouns, it), rng)
            text = text if which is None else in_picture(text, which, rng)
        except Unsayable:
            continue
        said = Utterance(written(text, rng), key, manner, frozenset(nouns.manners))
        if held_out is None or said.held_out == held_out:
            return said
    raise Unsayable(key)


def in_picture(text: str, which: str, rng: random.Random) -> str:
    """The text, saying of which picture it speaks. Raises `Unsayable` for "this first picture" and the like."""
    if re.search(rf"\b(this|that|a|an) {which}|\b(the|this) (picture|image|photo)\b", text):
        raise Unsayable
    if re.search(rf"\b{which} (\w+)", text):
        return text
    pic = rng.choice(("picture", "picture", "image", "one", "pic"))
    if text[-1:] in "?." and "," not in text and rng.random() < 0.4:
        return f"{text[:-1]} in the {which} {pic}{text[-1]}"
    return drawn(f"(in|on|for|about) the {which} {pic}(,|:) ", rng) + " " + text


def _worded(key: str, wording: Wording, slots: Slots, rng: random.Random) -> tuple[str, str]:
    if isinstance(wording, Wh):
        manner = rng.choices(("ask", "clause", "bare", "order"), (52, 24, 14, 10))[0]
        cores = getattr(wording, manner)
        if not cores:
            raise Unsayable
        core = _core(key, cores, slots, rng)
        if manner == "clause":
            manner, frame = rng.choice(list(INDIRECT.items()))
            if not _fits(core, manner):
                raise Unsayable
            return drawn(frame, rng).replace("{c}", core), manner
        if manner == "ask":
            return _led(core, "?", rng)
        return core + (rng.choice((".", "", ".")) if manner == "order" else rng.choice(("?", "", "?"))), manner
    manner = rng.choices(("ask", "state", "doubt", "tag", "bare"), (46, 30, 7, 7, 10))[0]
    if manner == "tag":
        if not (wording.tag and wording.state):
            raise Unsayable
        return f"{_core(key, wording.state[:1], slots, rng)}, {wording.tag}?", manner
    cores = getattr(wording, manner)
    if not cores:
        raise Unsayable
    if manner != "state":
        core = _core(key, cores, slots, rng)
        if manner == "bare" and slots.nouns.manners & TRAILING:
            raise Unsayable  # without a verb, "things that are red large" cannot be read
        return _led(core, "?", rng) if manner == "ask" else (core + "?", manner)
    manner, frame = rng.choice(list(CONFIRM.items()))
    frame = drawn(frame, rng)
    core = _core(key, wording.ask if "{q}" in frame else cores, slots, rng)
    if core.startswith(("i ", "it's ", "they ")) and manner not in WITH_ME:
        raise Unsayable
    return frame.replace("{s}", core).replace("{q}", core), manner


def _fits(clause: str, manner: str) -> bool:
    """Whether a clause goes with a frame: one wonders what colour it is, but not "the colour of it"."""
    if clause.startswith(("about ", "all about", "more about", "everything", "in one", "in a ", "in short", "briefly")):
        return manner in WITH_ABOUT
    wh = clause.startswith(("what", "which", "where", "how", "whether", "if ", "on which"))
    return wh or manner in WITH_PHRASES


def _core(key: str, cores: tuple[str, ...], slots: Slots, rng: random.Random) -> str:
    core, _, only = rng.choice(cores).partition("@")
    if only and not set(only.split()) & set(slots.program.words):
        raise Unsayable
    text = drawn(core, rng)
    things = slots.program.things
    if things and things[0] != ANYTHING and not _NAMING.search(text):
        raise Unsayable  # "which colours are there?" says nothing of whose
    whole = key in _PLACED or key.startswith("ground")
    placed = whole or "{pic}" in text or any(t.side for t in slots.program.things)
    owned = "{the}'s" in text
    text = text.format_map(slots)
    if owned and slots.nouns.manners & TRAILING:
        raise Unsayable  # "the one that's red's small"
    if not placed and rng.random() < 0.25:
        text += " " + slots.nouns.here()
    return tidy(text)


def _led(core: str, mark: str, rng: random.Random) -> tuple[str, str]:
    """A question, now and then with a word before or after it."""
    which = rng.random()
    if which < 0.16:
        manner, frame = rng.choice(list(LEADS.items()))
        return drawn(frame, rng).replace("{q}", core) + mark, f"{manner} before"
    if which < 0.26:
        manner, frame = rng.choice(list(TAILS.items()))
        return drawn(frame, rng).replace("{q}", core) + mark, f"{manner} after"
    return core + mark, "ask"


AMERICAN = {"colour": "color", "Colour": "Color", "centre": "center", "neighbour": "neighbor", "summarise": "summarize"}


def written(text: str, rng: random.Random) -> str:
    """As a careful person writes it, in British or American spelling."""
    if rng.random() < 0.45:
        text = american(text)
    if "gray" in text and rng.random() < 0.4:
        text = text.replace("gray", "grey")
    text = re.sub(r"\bi\b(?=[ '])", "I", tidy(text))
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def american(text: str) -> str:
    for british, other in AMERICAN.items():
        text = text.replace(british, other)
    return text
