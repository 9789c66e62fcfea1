"""How often each length occurs, as bars of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_WIDTH = 40  # of the longest bar, in characters
_BARS = 8


def plot(title: str, lengths: Sequence[int]) -> list[str]:
    """Lines: a title with the smallest, middle and largest length, and a bar for each length or range of lengths."""
    if not lengths:
        return []
    ordered = sorted(lengths)
    least, middle, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    step = _step(most - least + 1)
    first = least - least % step
    counts = Counter((length - first) // step for length in lengths)
    bins = range((most - first) // step + 1)
    names = [_name(first + number * step, step) for number in bins]
    wide, high = max(map(len, names)), max(counts.values())
    lines = [f"{title}: {least:,} to {most:,}, half of them up to {middle:,}"]
    for number, name in zip(bins, names, strict=True):
        bar = "█" * -(-counts[number] * _WIDTH // high)
        lines.append(f"  {name:>{wide}}  {bar:<{_WIDTH}} {counts[number]:,}".rstrip())
    return lines


def _step(span: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … by which few bars cover `span` lengths."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if span <= factor * power * _BARS:
                return factor * power
        power *= 10


def _name(first: int, step: int) -> str:
    return f"{first:,}" if step == 1 else f"{first:,}–{first + step - 1:,}"
