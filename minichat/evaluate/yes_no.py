"""Yes or no, and the figures of POPE (Li et al., "Evaluating Object Hallucination…", arXiv:2305.10355)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minichat.evaluate.figures import Figure, ratio


def says_yes(reply: str) -> bool:
    """As POPE reads a reply: no where its first sentence has "no" or "not", else yes."""
    first = reply.split(".")[0].replace(",", "")
    return not {"no", "not"} & set(first.lower().split())


def is_clear(reply: str) -> bool:
    """Whether the reply says yes or no at all: for POPE, what says neither is a yes."""
    return re.search(r"\b(yes|no|not)\b", reply.lower()) is not None


def yes_no_figures(said: Sequence[bool], true: Sequence[bool], prefix: str = "") -> dict[str, Figure]:
    """Accuracy, precision, recall and F1 of "yes", and the share of yes.

    Precision is of all that was said to be there, recall of all that is there.
    """
    pairs = list(zip(said, true, strict=True))
    hits = sum(s and t for s, t in pairs)
    precision = ratio(hits, sum(said))
    recall = ratio(hits, sum(true))
    p, r = precision.value, recall.value
    f1 = None if not true else 2 * p * r / (p + r) if p and r else 0.0
    return {
        f"{prefix}accuracy": ratio(sum(s == t for s, t in pairs), len(pairs)),
        f"{prefix}precision": precision,
        f"{prefix}recall": recall,
        f"{prefix}F1": Figure(f1, len(pairs), "rate"),
        f"{prefix}says yes": ratio(sum(said), len(pairs)),
    }
