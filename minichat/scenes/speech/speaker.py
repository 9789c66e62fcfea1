"""A program in a person's words: the core of its meaning, a frame round it, and how it is written."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from minichat.scenes.speech import wordings_numbers, wordings_places, wordings_things, wordings_whole
from minichat.scenes.speech.frames import (
    CONFIRM,
    INDIRECT,
    LEADS,
    TAILS,
    WITH_ABOUT,
    WITH_ME,
    WITH_PHRASES,
    Wh,
    Wording,
)
from minichat.scenes.speech.grammar import drawn, tidy
from minichat.scenes.speech.nouns import TRAILING, Nouns, Unsayable
from minichat.scenes.speech.program import ANYTHING, ATTRIBUTES, Program
from minichat.scenes.speech.slots import Slots
from minichat.scenes.speech.split import is_held_out
from minichat.scenes.world import BACKGROUNDS

WORDINGS: dict[str, Wording] = {
    **wordings_things.WORDINGS, **wordings_numbers.WORDINGS, **wordings_places.WORDINGS, **wordings_whole.WORDINGS,
}  # fmt: skip

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
    if only and slots.program.words[0] not in only.split():
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
