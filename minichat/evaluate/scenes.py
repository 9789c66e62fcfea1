"""How much of a drawn scene a model sees: questions about held-out scenes, with the picture and with a blank one.

A model that has learned the wordings but not to look does as well with the blank picture as with the real one, so each
figure stands beside the blank one's.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from minichat.scenes.draw import Style, draw
from minichat.scenes.questions import KINDS, Question, questions
from minichat.scenes.scoring import score
from minichat.scenes.world import Scene, random_scene

if TYPE_CHECKING:
    from minichat.chat import MiniChat

BLANK = Image.new("RGB", (96, 96), (128, 128, 128))


class Drawing(NamedTuple):
    """A way to draw the same scenes: the side in pixels and the style."""

    size: int = 96
    style: Style = Style()


DRAWINGS = {
    "as in training": Drawing(),
    "hard edges": Drawing(style=Style(oversample=1)),
    "all outlined": Drawing(style=Style(outline=True, edge=0.24)),
    "no outlines": Drawing(style=Style(outline=False)),
    "JPEG quality 25": Drawing(style=Style(jpeg=25)),
    "blurred": Drawing(style=Style(blur=1.2)),
    "pure colours": Drawing(style=Style(jitter=0)),
    "64 pixels": Drawing(64),
    "400 pixels": Drawing(400),
    "1,000 pixels, JPEG": Drawing(1000, Style(jpeg=60)),
}


@dataclass(frozen=True)
class Asked:
    """One question about one held-out scene."""

    scene: Scene
    seed: int
    question: Question


def held_out(scenes: int, seed: int = 0) -> list[Asked]:
    """One question of each kind about each of `scenes` scenes that no training draws (their seeds are other words)."""
    asked = []
    for index in range(scenes):
        rng = random.Random(f"held out {seed} {index}")
        scene = random_scene(rng)
        for kind in KINDS:
            asked += [Asked(scene, index, question) for question in questions(scene, rng, 1, (kind,))]
    return asked


def accuracy(
    bot: MiniChat, asked: Sequence[Asked], drawing: Drawing | None = DRAWINGS["as in training"], batch_size: int = 32
) -> dict[str, float]:
    """The share of right replies for each kind of question and `overall`; `drawing=None`: a blank picture."""
    pictures: dict[int, Image.Image] = {}
    if drawing is not None:
        pictures = {a.seed: draw(a.scene, drawing.size, a.seed, drawing.style) for a in asked}
    replies = bot.caption(
        [pictures.get(a.seed, BLANK) for a in asked],
        [a.question.text for a in asked],
        max_new_tokens=32,
        batch_size=batch_size,
    )
    right = defaultdict(list)
    for a, reply in zip(asked, replies, strict=True):
        right[a.question.kind].append(score(a.question, reply))
    figures = {kind: sum(right[kind]) / len(right[kind]) for kind in KINDS if right[kind]}
    return figures | {"overall": sum(map(sum, right.values())) / len(asked)}
