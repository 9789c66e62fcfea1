"""Questions written by hand in words that no training form spells, and scenes in which each has an answer."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from minichat.toy.speech.answers import Answer
from minichat.toy.speech.nouns import Program, Things, matching
from minichat.toy.speech.verdict import answer
from minichat.toy.world import Look, Scene, random_scene

FILE = Path(__file__).parent / "own_questions.jsonl"
_TRIES = 4_000


class Own(NamedTuple):
    """A question, what it means, a scene, and the true answer."""

    text: str
    program: Program
    scene: Scene
    answer: Answer


def own_questions(seed: int = 0) -> list[Own]:
    """All of them, each about a scene of its own that follows from the seed; yes and no are wanted in turn."""
    asked = []
    for number, line in enumerate(FILE.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        text, program = record.pop("text"), Program.from_dict(record)
        rng = random.Random(f"own {seed} {number}")
        scene, found = _scene(program, rng, wanted=(number + seed) % 2 == 0)
        asked.append(Own(text, program, scene, found))
    return asked


def _scene(program: Program, rng: random.Random, wanted: bool) -> tuple[Scene, Answer]:
    """A scene in which nothing is taken for granted that is not so."""
    spare = None
    for _ in range(_TRIES):
        scene = random_scene(rng)
        if rng.random() < 0.8:
            scene = _with(scene, program.things, rng)
        look = Look(scene)
        if program.operation in _OF_ONE and any(len(matching(look, things) or ()) != 1 for things in program.things):
            continue
        found = answer(program, look)
        if found is None or (found.asked in (("none",), ("number",)) and program.operation not in _MAY_LACK):
            continue
        if found.yes in (None, wanted):
            return scene, found
        spare = scene, found
    if spare is None:
        raise AssertionError(f"no scene answers {program}")
    return spare


#: Operations that take each set for one thing.
_OF_ONE = {"query", "verify", "choose", "tell", "bigger", "is bigger", "alike", "beside", "choose beside", "where from",
           "what beside", "anything beside", "count beside", "nearest", "next to", "between", "further"}  # fmt: skip
_MAY_LACK = {"count", "kinds", "common", "which more", "how many more", "count choose", "count beside", "what beside",
             "at", "list", "between"}  # fmt: skip


def _with(scene: Scene, sets: tuple[Things, ...], rng: random.Random) -> Scene:
    """The scene with as many of its things as there are sets made to answer them."""
    things = list(scene.things)
    places = rng.sample(range(len(things)), min(len(things), len(sets)))
    for place, wanted in zip(places, sets, strict=False):
        colour = wanted.colour if wanted.colour not in scene.background.colours else None
        things[place] = replace(
            things[place], shape=wanted.shape or things[place].shape, colour=colour or things[place].colour
        )
    return replace(scene, things=tuple(things))
