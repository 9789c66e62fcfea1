"""MiniGPT-4's `cc_sbu_align`: `filter_cap.json` with `{"annotations": [{"image_id", "caption"}, …]}`, `image/ID.jpg`.

The instruction of each picture is drawn from a file. Source: MiniGPT-4's dataset/README_2_STAGE.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from minichat.data.example import Turn
from minichat.data.formats.asking import Asking
from minichat.data.formats.record import Shelf, fields, kind, words
from minichat.errors import DataError

CAPTIONS = "filter_cap.json"
PICTURES = "image"
KEY = "annotations"


def samples(record: object, shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
    """The turns of one annotation. Raises `DataError` for what is not understood."""
    read = fields(record, "the annotation", ("image_id", "caption"))
    shelf.only(read, ("image_id", "caption"))
    number = read["image_id"]
    if isinstance(number, bool) or not isinstance(number, str | int):
        raise DataError(f"'image_id' is {kind(number)}: it must be the name of a picture, without its ending.")
    caption = words(read["caption"], "'caption'")
    yield asking.turns(str(number), [shelf.picture(f"{number}.jpg")], caption)
