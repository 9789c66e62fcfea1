"""Find pictures by texts and texts by pictures: contrast first, then matching re-ranks the best (arXiv:2301.12597)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rerank(similarity: Tensor, match: Callable[[Tensor, Tensor], Tensor], k: int = 128, batch_size: int = 64) -> Tensor:
    """The candidates of each query, best first (Q, N).

    The k most similar come first, in the order of similarity + matching logit (as in lavis's `compute_sim_matrix`),
    then the rest, in the order of similarity.

    Args:
        similarity: cosines (Q, N) of queries and candidates, from `QFormerPretraining.similarity`.
        match: indices of queries (M,) and candidates (M,) → what `QFormerPretraining.match` says of the pairs (M, 2).
        k: how many candidates of a query are matched; 0 matches none.
        batch_size: pairs that are matched at once.
    """
    order = similarity.argsort(dim=1, descending=True, stable=True)  # (Q, N)
    best = order[:, :k]
    if not best.numel():
        return order
    queries = torch.arange(len(best), device=best.device)[:, None].expand_as(best)
    pairs = zip(queries.flatten().split(batch_size), best.flatten().split(batch_size), strict=True)
    with torch.no_grad():
        logits = torch.cat([match(query, candidate)[:, 1] for query, candidate in pairs])  # (Q · k,)
    scores = similarity.gather(1, best) + logits.view_as(best).to(similarity)
    reranked = best.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    return torch.cat([reranked, order[:, k:]], dim=1)
