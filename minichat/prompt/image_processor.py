"""Hugging Face's side of a picture: the image processor that turns pictures into a model's pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from minichat import images as pictures_io
from minichat.errors import SettingsError

_MOST_PIXELS = 10_000  # pixels of a side


class MiniChatImageProcessor(BaseImageProcessor):
    """Pictures to pixels (`minichat.images.to_pixels`): squares of `size` pixels, by CLIP's mean and deviation."""

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | Mapping[str, int] = 224,
        image_mean: Sequence[float] = pictures_io.CLIP_MEAN,
        image_std: Sequence[float] = pictures_io.CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sides = dict(size) if isinstance(size, Mapping) else {"height": size, "width": size}
        whole = all(isinstance(side, int) and 1 <= side <= _MOST_PIXELS for side in sides.values())
        if set(sides) != {"height", "width"} or not whole or sides["height"] != sides["width"]:
            raise SettingsError(f"size is {sides}: MiniChat's pictures are squares, such as 224.")
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if not _are_channels(values, positive=name == "image_std"):
                raise SettingsError(f"{name} is {values!r}; it must be three numbers, and a deviation above 0.")
        self.size = sides
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Any nesting of pictures, each whatever `minichat.images.load` takes → `pixel_values` (I, 3, S, S)."""
        pictures = [pictures_io.load(source) for source in flat(images)]
        pixels = pictures_io.to_pixels(pictures, self.size["height"], self.image_mean, self.image_std)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)


def _are_channels(values: Any, positive: bool) -> bool:
    """A finite number for each of red, green and blue."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return False
    return all(
        isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive) for value in values
    )


def flat(images: Any) -> list[Any]:
    """One picture, a list, or lists of lists → a list; None holds none."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for image in images for picture in flat(image)]
    return [images]
