"""Whole dialogues in people's words, as a language model is taught with them: a kind of lesson for each skill.

A scene costs a model its picture's 32 places once, so much is asked about each. Combinations of meaning and form that
the split keeps are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from minichat.scenes.pairs import random_pair
from minichat.scenes.smalltalk import NEED
from minichat.scenes.speech import chat
from minichat.scenes.speech.album import Album
from minichat.scenes.speech.answers_whole import answer
from minichat.scenes.speech.boxes import task
from minichat.scenes.speech.noise import typed
from minichat.scenes.speech.nouns import Unsayable
from minichat.scenes.speech.program import Program
from minichat.scenes.speech.propose import SHARES, Proposer
from minichat.scenes.speech.speaker import speak
from minichat.scenes.speech.talk import MOVES, Talk
from minichat.scenes.training import Turn
from minichat.scenes.truth import Look
from minichat.scenes.world import Scene, random_scene

Lesson = tuple[list[Turn], Sequence[Scene | None]]  # turns, and the scenes that they number
NOISE = 0.5  # of dialogues, the share of questions that are typed hastily
ASKED = range(10, 15)  # questions about one scene

#: What is slow to learn.
HARD = (
    "count", "number is", "more", "as many", "which more", "how many more", "kinds", "common", "every", "any",
    "both are", "only", "same", "alike", "beside", "choose beside", "where from", "what beside", "count beside",
    "nearest", "between", "is between", "further", "first", "is first", "order", "values",
)  # fmt: skip
_LEANING = MOVES | {"fresh": 22, "about it": 30, "other": 16, "they": 14, "of two": 12, "aside": 1}
_CLOSE = (2, 2, 2, 3, 3, 4)
_NUMBERS = (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)


def _scene(rng: random.Random, easy: bool) -> Scene:
    return random_scene(rng, things=rng.choice((1, 1, 2, 2, 3) if easy else _NUMBERS))


def asked(rng: random.Random, easy: bool, operations: Sequence[str] = tuple(SHARES)) -> Lesson:
    """Separate questions about one picture, each of which must be looked up."""
    scene = _scene(rng, easy)
    proposer = Proposer(Look(scene), rng)
    shares = [SHARES[operation] for operation in operations]
    turns: list[Turn] = []
    wanted, seen = rng.choice(ASKED), set[Program]()
    for operation in rng.choices(operations, shares, k=4 * wanted):
        found = proposer.propose(operation)
        if found is None or found[0] in seen:
            continue
        seen.add(found[0])
        try:
            turns.append(Turn(speak(found[0], rng).text, () if turns else (0,), found[1].reply))
        except Unsayable:
            continue
        if len(turns) == wanted:
            break
    return turns or talk(rng, easy)[0], [scene]


def talk(rng: random.Random, easy: bool, moves: dict[str, float] = MOVES, numbers: Sequence[int] = _NUMBERS) -> Lesson:
    """A dialogue in which later turns may lean on earlier ones."""
    scene = random_scene(rng, things=rng.choice((1, 2, 2, 3) if easy else numbers))
    running = Talk(scene, rng, moves=moves)
    said = [running.turn() for _ in range(rng.randint(7, 11))]
    return [Turn(turn.text, () if number else (0,), turn.reply) for number, turn in enumerate(said)], [scene]


def album(rng: random.Random, easy: bool) -> Lesson:
    """Two or three pictures, one after another or at once, now and then one of no drawn shapes among them."""
    first, second = random_pair(rng, lambda rng: _scene(rng, easy or rng.random() < 0.4))
    which = rng.random()
    if which < 0.34:
        return Album((first, second), rng).at_once(rng.randint(6, 9)), [first, second]
    scenes: list[Scene | None] = [first, second]
    if which < 0.55:
        scenes[rng.randrange(2)] = None
    elif which < 0.75:
        scenes.insert(rng.randrange(3), None if rng.random() < 0.6 else _scene(rng, True))
    return Album(scenes, rng).one_after_another(rng.randint(len(scenes) + 3, len(scenes) + 7)), scenes


def boxes(rng: random.Random, easy: bool) -> Lesson:
    """MiniGPT-v2's task words, and plain questions between them, which no box answers."""
    scene = _scene(rng, easy)
    running = Talk(scene, rng)
    turns: list[Turn] = []
    for _ in range(rng.randint(5, 8)):
        if rng.random() < 0.8:
            question, reply = task(scene, rng)
        else:
            said = running.fresh() or running.whole()
            question, reply = said.text, said.reply
        turns.append(Turn(question, () if turns else (0,), reply))
    return turns, [scene]


def asides(rng: random.Random, easy: bool) -> Lesson:
    """What no picture answers, said beside one, among questions that it does answer."""
    scene = _scene(rng, easy)
    running = Talk(scene, rng, moves=MOVES | {"aside": 90})
    said = [running.turn() for _ in range(rng.randint(5, 9))]
    return [Turn(turn.text, () if number else (0,), turn.reply) for number, turn in enumerate(said)], [scene]


def without_picture(rng: random.Random, easy: bool) -> Lesson:
    """Of a model of drawn shapes alone, before a picture comes: civil words, and that it needs one. Often it comes."""
    scene = _scene(rng, easy)
    proposer = Proposer(Look(scene), rng)
    turns = []
    for _ in range(rng.randint(1, 4)):
        which = rng.random()
        if which < 0.35:
            question, reply = chat.social(rng)
        elif which < 0.5:
            question, reply = chat.general(rng)
        elif which < 0.6:
            question, reply = rng.choice((chat.gibberish, chat.language))(rng)
        else:
            found = proposer.propose(rng.choices(list(SHARES), list(SHARES.values()))[0])
            program = found[0] if found else Program("names")
            question, reply = speak(program, rng, held_out=None).text, NEED
        turns.append(Turn(question, (), reply))
    if rng.random() < 0.6:
        running = Talk(scene, rng)
        said = [running.turn() for _ in range(rng.randint(2, 6))]
        turns += [Turn(turn.text, () if number else (0,), turn.reply) for number, turn in enumerate(said)]
        return turns, [scene]
    return turns, []


def captions(rng: random.Random, easy: bool) -> Lesson:
    """Captions, lists and descriptions; a story now and then. Of three scenes the one in which most is alike."""
    scenes = [_scene(rng, easy) for _ in range(3)]
    scene = min(scenes, key=lambda each: len({(t.colour, t.shape) for t in each.things}) / len(each.things))
    turns: list[Turn] = []
    for operation in rng.sample(("names", "caption", "describe", "story", "order"), rng.choice((1, 2, 2, 3))):
        along = (rng.choice(("left", "right", "top", "bottom")),) if operation == "order" else ()
        program = Program(operation, (), along)
        if (found := answer(program, Look(scene))) is not None:
            turns.append(Turn(speak(program, rng, held_out=None).text, () if turns else (0,), found.reply))
    return turns or talk(rng, easy)[0], [scene]


def hastily(turns: Sequence[Turn], rng: random.Random, amount: float) -> list[Turn]:
    """The turns as a person types them who is now careful, now not; `amount`: 0 to 1, how many are not, on average."""
    hasty = min(1.0, amount * rng.choice((0, 0.4, 1, 1.6, 2)))
    return [Turn(typed(turn.question, rng, hasty), turn.pictures, turn.reply) for turn in turns]


def spoken_corpus(rng: random.Random, lines: int) -> Iterator[str]:
    """Sample text for training a tokenizer: one question or reply per line."""
    while lines > 0:
        turns, _ = LESSONS[rng.choice(list(LESSONS))](rng, False)
        for turn in hastily(turns, rng, NOISE / 2):
            for line in (turn.question, turn.reply):
                if lines > 0:
                    yield line
                lines -= 1


LESSONS: dict[str, Callable[[random.Random, bool], Lesson]] = {
    "asked": asked,
    "hard asked": lambda rng, easy: asked(rng, easy, HARD),
    "talks": talk,
    "leaning talks": lambda rng, easy: talk(rng, easy, _LEANING, _CLOSE),
    "albums": album,
    "boxes": boxes,
    "asides": asides,
    "without a picture": without_picture,
    "told": captions,
}
