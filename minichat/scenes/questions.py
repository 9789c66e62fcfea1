"""Questions with answers about one scene, evenly over the kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from minichat.errors import SettingsError
from minichat.scenes import about_places, about_things
from minichat.scenes.asking import ALL_KINDS, KINDS, Asker, Question
from minichat.scenes.truth import Look
from minichat.scenes.world import Scene

__all__ = ["ALL_KINDS", "KINDS", "Question", "one", "questions"]

_MAKERS: dict[str, Callable[[Asker], Question | None]] = {
    "existence": about_things.existence,
    "colour": about_things.colour,
    "shape": about_things.shape,
    "count": about_things.count,
    "position": about_places.position,
    "relation": about_places.relation,
    "background": about_places.background,
    "size": about_things.size,
}
_TRIES = 4  # a form that the scene does not allow, or one already asked, is drawn again this often


def questions(
    scene: Scene, rng: random.Random, count: int, kinds: Sequence[str] = KINDS, picture: str | None = None
) -> list[Question]:
    """Draw `count` different questions about `scene`, evenly over `kinds`.

    A kind that the scene does not allow (a relation, where there is one thing) leaves its share to the others; a scene
    and kinds that allow fewer than `count` questions give fewer.

    Args:
        picture: "first" or "second" where the questions must say which of two pictures they mean.

    Raises:
        SettingsError: a kind is unknown.
    """
    unknown = set(kinds) - set(ALL_KINDS)
    if unknown or not kinds:
        raise SettingsError(f"kinds: {sorted(unknown)} unknown or empty; choose from {', '.join(ALL_KINDS)}.")
    asker = Asker(Look(scene), rng, picture)
    chosen: list[Question] = []
    asked: set[str] = set()
    round_: list[str] = []
    idle = 0
    while len(chosen) < count and idle < 2 * len(kinds):
        if not round_:
            round_ = rng.sample(list(kinds), len(kinds))
        question = one(asker, round_.pop(), asked)
        idle = 0 if question else idle + 1
        if question:
            chosen.append(question)
    return chosen


def one(asker: Asker, kind: str, asked: set[str]) -> Question | None:
    """One question of `kind` that is not in `asked` (lower-case texts; it is added), or None."""
    for _ in range(_TRIES):
        question = _MAKERS[kind](asker)
        if question is not None and (key := question.text.lower()) not in asked:
            asked.add(key)
            return question
    return None
