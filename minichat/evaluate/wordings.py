"""Questions in people's words about held-out scenes: as they are written, typed in other ways, and put together anew.

Each reply is right, wrong, evasive or nonsense. Of a perturbation, the figure is the share of right replies that stay
right among the questions that it changes. The composition split asks in combinations of meaning and form that no
training shows (`minichat.scenes.speech.split`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minichat.evaluate.figures import Outcome, by_kind, share
from minichat.evaluate.replies import Ask, Teller
from minichat.evaluate.scenes import Drawn, held_out_scene
from minichat.scenes.speech.answers import Answer
from minichat.scenes.speech.noise import PERTURBATIONS
from minichat.scenes.speech.nouns import Unsayable
from minichat.scenes.speech.program import Program
from minichat.scenes.speech.propose import SHARES, Proposer
from minichat.scenes.speech.speaker import TOPICS, speak, topic
from minichat.scenes.speech.verdict import VERDICTS, judge
from minichat.scenes.truth import Look
from minichat.scenes.world import Scene

PER_SCENE = 4  # questions as they are written
COMPOSED = 2  # in held-out combinations
PERTURBED = 250  # so many of the scenes are asked about in other ways of typing, too
MAX_NEW_TOKENS = 32
MAX_CAPTION_TOKENS = 120
_TRIES = 40


@dataclass(frozen=True)
class Worded:
    """A question about a held-out scene, what it means, and the true answer. `meaning`, `manner`: how it is put."""

    picture: int
    scene: Scene
    text: str
    program: Program
    answer: Answer
    meaning: str
    manner: str

    @property
    def topic(self) -> str:
        return topic(self.program)


def worded(index: int, seed: int, count: int, *, held_out: bool) -> list[Worded]:
    """`count` different questions about a held-out scene, over the topics in turn.

    `held_out`: in combinations that training never shows, or in those that it may.
    """
    scene, _ = held_out_scene(index, seed)
    rng = random.Random(f"held out wording {seed} {index} {held_out}")
    proposer = Proposer(Look(scene), rng)
    operations = list(SHARES)
    found: dict[Program, Worded] = {}
    topics = [TOPICS[(index * count + number) % len(TOPICS)] for number in range(count)]
    for tries in range(_TRIES * count):
        if len(found) == count:
            break
        drawn = proposer.propose(rng.choices(operations, list(SHARES.values()))[0])
        if drawn is None or drawn[0] in found or "story" in drawn[0].operation:
            continue
        if topic(drawn[0]) != topics[len(found)] and tries < _TRIES * count // 2:
            continue
        try:
            said = speak(drawn[0], rng, held_out=held_out)
        except Unsayable:
            continue
        found[drawn[0]] = Worded(index, scene, said.text, *drawn, said.meaning, said.manner)
    return list(found.values())


@dataclass(frozen=True)
class SceneWordings:
    """Questions in people's words about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    asked: tuple[Worded, ...] = field(init=False, repr=False)
    composed: tuple[Worded, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, number, held_out in (("asked", PER_SCENE, False), ("composed", COMPOSED, True)):
            every = [one for i in range(self.count) for one in worded(i, self.seed, number, held_out=held_out)]
            object.__setattr__(self, name, tuple(every))

    def content(self) -> Iterator[str]:
        for one in (*self.asked, *self.composed):
            yield json.dumps([one.scene.to_dict(), one.text, one.answer.reply])

    def take(self, teller: Teller) -> Outcome:
        texts = [one.text for one in self.asked]
        records = self._records(teller, self.asked, texts, "as written")
        figures = by_kind(((str(r["topic"]), float(r["verdict"] == "right")) for r in records), "right")
        for verdict in VERDICTS[1:]:
            figures[verdict] = share(r["verdict"] == verdict for r in records)
        composed = self._records(teller, self.composed, [one.text for one in self.composed], "composition split")
        figures["composition split"] = share(r["verdict"] == "right" for r in composed)
        records += composed
        if not teller.blind:
            right = {(r["picture"], r["question"]) for r in records if r["verdict"] == "right"}
            for name in PERTURBATIONS:
                again = self._perturbed(teller, name, right)
                records += again
                figures[f"stays right: {name}"] = share(r["verdict"] == "right" for r in again)
        return Outcome(figures, records, "right")

    def _perturbed(self, teller: Teller, name: str, right: set[tuple[Any, Any]]) -> list[dict[str, Any]]:
        """What was answered rightly, asked again as it is typed otherwise; what that leaves as it is, is left out."""
        rng = random.Random(f"typed {self.seed} {name}")
        pairs = [
            (one, PERTURBATIONS[name](one.text, rng))
            for one in self.asked
            if one.picture < PERTURBED and (one.picture, one.text) in right
        ]
        changed = [(one, text) for one, text in pairs if text != one.text]
        return self._records(teller, [one for one, _ in changed], [text for _, text in changed], name)

    @staticmethod
    def _records(teller: Teller, asked: Sequence[Worded], texts: Sequence[str], typed: str) -> list[dict[str, Any]]:
        replies: dict[int, str] = {}
        for long, most in ((False, MAX_NEW_TOKENS), (True, MAX_CAPTION_TOKENS)):
            part = [number for number, one in enumerate(asked) if (one.topic == "caption") == long]
            asks = [Ask(texts[number], (Drawn(asked[number].scene, asked[number].picture),)) for number in part]
            replies |= {n: reply.text for n, reply in zip(part, teller.replies(asks, most), strict=True)}
        return [
            {"picture": one.picture, "typed": typed, "topic": one.topic, "meaning": one.meaning, "manner": one.manner,
             "question": text, "answer": one.answer.reply, "reply": replies[number],
             "verdict": judge(one.program, one.answer, one.scene, replies[number])}
            for number, (one, text) in enumerate(zip(asked, texts, strict=True))
        ]  # fmt: skip
