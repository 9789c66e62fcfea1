"""Questions about two pictures: what they have in common, what only one has, and which of them is meant."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from minichat.evaluate.figures import Outcome, by_kind
from minichat.evaluate.replies import Ask, Teller
from minichat.evaluate.scenes import Drawn
from minichat.scenes.pairs import pair_questions, random_pair
from minichat.scenes.questions import KINDS, Question, questions
from minichat.scenes.scoring import score
from minichat.scenes.training import ORDINALS
from minichat.scenes.world import Scene

COMPARING = 3  # questions that compare the two
MAX_NEW_TOKENS = 32

# What a comparing question asks, by a word that only its wordings have; the first that is found.
_FORMS = (
    (r"\bbackgrounds?\b", "same background"),
    (r"\bnumber of objects\b|\bequally\b", "same number"),
    (r"\bbut not\b|\bhas not\b", "only in one"),
    (r"\bmore\b|\bfewer\b", "more or fewer"),
    (r"\bboth\b", "in both"),
    (r"\bwhich\b", "which has it"),
)


def form(question: Question) -> str:
    """What is compared; "one of the two" where the question is about one of them."""
    if question.kind != "pair":
        return "one of the two"
    return next(name for pattern, name in _FORMS if re.search(pattern, question.text.lower()))


@dataclass(frozen=True)
class ScenePairs:
    """Three comparing questions, and one about either picture, for each of `count` held-out pairs."""

    count: int
    seed: int = 0
    asked: tuple[tuple[int, tuple[Scene, Scene], Question], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        asked = []
        for index in range(self.count):
            rng = random.Random(f"held out pair {self.seed} {index}")
            pair = random_pair(rng)
            drawn = pair_questions(*pair, rng, COMPARING)
            which = rng.randrange(2)
            drawn += questions(pair[which], rng, 1, KINDS, ORDINALS[which])
            asked += [(index, pair, question) for question in drawn]
        object.__setattr__(self, "asked", tuple(asked))

    def content(self) -> Iterator[str]:
        for _, pair, question in self.asked:
            yield json.dumps([[scene.to_dict() for scene in pair], question.text, question.answer])

    def take(self, teller: Teller) -> Outcome:
        asks = [
            Ask(question.text, (Drawn(pair[0], 2 * index), Drawn(pair[1], 2 * index + 1)))
            for index, pair, question in self.asked
        ]
        replies = [reply.text for reply in teller.replies(asks, MAX_NEW_TOKENS)]
        records = [
            {"pair": index, "kind": question.kind, "form": form(question), "question": question.text,
             "answer": question.answer, "reply": reply, "right": score(question, reply)}
            for (index, _, question), reply in zip(self.asked, replies, strict=True)
        ]  # fmt: skip
        figures = by_kind((str(r["form"]), float(bool(r["right"]))) for r in records)
        return Outcome(figures, records, "overall")
