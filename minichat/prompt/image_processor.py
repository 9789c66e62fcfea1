"""Hugging Face's side of a picture: the image processor that turns pictures into a model's pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

import minichat.images as pictures_io
from minichat.errors import SettingsError

_MOST_PIXELS = 10_000  # pixels of a side


class MiniChatImageProcessor(BaseImageProcessor):
    """Pictures to pixels (`minichat.images.to_pixels`): squares of `size` pixels, as a vision encoder was trained.

    `resample` and `shortest_edge` are those of `minichat.images.Fit`; what is not given is as for EVA's ViT.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | Mapping[str, int] = 224,
        image_mean: Sequence[float] = pictures_io.CLIP_MEAN,
        image_std: Sequence[float] = pictures_io.CLIP_STD,
        resample: int = Image.Resampling.BICUBIC,
        shortest_edge: int | None = None,
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
        if resample not in list(Image.Resampling):
            raise SettingsError(f"resample is {resample!r}; it must be the number of one of Pillow's filters, 0 to 5.")
        if shortest_edge is not None and not (
            isinstance(shortest_edge, int) and sides["height"] <= shortest_edge <= _MOST_PIXELS
        ):
            raise SettingsError(f"shortest_edge is {shortest_edge!r}; it must be at least the size, {sides['height']}.")
        self.size = sides
        self.resample, self.shortest_edge = int(resample), shortest_edge
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @property
    def fit(self) -> pictures_io.Fit:
        """How a picture becomes a square."""
        return pictures_io.Fit(self.size["height"], self.resample, self.shortest_edge)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Any nesting of pictures, each whatever `minichat.images.load` takes → `pixel_values` (I, 3, S, S)."""
        pictures = [pictures_io.load(source) for source in flat(images)]
        pixels = pictures_io.to_pixels(pictures, self.fit, self.image_mean, self.image_std)
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
