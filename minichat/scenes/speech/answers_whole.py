"""What is true of the background and of the picture as a whole; and `answer`, which runs any program."""

from __future__ import annotations

import random

from minichat.scenes.captions import detailed, listing, setting
from minichat.scenes.speech import answers, answers_compared, answers_places
from minichat.scenes.speech.answers import Answer, Run, confirm, sentence
from minichat.scenes.speech.program import Program
from minichat.scenes.stories import story
from minichat.scenes.truth import Look, background_colours, background_words, listed
from minichat.scenes.world import BACKGROUNDS


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
_ALL: dict[str, Run] = {**answers.ANSWERS, **answers_compared.ANSWERS, **answers_places.ANSWERS, **ANSWERS}
OPERATIONS = tuple(_ALL)


def answer(program: Program, look: Look) -> Answer | None:
    """What the assistant says to the program; None where two people could answer otherwise."""
    return _ALL[program.operation](program, look)
