"""Descriptions of scenes (`minichat.scenes.description`) as numbers, and what they sum to in a model's embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from minichat.data.drawn import DrawnPicture
from minichat.data.example import StoredPicture, Where
from minichat.errors import DataError
from minichat.prompt.tokenizer import SentencePieceTokenizer
from minichat.scenes.description import LEVELS, PLACES, SYMBOLS, TOKENS, WORDS, Bag
from minichat.train.vocabulary import word_ids
from minichat.train.waves import waves

if TYPE_CHECKING:
    from minichat.prompt.tokenizer import ContentTokenizer

WORDS_AT_MOST = 6  # in one place
_RATES = 8  # of the sinusoidal codes of places
_EMPTY = -1


def drawn(picture: StoredPicture, where: Where | str, stage: str) -> DrawnPicture:
    """The same picture. Raises `DataError` for one of which nobody knows what it shows."""
    if not isinstance(picture, DrawnPicture):
        raise DataError(f"{where}: the stage {stage} learns from what is drawn alone: use `form: drawn`.")
    return picture


def in_numbers(descriptions: Sequence[Sequence[Bag]], numbers: Mapping[str, int]) -> Tensor:
    """The numbers of the words of I descriptions (I, 32, 6); -1 where a place has no further word."""
    told = np.full((len(descriptions), TOKENS, WORDS_AT_MOST), _EMPTY, np.int64)
    for picture, bags in enumerate(descriptions):
        for place, bag in enumerate(bags):
            told[picture, place, : len(bag)] = [numbers[word] for word in bag]
    return torch.from_numpy(told)


def summed(weight: Tensor, words: Tensor) -> Tensor:
    """The sum of each place's words: embeddings (V, H), numbers (I, 32, 6) → (I, 32, H)."""
    told = embedding(words.clamp(min=0), weight) * words.ge(0).unsqueeze(-1)
    return told.sum(2)


def word_vectors(tokenizer: ContentTokenizer, embeddings: Tensor) -> Tensor:
    """What each of `description.WORDS` is in an LLM's embeddings (V, H), as (W, H).

    The LLaMA of the stage `language` has a token for each. Another LLM has words: a word is the mean of its pieces, as
    it is spelled after another one. For a place it has none: the levels of an axis are sinusoidal codes along random
    directions, which are the same in every run, so that neighbours are alike; the other symbols are random directions.
    All of these are as long as its words are on average.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        with contextlib.suppress(KeyError):
            ids = word_ids(tokenizer)
            return embeddings[torch.tensor([ids[word] for word in WORDS], device=embeddings.device)]
    pieces = {word: tokenizer.encode(_after_another(tokenizer, word)) for word in WORDS if word not in SYMBOLS}
    spelled = {w: embeddings[torch.tensor(held, device=embeddings.device)].mean(0) for w, held in pieces.items()}
    length = torch.stack(list(spelled.values())).norm(dim=-1).mean()
    drawn = torch.Generator().manual_seed(0)
    codes = waves(LEVELS, _RATES)  # (L, 2 · rates)
    vectors = dict(spelled)
    for axis in (PLACES[:LEVELS], PLACES[LEVELS:]):
        directions = torch.randn(codes.shape[1], embeddings.shape[1], generator=drawn)
        vectors |= dict(zip(axis, (codes @ directions).to(embeddings), strict=True))
    for symbol in (symbol for symbol in SYMBOLS if symbol not in vectors):
        vectors[symbol] = torch.randn(embeddings.shape[1], generator=drawn).to(embeddings)
    for symbol in SYMBOLS:
        vectors[symbol] = vectors[symbol] * (length / vectors[symbol].norm())
    return torch.stack([vectors[word] for word in WORDS])


def _after_another(tokenizer: ContentTokenizer, word: str) -> str:
    """A word as it stands after another; SentencePiece begins every text so."""
    return word if isinstance(tokenizer, SentencePieceTokenizer) else f" {word}"
