"""Questions about one picture: held-out scenes scored against the truth, or a user's files by VQA accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from minichat.evaluate.figures import Outcome, by_kind, share
from minichat.evaluate.ids import Id
from minichat.evaluate.redrawn import MANNERS
from minichat.evaluate.replies import Ask, Shown, Teller
from minichat.evaluate.results import RESULTS, grouped
from minichat.evaluate.scenes import Asked, Drawer, Drawing, Drawn, held_out
from minichat.evaluate.vqa import accuracy, within
from minichat.scenes.questions import ALL_KINDS
from minichat.scenes.scoring import score

REDRAWN = 100  # so many of the scenes are drawn by another program, too, once for each of its manners
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class SceneQuestions:
    """One question of each kind about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    redrawn: int = REDRAWN
    asked: tuple[Asked, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked", tuple(held_out(self.count, self.seed, ALL_KINDS)))

    def content(self) -> Iterator[str]:
        yield json.dumps({"redrawn": min(self.redrawn, self.count)})
        for a in self.asked:
            yield json.dumps([a.scene.to_dict(), a.question.text, a.question.answer])

    def take(self, teller: Teller) -> Outcome:
        replies = _replies(teller, self.asked, Drawing())
        records = []
        for a, reply in zip(self.asked, replies, strict=True):
            question, right = a.question, score(a.question, reply)
            records.append(
                {"picture": a.seed, "things": len(a.scene.things), "kind": question.kind, "question": question.text,
                 "answer": question.answer, "reply": reply, "right": right}
            )  # fmt: skip
        figures = by_kind((str(r["kind"]), float(bool(r["right"]))) for r in records)
        if self.redrawn and not teller.blind:
            part = [a for a in self.asked if a.seed < self.redrawn]
            every: list[bool] = []
            for name, manner in MANNERS.items():
                here = [score(a.question, r) for a, r in zip(part, _replies(teller, part, manner), strict=True)]
                figures[f"drawn by {name}"] = share(here)
                every += here
            figures["drawn by another program, overall"] = share(every)
        return Outcome(figures, records, "overall")


def _replies(teller: Teller, asked: Sequence[Asked], drawer: Drawer) -> list[str]:
    asks = [Ask(a.question.text, (Drawn(a.scene, a.seed, drawer),)) for a in asked]
    return [reply.text for reply in teller.replies(asks, MAX_NEW_TOKENS)]


@dataclass(frozen=True)
class OwnQuestion:
    """A question of a user's file.

    `kind`: VQAv2's type of answer, or what the file says; `name`: the pictures'; `id`: the file (its stem) and the id
    that it has there.
    """

    text: str
    pictures: tuple[Shown, ...]
    answers: tuple[str, ...]
    kind: str = ""
    name: str = ""
    id: tuple[str, Id] | None = None


@dataclass(frozen=True)
class OwnQuestions:
    """The questions of a user's files. `prompt`: how each is put, with "{question}" in it."""

    items: tuple[OwnQuestion, ...]
    prompt: str = "{question}"

    def content(self) -> Iterator[str]:
        yield self.prompt
        for item in self.items:
            yield json.dumps([item.name, item.text, item.answers])

    def take(self, teller: Teller) -> Outcome:
        asks = [Ask(self.prompt.replace("{question}", item.text), item.pictures) for item in self.items]
        replies = [reply.text for reply in teller.replies(asks, MAX_NEW_TOKENS)]
        records = [
            {"picture": item.name, "kind": item.kind, "question": item.text, "answers": list(item.answers),
             "reply": reply, "accuracy": accuracy(reply, item.answers), "within": within(reply, item.answers)}
            for item, reply in zip(self.items, replies, strict=True)
        ]  # fmt: skip
        kinds = by_kind((str(record["kind"]), float(str(record["accuracy"]))) for record in records)
        figures = {name: figure for name, figure in kinds.items() if name}
        figures["the answer is in the reply"] = share(bool(record["within"]) for record in records)
        numbered = [(*item.id, reply) for item, reply in zip(self.items, replies, strict=True) if item.id is not None]
        results = grouped(((stem, {"question_id": key, "answer": reply}) for stem, key, reply in numbered), RESULTS)
        return Outcome(figures, records, "the answer is in the reply", results)
