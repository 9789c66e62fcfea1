"""How people type: in any case, without marks, with slips of the finger and the words of the phone.

`PERTURBATIONS` change what is written and not what is meant, each in one way: an exam asks again with them. `typed`
mixes them and more, for training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from minichat.scenes.speech.speaker import AMERICAN, american

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
    PERTURBATIONS["all lower"]: 9, _no_mark: 7, PERTURBATIONS["all upper"]: 2.5, swapped: 5, _dropped: 3, _doubled: 2,
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
