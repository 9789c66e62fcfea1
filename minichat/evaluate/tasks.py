"""Tasks on a user's own records: captions, questions, dialogues, POPE's polls for hallucination, and retrieval."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minichat.errors import DataError
from minichat.evaluate.metrics import (
    ANSWERS,
    RESULTS,
    Figure,
    Id,
    Outcome,
    accuracy,
    by_kind,
    grouped,
    is_clear,
    mean,
    rouge_l,
    says_yes,
    share,
    tokens,
    within,
    wording,
    yes_no_figures,
)
from minichat.evaluate.replies import Ask, Blank, Described, Reply, Shown, Teller

if TYPE_CHECKING:
    from torch import Tensor

    from minichat.search.encoder import Reader


# --- Hallucination: does a model say that things are there which are not? POPE's polls (arXiv:2305.10355).
#
# In each picture as many things are asked for that are not there as things that are, so that half of the right answers
# are yes. Those that are not there are drawn at random, or are the most frequent in all pictures ("popular"), or those
# that go most often with what is there ("adversarial"): in a scene, a colour and a shape that are both there, but not
# together, then ones of which one is there.


SETTINGS = ("random", "popular", "adversarial")
POLL_TOKENS = 24


@dataclass(frozen=True)
class Poll:
    """Is there such a thing in the picture? `name` is the picture's, for the record; `stem`: of a user's file."""

    setting: str
    picture: Shown
    text: str
    true: bool
    name: str = ""
    stem: str = ""


@dataclass(frozen=True)
class Polls:
    """Polls, about scenes or of a user's files."""

    polls: tuple[Poll, ...] = field(repr=False)

    def content(self) -> Iterator[str]:
        for poll in self.polls:
            scene = poll.picture.content() if isinstance(poll.picture, Described) else None
            yield json.dumps([poll.setting, scene or poll.name, poll.text, poll.true])

    def take(self, teller: Teller) -> Outcome:
        replies = teller.replies([Ask(poll.text, (poll.picture,)) for poll in self.polls], POLL_TOKENS)
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


# --- Retrieval: find a picture's text among all texts, and a text's picture among all pictures (recall at 1, 5 and
# 10).
#
# As BLIP-2 does (arXiv:2301.12597, section 4.4): contrast compares all with all, matching re-ranks the best of each.


PAIRS = 1000
AT = (1, 5, 10)
TEXT, PICTURE = "text of a picture", "picture of a text"
RERANKED = 32  # so many of the most similar are matched; BLIP-2 takes 128 among COCO's 5,000 pictures
_QUERIES = 512  # that candidates are put in order for at a time


@dataclass(frozen=True)
class Finder:
    """A Q-Former that was pre-trained; it reads `batch_size` pictures or texts at a time."""

    reader: Reader
    batch_size: int = 32

    def compare(self, pictures: Sequence[Shown], texts: Sequence[str]) -> Comparison:
        return Comparison(self, pictures, texts)


def can_retrieve(name: str) -> bool:
    """Whether a folder holds what `Finder` needs, not a chat model."""
    from minichat.errors import ModelError
    from minichat.weights.qformer import is_stage1
    from minichat.weights.registry import find

    try:
        return is_stage1(find(name))
    except ModelError:  # whoever loads it says what is wrong with it
        return False


def load_finder(name: str, device: str = "auto", dtype: str = "auto", batch_size: int = 32) -> Finder:
    """A folder's model, ready to retrieve. Raises as `minichat.search.load_reader` does."""
    from minichat.search.encoder import load_reader

    return Finder(load_reader(name, device, dtype), batch_size)


class Comparison:
    """What the Q-Former has read; patches stay in the machine's memory, off the accelerator."""

    def __init__(self, finder: Finder, pictures: Sequence[Shown], texts: Sequence[str]) -> None:
        import torch

        self._reader, size = finder.reader, finder.batch_size
        self._words = self._reader.words(texts)
        patches, images, words = [], [], []
        for start in range(0, len(pictures), size):
            opened = [self._reader.pixels(picture.open()) for picture in pictures[start : start + size]]
            seen, embeddings = self._reader.see(torch.cat(opened))
            patches.append(seen.cpu())
            images.append(embeddings)
        for start in range(0, len(texts), size):
            words.append(self._reader.read({name: ids[start : start + size] for name, ids in self._words.items()}))
        self._patches, self._images, self._texts = torch.cat(patches), torch.cat(images), torch.cat(words)

    def similarity(self) -> Tensor:
        """Each picture and each text (I, T), by contrast."""
        return self._reader.model.similarity(self._images, self._texts)

    def match(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Indices of pictures (M,) and texts (M,) → logits (M, 2), index 1 for a match."""
        words = {name: ids[texts.cpu()] for name, ids in self._words.items()}
        return self._reader.match(self._patches[pictures.cpu()], words)


@dataclass(frozen=True)
class Gallery:
    """Pictures, and texts with the index of the picture that each tells of."""

    pictures: tuple[Shown, ...] = field(repr=False)
    texts: tuple[tuple[int, str], ...] = field(repr=False)
    reranked: int = RERANKED

    def __post_init__(self) -> None:
        lacking = set(range(len(self.pictures))) - {owner for owner, _ in self.texts}
        if lacking:
            raise DataError(f"Picture {min(lacking) + 1} has no text: each needs at least one to be found by.")

    def content(self) -> Iterator[str]:
        for picture in self.pictures:
            yield json.dumps(picture.content()) if isinstance(picture, Described) else str(picture)
        yield from (json.dumps(text) for text in self.texts)

    def search(self, finder: Finder, blind: bool = False) -> Outcome:
        """Recall both ways, by contrast alone and with the best re-ranked (which blank pictures are spared)."""
        import torch

        shown = (Blank(),) * len(self.pictures) if blind else self.pictures
        found = finder.compare(shown, [text for _, text in self.texts])
        similarity = found.similarity().cpu()  # (I, T)
        pictures, picture_of = torch.arange(len(self.pictures)), torch.tensor([owner for owner, _ in self.texts])
        figures: dict[str, Figure] = {}
        ranks: dict[str, list[int]] = {}
        for manner, k in ((", re-ranked", self.reranked), ("", 0)):
            if k and blind:
                continue
            ranks[TEXT + manner] = first_ranks(similarity, found.match, k, pictures, picture_of)
            ranks[PICTURE + manner] = first_ranks(
                similarity.T, lambda text, picture: found.match(picture, text), k, picture_of, pictures
            )
        for way, found_at in ranks.items():
            figures |= recalls(found_at, f"{way}: ")
        records: list[dict[str, Any]] = [
            {
                "text": text,
                "picture": owner,
                "ranks": [ranks[way][index] + 1 for way in ranks if way.startswith(PICTURE)],
            }
            for index, (owner, text) in enumerate(self.texts)
        ]
        return Outcome(figures, records, f"{PICTURE}: R@1")


def first_ranks(
    similarity: Tensor, match: Callable[[Tensor, Tensor], Tensor], k: int, wanted: Tensor, offered: Tensor
) -> list[int]:
    """For each query the place, from 0, of the first candidate that is of its picture, in the order of `rerank`.

    Args:
        similarity, match, k: as `minichat.model.qformer_pretrain.rerank` takes them.
        wanted, offered: the picture that each query is of (Q,), and each candidate (N,).
    """
    import torch

    from minichat.model.qformer_pretrain import rerank

    def places(rows: Tensor) -> Tensor:
        order = rerank(similarity[rows], lambda query, candidate: match(rows[query], candidate), k)
        return (offered[order] == wanted[rows, None]).byte().argmax(1)

    return torch.cat([places(rows) for rows in torch.arange(len(similarity)).split(_QUERIES)]).tolist()


def recalls(ranks: Sequence[int], prefix: str = "") -> dict[str, Figure]:
    """The share of queries whose answer is among the first 1, 5 and 10."""
    return {f"{prefix}R@{k}": share(rank < k for rank in ranks) for k in AT}


REDRAWN = 100  # so many of the scenes are drawn by another program, too, once for each of its manners
QUESTION_TOKENS = 32


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
    """The questions of a user's files. `prompt`: how each is put, with "{question}" in it; None: as in a chat.

    `candidates`: the answers of which the likeliest is taken; none: what the model writes.
    """

    items: tuple[OwnQuestion, ...]
    prompt: str | None = None
    candidates: tuple[str, ...] = ()

    def content(self) -> Iterator[str]:
        yield self.prompt or "{question}"
        yield from self.candidates
        for item in self.items:
            yield json.dumps([item.name, item.text, item.answers])

    def take(self, teller: Teller) -> Outcome:
        put, spelled = self.prompt or "{question}", self.prompt is not None
        asks = [Ask(put.replace("{question}", item.text), item.pictures, spelled=spelled) for item in self.items]
        told = teller.choices(asks, self.candidates) if self.candidates else teller.replies(asks, QUESTION_TOKENS)
        replies = [reply.text for reply in told]
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


CAPTION_TOKENS = 200


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
        replies = teller.replies(
            [Ask(self.prompt, (item.picture,), spelled=True) for item in self.items], CAPTION_TOKENS
        )
        figures = wording_figures(replies, [item.references for item in self.items])
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


def wording_figures(
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


DIALOGUE_TOKENS = 200


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
        replies = [reply.text for reply in teller.replies([ask for _, _, ask, _ in asked], DIALOGUE_TOKENS)]
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
