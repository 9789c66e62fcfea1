"""Hallucination: does a model say that things are there which are not? POPE's polls (arXiv:2305.10355).

In each picture as many things are asked for that are not there as things that are, so that half of the right answers
are yes. Those that are not there are drawn at random, or are the most frequent in all pictures ("popular"), or those
that go most often with what is there ("adversarial"): in a scene, a colour and a shape that are both there, but not
together, then ones of which one is there.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from minichat.evaluate.figures import Figure, Outcome, share
from minichat.evaluate.replies import Ask, Described, Shown, Teller
from minichat.evaluate.results import ANSWERS, grouped
from minichat.evaluate.scenes import Drawn, held_out_scene
from minichat.evaluate.yes_no import is_clear, says_yes, yes_no_figures
from minichat.scenes.truth import some
from minichat.scenes.world import COLOURS, SHAPES, Scene

SETTINGS = ("random", "popular", "adversarial")
EACH = 3  # at most so many things that are there are asked for in a picture, and as many that are not
MAX_NEW_TOKENS = 24

Pair = tuple[str, str]  # colour, shape


@dataclass(frozen=True)
class Poll:
    """Is there such a thing in the picture? `name` is the picture's, for the record; `stem`: of a user's file."""

    setting: str
    picture: Shown
    text: str
    true: bool
    name: str = ""
    stem: str = ""


def scene_polls(scenes: Sequence[Scene], seed: int = 0) -> list[Poll]:
    """The polls about scenes; `popular` is counted over these scenes."""
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    popular = Counter(pair for scene in scenes for pair in _there(scene))
    by_popularity = sorted(every, key=lambda pair: -popular[pair])
    polls = []
    for index, scene in enumerate(scenes):
        rng = random.Random(f"held out polls {seed} {index}")
        there = _there(scene)
        absent = [pair for pair in every if pair not in there]
        asked = rng.sample(there, min(EACH, len(there)))
        denied = {
            "random": rng.sample(absent, len(asked)),
            "popular": [pair for pair in by_popularity if pair not in there][: len(asked)],
            "adversarial": _adversarial(there, absent, rng)[: len(asked)],
        }
        picture = Drawn(scene, index)
        for setting in SETTINGS:
            for pairs, true in ((asked, True), (denied[setting], False)):
                polls += [Poll(setting, picture, _question(pair), true, str(index)) for pair in pairs]
    return polls


def _question(pair: Pair) -> str:
    """POPE's own wording."""
    return f"Is there {some((None, *pair))} in the image?"


def _there(scene: Scene) -> list[Pair]:
    return list(dict.fromkeys((thing.colour, thing.shape) for thing in scene.things))


def _adversarial(there: Sequence[Pair], absent: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """What is absent, the more of it is there the earlier."""
    colours, shapes = {colour for colour, _ in there}, {shape for _, shape in there}
    shuffled = rng.sample(list(absent), len(absent))
    return sorted(shuffled, key=lambda pair: -((pair[0] in colours) + (pair[1] in shapes)))


def polls_about_scenes(count: int, seed: int = 0) -> Polls:
    """Polls about `count` held-out scenes."""
    return Polls(tuple(scene_polls([held_out_scene(index, seed)[0] for index in range(count)], seed)))


@dataclass(frozen=True)
class Polls:
    """Polls, about scenes or of a user's files."""

    polls: tuple[Poll, ...] = field(repr=False)

    def content(self) -> Iterator[str]:
        for poll in self.polls:
            scene = poll.picture.content() if isinstance(poll.picture, Described) else None
            yield json.dumps([poll.setting, scene or poll.name, poll.text, poll.true])

    def take(self, teller: Teller) -> Outcome:
        replies = teller.replies([Ask(poll.text, (poll.picture,)) for poll in self.polls], MAX_NEW_TOKENS)
        said = [says_yes(reply.text) for reply in replies]
        settings = list(dict.fromkeys(poll.setting for poll in self.polls))
        figures: dict[str, Figure] = {}
        for setting in settings:
            picked = [i for i, poll in enumerate(self.polls) if poll.setting == setting]
            true = [self.polls[i].true for i in picked]
            figures |= yes_no_figures([said[i] for i in picked], true, f"{setting}: ")
        figures["replies that say yes or no"] = share(is_clear(reply.text) for reply in replies)
        records = [
            {"setting": poll.setting, "picture": poll.name, "question": poll.text,
             "answer": "yes" if poll.true else "no", "reply": reply.text, "right": yes == poll.true}
            for poll, reply, yes in zip(self.polls, replies, said, strict=True)
        ]  # fmt: skip
        asked = [(poll, reply.text) for poll, reply in zip(self.polls, replies, strict=True) if poll.stem]
        results = grouped(((poll.stem, {"question": poll.text, "answer": text}) for poll, text in asked), ANSWERS)
        return Outcome(figures, records, f"{settings[-1]}: accuracy" if settings else None, results)
