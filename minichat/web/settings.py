"""The settings a visitor may change, each described once: the panel is drawn and every request checked by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minichat.errors import SettingsError
from minichat.web.limits import Limits


@dataclass(frozen=True)
class Field:
    """One number: its name in `ChatSession.stream`, what the page calls it, and its range. Whole when `step` is."""

    name: str
    label: str
    info: str
    low: float
    high: float
    step: float
    default: float | None  # None: the setting may be left empty

    def read(self, value: Any) -> float | int | None:
        """The value as the bot takes it.

        Raises:
            SettingsError: naming the field, when the value is no number, not whole, or out of range.
        """
        if self.default is None:  # shown as a text field: Gradio's number field turns "empty" into 0
            value = value.strip() if isinstance(value, str) else value
            if value in (None, ""):
                return None
            if isinstance(value, str) and value.isdecimal() and len(value) < 20:
                value = int(value)
        whole = isinstance(self.step, int)
        kind = "a whole number" if whole else "a number"
        rule = f"{self.name} must be {kind} from {self.low:g} to {self.high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{rule}, not {str(value)[:40]!r}.")
        if not self.low <= value <= self.high or (whole and value != int(value)):  # NaN compares as false
            shown = f"{value:.12g}" if isinstance(value, float) or abs(value) < 10**12 else "a number of so many digits"
            raise SettingsError(f"{rule}, not {shown}.")
        return int(value) if whole else float(value)


def panel(limits: Limits, context: int | None = None) -> tuple[Field, ...]:
    """The settings of the page, in the order in which requests send them.

    Args:
        context: the model's, in tokens; a reply may have half of it at most.
    """
    most = limits.new_tokens if context is None else max(1, min(limits.new_tokens, context // 2))
    return (
        Field("temperature", "Temperature", "0: always the likeliest word. Higher: more varied.", 0.0, 2.0, 0.05, 0.0),
        Field("top_p", "Top-p", "Sample only from the likeliest words that make up this share.", 0.05, 1.0, 0.05, 1.0),
        Field("max_new_tokens", "Longest reply", "In tokens; a token is about a word.", 1, most, 1, min(200, most)),
        Field("repetition_penalty", "Repetition penalty", "Above 1: repeats itself less.", 1.0, 2.0, 0.05, 1.0),
        Field("seed", "Seed", "Equal seeds give equal samples. Empty: a new one each time.", 0, 2**31 - 1, 1, None),
    )


def read(fields: Sequence[Field], values: Sequence[Any]) -> dict[str, float | int | None]:
    """Check the values of a request, in the panel's order.

    Raises:
        SettingsError: naming the first field that is out of range.
    """
    return {field.name: field.read(value) for field, value in zip(fields, values, strict=True)}
