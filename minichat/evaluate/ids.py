"""Ids and numbers as files hold them: one thing for each id, and 4 where a table program has made 4.0 of it."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable

from minichat.data.example import Where
from minichat.errors import DataError, shown

_WHOLE = re.compile(r"([+-]?\d+)\.0+")

Id = int | str


def written(value: object) -> str | None:
    """A text or a number as text; a whole number without decimals, however it is stored. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value)
    whole = _WHOLE.fullmatch(text.strip())
    return whole[1] if whole is not None else text


def as_id(value: object) -> Id | None:
    """An id: 4 of 4, 4.0, "4" and "4.0", and a text of all else that is one; None for what is no id."""
    text = written(value)
    if text is None or (isinstance(value, float) and not value.is_integer()):
        return None
    text = text.strip()
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else text or None


class Places:
    """Where each id was given away, so that no two things have the same. `what`: what they are ids of."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._taken: dict[Id, tuple[Where, Hashable]] = {}

    def take(self, key: Id, where: Where, thing: Hashable = None) -> None:
        """Note an id. Raises `DataError`, which names both places, where another has it; the same `thing` may again."""
        first = (where, thing)
        before = self._taken.setdefault(key, first)
        if before is not first and (thing is None or before[1] != thing):
            raise DataError(
                f"{where}: the {self._what} has the id {shown(key)}, and so has another at {before[0]}: "
                "measure the sets one by one, or give each its own id."
            )
