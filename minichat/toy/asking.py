"""How questions are worded, and whether a reply in free words answers one rightly."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minichat.toy.captions import plain_words
from minichat.toy.world import COLOURS, NUMBERS, PLACES, SHAPES, Look, plural_shape

# --- How questions are worded: the templates, and the hand that fills them in.
#
# A wording never depends on the answer: the form of a question is drawn first, then its truth, then the wording. A
# question (with "?") is answered in few words that carry the answer at once; a request ("Tell me …") by a sentence.


KINDS = ("existence", "colour", "shape", "count", "position", "relation", "background")  # the reported kinds
ALL_KINDS = (*KINDS, "size")


@dataclass(frozen=True)
class Question:
    """A question about a scene and what is true.

    `answer` is canonical and short ("yes", "red", "star", "3", "top left", "left", "a blue circle", "plain white");
    `reply` is what the assistant says.
    """

    kind: str
    text: str
    answer: str
    reply: str


# {x}, {y}: phrases with "the"; {a}: one with "a"; {s}, {t}: plurals; {w}, {v}: words asked about; {p}: " in the image",
# " here" or nothing; {at}, {half}, {to}, {tv}: places and directions.
WORDINGS: dict[str, tuple[str, ...]] = {
    "is there": (
        "Is there {a}{p}?", "Do you see {a}{p}?", "Can you see {a}{p}?", "Does the picture show {a}?",
        "Is {a} there{p}?", "Can you find {a}{p}?", "Does the picture have {a}?", "Look for {a}{p}. Is there one?",
    ),
    "are there": (
        "Are there any {s}{p}?", "Do you see any {s}{p}?", "Are any {s} there{p}?", "Does the picture have any {s}?",
    ),
    "colour": (
        "What colour is {x}{p}?", "Which colour is {x}{p}?", "What is the colour of {x}{p}?",
        "Which colour does {x} have{p}?", "Tell me the colour of {x}{p}.", "Name the colour of {x}{p}.",
    ),
    "is colour": ("Is {x} {w}{p}?", "Is the colour of {x} {w}{p}?", "Would you say {x} is {w}{p}?"),
    "which colour": (
        "Is {x} {w} or {v}{p}?", "Which colour is {x}{p}, {w} or {v}?", "{w} or {v}: which colour is {x}{p}?",
    ),
    "shape": (
        "What shape is {x}{p}?", "Which shape is {x}{p}?", "What is the shape of {x}{p}?", "What is {x}{p}?",
        "Which shape does {x} have{p}?", "Tell me the shape of {x}{p}.", "Name the shape of {x}{p}.",
    ),
    "is shape": ("Is {x} a {w}{p}?", "Is the shape of {x} a {w}{p}?", "Would you say {x} is a {w}{p}?"),
    "which shape": (
        "Is {x} a {w} or a {v}{p}?", "Which shape is {x}{p}, a {w} or a {v}?", "A {w} or a {v}: which is {x}{p}?",
    ),
    "size": (
        "Is {x} large or small{p}?", "Is {x} small or large{p}?", "What size is {x}{p}?", "How big is {x}{p}?",
        "Is {x} big or small{p}?", "Tell me the size of {x}{p}.",
    ),
    "is size": ("Is {x} {w}{p}?", "Is {x} a {w} one{p}?", "Would you call {x} {w}{p}?"),
    "which size": (
        "Which is {w}, {x} or {y}{p}?", "What is {w}{p}: {x} or {y}?", "{x} or {y}: which one is {w}{p}?",
    ),
    "count": (
        "How many {s} are there{p}?", "How many {s} do you see{p}?", "How many {s} can you see{p}?",
        "What is the number of {s}{p}?", "How many {s} does the picture show?", "How many {s} does the picture have?",
        "Count the {s}{p}.", "Tell me how many {s} there are{p}.",
    ),
    "is count": ("Are there exactly {w} {s}{p}?", "Is the number of {s}{p} {w}?", "Do you count {w} {s}{p}?"),
    "more": (
        "Are there more {s} than {t}{p}?", "Do you see more {s} than {t}{p}?", "Are the {s} more than the {t}{p}?",
    ),
    "where": (
        "Where is {x}{p}?", "Where in the picture is {x}?", "In which part of the picture is {x}?",
        "Where can I find {x}{p}?",
        "What is the place of {x}{p}?", "Tell me where {x} is{p}.", "Say where {x} is{p}.",
    ),
    "what is at": (
        "What is {at}{p}?", "What do you see {at}{p}?", "Which object is {at}{p}?", "What can be seen {at}{p}?",
        "Tell me what is {at}{p}.",
    ),
    "anything at": (
        "Is there anything {at}{p}?", "Do you see anything {at}{p}?", "Is there an object {at}{p}?",
        "Is anything {at}{p}?",
    ),
    "is at": ("Is {x} {at}{p}?", "Do you see {x} {at}{p}?", "Is it true that {x} is {at}{p}?"),
    "in half": (
        "Is {x} {half}?", "Is it true that {x} is {half}?", "Would you say {x} is {half}?", "Do you see {x} {half}?",
    ),
    "which half": (
        "Is {x} in the {w} half or in the {v} half{p}?", "Which half is {x} in{p}, {w} or {v}?",
        "In which half is {x}{p}: {w} or {v}?",
    ),
    "is beside": (
        "Is {x} {to} {y}{p}?", "Does {x} lie {to} {y}{p}?", "Is it true that {x} is {to} {y}{p}?",
        "Would you say {x} is {to} {y}{p}?",
    ),
    "which side": (
        "Is {x} {to} or {tv} {y}{p}?", "Does {x} lie {to} or {tv} {y}{p}?", "Which is it: is {x} {to} or {tv} {y}{p}?",
    ),
    "what is beside": (
        "What is {to} {x}{p}?", "Which object is {to} {x}{p}?", "What do you see {to} {x}{p}?",
        "What lies {to} {x}{p}?",
        "Tell me what is {to} {x}{p}.",
    ),
    "where from": (
        "Where is {x} relative to {y}{p}?", "Where is {x}, seen from {y}{p}?", "Where does {x} lie relative to {y}{p}?",
        "On which side of {y} is {x}{p}?", "Tell me where {x} is relative to {y}{p}.",
    ),
    "background": (
        "What is the background{p}?", "What does the background look like{p}?", "What kind of background is there{p}?",
        "How does the background look{p}?", "Describe the background{p}.", "Tell me about the background{p}.",
    ),
    "background colour": (
        "What colour is the background{p}?", "Which colour is the background{p}?",
        "What is the colour of the background{p}?",
        "Which colour does the background have{p}?", "Tell me the colour of the background{p}.",
    ),
    "background kind": (
        "Is the background plain, noisy or a gradient{p}?", "Is the background a gradient, noisy or plain{p}?",
        "Which is the background{p}: noisy, plain or a gradient?",
    ),
    "is background": (
        "Is the background {w}{p}?", "Would you say the background is {w}{p}?",
        "Is it true that the background is {w}{p}?",
    ),
}  # fmt: skip

SPELLINGS = {"colour": "color", "Colour": "Color", "centre": "center"}
DIRECTION_WORDINGS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "higher than"),
    "below": ("below", "below", "under", "lower than"),
}
CORNER_WORDINGS = ("at the {}", "in the {}", "in the {} corner")
CENTRE_WORDINGS = ("in the centre", "in the middle", "at the centre")
HALF_WORDINGS = ("in the {} half of the picture", "in the {} half", "on the {} side", "on the {} side of the picture")
NOUNS = ("object", "object", "object", "thing", "shape")
_HERE = ("", "", "", " in the picture", " in this picture", " in the image", " here")


class Asker:
    """Words questions about one scene. `picture`: "first" or "second" where there are two pictures, else None."""

    def __init__(self, look: Look, rng: random.Random, picture: str | None = None) -> None:
        self.look = look
        self.rng = rng
        self.picture = picture

    def ask(self, kind: str, form: str, answer: str, short: str, long: str | None = None, **words: str) -> Question:
        """A question of this form; `short` answers it, `long` (where given) answers a request."""
        template = self.rng.choice(WORDINGS[form])
        text = place_in(template, self.rng, self.picture, words)
        request = long is not None and template[-1] == "."
        return Question(kind, casual(text, self.rng), answer, long if request and long else short)

    def yes_no(self, kind: str, form: str, truth: bool, yes: str, no: str, **words: str) -> Question:
        """A yes/no question; `yes` and `no` finish the reply."""
        reply = f"Yes, {yes}." if truth else f"No, {no}."
        return self.ask(kind, form, "yes" if truth else "no", reply, **words)

    def noun(self) -> str:
        """A word for an object of any shape."""
        return self.rng.choice(NOUNS)

    def to(self, direction: str) -> str:
        """A direction in words: "to the left of", "above"."""
        return self.rng.choice(DIRECTION_WORDINGS[direction])

    def at(self, place: str) -> str:
        """A place in words: "at the top left", "in the middle"."""
        wording = self.rng.choice(CENTRE_WORDINGS if place == "centre" else CORNER_WORDINGS)
        return wording.format(place if self.rng.random() < 0.7 else place.replace("top", "upper"))


def place_in(template: str, rng: random.Random, picture: str | None, words: dict[str, str]) -> str:
    """Fill a template in, saying which picture is meant where there are several."""
    here = rng.choice(_HERE)
    if picture is None:
        text = template.format(p="" if "in the picture" in template else here, **words)
    elif "the picture" in template:
        text = template.replace("the picture", f"the {picture} picture").format(p="", **words)
    elif "{p}" in template and rng.random() < 0.6:
        text = template.format(p=f" in the {picture} picture", **words)
    else:
        text = template.format(p="", **words)
        text = f"In the {picture} picture, {text[0].lower()}{text[1:]}"
    if picture is not None and "the picture" in text:  # a half "of the picture" came in with the words
        text = text.replace(" of the picture", "")
    return text[0].upper() + text[1:]


def casual(text: str, rng: random.Random) -> str:
    """As people type: British or American spelling, now and then no capitals or no full stop."""
    if rng.random() < 0.35:
        for british, american in SPELLINGS.items():
            text = text.replace(british, american)
    if "gray" in text and rng.random() < 0.35:
        text = text.replace("gray", "grey")
    manner = rng.random()
    if manner < 0.05:
        return text.lower()
    if manner < 0.1:
        return text[:-1] if text[-1] in ".?" else text
    if manner < 0.14:
        return text.lower().rstrip(".?")
    return text.upper() if manner > 0.985 else text


# --- Whether a reply in free words answers a question rightly.
#
# Wording is free: digits or number words, "grey", "center", capitals, a whole sentence or one word. Content is strict:
# a reply that names two colours where one is asked, says yes and no, or speaks of another thing than was asked about,
# is wrong. What this reader does not understand counts as wrong, so that figures made with it do not flatter.


Mention = tuple[str | None, str | None, str | None]  # (size, colour, shape) as the text names a thing

_YES = {"yes", "yeah", "yep", "yup"}
_NO = {"no", "nope", "nah"}
_NOT = {"no", "not", "none", "never", "nothing", "neither", "nor", "without", "nope", "nah", "nowhere"}
_HEDGE = re.compile(r"\b(maybe|perhaps|possibly|unsure|not sure|not know|cannot (tell|say|see)|need a picture)\b")

_COLOUR = {colour: colour for colour in COLOURS}
_SHAPE = {form: shape for shape in SHAPES for form in (shape, plural_shape(shape))} | {
    "disc": "circle", "disk": "circle", "dot": "circle", "plus": "cross", "rhombus": "diamond", "donut": "ring",
}  # fmt: skip
_SIZE = {"large": "large", "big": "large", "huge": "large", "small": "small", "little": "small", "tiny": "small"}
_PLACE = {
    "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom", "left": "left", "right": "right",
    "centre": "centre", "middle": "centre", "central": "centre",
}  # fmt: skip
_DIRECTION = {
    "left": "left", "right": "right", "above": "above", "over": "above", "higher": "above",
    "below": "below", "under": "below", "beneath": "below", "underneath": "below", "lower": "below",
}  # fmt: skip
_BACKGROUND = {
    "plain": "plain", "solid": "plain", "uniform": "plain", "noisy": "noisy", "noise": "noisy", "grainy": "noisy",
    "speckled": "noisy", "gradient": "gradient", "fades": "gradient", "fading": "gradient", "goes": "gradient",
}  # fmt: skip
_NUMBER = {word: str(value) for value, word in enumerate(NUMBERS)} | {"none": "0", "single": "1", "couple": "2"}
_PICTURE = {"first": "the first", "second": "the second", "both": "both", "neither": "neither", "none": "neither"}
_OPPOSITES = [{"left", "right"}, {"top", "bottom"}, {"above", "below"}]
_FLIP = {"left": "right", "right": "left", "above": "below", "below": "above"}

_MENTION = re.compile(
    rf"(?:\b({'|'.join(_SIZE)}) )?(?:\b({'|'.join(COLOURS)}) )?"
    rf"\b({'|'.join(sorted(_SHAPE, key=len, reverse=True))}|objects?|things?|shapes?)\b"
)


def score(question: Question, reply: str) -> bool:
    """Whether `reply` answers `question` rightly. Questions without an `answer` (captions) are never right."""
    text = _normal(reply)
    answer = _normal(question.answer)
    if not text or not answer or reply.rstrip().endswith("?"):
        return False
    if answer in ("yes", "no"):
        return _yes_no(question, answer, text)
    if _HEDGE.search(text):
        return False
    if answer == "nothing":
        return bool(_NOT & set(text.split())) and not _new_mentions(question, text)
    if answer.isdigit():
        return _number(text) == {answer} and not _elsewhere(question, text)
    if answer.startswith(("a ", "an ")) and answer != "a gradient" and "gradient" not in answer:
        return not _NOT & set(text.split()) and _same_thing(_new_mentions(question, text), _mentions(answer)[0])
    if answer.startswith("the ") and question.kind != "pair":
        return _choice(answer, text)
    return not _denied(question, text) and _READERS[question.kind](question, answer, text)


def _normal(text: str) -> str:
    """Lower case, words and digits only, one spelling, "n't" written out."""
    text = plain_words(text).replace("cannot", "can not").replace("n't", " not").replace("can not", "cannot")
    return " ".join(re.findall(r"[a-z]+|\d+", text))


def _named(text: str, words: dict[str, str]) -> set[str]:
    return {words[word] for word in text.split() if word in words}


def _mentions(text: str) -> list[Mention]:
    return [(_SIZE.get(m[1] or ""), m[2], _SHAPE.get(m[3])) for m in _MENTION.finditer(text)]


def _denied(question: Question, text: str) -> bool:
    """A "not" where none is due: "neither" is one answer about pictures."""
    negations = _NOT & set(text.split())
    return bool(negations - {"neither", "none", "nor"} if question.kind == "pair" else negations)


def _elsewhere(question: Question, text: str) -> bool:
    """Whether the reply names colours or shapes other than those that the question names."""
    asked = _normal(question.text)
    for words in (_COLOUR, _SHAPE):
        wanted = _named(asked, words)
        if wanted and not _named(text, words) <= wanted:
            return True
    return False


def _new_mentions(question: Question, text: str) -> list[Mention]:
    """The things that the reply names, less those that the question named."""
    asked = set(_mentions(_normal(question.text)))
    return [mention for mention in dict.fromkeys(_mentions(text)) if mention not in asked and any(mention[1:])]


def _same_thing(mentions: list[Mention], wanted: Mention) -> bool:
    return len(mentions) == 1 and mentions[0][1:] == wanted[1:]


def _choice(answer: str, text: str) -> bool:
    """One of two things that the question names: "Which is larger, the star or the ring?"."""
    before = text.split(" than ")[0]
    return set(_mentions(before)) == set(_mentions(answer)) and not _NOT & set(text.split())


def _number(text: str) -> set[str]:
    """The numbers that a text states; "no stars" states 0, "there is a star" 1, "the red one" none."""
    text = re.sub(rf"\b(the|that|this|other|another|each|large|small|{'|'.join(COLOURS)}) one\b", r"\1", text)
    words = text.split()
    numbers = {_NUMBER.get(word, word) for word in words if word in _NUMBER or word.isdigit()}
    if "no" in words or "not any" in text:
        numbers.add("0")
    elif _NOT & set(words) - {"none"}:
        return set()
    if not numbers and re.search(r"\b(is|just|only) an?\b", text):
        numbers.add("1")
    return numbers


def _colour(question: Question, answer: str, text: str) -> bool:
    shapes = _named(_normal(question.text), _SHAPE)
    return _named(text, _COLOUR) == {answer} and (not shapes or _named(text, _SHAPE) <= shapes)


def _shape(question: Question, answer: str, text: str) -> bool:
    colours = _named(_normal(question.text), _COLOUR)
    return _named(text, _SHAPE) == {answer} and (not colours or _named(text, _COLOUR) <= colours)


def _size(question: Question, answer: str, text: str) -> bool:
    return _named(text, _SIZE) == {answer} and not _elsewhere(question, text)


def _position(question: Question, answer: str, text: str) -> bool:
    text = text.replace("topleft", "top left").replace("topright", "top right")
    named = _named(text, _PLACE)
    if not named or any(pair <= named for pair in _OPPOSITES) or _elsewhere(question, text):
        return False
    row, column = named & {"top", "bottom"}, named & {"left", "right"}
    where = " ".join([*row, *column]) or "centre"
    return where in PLACES and where == answer


def _relation(question: Question, answer: str, text: str) -> bool:
    """The direction, and of which thing: "the ring is left of the star" is not "the star is left of the ring"."""
    named = _named(text.replace("on top of", "above"), _DIRECTION)
    other = _mentions(_normal(question.reply))[-1]
    mentions = _mentions(text)
    if _elsewhere(question, text) or len(named) != 1:
        return False
    if mentions and mentions[-1] != other:
        if mentions[0] != other:
            return False
        named = {_FLIP[direction] for direction in named}
    return named == {answer}


def _background(question: Question, answer: str, text: str) -> bool:
    colours, kinds = _named(answer, _COLOUR), _named(answer, _BACKGROUND)
    return (not colours or _named(text, _COLOUR) == colours) and (not kinds or _named(text, _BACKGROUND) == kinds)


def _pair(question: Question, answer: str, text: str) -> bool:
    comparing = re.search(r"\b(more|fewer)\b", _normal(question.text)) is not None
    if comparing and re.search(r"\b(same|equal|equally)\b", text):
        return answer == "neither"
    named = _named(text.split(" than ")[0], _PICTURE)
    for sole in ("both", "neither"):
        if sole in named:
            named -= {"the first", "the second"}
    return named == {answer}


_READERS: dict[str, Callable[[Question, str, str], bool]] = {
    "colour": _colour, "shape": _shape, "size": _size, "position": _position, "relation": _relation,
    "background": _background, "pair": _pair,
}  # fmt: skip

# What a yes or no of a kind may go on to state, as words that must agree with the model reply.
_STATED: dict[str, tuple[dict[str, str], ...]] = {
    "colour": (_COLOUR,), "shape": (_SHAPE,), "size": (_SIZE,), "position": (_PLACE,), "relation": (_DIRECTION,),
    "background": (_BACKGROUND, _COLOUR), "count": (_NUMBER,),
}  # fmt: skip


def _yes_no(question: Question, answer: str, text: str) -> bool:
    words = text.split()
    verdict = "yes" if words[0] in _YES else "no" if words[0] in _NO else None
    rest = " ".join(words[1:] if verdict and not (words[0] == "no" and words[1:2] in ([s] for s in _THINGS)) else words)
    negated = bool(_NOT & set(rest.split()))
    if _YES & set(rest.split()) or (verdict != "no" and _HEDGE.search(text)):
        return False  # "no … yes", "maybe"
    if verdict is None:
        return answer == "no" if negated else _states(question, rest)
    if verdict != answer or (verdict == "yes" and negated):
        return False
    return negated or not _contradicts(question, rest, verdict)


_THINGS = {*_SHAPE, *COLOURS, *_SIZE, "objects", "object", "things", "thing"}


def _contradicts(question: Question, rest: str, verdict: str) -> bool:
    """Whether what follows yes or no speaks against it: "No, it is red" of a thing asked to be red."""
    if question.kind in ("existence", "pair"):
        asked = _mentions(_normal(question.text))
        named = _mentions(rest)
        if verdict == "no":
            return any(_covers(mention, wanted) for mention in named for wanted in asked)
        return (
            bool(named) and bool(asked) and not any(_covers(mention, wanted) for mention in named for wanted in asked)
        )
    said = _normal(question.reply)
    for words in _STATED.get(question.kind, ()):
        stated, true = _named(rest, words), _named(said, words)
        if words in (_PLACE, _DIRECTION):
            if any(stated & pair and true & pair and not stated & true & pair for pair in _OPPOSITES):
                return True
        elif true and not stated <= true:
            return True
    return False


def _covers(mention: Mention, wanted: Mention) -> bool:
    """Whether the thing named is such as was wanted."""
    return all(want in (None, have) for have, want in zip(mention, wanted, strict=True)) and any(wanted)


def _states(question: Question, text: str) -> bool:
    """A plain statement, without yes or no, that says what the model reply says."""
    if question.kind in ("existence", "pair"):
        asked = _mentions(_normal(question.text))
        there = question.answer == "yes" and question.kind == "existence"
        return there and any(_covers(mention, wanted) for mention in _mentions(text) for wanted in asked)
    said = _normal(question.reply)
    pairs: Iterable[tuple[set[str], set[str]]] = [
        (_named(text, words), _named(said, words)) for words in _STATED.get(question.kind, ())
    ]
    return any(true for _, true in pairs) and all(stated == true for stated, true in pairs)
