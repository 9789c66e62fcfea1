"""Held-out scenes: none that a training draws, drawn in many ways, and questions about them.

A model that has learned the wordings but not to look does as well with a blank picture as with the real one, so each
figure stands beside the blank one's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from PIL import Image

from minichat.evaluate.figures import by_kind
from minichat.evaluate.redrawn import MANNERS
from minichat.evaluate.replies import Ask, Blank, Shown, Teller
from minichat.scenes.draw import Style, draw
from minichat.scenes.questions import KINDS, Question, questions
from minichat.scenes.scoring import score
from minichat.scenes.world import Scene, random_scene

if TYPE_CHECKING:
    from minichat.chat import MiniChat


class Drawer(Protocol):
    """A way to draw a scene; hashable."""

    def draw(self, scene: Scene, seed: int) -> Image.Image: ...


class Drawing(NamedTuple):
    """The training's own drawer: the side in pixels and the style."""

    size: int = 96
    style: Style = Style()

    def draw(self, scene: Scene, seed: int) -> Image.Image:
        return draw(scene, self.size, seed, self.style)


DRAWINGS: dict[str, Drawing] = {
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
WAYS: dict[str, Drawer] = {**DRAWINGS, **MANNERS}  # all ways to draw a scene


PLAIN = DRAWINGS["as in training"]


@dataclass(frozen=True)
class Drawn:
    """A scene as one drawer draws it."""

    scene: Scene
    seed: int
    drawer: Drawer = PLAIN

    def open(self) -> Image.Image:
        return self.drawer.draw(self.scene, self.seed)

    def content(self) -> dict[str, Any]:
        return self.scene.to_dict()


@dataclass(frozen=True)
class Asked:
    """One question about one held-out scene."""

    scene: Scene
    seed: int
    question: Question


def held_out_scene(index: int, seed: int = 0) -> tuple[Scene, random.Random]:
    """A scene that no training draws (their seeds are other words), and the randomness for what is asked of it."""
    rng = random.Random(f"held out {seed} {index}")
    return random_scene(rng), rng


def held_out(scenes: int, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Asked]:
    """One question of each kind about each of `scenes` held-out scenes, where the scene allows it."""
    asked = []
    for index in range(scenes):
        scene, rng = held_out_scene(index, seed)
        for kind in kinds:
            asked += [Asked(scene, index, question) for question in questions(scene, rng, 1, (kind,))]
    return asked


def accuracy(
    bot: MiniChat, asked: Sequence[Asked], drawing: Drawer | None = PLAIN, batch_size: int = 32
) -> dict[str, float]:
    """The share of right replies for each kind of question and `overall`; `drawing=None`: a blank picture."""

    def shown(a: Asked) -> Shown:
        return Blank() if drawing is None else Drawn(a.scene, a.seed, drawing)

    replies = Teller(bot, batch_size=batch_size).replies([Ask(a.question.text, (shown(a),)) for a in asked])
    right = [(a.question.kind, score(a.question, reply.text)) for a, reply in zip(asked, replies, strict=True)]
    return {name: figure.value for name, figure in by_kind(right).items() if figure.value is not None}
