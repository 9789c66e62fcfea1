"""How questions are worded: the templates, and the hand that fills them in.

A wording never depends on the answer: the form of a question is drawn first, then its truth, then the wording.
A question (with "?") is answered in few words that carry the answer at once; a request ("Tell me …") by a sentence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from minichat.scenes.truth import Look

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
