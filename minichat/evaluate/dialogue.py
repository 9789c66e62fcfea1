"""Dialogues about held-out scenes in which later questions need earlier turns ("And what colour is it?").

The model goes on from its own replies, as in a chat, whether they were right or not; beside that stands how it does
when the replies so far were the true ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from minichat.evaluate.figures import Figure, Outcome, mean, share
from minichat.evaluate.replies import Ask, Reply, Shown, Teller
from minichat.evaluate.scenes import Drawn, held_out_scene
from minichat.evaluate.vqa import accuracy
from minichat.evaluate.wording import rouge_l, tokens
from minichat.scenes.dialogues import Talk
from minichat.scenes.questions import Question
from minichat.scenes.scoring import score
from minichat.scenes.world import Scene

TURNS = 5
TOLD = 500  # so many dialogues are gone through again with true replies
MAX_NEW_TOKENS = 32
MAX_OWN_TOKENS = 200


@dataclass(frozen=True)
class Turn:
    """A question, and whether it can only be understood from the turns before."""

    question: Question
    leans: bool


def turns_about(scene: Scene, rng: random.Random, count: int = TURNS) -> tuple[Turn, ...]:
    """A dialogue of questions; captions and stories, which have no one answer, are left out."""
    talk = Talk(scene, rng)
    turns: list[Turn] = []
    while len(turns) < count:
        spoken_of = talk.focus
        question = talk.turn()
        if question.answer:
            # A turn that stands by itself ends what was spoken of; one that leans goes on with it, or from it.
            turns.append(Turn(question, spoken_of is not None and talk.focus is not None))
    return tuple(turns)


@dataclass(frozen=True)
class SceneDialogues:
    """A dialogue of five questions about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    dialogues: tuple[tuple[Scene, tuple[Turn, ...]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        dialogues = []
        for index in range(self.count):
            scene, _ = held_out_scene(index, self.seed)
            rng = random.Random(f"held out dialogue {self.seed} {index}")
            dialogues.append((scene, turns_about(scene, rng)))
        object.__setattr__(self, "dialogues", tuple(dialogues))

    def content(self) -> Iterator[str]:
        for scene, turns in self.dialogues:
            yield json.dumps([scene.to_dict(), [(t.question.text, t.question.answer, t.leans) for t in turns]])

    def take(self, teller: Teller) -> Outcome:
        own = self._play(teller, self.dialogues, told=False)
        told = self._play(teller, self.dialogues[:TOLD], told=True)
        records = [
            {"picture": index, "turn": number + 1, "kind": turn.question.kind, "leans": turn.leans,
             "question": turn.question.text, "answer": turn.question.answer, "reply": own[index][number],
             "right": score(turn.question, own[index][number])}
            for index, (_, turns) in enumerate(self.dialogues)
            for number, turn in enumerate(turns)
        ]  # fmt: skip
        figures: dict[str, Figure] = {}
        for number in range(1, TURNS + 1):
            figures[f"turn {number}"] = share(bool(r["right"]) for r in records if r["turn"] == number)
        figures["turns that need earlier ones"] = share(bool(r["right"]) for r in records if r["leans"])
        later = [r for r in records if int(str(r["turn"])) > 1]
        figures["all later turns"] = share(bool(r["right"]) for r in later)
        figures["turns that need earlier ones, after true replies"] = share(
            score(turn.question, reply)
            for (_, turns), replies in zip(self.dialogues[:TOLD], told, strict=True)
            for turn, reply in zip(turns, replies, strict=True)
            if turn.leans
        )
        return Outcome(figures, records, "turn 1")

    @staticmethod
    def _play(teller: Teller, dialogues: Sequence[tuple[Scene, tuple[Turn, ...]]], told: bool) -> list[list[str]]:
        """The replies of each dialogue, all dialogues turn by turn together. `told`: after true replies."""
        asks: list[Ask] = []
        for index, (scene, turns) in enumerate(dialogues):
            shown: tuple[Shown, ...] = (Drawn(scene, index),)
            asks.append(Ask(turns[0].question.text, shown))
        said: list[list[str]] = [[] for _ in dialogues]
        for number in range(TURNS):
            replies = teller.replies(asks, MAX_NEW_TOKENS)
            for index, (_, turns) in enumerate(dialogues):
                said[index].append(replies[index].text)
                if number + 1 < TURNS:
                    reply = Reply(turns[number].question.reply) if told else replies[index]
                    asks[index] = asks[index].then(reply, turns[number + 1].question.text)
        return said


@dataclass(frozen=True)
class OwnDialogue:
    """A user's dialogue: what is asked with what was said before, and the replies it is to have, turn by turn."""

    turns: tuple[tuple[Ask, str], ...]
    name: str = ""


@dataclass(frozen=True)
class OwnDialogues:
    """A user's dialogues. Each reply is asked for after the replies that the file has for the turns before."""

    dialogues: tuple[OwnDialogue, ...]

    def content(self) -> Iterator[str]:
        for dialogue in self.dialogues:
            yield json.dumps([dialogue.name, [(ask.text, reply) for ask, reply in dialogue.turns]])

    def take(self, teller: Teller) -> Outcome:
        asked = [(d.name, number, *turn) for d in self.dialogues for number, turn in enumerate(d.turns, start=1)]
        replies = [reply.text for reply in teller.replies([ask for _, _, ask, _ in asked], MAX_OWN_TOKENS)]
        records = [
            {"dialogue": name, "turn": number, "question": ask.text, "answer": wanted, "reply": reply,
             "same": accuracy(reply, [wanted]), "ROUGE-L": rouge_l(tokens(reply), [tokens(wanted)])}
            for (name, number, ask, wanted), reply in zip(asked, replies, strict=True)
        ]  # fmt: skip
        figures: dict[str, Figure] = {}
        for number in sorted({number for _, number, _, _ in asked}):
            here = [r for r in records if r["turn"] == number]
            figures[f"turn {number}: ROUGE-L"] = mean([float(str(r["ROUGE-L"])) for r in here])
            figures[f"turn {number}: the same answer"] = share(float(str(r["same"])) for r in here)
        figures["ROUGE-L"] = mean([float(str(r["ROUGE-L"])) for r in records])
        return Outcome(figures, records, "ROUGE-L")
