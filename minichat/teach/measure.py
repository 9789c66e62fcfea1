"""What a model says of lessons that were held out, and what it knows of what it knew before."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minichat.data.example import Example, StoredPicture, Turn
from minichat.evaluate.metrics import tokens
from minichat.evaluate.replies import Ask, Teller
from minichat.toy.evaluate import accuracy, held_out

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat
    from minichat.train.stages import Stage

SCENES, FEW_SCENES = 100, 12  # drawn ones that are asked about before and after; of a model that takes its time, few


# --- What is said of a picture that was held out, and whether that is right.


def replies_to(bot: MiniChat, examples: Sequence[Example], most: int) -> list[str]:
    """What the bot says to each record's first question, greedily, in `most` tokens."""
    return [reply.text for reply in Teller(bot).replies([_opening(example) for example in examples], most)]


def _opening(example: Example) -> Ask:
    system = "".join(turn.text for turn in example.turns if turn.role == "system")
    question = next(turn for turn in example.turns if turn.role == "user")
    return Ask(question.text, tuple(p for p in question.parts if isinstance(p, StoredPicture)), system=system)


def is_named(reply: str, wanted: str, kinds: Collection[str]) -> bool:
    """Whether a reply names the wanted kind, and no other."""
    return _named(reply, kinds) == {wanted}


def _named(reply: str, kinds: Collection[str]) -> set[str]:
    """The kinds that a reply names; a name within a longer one that it names does not count."""
    text, found = _plain(reply), set[str]()
    for kind in sorted(kinds, key=len, reverse=True):
        if re.search(rf"\b{re.escape(_plain(kind))}\b", text):
            found.add(kind)
            text = text.replace(_plain(kind), "·")
    return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def common_words(reply: str, wanted: str) -> float:
    """F1 of the words of two texts, as often as each occurs."""
    said, told = Counter(tokens(reply)), Counter(tokens(wanted))
    both = (said & told).total()
    return 2 * both / max(1, said.total() + told.total())


def known(bot: MiniChat, scenes: int) -> tuple[float, int]:
    """The share of right answers about held-out drawn scenes, and how many questions there were."""
    asked = held_out(scenes, seed=1)
    return accuracy(bot, asked)["overall"], len(asked)


# --- Whether the pictures matter: is what is said of a held-out picture likelier with it than with others?
#
# Who has learnt how such texts read, and nothing of the pictures, finds each text as likely with any. So the loss of
# the texts with their own pictures is held against that with the pictures exchanged in every way, or in many: an exact
# test (Fisher, The Design of Experiments, 1935, section 21). Of texts that have nothing to do with their pictures a
# share of `CHANCE` passes.


CHANCE = 0.02
EXCHANGED = 12  # texts at most, each with as many pictures
_WAYS = 5040


@dataclass(frozen=True)
class Surprise:
    """The losses (n, n) of n texts, row by row, each with the pictures of all of them, column by column."""

    losses: NDArray[np.float64]

    @property
    def own(self) -> float:
        """Of the texts with their own pictures, on average."""
        return float(np.trace(self.losses)) / max(1, len(self.losses))

    @property
    def chance(self) -> float:
        """The share of ways to exchange the pictures in which the texts are as likely as with their own, or likelier.

        Nothing exchanged is one of the ways; so the least that it can be is one in their number.
        """
        return _share_of(self.losses)

    @staticmethod
    def least(texts: Sequence[str]) -> float:
        """The least that `chance` can be with these texts: to exchange equal ones' pictures changes nothing."""
        equal = math.prod(math.factorial(number) for number in Counter(texts).values())
        return equal / math.factorial(len(texts))


def _share_of(losses: NDArray[np.float64], seed: int = 0) -> float:
    count = len(losses)
    if count == 0:
        return 1.0
    if count <= 10 and math.factorial(count) <= _WAYS:
        ways = np.array(list(itertools.permutations(range(count))))
    else:
        draws = np.random.default_rng(seed)
        ways = np.array([np.arange(count), *(draws.permutation(count) for _ in range(_WAYS))])
    sums, own = losses[np.arange(count), ways].sum(1), np.trace(losses)
    return float((sums <= own + 1e-9 * abs(own)).mean())


def exchangeable(examples: Sequence[Example]) -> list[Example]:
    """The records with one picture, at most `EXCHANGED`, of as many different texts as there are."""
    shown = [example for example in examples if len(example.pictures) == 1]
    turn = Counter[str]()
    order = []
    for place, example in enumerate(shown):
        order.append((turn[example.replies[0]], place, example))
        turn[example.replies[0]] += 1
    return [example for _, _, example in sorted(order, key=lambda one: one[:2])[:EXCHANGED]]


def surprise(stage: Stage, examples: Sequence[Example]) -> Surprise:
    """The losses of records that have one picture each, in nats a record, through the stage that trains."""
    import torch

    losses = np.zeros((len(examples), len(examples)))
    stage.model.eval()
    with torch.no_grad():
        for row, column in np.ndindex(losses.shape):
            batch = stage.collate([stage.render(_showing(examples[row], examples[column].pictures[0]))])
            device = next(stage.model.parameters()).device
            losses[row, column] = float(stage.loss({name: tensor.to(device) for name, tensor in batch.items()}).sum())
    return Surprise(losses)


def _showing(example: Example, picture: StoredPicture) -> Example:
    """The record with another picture."""
    turns = (
        Turn(turn.role, tuple(part if isinstance(part, str) else picture for part in turn.parts))
        for turn in example.turns
    )
    return Example(tuple(turns), example.where)
