"""Hugging Face's side of a picture: the image processor that turns pictures into a model's pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from minichat import images as pictures_io
from minichat.errors import SettingsError


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
        sides = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        if set(sides) != {"height", "width"} or sides["height"] != sides["width"] or sides["height"] < 1:
            raise SettingsError(f"size is {sides}: MiniChat's pictures are squares, such as 224.")
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


def flat(images: Any) -> list[Any]:
    """One picture, a list, or lists of lists → a list; None holds none."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for image in images for picture in flat(image)]
    return [images]
