"""Dialogues about one scene in which later questions lean on earlier turns ("it", "the other one", "and the square?").

"It" is the thing that the last turns spoke of. Where an answer brings a new thing in ("What is left of it?" – "A blue
circle."), the next question calls it "that one", and from then on it is "it".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from minichat.scenes.about_places import OTHER_HALF, lone
from minichat.scenes.about_things import presence
from minichat.scenes.asking import Asker, Question, casual, place_in
from minichat.scenes.captions import DETAILED_REQUESTS, LIST_REQUESTS, SHORT_REQUESTS, detailed, listing, short
from minichat.scenes.questions import ALL_KINDS, one
from minichat.scenes.stories import REQUESTS as STORY_REQUESTS
from minichat.scenes.stories import story
from minichat.scenes.truth import (
    DIRECTIONS,
    NUMBERS,
    OPPOSITE,
    Look,
    Name,
    at,
    beside,
    half,
    named,
    some,
    sure_place,
    toward,
    words,
)
from minichat.scenes.world import COLOURS, SHAPES, SIZES, Scene, Thing

TOPICS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is {it}?", "And what colour is {it}?", "Which colour is {it}?", "Which colour does {it} have?",
    ),
    "shape": ("What shape is {it}?", "And what shape is {it}?", "Which shape is {it}?", "Which shape does {it} have?"),
    "size": (
        "Is {it} large or small?", "Is {it} small or large?", "How big is {it}?", "And how big is {it}?",
        "What size is {it}?",
    ),
    "position": (
        "Where is {it}?", "And where is {it}?", "Where can I find {it}?", "In which part of the picture is {it}?",
    ),
}  # fmt: skip
AND = ("And {x}?", "What about {x}?", "And what about {x}?")
OTHER_COUNTS = ("How many other objects have the same {w}?", "How many other objects have the {w} of {it}?")
BESIDE = ("What is {to} {it}?", "And what is {to} {it}?", "Which object is {to} {it}?", "What do you see {to} {it}?")
IS_IT = ("Is {it} {w}?", "And is {it} {w}?", "Would you say {it} is {w}?")
OTHERS = ("the other one", "the other object")
MOVES = {"topic": 30, "yes or no": 14, "and": 16, "other": 12, "beside": 12, "count": 6, "fresh": 7}  # and how often


def follow(scene: Scene, rng: random.Random, turns: int, picture: str | None = None) -> list[Question]:
    """A dialogue of `turns` questions with their true answers, most of which lean on the turn before.

    Captions and stories have the kinds "caption" and "story" and no `answer`.
    """
    talk = Talk(scene, rng, picture)
    return [talk.turn() for _ in range(turns)]


def dialogue(scene: Scene, rng: random.Random, turns: int) -> list[tuple[str, str]]:
    """`follow` as (question, reply) pairs."""
    return [(question.text, question.reply) for question in follow(scene, rng, turns)]


def telling(scene: Scene, rng: random.Random, picture: str | None = None) -> Question:
    """A request to describe the scene, or to tell a story about it, and what the assistant says."""
    kinds: tuple[tuple[tuple[str, ...], Callable[[], str]], ...] = (
        (LIST_REQUESTS, lambda: listing(scene)),
        (SHORT_REQUESTS, lambda: short(scene, rng)),
        (DETAILED_REQUESTS, lambda: detailed(scene, rng)),
        (STORY_REQUESTS, lambda: story(scene, rng)),
    )
    requests, tell = rng.choices(kinds, (34, 26, 28, 12))[0]
    text = rng.choice(requests)
    if picture:
        for phrase in ("the picture", "this picture", "this image", "a picture"):
            text = text.replace(phrase, f"the {picture} picture")
        if picture not in text:
            text = f"In the {picture} picture, {text[0].lower()}{text[1:]}"
    return Question("story" if requests is STORY_REQUESTS else "caption", casual(text, rng), "", tell())


class Talk:
    """A running dialogue: what "it" is, what has been told of it, and what was asked last.

    `moves` has the weights of the ways to go on.
    """

    def __init__(
        self, scene: Scene, rng: random.Random, picture: str | None = None, moves: Mapping[str, int] = MOVES
    ) -> None:
        self.scene = scene
        self.rng = rng
        self.moves = moves
        self.picture = picture
        self.asker = Asker(Look(scene), rng, picture)
        self.asked: set[str] = set()
        self.focus: Thing | None = None
        self.told: set[str] = set()  # topics of the focus that have been told
        self.topic: str | None = None  # what was asked last of the focus
        self.it = "it"

    def turn(self) -> Question:
        """The next question and reply."""
        if self.focus is None:
            if self.rng.random() < 0.35:
                return self._fresh()
            return self._open() or self._fresh()
        moves: dict[str, Callable[[], Question | None]] = {
            "topic": self._topic, "yes or no": self._yes_no, "and": self._and, "other": self._other,
            "beside": self._beside, "count": self._count, "fresh": self._fresh,
        }  # fmt: skip
        for kind in self.rng.choices(list(self.moves), list(self.moves.values()), k=8):
            question = moves[kind]()
            if question is not None:
                return question
        return self._fresh()

    def _say(self, kind: str, text: str, answer: str, reply: str) -> Question:
        return Question(kind, casual(text[0].upper() + text[1:], self.rng), answer, reply)

    def _turn_to(self, thing: Thing, told: set[str], topic: str | None, it: str = "it") -> None:
        self.focus, self.told, self.topic, self.it = thing, told, topic, it

    def _fresh(self) -> Question:
        """A question that stands by itself; "it" means nothing after it."""
        self.focus = self.topic = None
        if self.rng.random() < 0.3:
            return telling(self.scene, self.rng, self.picture)
        for kind in self.rng.sample(ALL_KINDS, len(ALL_KINDS)):
            question = one(self.asker, kind, self.asked)
            if question is not None:
                return question
        return telling(self.scene, self.rng, self.picture)

    def _open(self) -> Question | None:
        """Bring a thing in by name."""
        look, rng = self.asker.look, self.rng
        if rng.random() < 0.5:  # "Is there a star?" – "Yes, there is a star."
            question, name = presence(self.asker)
            if look.number(name) == 1:
                self._turn_to(look.matching(name)[0], _topics(name), None)
            return question
        thing = rng.choice(look.things)
        found = look.reference(thing, rng)
        if found is None:
            return None
        name, told = found, _topics(found)
        topics = [topic for topic in TOPICS if topic not in told]
        topic = rng.choice(topics)
        stated = self._state(thing, topic)
        if stated is None:
            return None
        self._turn_to(thing, told | {topic}, topic)
        wording = rng.choice([wording for wording in TOPICS[topic] if not wording.startswith("And")])
        text = place_in(wording, rng, self.picture, {"it": "the " + words(name, self.asker.noun())})
        return self._say(topic, text, *stated)

    def _state(self, thing: Thing, topic: str) -> tuple[str, str] | None:
        """The canonical answer and the reply about a topic of a thing; None where it could be disputed."""
        if topic == "position":
            where = sure_place(thing)
            return None if where is None else (where, f"{at(where)[0].upper()}{at(where)[1:]}.")
        word = {"colour": thing.colour, "shape": thing.shape, "size": thing.size}[topic]
        return word, f"It is a {word}." if topic == "shape" else f"It is {word}."

    def _topic(self) -> Question | None:
        """ "What colour is it?"."""
        if self.focus is None:
            return None
        topics = [topic for topic in TOPICS if topic not in self.told]
        if not topics:
            return None
        topic = self.rng.choice(topics)
        stated = self._state(self.focus, topic)
        if stated is None:
            return None
        text = self.rng.choice(TOPICS[topic]).format(it=self.it)
        self._turn_to(self.focus, self.told | {topic}, topic)
        return self._say(topic, text, *stated)

    def _yes_no(self) -> Question | None:
        """ "Is it red?", "Is it left of the circle?", "Is it in the top half?"."""
        thing, rng = self.focus, self.rng
        if thing is None:
            return None
        topic = rng.choice(("colour", "shape", "size", "half", "relation"))
        truth = rng.random() < 0.5
        if topic in self.told:
            return None
        if topic == "half":
            side = rng.choice(tuple(OTHER_HALF))
            there = half(thing, side)
            if there is None:
                return None
            where = side if there else OTHER_HALF[side]
            truth, asked, true, kind = there, f"in the {side} half", f"in the {where} half", "position"
        elif topic == "relation":
            found = self._side(thing)
            if found is None:
                return None
            way, y = found
            asked = f"{self.asker.to(way if truth else OPPOSITE[way])} {y}"
            true, kind = f"{toward(way)} {y}", "relation"
        else:
            word = getattr(thing, topic)
            words_ = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[topic]
            wrong = rng.choice([other for other in words_ if other != word])
            a = "a " if topic == "shape" else ""
            asked, true, kind = a + (word if truth else wrong), a + word, topic
            self.told = self.told | {topic}
        text = rng.choice(IS_IT).format(it=self.it, w=asked)
        self.topic, self.it = None, "it"
        return self._say(kind, text, "yes" if truth else "no", f"{'Yes' if truth else 'No'}, it is {true}.")

    def _side(self, thing: Thing) -> tuple[str, str] | None:
        """A direction in which `thing` lies of another thing, and a phrase for that one."""
        look, rng = self.asker.look, self.rng
        others = [other for other in look.things if other is not thing and look.count[named(other)] == 1]
        found = [(way, other) for other in others for way in DIRECTIONS if beside(thing, other, way)]
        if not found:
            return None
        way, other = rng.choice(found)
        return way, "the " + words(look.reference(other, rng) or named(other), self.asker.noun())

    def _and(self) -> Question | None:
        """ "And the square?": the last topic of another thing."""
        look, rng = self.asker.look, self.rng
        if self.topic is None:
            return None
        others = [thing for thing in look.things if thing is not self.focus]
        if not others:
            return None
        thing = rng.choice(others)
        name = look.reference(
            thing, rng, size=self.topic != "size", colour=self.topic != "colour", shape=self.topic != "shape"
        )
        stated = self._state(thing, self.topic)
        if name is None or stated is None:
            return None
        told = _topics(name)
        text = rng.choice(AND).format(x="the " + words(name, self.asker.noun()))
        kind = self.topic
        self._turn_to(thing, told | {kind}, kind)
        return self._say(kind, text, *stated)

    def _other(self) -> Question | None:
        """ "What colour is the other one?", where there are two things, or two of the focus's shape."""
        look, rng, focus = self.asker.look, self.rng, self.focus
        if focus is None:
            return None
        phrase = rng.choice(OTHERS)
        others = [thing for thing in look.things if thing is not focus]
        told: set[str] = set()
        if len(others) != 1:
            others = [thing for thing in others if thing.shape == focus.shape]
            phrase = f"the other {focus.shape}"
            told = {"shape"}
            if len(others) != 1 or "shape" not in self.told:
                return None
        thing = others[0]
        again = self.topic is not None and self.topic not in told and rng.random() < 0.4
        topic = self.topic if again and self.topic else rng.choice([topic for topic in TOPICS if topic not in told])
        stated = self._state(thing, topic)
        if stated is None:
            return None
        text = rng.choice(AND).format(x=phrase) if again else rng.choice(TOPICS[topic]).format(it=phrase)
        self._turn_to(thing, told | {topic}, topic)
        return self._say(topic, text, *stated)

    def _beside(self) -> Question | None:
        """ "What is left of it?"."""
        look, rng, focus = self.asker.look, self.rng, self.focus
        if focus is None or len(look.things) == 1:
            return None
        way = rng.choice(DIRECTIONS)
        found = lone(look, focus, way)
        if found is None or (not found and rng.random() < 0.5):
            return None
        text = rng.choice(BESIDE).format(to=self.asker.to(way), it=self.it)
        if not found:
            self.topic, self.it = None, "it"
            return self._say("relation", text, "nothing", "Nothing.")
        what = some(named(found[0]))
        self._turn_to(found[0], {"colour", "shape"}, None, "that one")
        return self._say("relation", text, what, f"{what[0].upper()}{what[1:]}.")

    def _count(self) -> Question | None:
        """ "How many other objects have the same colour?"."""
        look, focus = self.asker.look, self.focus
        if focus is None:
            return None
        by_colour = self.rng.random() < 0.5
        if look.count[None, focus.colour if by_colour else None, None if by_colour else focus.shape] == 1:
            by_colour = self.rng.random() < 0.5  # rather the one that has a number to tell
        name: Name = (None, focus.colour, None) if by_colour else (None, None, focus.shape)
        text = self.rng.choice(OTHER_COUNTS).format(w="colour" if by_colour else "shape", it=self.it)
        number = look.number(name) - 1
        self.topic, self.it = None, "it"
        reply = f"There {'is' if number == 1 else 'are'} {NUMBERS[number] if number else 'none'}."
        return self._say("count", text, str(number), reply)


def _topics(name: Name) -> set[str]:
    """What a name tells of the thing it names."""
    return {topic for topic, word in zip(("size", "colour", "shape"), name, strict=True) if word}
