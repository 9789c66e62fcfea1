"""Who sees whom in the Q-Former: the three self-attention masks of BLIP-2's first stage (arXiv:2301.12597, figure 2).

The sequence is n queries, then T words. A mask is boolean, (B, 1, n + T, n + T): its rows see its columns where it is
True. `additive` makes of it what attention adds to its scores; a boolean one would leak, for transformers' eager
attention would add it as 0 and 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unimodal(queries: int, words: Tensor) -> Tensor:
    """For contrast: queries see queries, words see words. `words` (B, T) is 1 at a word and 0 at padding."""
    from_query, to_query, to_word = _sides(queries, words)
    return torch.where(from_query, to_query, to_word)


def bidirectional(queries: int, words: Tensor) -> Tensor:
    """For matching: all see all. `words` (B, T) is 1 at a word and 0 at padding."""
    from_query, to_query, to_word = _sides(queries, words)
    return (to_query | to_word).expand(-1, -1, from_query.shape[-2], -1)


def multimodal_causal(queries: int, words: Tensor) -> Tensor:
    """For generation: queries see queries, a word sees the queries, itself and the words before it. `words` (B, T)."""
    from_query, to_query, to_word = _sides(queries, words)
    length = to_word.shape[-1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=words.device).tril()
    return torch.where(from_query, to_query, to_query | (to_word & earlier))


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask → 0 where a row sees a column, and the least number of `dtype` where it does not."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


def _sides(queries: int, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a row is a query (1, 1, n + T, 1), a column is one (1, 1, 1, n + T), a column is a word (B, 1, 1, n + T).

    Padding is neither.
    """
    rows, length = words.shape
    to_query = torch.arange(queries + length, device=words.device) < queries
    to_word = torch.cat([words.new_zeros(rows, queries), words], dim=1).bool()
    return to_query[None, None, :, None], to_query[None, None, None, :], to_word[:, None, None, :]
