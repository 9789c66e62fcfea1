"""Captions: their facts against the scene, their wording against references, and whether they fail outright."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minichat.evaluate.facts import check, fact_figures
from minichat.evaluate.figures import Figure, Outcome, ratio, share
from minichat.evaluate.ids import Id
from minichat.evaluate.replies import Ask, Reply, Shown, Teller
from minichat.evaluate.results import RESULTS, grouped
from minichat.evaluate.scenes import Drawn, held_out_scene
from minichat.evaluate.wording import wording
from minichat.scenes.captions import DETAILED_REQUESTS, SHORT_REQUESTS, detailed, short
from minichat.scenes.world import Scene

MAX_NEW_TOKENS = 200
REFERENCES = 5  # drawn for each scene: the same things are told in a few ways


@dataclass(frozen=True)
class _Wanted:
    """One caption asked for."""

    style: str
    request: str
    scene: Scene
    number: int
    references: tuple[str, ...]


@dataclass(frozen=True)
class SceneCaptions:
    """A short and a detailed caption of each of `count` held-out scenes."""

    count: int
    seed: int = 0
    wanted: tuple[_Wanted, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = []
        for index in range(self.count):
            scene, _ = held_out_scene(index, self.seed)
            rng = random.Random(f"held out captions {self.seed} {index}")
            for style, requests, tell in (("short", SHORT_REQUESTS, short), ("detailed", DETAILED_REQUESTS, detailed)):
                told = dict.fromkeys(tell(scene, rng) for _ in range(REFERENCES))
                wanted.append(_Wanted(style, rng.choice(requests), scene, index, tuple(told)))
        object.__setattr__(self, "wanted", tuple(wanted))

    def content(self) -> Iterator[str]:
        for want in self.wanted:
            yield json.dumps([want.scene.to_dict(), want.request, want.references])

    def take(self, teller: Teller) -> Outcome:
        asks = [Ask(want.request, (Drawn(want.scene, want.number),)) for want in self.wanted]
        replies = teller.replies(asks, MAX_NEW_TOKENS)
        checks = [check(reply.text, want.scene) for want, reply in zip(self.wanted, replies, strict=True)]
        invented = sum(c.objects.invented for c in checks)
        figures = {"objects invented": ratio(invented, sum(c.objects.said for c in checks))}
        for style in ("short", "detailed"):
            picked = [i for i, want in enumerate(self.wanted) if want.style == style]
            figures |= fact_figures([checks[i] for i in picked], f"{style}: ")
            told, references = [replies[i] for i in picked], [self.wanted[i].references for i in picked]
            figures |= _wording_figures(told, references, f"{style}: ")
        records: list[dict[str, Any]] = [
            {"picture": want.number, "style": want.style, "request": want.request, "reply": reply.text,
             "reference": want.references[0], "missed": c.objects.missed, "invented": c.objects.invented,
             "relations": c.relations, "places": c.places, "sizes": c.sizes,
             "fails": fails(reply, want.references)}
            for want, reply, c in zip(self.wanted, replies, checks, strict=True)
        ]  # fmt: skip
        return Outcome(figures, records, "detailed: objects right")


@dataclass(frozen=True)
class OwnCaption:
    """A picture of a user's, and what people wrote of it. `ids`: the files (their stems) in which it has an id."""

    picture: Shown
    references: tuple[str, ...]
    name: str = ""
    ids: tuple[tuple[str, Id], ...] = ()


@dataclass(frozen=True)
class OwnCaptions:
    """The captions of a user's file, asked for with `prompt`."""

    items: tuple[OwnCaption, ...]
    prompt: str

    def content(self) -> Iterator[str]:
        yield self.prompt
        for item in self.items:
            yield json.dumps([item.name, item.references])

    def take(self, teller: Teller) -> Outcome:
        replies = teller.replies([Ask(self.prompt, (item.picture,)) for item in self.items], MAX_NEW_TOKENS)
        figures = _wording_figures(replies, [item.references for item in self.items])
        records: list[dict[str, Any]] = [
            {"picture": item.name, "reply": reply.text, "references": list(item.references)}
            for item, reply in zip(self.items, replies, strict=True)
        ]
        results = grouped(
            (
                (stem, {"image_id": key, "caption": reply.text})
                for item, reply in zip(self.items, replies, strict=True)
                for stem, key in item.ids
            ),
            RESULTS,
        )
        return Outcome(figures, records, "ROUGE-L", results)


def _wording_figures(
    replies: Sequence[Reply], references: Sequence[Sequence[str]], prefix: str = ""
) -> dict[str, Figure]:
    scores = wording([reply.text for reply in replies], references)
    figures = {
        prefix + name: Figure(value, len(replies), "score" if name == "CIDEr-D" else "rate")
        for name, value in scores.items()
    }
    failed = share(fails(reply, group) for reply, group in zip(replies, references, strict=True))
    return figures | {f"{prefix}captions that fail": failed}


def fails(reply: Reply, references: Sequence[str] = ()) -> bool:
    """Whether a caption is empty, does not end, or repeats a sentence (as arXiv:2304.10592 counts in Table 3).

    What a reference says as often is no such repetition: two equal things may lie in one place.
    """
    said = _sentences(reply.text)
    repeated = Counter({sentence: number for sentence, number in said.items() if number > 1})
    allowed: Counter[str] = Counter()
    for reference in references:
        allowed |= _sentences(reference)
    return not said or not reply.whole or bool(repeated - allowed)


def _sentences(text: str) -> Counter[str]:
    return Counter(part.strip().lower() for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip())
