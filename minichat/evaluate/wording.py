"""How close captions come to references in their wording: BLEU-4, ROUGE-L and CIDEr-D."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minichat.errors import DataError
from minichat.evaluate.cider import cider_d

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
BETA = 1.2  # how much more recall weighs than precision in ROUGE-L, as captions are scored


def tokens(text: str) -> list[str]:
    """Words in lower case without punctuation, as captions are compared (Chen et al., arXiv:1504.00325, section 3)."""
    return _WORD.findall(text.lower())


def wording(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The scores of captions against one or more references each: BLEU-4 and ROUGE-L from 0 to 1, CIDEr-D 0 to 10.

    BLEU is of the corpus (Papineni et al., ACL 2002). ROUGE-L is the F-measure with β = 1.2 of the best precision and
    the best recall over the references (Lin, 2004; arXiv:1504.00325, section 3), and a mean over the captions.

    Raises:
        DataError: a caption has no reference.
    """
    from torchmetrics.functional.text import bleu_score

    if not captions:
        return {}
    if not all(references):
        raise DataError("A caption has no reference: each picture needs at least one.")
    said = [tokens(caption) for caption in captions]
    wanted = [[tokens(reference) for reference in group] for group in references]
    bleu = bleu_score([" ".join(words) for words in said], [[" ".join(r) for r in group] for group in wanted], n_gram=4)
    rouge = [rouge_l(words, group) for words, group in zip(said, wanted, strict=True)]
    cider = cider_d(said, wanted)
    return {
        "BLEU-4": float(bleu),
        "ROUGE-L": sum(rouge) / len(rouge),
        "CIDEr-D": sum(cider) / len(cider),
    }


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption's words against those of its references."""
    from torchmetrics.functional.text import rouge_score

    found = [
        rouge_score(" ".join(words), " ".join(reference), rouge_keys="rougeL", normalizer=str, tokenizer=str.split)
        for reference in references
    ]
    precision = max(float(score["rougeL_precision"]) for score in found)
    recall = max(float(score["rougeL_recall"]) for score in found)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
