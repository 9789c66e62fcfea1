"""CIDEr-D: how far a caption agrees with what people wrote of the same picture.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (arXiv:1411.5726): CIDEr is section
4, CIDEr-D section 6. No library that is kept up has it without Java. Where the paper leaves a choice this counts as the
program behind the published figures (coco-caption) does: term frequencies are plain counts, document frequencies are
those of the references at hand, an n-gram that no reference has counts as if one picture had it, and the lengths that
are compared are numbers of 2-grams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

NGRAMS = 4
SIGMA = 6.0  # of the Gaussian penalty on a difference in length

Words = Sequence[str]
Ngram = tuple[str, ...]


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """The score of each candidate, from 0 to 10, against its references. The corpus's score is their mean.

    With fewer than two pictures every document frequency is that of all pictures, and the scores are 0.

    Raises:
        ValueError: candidates and references are not equally many, or a candidate has no reference.
    """
    counted = [[_ngrams(reference) for reference in group] for group in references]
    frequency: Counter[Ngram] = Counter()
    for group in counted:
        frequency.update(set().union(*group))
    pictures = math.log(max(1, len(references)))

    def weigh(counts: Counter[Ngram]) -> list[dict[Ngram, float]]:
        weights: list[dict[Ngram, float]] = [{} for _ in range(NGRAMS)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (pictures - math.log(max(1, frequency[ngram])))
        return weights

    scores = []
    for words, group in zip(candidates, counted, strict=True):
        if not group:
            raise ValueError("a candidate has no reference")
        mine, own = weigh(_ngrams(words)), max(0, len(words) - 1)
        total = 0.0
        for counts in group:
            theirs = sum(count for ngram, count in counts.items() if len(ngram) == 2)
            penalty = math.exp(-((own - theirs) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(map(_agreement, mine, weigh(counts))) / NGRAMS
        scores.append(10 * total / len(group))
    return scores


def _ngrams(words: Words) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs."""
    runs = (tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1))
    return Counter(runs)


def _agreement(mine: dict[Ngram, float], theirs: dict[Ngram, float]) -> float:
    """The cosine of two weighted vectors; what the candidate repeats counts no more often than the reference has it."""
    product = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in mine.items() if ngram in theirs)
    norms = math.sqrt(sum(w * w for w in mine.values())) * math.sqrt(sum(w * w for w in theirs.values()))
    return product / norms if norms else 0.0
