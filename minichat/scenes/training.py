"""What the built-in model is trained on: whole dialogues about one picture, two, or none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minichat.errors import SettingsError
from minichat.scenes.dialogues import Talk, telling
from minichat.scenes.pairs import pair_questions, random_pair
from minichat.scenes.questions import ALL_KINDS, questions
from minichat.scenes.smalltalk import smalltalk
from minichat.scenes.world import Scene

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
