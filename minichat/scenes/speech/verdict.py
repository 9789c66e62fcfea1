"""Whether a reply in free words answers a question: right, wrong, evasive, or nonsense.

Wording is free and content is strict, as in `minichat.scenes.scoring`; but a question is known here by its program, so
that words which name the thing asked about are told from words that answer. Evasive: it says that it cannot tell, or
does not understand. Nonsense: it says nothing of the kind that was asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from minichat.scenes.captions import facts, plain_words
from minichat.scenes.speech.answers import Answer
from minichat.scenes.speech.nouns import SHAPE_WORDS, plural
from minichat.scenes.speech.program import Program, Things, matching
from minichat.scenes.truth import NUMBERS, Look, background_colours
from minichat.scenes.world import COLOURS, SHAPES, Scene

Verdict = Literal["right", "wrong", "evasive", "nonsense"]
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "evasive", "nonsense")

_YES = re.compile(r"^(yes|yeah|yep|yup|sure|indeed)\b|^(right|correct|true)[,.!]")
_NO = re.compile(r"^(no|nope|nah|not|false|wrong)\b")
_EVADES = re.compile(
    r"\b(can ?not|can't|don't know|do not know|not sure|unsure|did not understand|don't understand|unable"
    r"|need a picture|only know|only understand|not a picture|rephrase|ask me)\b"
)
_DENIES = re.compile(r"\b(no|not|none|nothing|neither|nor|never|without|nowhere)\b|n't\b")
_INTERNAL = re.compile(r"<(?!\d+>)[^>]*>|\[/?inst\]|###")
_ONE = re.compile(r"\b(the|that|this|other|another|each|which|left|right|(?:small|large|big|little)(?:er)?) ones?\b")

_WORDS: dict[str, dict[str, str]] = {
    "colour": {colour: colour for colour in COLOURS} | {"violet": "purple"},
    "shape": {form: shape for shape in SHAPES for word in SHAPE_WORDS[shape] for form in (word, plural(word))},
    "size": {
        "large": "large", "big": "large", "huge": "large", "larger": "large", "bigger": "large", "small": "small",
        "little": "small", "tiny": "small", "smaller": "small",
    },
    "place": {
        "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom", "left": "left", "right": "right",
        "centre": "centre", "middle": "centre", "central": "centre",
    },
    "direction": {
        "left": "left", "right": "right", "above": "above", "over": "above", "higher": "above", "below": "below",
        "under": "below", "beneath": "below", "underneath": "below", "lower": "below",
    },
    "ground": {
        "plain": "plain", "solid": "plain", "uniform": "plain", "noisy": "noisy", "grainy": "noisy",
        "speckled": "noisy", "gradient": "gradient", "goes": "gradient", "fades": "gradient",
    },
    "number": {word: str(value) for value, word in enumerate(NUMBERS)} | {"none": "0", "single": "1"},
}  # fmt: skip
#: Where a word could be of two kinds, it is read as what is asked for.
_TWOFOLD = {"place", "direction"}


@dataclass(frozen=True)
class Reading:
    """What a text says: its words of each kind, whether it begins with yes or no, whether it denies."""

    words: dict[str, set[str]]
    yes: bool | None
    denies: bool
    lead: frozenset[str]  # colours, shapes and sizes before the first mark or "than"


def reading(text: str) -> Reading:
    """Read a reply; spelling, case and number words are free."""
    text = plain_words(text).strip()
    yes = True if _YES.search(text) else False if _NO.search(text) else None
    rest = re.sub(r"^\w+[,.!]?\s*", "", text) if yes is not None and not text.startswith("not") else text
    if yes is False and rest and not re.match(r"^no[,.!]?( |$)", text):
        rest = text
    plainer = _ONE.sub(r"\1", rest)
    tokens = re.findall(r"[a-z]+|\d+", plainer)
    words = {kind: {named[token] for token in tokens if token in named} for kind, named in _WORDS.items()}
    words["number"] |= {token for token in tokens if token.isdigit()}
    if re.match(r"no \w", text) and yes is False and "," not in text[:4]:
        words["number"].add("0")
    elif not words["number"] and re.search(r"\b(is|just|only) an? ", rest):
        words["number"].add("1")
    elif not words["number"] and re.search(r"\b(no|not any)\b", rest):
        words["number"].add("0")
    first = re.split(r"[,.:;]| than ", rest)[0]
    lead = {
        named[token]
        for token in re.findall(r"[a-z]+", first)
        for kind, named in _WORDS.items()
        if kind in ("colour", "shape", "size") and token in named
    }
    return Reading(words, yes, bool(_DENIES.search(rest)), frozenset(lead))


def judge(program: Program, answer: Answer, scene: Scene, reply: str) -> Verdict:
    """How a reply to a program stands to the true answer."""
    text = plain_words(reply).strip()
    if not text or _INTERNAL.search(text):
        return "nonsense"
    if _EVADES.search(text):
        return "evasive"
    got, want = reading(reply), reading(answer.reply)
    if "scene" in answer.asked:
        return _whole(scene, reply)
    known = _named(program.things) | _true(program.things, scene)
    if answer.yes is not None:
        return _yes_no(program, answer, got, want, known)
    if "none" in answer.asked:
        if got.denies or got.yes is False or got.words["number"] == {"0"} or got.words == want.words:
            return "right"
        return "wrong" if _says_anything(got) else "nonsense"
    if got.yes is not None and not re.match(r"no[^\w,]|no \w", text):
        return "nonsense"  # nobody asked whether
    return _told(program, answer, got, want, known, reply)


def _named(sets: tuple[Things, ...]) -> set[str]:
    """The words that name the things asked about."""
    found: set[str] = set()
    for things in sets:
        for each in (things, things.also):
            if each is not None:
                found |= {word for word in (*each.name, each.without, each.side) if word}
    return found


def _true(sets: tuple[Things, ...], scene: Scene) -> set[str]:
    """The words that are true of the things asked about: to say more of them than was asked is not wrong."""
    found = [thing for things in sets for thing in matching(Look(scene), things) or ()]
    return {word for thing in found for word in (thing.size, thing.colour, thing.shape)}


def _says_anything(got: Reading) -> bool:
    return any(got.words.values()) or got.yes is not None or got.denies


def _yes_no(program: Program, answer: Answer, got: Reading, want: Reading, known: set[str]) -> Verdict:
    if got.yes is None:
        if not _says_anything(got):
            return "nonsense"
        same = all(got.words[kind] == want.words[kind] for kind in want.words if kind not in _TWOFOLD)
        return "right" if same and got.denies == want.denies else "wrong"
    if got.yes != answer.yes:
        return "wrong"
    allowed = known | (set(program.words) if got.denies else set())
    if program.number is not None and got.denies:
        allowed |= {str(program.number)}
    if want.denies and not got.denies and any(got.words.values()):
        return "wrong"  # "No, there is a red star"
    for kind, words in got.words.items():
        if kind == "number" and words <= {"0", "1"} and not want.words["number"]:
            continue
        if not words <= want.words[kind] | allowed:
            return "wrong"
    return "right"


def _told(program: Program, answer: Answer, got: Reading, want: Reading, known: set[str], reply: str) -> Verdict:
    asked = answer.asked
    if program.operation in ("which more", "bigger", "further"):
        if want.lead:
            return "right" if got.lead == want.lead else "wrong" if got.lead else "nonsense"
        return "right" if "neither" in reply.lower() or "same" in reply.lower() else "wrong"
    if asked == ("things",):
        found, true = facts(reply).things, facts(answer.reply).things
        if not found:
            return "wrong" if got.denies else "nonsense"
        in_order = program.operation != "order" or _shapes(reply) == _shapes(answer.reply)
        return "right" if in_order and _covers(found, true) else "wrong"
    for kind in asked:
        if not got.words[kind]:
            return "wrong" if got.denies else "nonsense"
        if got.words[kind] != want.words[kind]:
            return "wrong"
    for kind, words in got.words.items():
        twofold = kind in _TWOFOLD and _TWOFOLD & set(asked)
        if kind not in asked and kind != "number" and not twofold and not words <= want.words[kind] | known:
            return "wrong"
    return "right"


def _shapes(text: str) -> list[str]:
    """The shapes that a text names, one after another."""
    shapes = _WORDS["shape"]
    return [shapes[token] for token in re.findall(r"[a-z]+", plain_words(text)) if token in shapes]


def _covers(found: Counter[tuple[str | None, str | None]], true: Counter[tuple[str | None, str | None]]) -> bool:
    """Whether the same things are named; a colour or a shape alone will do where it says which thing is meant."""
    if found == true:
        return True
    if found.total() != true.total():
        return False
    rest = Counter(true)
    for (colour, shape), number in found.items():
        fits = [key for key in rest if rest[key] >= number and colour in (None, key[0]) and shape in (None, key[1])]
        if len(fits) != 1:
            return False
        rest[fits[0]] -= number
    return True


def _whole(scene: Scene, reply: str) -> Verdict:
    """A caption names every thing with its colour and shape as often as it is there, and no other."""
    found = facts(reply)
    if not found.things:
        return "nonsense"
    kind, colours = found.background
    ground = not colours or set(colours) == set(background_colours(scene.background))
    right = found.things == Counter((thing.colour, thing.shape) for thing in scene.things) and ground
    right = right and kind in (None, scene.background.kind) and found.total in (None, len(scene.things))
    return "right" if right else "wrong"
