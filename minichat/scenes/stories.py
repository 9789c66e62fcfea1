"""Short stories whose characters are the things of a scene. Whatever they say of size, colour, shape, place is true."""

from __future__ import annotations

import random

from minichat.scenes.truth import Look, at, background_colours, beside, full, listed, named, place, some, toward, words
from minichat.scenes.world import Scene, Thing

REQUESTS = (
    "Tell me a story about the picture.", "Write a short story about this picture.",
    "Make up a story about the picture.",
    "Can you tell me a story about these shapes?", "Tell a little story about what you see.",
)  # fmt: skip
_ALONE = ("It was often lonely.", "It liked the quiet.")
_WISH = ("One day it dreamed of a friend.", "One day it danced all by itself.")
_MEET = (
    "One day {a} and {b} met and became friends.", "One day {a} asked {b} to play.", "One day {a} sang a song for {b}.",
)  # fmt: skip
_END = ("From then on, they were never lonely.", "They all laughed and were happy.")


def story(scene: Scene, rng: random.Random) -> str:
    """Three to five sentences; every thing of the scene comes into it."""
    look = Look(scene)
    hero = look.things[0]
    sentences = [f"Once upon a time, {some(full(hero))} lived {_land(scene)}.", f"Its home was {at(place(hero))}."]
    if len(look.things) == 1:
        return " ".join([*sentences, rng.choice(_ALONE), rng.choice(_WISH)])
    friend = look.things[1]
    sentences.append(f"{_capital(some(full(friend)))} lived {_near(friend, hero)}.")
    twins = named(hero) == named(friend)
    a = "the first one" if twins else "the " + words(named(hero))
    b = "the other one" if twins else "the " + words(named(friend))
    sentences.append(rng.choice(_MEET).format(a=a, b=b))
    rest = look.things[2:]
    if rest:
        sentences.append(f"{_capital(listed(rest))} watched them and {'was' if len(rest) == 1 else 'were'} happy.")
    else:
        sentences.append(rng.choice(_END).replace("all ", ""))
    return " ".join(sentences)


def _land(scene: Scene) -> str:
    colours = background_colours(scene.background)
    if scene.background.kind == "gradient":
        return f"in a land that went from {colours[0]} to {colours[1]}"
    return f"in a {scene.background.kind} {colours[0]} land"


def _near(thing: Thing, other: Thing) -> str:
    for direction in ("right", "below", "left", "above"):
        if beside(thing, other, direction):
            return f"{toward(direction)} it"
    return "close to it"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
