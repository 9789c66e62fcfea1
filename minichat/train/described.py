"""Descriptions of scenes (`minichat.scenes.description`) as numbers, and what they sum to in a model's embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from minichat.data.drawn import DrawnPicture
from minichat.data.example import StoredPicture, Where
from minichat.errors import DataError
from minichat.scenes.description import TOKENS, Bag

WORDS_AT_MOST = 6  # in one place
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
