"""Retrieval: find a picture's text among all texts, and a text's picture among all pictures (recall at 1, 5 and 10).

As BLIP-2 does (arXiv:2301.12597, section 4.4): contrast compares all with all, matching re-ranks the best of each.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minichat.errors import DataError
from minichat.evaluate.figures import Figure, Outcome, share
from minichat.evaluate.replies import Blank, Described, Shown
from minichat.evaluate.scenes import Drawn, held_out_scene
from minichat.scenes.captions import short
from minichat.scenes.truth import background_words
from minichat.scenes.world import Scene

if TYPE_CHECKING:
    from torch import Tensor

    from minichat.search.reader import Reader

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
    from minichat.weights.stage1 import is_stage1
    from minichat.weights.zoo import find

    try:
        return is_stage1(find(name))
    except ModelError:  # whoever loads it says what is wrong with it
        return False


def load_finder(name: str, device: str = "auto", dtype: str = "auto", batch_size: int = 32) -> Finder:
    """A folder's model, ready to retrieve. Raises as `minichat.search.load_reader` does."""
    from minichat.search.reader import load_reader

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


def gallery_of_scenes(count: int = PAIRS, seed: int = 0, reranked: int = RERANKED) -> Gallery:
    """Held-out scenes with a short caption each, no two of which name the same things on the same background."""
    pictures: list[Shown] = []
    texts: list[tuple[int, str]] = []
    told: set[tuple[Any, ...]] = set()
    index = 0
    while len(pictures) < count:
        scene, _ = held_out_scene(index, seed)
        if (tale := _tale(scene)) not in told:
            told.add(tale)
            texts.append((len(pictures), short(scene, random.Random(f"held out caption {seed} {index}"))))
            pictures.append(Drawn(scene, index))
        index += 1
    return Gallery(tuple(pictures), tuple(texts), reranked)


def _tale(scene: Scene) -> tuple[Any, ...]:
    """What a short caption of the scene tells, in whatever order."""
    return tuple(sorted((thing.colour, thing.shape) for thing in scene.things)), background_words(scene.background)


def first_ranks(
    similarity: Tensor, match: Callable[[Tensor, Tensor], Tensor], k: int, wanted: Tensor, offered: Tensor
) -> list[int]:
    """For each query the place, from 0, of the first candidate that is of its picture, in the order of `rerank`.

    Args:
        similarity, match, k: as `minichat.model.retrieval.rerank` takes them.
        wanted, offered: the picture that each query is of (Q,), and each candidate (N,).
    """
    import torch

    from minichat.model.retrieval import rerank

    def places(rows: Tensor) -> Tensor:
        order = rerank(similarity[rows], lambda query, candidate: match(rows[query], candidate), k)
        return (offered[order] == wanted[rows, None]).byte().argmax(1)

    return torch.cat([places(rows) for rows in torch.arange(len(similarity)).split(_QUERIES)]).tolist()


def recalls(ranks: Sequence[int], prefix: str = "") -> dict[str, Figure]:
    """The share of queries whose answer is among the first 1, 5 and 10."""
    return {f"{prefix}R@{k}": share(rank < k for rank in ranks) for k in AT}
