"""How a reply is generated: typed settings, checked at birth."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from minichat.errors import SettingsError

MAX_NEW_TOKENS = 32_768  # more is a slip of the keyboard; the model's context sets the real limit
_RANGES: dict[str, tuple[type, float, float, str]] = {
    "max_new_tokens": (Integral, 1, MAX_NEW_TOKENS, f"a whole number from 1 to {MAX_NEW_TOKENS}"),
    "temperature": (Real, 0, 10, "a number from 0 (greedy) to 10"),
    "top_p": (Real, math.ulp(0.0), 1, "a number above 0 and up to 1"),
    "num_beams": (Integral, 1, 32, "a whole number from 1 to 32"),
    "repetition_penalty": (Real, 0.1, 10, "a number from 0.1 to 10 (1 = none)"),
    "seed": (Integral, 0, 2**63 - 1, "None or a whole number from 0 to 2**63 - 1"),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How a reply is generated. Greedy by default.

    Raises `SettingsError`, which names the field, for a value of the wrong type or out of range.
    """

    max_new_tokens: int = 200  # the reply is cut after so many ids
    temperature: float = 0.0  # 0: always the likeliest id; above: sampled, the higher the bolder
    top_p: float = 1.0  # sampling only: from the likeliest ids that together have this probability
    num_beams: int = 1  # above 1: beam search, which does not sample
    repetition_penalty: float = 1.0  # above 1: ids that the reply already holds become less likely
    seed: int | None = None  # sampling only: the same seed gives the same reply; None: another each time

    def __post_init__(self) -> None:
        for name, (kind, low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            # A NaN is not between any two numbers, so it fails here too.
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:  # type: ignore[operator]
                raise SettingsError(f"{name} is {value!r}; it must be {meaning}.")
        if self.num_beams > 1 and self.temperature > 0:
            raise SettingsError(
                f"num_beams is {self.num_beams} and temperature is {self.temperature}: beam search does not sample; "
                "set num_beams=1 or temperature=0."
            )

    def updated(self, **changes: Any) -> GenerationSettings:
        """These settings with some changed. Raises `SettingsError` for a name that does not exist, too."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
                raise SettingsError(f"There is no setting {name!r}: {hint}")
        return replace(self, **changes)
