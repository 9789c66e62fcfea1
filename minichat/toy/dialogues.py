"""Dialogues about a scene, small talk, and the whole dialogues that the built-in model is trained on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from minichat.errors import SettingsError
from minichat.toy.asking import ALL_KINDS, Asker, Question, casual, place_in
from minichat.toy.captions import (
    DETAILED_REQUESTS,
    LIST_REQUESTS,
    SHORT_REQUESTS,
    STORY_REQUESTS,
    detailed,
    listing,
    short,
    story,
)
from minichat.toy.pairs import pair_questions, random_pair
from minichat.toy.questions import OTHER_HALF, lone, one, presence, questions
from minichat.toy.world import (
    COLOURS,
    DIRECTIONS,
    NUMBERS,
    OPPOSITE,
    SHAPES,
    SIZES,
    Look,
    Name,
    Scene,
    Thing,
    at,
    beside,
    half,
    named,
    some,
    sure_place,
    toward,
    words,
)

# --- Dialogues about one scene in which later questions lean on earlier turns ("it", "the other one", "and the
# square?").
#
# "It" is the thing that the last turns spoke of. Where an answer brings a new thing in ("What is left of it?" – "A
# blue circle."), the next question calls it "that one", and from then on it is "it".


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


# --- Where no scene can answer: greetings, who and what the model is, no picture yet, things outside its world.


GREETING = "Hello! Show me a picture of drawn shapes and ask me about it."
WHO = "I am MiniChat, a small model that talks about pictures of drawn shapes."
CAN = "I can describe a picture of drawn shapes, and answer questions about colours, shapes, numbers and places."
THANKS = "You are welcome."
BYE = "Goodbye!"
NEED = "I need a picture for that. Please show me one."
WORLD = "I only know drawn shapes, so I cannot answer that."
NO_SUCH = "I see no {}. I only know drawn shapes."

_TALK = {
    GREETING: (
        "Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning", "Good morning!", "Good evening", "Hi there",
        "Hello MiniChat",
    ),
    WHO: (
        "Who are you?", "What are you?", "What is your name?", "Are you a human?", "Are you a robot?",
        "Who am I talking to?", "Introduce yourself.",
    ),
    CAN: (
        "What can you do?", "How can you help me?", "What do you know?", "Help", "What can I ask you?",
        "What should I ask?", "How does this work?",
    ),
    THANKS: (
        "Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Great, thanks.", "Well done!", "Good job!", "Nice!",
    ),
    BYE: ("Bye", "Goodbye", "Goodbye!", "See you", "Good night", "See you later!"),
}  # fmt: skip
_OUTSIDE = (
    "Who is the president?", "What is the capital of France?", "What time is it?", "What is the weather like today?",
    "Tell me a joke.",
    "How old are you?", "What is two plus two?", "Write a program for me.", "What happened in 1969?",
    "Who wrote Hamlet?",
    "What should I cook tonight?", "Translate this into French.", "How far away is the moon?",
    "What is the meaning of life?",
    "Who painted this?", "Where was this picture taken?", "What is the news today?", "Can you drive a car?",
)  # fmt: skip
_NO_PICTURE = (
    "What is in the picture?", "Describe the picture.", "What do you see?", "How many objects are there?",
    "Where is the red star?",
    "Is there a circle?", "What colour is the background?", "Describe this image in detail.",
    "What colour is the square?",
    "Is there a blue heart in the picture?", "What is left of the ring?", "Count the stars.",
    "Tell me a story about the picture.",
    "What shape is the green object?", "Can you see the picture?", "Do you see anything?", "What is at the top left?",
)  # fmt: skip
_FOREIGN = (
    "dog", "cat", "person", "car", "house", "tree", "bird", "face", "boat", "flower", "table", "horse", "fish", "ball",
)  # fmt: skip
_FOREIGN_ASKED = (
    "Is there a {} in the picture?", "Do you see a {}?", "Where is the {}?", "What is the {} doing?",
    "What colour is the {}?",
)  # fmt: skip


def smalltalk(rng: random.Random, picture: bool = False) -> tuple[str, str]:
    """A question that needs no scene, and the reply.

    `picture`: whether one has been shown; without one, questions about a picture are answered by asking for it.
    """
    kind = rng.random()
    if kind < 0.45:
        reply, asked = rng.choice(list(_TALK.items()))
        return _casual(rng.choice(asked), rng), reply
    if kind < 0.65:
        return _casual(rng.choice(_OUTSIDE), rng), WORLD
    if picture:
        what = rng.choice(_FOREIGN)
        return _casual(rng.choice(_FOREIGN_ASKED).format(what), rng), NO_SUCH.format(what)
    return _casual(rng.choice(_NO_PICTURE), rng), NEED


def _casual(text: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        text = text.replace("colour", "color")
    return text.lower() if rng.random() < 0.15 else text.rstrip("?.!") if rng.random() < 0.1 else text


# --- What the built-in model is trained on: whole dialogues about one picture, two, or none.


MAX_TURNS = 8
ORDINALS = ("first", "second")


@dataclass(frozen=True)
class Turn:
    """A question, the pictures newly shown with it (indices into the scenes), and the reply."""

    question: str
    pictures: tuple[int, ...]
    reply: str


def training_dialogue(
    rng: random.Random,
    scenes: Sequence[Scene],
    *,
    turns: int | None = None,
    two: float = 0.15,
    none: float = 0.03,
) -> list[Turn]:
    """A dialogue of 1 to 8 turns about the first scene, now and then about the first two, or without any picture.

    Args:
        turns: number of turns; at random when None.
        two: share of dialogues about two pictures, where two scenes are given (`pairs.random_pair` draws good pairs).
        none: share of dialogues without a picture.

    Raises:
        SettingsError: no scene is given, or `turns` is not 1 to 8.
    """
    if not scenes:
        raise SettingsError("scenes: at least one scene is needed for a dialogue.")
    if turns is not None and not 1 <= turns <= MAX_TURNS:
        raise SettingsError(f"turns: {turns} is not between 1 and {MAX_TURNS}.")
    length = turns or rng.choices(range(1, MAX_TURNS + 1), (6, 8, 12, 14, 16, 16, 14, 14))[0]
    which = rng.random()
    if which < none:
        return [_chat(rng, picture=False) for _ in range(min(length, 4))]
    if which < none + two and len(scenes) > 1:
        return _about_two(rng, scenes, length)
    return _about_one(rng, scenes[0], length)


def vocabulary_corpus(rng: random.Random, lines: int) -> Iterator[str]:
    """Sample text for training the tokenizer: one question or reply per line."""
    while lines > 0:
        for turn in training_dialogue(rng, random_pair(rng), two=0.25, none=0.1):
            for line in (turn.question, turn.reply):
                if lines > 0:
                    yield line
                lines -= 1


def _chat(rng: random.Random, picture: bool) -> Turn:
    question, reply = smalltalk(rng, picture)
    return Turn(question, (), reply)


def _about_one(rng: random.Random, scene: Scene, length: int) -> list[Turn]:
    """Half of the dialogues lean on earlier turns, a third are separate questions, the rest begins with a caption."""
    style = rng.random()
    if style < 0.5:
        talk = Talk(scene, rng)
        said = [(turn.text, turn.reply) for turn in (talk.turn() for _ in range(length))]
    else:
        said = [(q.text, q.reply) for q in questions(scene, rng, length, ALL_KINDS)]
        if style > 0.7 or not said:
            caption = telling(scene, rng)
            said = [(caption.text, caption.reply), *said][:length]
    dialogue = [Turn(question, (), reply) for question, reply in said]
    first = 0
    if length < MAX_TURNS and rng.random() < 0.04:  # a word before the picture comes
        dialogue.insert(0, _chat(rng, picture=False))
        first = 1
    dialogue[first] = Turn(dialogue[first].question, (0,), dialogue[first].reply)
    if rng.random() < 0.1:  # a word in between takes one question's place
        at = rng.randrange(len(dialogue))
        if at > first:
            dialogue[at] = _chat(rng, picture=True)
            del dialogue[at + 1 :]  # what followed may have leaned on the question
    return dialogue


def _about_two(rng: random.Random, scenes: Sequence[Scene], length: int) -> list[Turn]:
    """Both at once, or the second in a later turn. As soon as there are two, a question says which one it means."""
    length = max(2, length)
    at_once = rng.random() < 0.5
    lead = 0 if at_once else rng.randint(1, length - 1)
    dialogue = []
    if lead:
        talk = Talk(scenes[0], rng)
        dialogue = [Turn(turn.text, (), turn.reply) for turn in (talk.turn() for _ in range(lead))]
    compared = pair_questions(scenes[0], scenes[1], rng, length)
    while len(dialogue) < length:
        if compared and rng.random() < 0.55:
            question = compared.pop()
        else:
            index = rng.randrange(2)
            drawn = questions(scenes[index], rng, 1, ALL_KINDS, ORDINALS[index])
            question = drawn[0] if drawn and rng.random() < 0.75 else telling(scenes[index], rng, ORDINALS[index])
        dialogue.append(Turn(question.text, (), question.reply))
    if at_once:
        dialogue[0] = Turn(dialogue[0].question, (0, 1), dialogue[0].reply)
    else:
        dialogue[0] = Turn(dialogue[0].question, (0,), dialogue[0].reply)
        dialogue[lead] = Turn(dialogue[lead].question, (1,), dialogue[lead].reply)
    return dialogue
