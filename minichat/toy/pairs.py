"""Two pictures: pairs of scenes worth comparing, and questions that compare them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from minichat.toy.asking import Question, casual
from minichat.toy.world import (
    COLOURS,
    SHAPES,
    Background,
    Look,
    Name,
    Scene,
    named,
    plural_shape,
    random_scene,
    some,
    words,
)

WHICH = {
    "which has": (
        "Which picture has {a}?", "Which picture shows {a}?", "In which picture is there {a}?",
        "Which of the two pictures has {a}?",
    ),
    "more": (
        "Which picture has {more} {s}?", "Which picture shows {more} {s}?", "Which of the two pictures has {more} {s}?",
        "In which picture are there {more} {s}?",
    ),
    "both have": (
        "Is there {a} in both pictures?", "Do both pictures have {a}?", "Do both pictures show {a}?",
        "Can you see {a} in both pictures?",
    ),
    "same background": (
        "Is the background the same?", "Do both pictures have the same background?",
        "Do the two pictures have the same background?",
        "Are the backgrounds of the two pictures the same?",
    ),
    "same kind": (
        "Do both pictures have the same kind of background?", "Is the kind of background the same in both pictures?",
        "Are the backgrounds of the same kind?",
    ),
    "same number": (
        "Do both pictures have the same number of objects?", "Is the number of objects the same in both pictures?",
        "Do the two pictures show equally many objects?",
    ),
    "only in": (
        "What is in the {one} picture but not in the {other}?",
        "What does the {one} picture have that the {other} has not?",
        "Which object is in the {one} picture but not in the {other}?",
    ),
}  # fmt: skip
KINDS = ("which has", "which has", "only in", "more", "same")  # of questions, and how often
SAME = {"same background": 0.39, "same kind": 0.583, "same number": 0.479}  # how often it is so in a `random_pair`
BOTH = {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}


def random_pair(rng: random.Random, scene: Callable[[random.Random], Scene] = random_scene) -> tuple[Scene, Scene]:
    """Two scenes: half the time unrelated, else the second is the first with a little changed, in either order."""
    first = scene(rng)
    if rng.random() < 0.5:
        return first, scene(rng)
    pair = [first, variation(first, rng)]
    rng.shuffle(pair)
    return pair[0], pair[1]


def variation(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one thing gone, with one of another colour or shape, or on another background."""
    change = rng.choice(("drop", "colour", "shape", "background"))
    things = list(scene.things)
    index = rng.randrange(len(things))
    free = [colour for colour in COLOURS if colour not in scene.background.colours]
    if change == "drop" and len(things) > 1:
        del things[index]
    elif change == "colour":
        colour = rng.choice([colour for colour in free if colour != things[index].colour])
        things[index] = replace(things[index], colour=colour)
    elif change == "background":
        taken = {thing.colour for thing in things}
        kind = rng.choice(("plain", "gradient", "noisy"))
        colours = [colour for colour in COLOURS if colour not in {*taken, *scene.background.colours}]
        background = Background(kind, tuple(rng.sample(colours, 2 if kind == "gradient" else 1)))
        return Scene(scene.things, background)
    else:
        shape = rng.choice([shape for shape in SHAPES if shape != things[index].shape])
        things[index] = replace(things[index], shape=shape, angle=0.0)
    return Scene(tuple(things), scene.background)


def pair_questions(
    scene_a: Scene, scene_b: Scene, rng: random.Random, count: int, kinds: Sequence[str] = KINDS
) -> list[Question]:
    """Draw up to `count` different questions that compare the first picture with the second.

    Args:
        scene_a, scene_b: the pictures.
        rng: the source of all randomness.
        count: the most questions.
        kinds: of `KINDS`; one that is there twice is asked twice as often.
    """
    first, second = Look(scene_a), Look(scene_b)
    same = _samenesses(first, second, rng)
    ties = rng.random() < 0.4  # most pairs that vary each other have equal numbers: ask fewer of those

    def again(*_: object) -> Question | None:
        return same.pop() if same else None

    def more(first: Look, second: Look, rng: random.Random) -> Question | None:
        question = _more(first, second, rng)
        return None if question and question.answer == "neither" and not ties else question

    makers: dict[str, Callable[[Look, Look, random.Random], Question | None]]
    makers = {"which has": _which_has, "only in": _only_in, "more": more, "same": again}
    chosen: dict[str, Question] = {}
    for _ in range(8 * count):
        question = makers[rng.choice(kinds)](first, second, rng)
        if question is not None:
            chosen.setdefault(question.text.lower(), question)
        if len(chosen) == count:
            break
    return list(chosen.values())


def _ask(form: str, answer: str, reply: str, rng: random.Random, **words_: str) -> Question:
    return Question("pair", casual(rng.choice(WHICH[form]).format(**words_), rng), answer, reply)


def questions_of_sides(scene_a: Scene, scene_b: Scene, rng: random.Random, count: int) -> list[Question]:
    """Draw up to `count` different questions in which of the two something is that is in one alone."""
    first, second = Look(scene_a), Look(scene_b)
    names = {name for name in first.count.keys() ^ second.count.keys() if name[0] is None}
    asked = []
    for name in rng.sample(sorted(names, key=str), min(count, len(names))):
        answer = BOTH[first.number(name) > 0, second.number(name) > 0]
        asked.append(_ask("which has", answer, f"{answer.capitalize()}.", rng, a=some(name)))
    return asked


def _which_has(first: Look, second: Look, rng: random.Random) -> Question | None:
    """The answer is drawn first, evenly over the four where the pictures allow it."""
    names: list[Name]
    which = rng.random()
    if which < 0.6:
        names = [named(thing) for look in (first, second) for thing in look.things]
        names += [first.absent(rng), second.absent(rng)]
    elif which < 0.8:
        names = [(None, None, shape) for shape in SHAPES]
    else:
        names = [(None, colour, None) for colour in COLOURS]
    both = rng.random() < 0.25
    truths: dict[str, list[Name]] = {}
    for name in names:
        truths.setdefault(BOTH[first.number(name) > 0, second.number(name) > 0], []).append(name)
    if both:  # yes or no evenly
        yes = rng.random() < 0.5
        if "both" not in truths or len(truths) == 1:
            return None
        found = [name for key, group in truths.items() if (key == "both") == yes for name in group]
        a = some(rng.choice(found))
        reply = f"Yes, there is {a} in both." if yes else f"No, there is not {a} in both."
        return _ask("both have", "yes" if yes else "no", reply, rng, a=a)
    answer = rng.choice(list(truths))
    a = some(rng.choice(truths[answer]))
    return _ask("which has", answer, f"{answer[0].upper()}{answer[1:]}.", rng, a=a)


def _more(first: Look, second: Look, rng: random.Random) -> Question | None:
    names: list[Name] = [(None, None, None)]
    if rng.random() < 0.4:
        names = [(None, None, shape) for shape in SHAPES if (None, None, shape) in {**first.count, **second.count}]
    name = rng.choice(names)
    a, b = first.number(name), second.number(name)
    more = rng.choice(("more", "fewer"))
    answer = "neither" if a == b else "the first" if (a > b) == (more == "more") else "the second"
    reply = "Neither, the number is the same." if a == b else f"{answer.capitalize()}."
    return _ask("more", answer, reply, rng, more=more, s=plural_shape(words(name)))


def _samenesses(first: Look, second: Look, rng: random.Random) -> list[Question]:
    """What may be asked about sameness. Of the commoner case only a share is, so that yes and no balance."""
    a, b = first.scene.background, second.scene.background
    truths = {
        "same background": a.kind == b.kind and set(a.colours) == set(b.colours),
        "same kind": a.kind == b.kind,
        "same number": len(first.things) == len(second.things),
    }
    asked = []
    for form, truth in truths.items():
        odds = SAME[form] / (1 - SAME[form])
        if rng.random() < min(1.0, 1 / odds if truth else odds):
            what = form.removeprefix("same ")
            reply = f"Yes, the {what} is the same." if truth else f"No, the {what} is not the same."
            asked.append(_ask(form, "yes" if truth else "no", reply, rng))
    return rng.sample(asked, len(asked))


def _only_in(first: Look, second: Look, rng: random.Random) -> Question | None:
    """What one picture has beyond the other, where that is one thing or nothing."""
    flip = rng.random() < 0.5
    here, there = (second, first) if flip else (first, second)
    extra = [thing for thing in here.things if named(thing) not in there.count]
    if len(extra) > 1 or (not extra and rng.random() < 0.5):
        return None
    answer = some(named(extra[0])) if extra else "nothing"
    one, other = ("second", "first") if flip else ("first", "second")
    return _ask("only in", answer, f"{answer[0].upper()}{answer[1:]}.", rng, one=one, other=other)
