"""Hugging Face's options of a batch: padding, cutting, and pictures that come beside messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from minichat.errors import PromptError
from minichat.prompt.render import Rendered

#: What changes nothing here: rows are always padded to the longest, masks returned, and control tokens never made.
_GRANTED = ("return_attention_mask", "add_special_tokens", "sanitize_control_tokens")
_NESTED = ("common_kwargs", "text_kwargs", "images_kwargs")  # groups of options, as `ProcessingKwargs` has them


@dataclass(frozen=True)
class Layout:
    """How prompts become one batch.

    `length`: rows are padded to at least so many tokens. `multiple`: and to a multiple of it. `most`: what is longer is
    cut at its end; None: nothing is.
    """

    padding_side: Literal["left", "right"] = "left"
    length: int = 0
    multiple: int = 1
    most: int | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Layout:
        """From Hugging Face's keywords. Raises PromptError for one that is not known or out of range."""
        given = {name: value for name, value in options.items() if name not in _NESTED}
        for group in _NESTED:
            given |= options.get(group) or {}
        side = given.pop("padding_side", None) or "left"
        if side not in ("left", "right"):
            raise PromptError(f"padding_side is {side!r}; it must be 'left' or 'right'.")
        padding, truncation = given.pop("padding", None), given.pop("truncation", None)
        most = _positive("max_length", given.pop("max_length", None))
        multiple = _positive("pad_to_multiple_of", given.pop("pad_to_multiple_of", None))
        for name, value in given.items():
            if name not in _GRANTED and value not in (None, False, [], {}):
                raise PromptError(f"The option {name!r} is not known to MiniChat's processor: leave it out.")
        return cls(
            "right" if side == "right" else "left",
            length=most or 0 if str(padding) == "max_length" else 0,
            multiple=multiple or 1,
            most=most if truncation not in (None, False, "do_not_truncate") else None,
        )

    def cut(self, rendered: Rendered, slot: int) -> Rendered:
        """The beginning of a prompt. Raises PromptError where that would leave a picture out."""
        if self.most is None or len(rendered.ids) <= self.most:
            return rendered
        if slot in rendered.ids[self.most :]:
            raise PromptError(
                f"max_length is {self.most}, which cuts a picture off a prompt of {len(rendered.ids)} tokens: raise it."
            )
        return replace(rendered, ids=rendered.ids[: self.most], loss_mask=rendered.loss_mask[: self.most])

    def padded(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """Rows of numbers (B, width), zeros where they are padded."""
        gaps = [[0] * (width - len(row)) for row in rows]
        left = self.padding_side == "left"
        return torch.tensor(
            [[*gap, *map(int, row)] if left else [*map(int, row), *gap] for row, gap in zip(rows, gaps, strict=True)]
        )


def with_pictures(conversations: Sequence[Any], images: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """Messages in which each `{"type": "image"}` that names no picture is given the next of its conversation's.

    Raises PromptError, with both numbers, where pictures and places do not match.
    """
    if len(images) != len(conversations):
        raise PromptError(f"images has {len(images)} rows for {len(conversations)} conversations: give one for each.")
    return [_with_pictures(messages, row) for messages, row in zip(conversations, images, strict=True)]


def _with_pictures(messages: Any, images: Any) -> list[dict[str, Any]]:
    waiting = list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]
    given, places = len(waiting), 0
    filled = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = []
            for part in content:
                if isinstance(part, Mapping) and part.get("type") == "image" and not _named(part):
                    places += 1
                    part = {"type": "image", "image": waiting.pop(0)} if waiting else part
                parts.append(part)
            content = parts
        filled.append({**message, "content": content})
    if places != given:
        raise PromptError(f"There are {given} images and {places} places for them in the messages: give one for each.")
    return filled


def _named(part: Mapping[str, Any]) -> bool:
    """Whether a part says which picture it is."""
    return any(value is not None for key, value in part.items() if key != "type")


def _positive(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise PromptError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return value
