"""LLaVA's JSON: `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, …]}` in one list, or by lines.

`image` is a path or a list of paths; `<image>` in the human's words is the place of one (see `marked`). A film is a
list of frames: `video`, with `<video>` as its mark, or a list within the list `image`. `system` is the system text.

Source: LLaVA's docs/Finetune_Custom_Data.md, which puts a line break between `<image>` and the words.
"""

from __future__ import annotations

from minichat.data.example import Turn
from minichat.data.formats.record import Shelf
from minichat.data.formats.sharegpt import talk


def turns(record: object, shelf: Shelf) -> list[Turn]:
    """The turns of one record. Raises `DataError` for what is not understood."""
    return talk(record, shelf, "conversations", images=("image",), videos=("video",))
