"""Stories about held-out scenes: whether what they say of the things is so."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from minichat.evaluate.captions import fails
from minichat.evaluate.facts import check, fact_figures
from minichat.evaluate.figures import Outcome, share
from minichat.evaluate.replies import Ask, Teller
from minichat.evaluate.scenes import Drawn, held_out_scene
from minichat.scenes.stories import REQUESTS
from minichat.scenes.world import Scene

MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class SceneStories:
    """A story about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    wanted: tuple[tuple[Scene, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scenes = [held_out_scene(index, self.seed)[0] for index in range(self.count)]
        rng = random.Random(f"held out stories {self.seed}")
        object.__setattr__(self, "wanted", tuple((scene, rng.choice(REQUESTS)) for scene in scenes))

    def content(self) -> Iterator[str]:
        for scene, request in self.wanted:
            yield json.dumps([scene.to_dict(), request])

    def take(self, teller: Teller) -> Outcome:
        asks = [Ask(request, (Drawn(scene, index),)) for index, (scene, request) in enumerate(self.wanted)]
        replies = teller.replies(asks, MAX_NEW_TOKENS)
        checks = [check(reply.text, scene) for (scene, _), reply in zip(self.wanted, replies, strict=True)]
        unsaid = ("number right", "relations right")  # a story counts nothing, and says "right of it"
        figures = {name: figure for name, figure in fact_figures(checks).items() if name not in unsaid}
        figures["stories that end"] = share(reply.whole and bool(reply.text) for reply in replies)
        records = [
            {"picture": index, "request": request, "reply": reply.text, "missed": c.objects.missed,
             "invented": c.objects.invented, "fails": fails(reply)}
            for index, ((_, request), reply, c) in enumerate(zip(self.wanted, replies, checks, strict=True))
        ]  # fmt: skip
        return Outcome(figures, records, "objects right")
