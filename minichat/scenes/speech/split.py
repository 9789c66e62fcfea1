"""The composition split: combinations of a meaning with a form that training never shows, so that they can be asked.

Each meaning and each form is trained; only some of their pairs are not. Which, follows from their names alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

ONE_IN = 12
#: Forms that a meaning has by itself, or that say nothing: there is no combination to hold out.
OWN = frozenset({"ask", "bare", "order", "doubt", "tag", "without"})


def is_held_out(meaning: str, forms: Iterable[str]) -> bool:
    """Whether a question of this meaning, with these forms in it, is kept from training."""
    return any(zlib.crc32(f"{meaning} | {form}".encode()) % ONE_IN == 0 for form in forms if form not in OWN)
