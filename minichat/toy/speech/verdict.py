"""The answer to any program, whether a reply gives it, and how people type who ask."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from minichat.toy.captions import detailed, facts, listing, plain_words, setting, story
from minichat.toy.speech.answers import THING_ANSWERS, Answer, Run, confirm, sentence
from minichat.toy.speech.answers_places import COMPARED_ANSWERS, PLACE_ANSWERS
from minichat.toy.speech.nouns import SHAPE_WORDS, Program, Things, matching, plural
from minichat.toy.speech.speaker import AMERICAN, american
from minichat.toy.world import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    SHAPES,
    Look,
    Scene,
    background_colours,
    background_words,
    listed,
)

# --- What is true of the background and of the picture as a whole; and `answer`, which runs any program.


def ground_kind(kind: str) -> str:
    """After "it is": "plain", "a gradient"."""
    return "a gradient" if kind == "gradient" else kind


def _ground(program: Program, look: Look) -> Answer:
    """What is the background like?"""
    return Answer(f"It is {background_words(look.scene.background)}.", None, ("ground", "colour"))


def _ground_colour(program: Program, look: Look) -> Answer:
    scenery = look.scene.background
    colours = background_colours(scenery)
    text = f"It goes from {colours[0]} to {colours[1]}." if scenery.kind == "gradient" else f"It is {colours[0]}."
    return Answer(text, None, ("colour",), colours)


def _ground_kind(program: Program, look: Look) -> Answer:
    """Is it plain, noisy or a gradient? What kind of background is it?"""
    return Answer(f"It is {ground_kind(look.scene.background.kind)}.", None, ("ground",), look.scene.background.kind)


def _ground_is(program: Program, look: Look) -> Answer:
    """Is the background red? Is it noisy? words: (value,)."""
    (value,) = program.words
    scenery = look.scene.background
    colours = background_colours(scenery)
    if value in BACKGROUNDS:
        return confirm(value == scenery.kind, f"it is {ground_kind(scenery.kind)}")
    if scenery.kind == "gradient":
        told = f"it goes from {colours[0]} to {colours[1]}"
        if value not in colours:
            return confirm(False, told)
        return Answer(f"Partly: {told}.", None, ("colour",))
    return confirm(value == colours[0], f"it is {colours[0]}")


def _ground_choose(program: Program, look: Look) -> Answer | None:
    """Is the background red or blue? Plain or noisy? words: two values."""
    scenery = look.scene.background
    if program.words[0] in BACKGROUNDS:
        neither = "" if scenery.kind in program.words else "Neither, it"
        return Answer(f"{neither or 'It'} is {ground_kind(scenery.kind)}.", None, ("ground",), scenery.kind)
    colours = background_colours(scenery)
    if scenery.kind == "gradient":
        both = set(colours) == set(program.words)
        told = f"goes from {colours[0]} to {colours[1]}"
        return Answer(f"{'Both, it' if both else 'It'} {told}.", None, ("colour",), colours)
    neither = "" if colours[0] in program.words else "Neither, it"
    return Answer(f"{neither or 'It'} is {colours[0]}.", None, ("colour",), colours)


def _names(program: Program, look: Look) -> Answer:
    """What is in the picture?"""
    return Answer(listing(look.scene), None, ("scene",))


def _caption(program: Program, look: Look) -> Answer:
    """Describe it in one sentence."""
    return Answer(sentence(f"{listed(look.things)} {setting(look.scene)}"), None, ("scene",))


def _describe(program: Program, look: Look) -> Answer:
    """Describe it in detail; which relations are told follows from the scene."""
    return Answer(detailed(look.scene, random.Random(repr(look.scene))), None, ("scene",))


def _story(program: Program, look: Look) -> Answer:
    return Answer(story(look.scene, random.Random(repr(look.scene))), None, ("scene",))


ANSWERS: dict[str, Run] = {
    "ground": _ground, "ground colour": _ground_colour, "ground kind": _ground_kind, "ground is": _ground_is,
    "ground choose": _ground_choose, "names": _names, "caption": _caption, "describe": _describe, "story": _story,
}  # fmt: skip
_ALL: dict[str, Run] = {**THING_ANSWERS, **COMPARED_ANSWERS, **PLACE_ANSWERS, **ANSWERS}
OPERATIONS = tuple(_ALL)


def answer(program: Program, look: Look) -> Answer | None:
    """What the assistant says to the program; None where two people could answer otherwise."""
    return _ALL[program.operation](program, look)


# --- Whether a reply in free words answers a question: right, wrong, evasive, or nonsense.
#
# Wording is free and content is strict, as in `minichat.toy.asking`; but a question is known here by its program, so
# that words which name the thing asked about are told from words that answer. Evasive: it says that it cannot tell, or
# does not understand. Nonsense: it says nothing of the kind that was asked for.


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


# --- How people type: in any case, without marks, with slips of the finger and the words of the phone.
#
# `PERTURBATIONS` change what is written and not what is meant, each in one way: an exam asks again with them. `typed`
# mixes them and more, for training.


_BRITISH = {other: word for word, other in AMERICAN.items()}
_SHORT = {
    "you": "u", "are": "r", "please": "pls", "the": "teh", "what": "wat", "because": "cuz", "to": "2", "for": "4",
    "your": "ur", "thanks": "thx", "okay": "k", "picture": "pic", "and": "n", "with": "w", "background": "bg",
    "tell me": "tell me", "something": "smth", "want to": "wanna", "give me": "gimme", "let me": "lemme",
    "colour": "col", "there is": "theres", "what is": "whats", "where is": "wheres", "do you": "d'you",
    "is it": "izzit", "have you got": "u got", "going to": "gonna",
}  # fmt: skip
_OFTEN = (
    "you",
    "are",
    "please",
    "what is",
    "where is",
    "what",
    "there is",
    "give me",
    "want to",
    "let me",
    "background",
)
_NEAR = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip

Change = Callable[[str, random.Random], str]


def swapped(text: str, rng: random.Random) -> str:
    """Two letters that follow each other change places, in one word of four letters or more; the first stays."""
    return _slip(text, rng, lambda word, at: word[:at] + word[at + 1] + word[at] + word[at + 2 :])


def _dropped(text: str, rng: random.Random) -> str:
    return _slip(text, rng, lambda word, at: word[:at] + word[at + 1 :])


def _doubled(text: str, rng: random.Random) -> str:
    return _slip(text, rng, lambda word, at: word[:at] + word[at] + word[at:])


def _missed(text: str, rng: random.Random) -> str:
    """A key beside the right one."""
    return _slip(
        text, rng, lambda word, at: word[:at] + rng.choice(_NEAR.get(word[at].lower(), word[at])) + word[at + 1 :]
    )


def _slip(text: str, rng: random.Random, change: Callable[[str, int], str]) -> str:
    words = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", text)]
    for _ in range(4):
        if not words:
            return text
        start, end = rng.choice(words)
        word = text[start:end]
        slipped = change(word, rng.randrange(1, len(word) - 1))
        if slipped != word:
            return text[:start] + slipped + text[end:]
    return text


def _please(text: str, rng: random.Random) -> str:
    if "please" in text.lower():
        return text
    match = re.search(r"[.?!]*$", text)
    end = match.start() if match else len(text)
    return f"{text[:end]}, please{text[end:]}"


def _blanks(text: str, rng: random.Random) -> str:
    return text.replace(" ", "  ")


def _no_mark(text: str, rng: random.Random) -> str:
    return text.rstrip(".?! ")


def _british(text: str, rng: random.Random) -> str:
    for word, other in _BRITISH.items():
        text = text.replace(word, other)
    return text.replace("gray", "grey")


def _american(text: str, rng: random.Random) -> str:
    return american(text).replace("grey", "gray")


#: By the names under which figures are reported.
PERTURBATIONS: dict[str, Change] = {
    ", please": _please,
    "all lower": lambda text, rng: text.lower(),
    "all upper": lambda text, rng: text.upper(),
    "doubled blanks": _blanks,
    "no mark at the end": _no_mark,
    "British spelling": _british,
    "American spelling": _american,
    "two letters swapped": swapped,
}


def _no_apostrophes(text: str, rng: random.Random) -> str:
    return text.replace("'", "")


def _curly(text: str, rng: random.Random) -> str:
    return text.replace("'", "’")


def _shortened(text: str, rng: random.Random) -> str:
    words = [word for word in _SHORT if re.search(rf"\b{word}\b", text.lower())]
    often = [word for word in words if word in _OFTEN]
    for word in rng.sample(words, min(len(words), 1)) + rng.sample(often, min(len(often), rng.randint(1, 3))):
        text = re.sub(rf"\b{word}\b", _SHORT[word], text, count=1, flags=re.IGNORECASE)
    return text


def _telegraphic(text: str, rng: random.Random) -> str:
    """Without articles, as one types in a hurry: "colour of red star"."""
    return re.sub(r"\b(the|a|an) (?=\w+ \w|\w)", "", text, count=rng.randint(1, 3), flags=re.IGNORECASE)


def _marks(text: str, rng: random.Random) -> str:
    return text.rstrip(".?! ") + rng.choice(("??", "?!", "...", " ?", "!", "???", " .", ".", " :)", "?"))


def _some_blanks(text: str, rng: random.Random) -> str:
    return re.sub(
        " ",
        lambda match: "  " if rng.random() < 0.3 else " ",
        rng.choice(("", " ")) + text + rng.choice(("", " ", "\n")),
    )


def _glued(text: str, rng: random.Random) -> str:
    """A blank is missing somewhere."""
    at = [match.start() for match in re.finditer(" ", text)]
    place = rng.choice(at) if at else 0
    return text[:place] + text[place + 1 :] if at else text


def _polite(text: str, rng: random.Random) -> str:
    word = rng.choice(("please", "please", "pls", "plz", "thanks", "thank you", "thx", "if you can", "if possible"))
    text = _no_mark(text, rng) + rng.choice((", ", " ", ", ")) + word
    return text + rng.choice(("?", "", ".", "!"))


def _polite_before(text: str, rng: random.Random) -> str:
    return (
        rng.choice(("please, ", "please ", "pls ", "Please: ", "hello, ", "hey ", "hi! ")) + text[:1].lower() + text[1:]
    )


def _capitals(text: str, rng: random.Random) -> str:
    """One word is shouted, or every word has a capital."""
    if rng.random() < 0.4:
        return text.title().replace("'S", "'s")
    words = text.split(" ")
    at = rng.randrange(len(words))
    words[at] = words[at].upper()
    return " ".join(words)


_MIXED: dict[Change, float] = {
    PERTURBATIONS["all lower"]: 9, _no_mark: 7, PERTURBATIONS["all upper"]: 7, swapped: 7, _dropped: 3, _doubled: 2,
    _missed: 2.5, _no_apostrophes: 5, _curly: 1, _shortened: 4, _telegraphic: 2.5, _marks: 3, _some_blanks: 2,
    _blanks: 1.5, _glued: 0.7, _polite: 3.5, _polite_before: 2, _capitals: 1.5, _please: 2,
}  # fmt: skip


def typed(text: str, rng: random.Random, amount: float = 0.5) -> str:
    """The text as it may be typed: unchanged with the probability 1 - `amount`, else changed in one to three ways."""
    if rng.random() >= amount:
        return text
    for change in rng.choices(list(_MIXED), list(_MIXED.values()), k=rng.choices((1, 2, 3), (50, 35, 15))[0]):
        text = change(text, rng)
    return text
