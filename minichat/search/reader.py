"""A pre-trained Q-Former as it is used: pictures and texts in, what is compared and whether they match out.

Shapes: I pictures, T texts, P patches, W the vision encoder's width, n queries, E the width in which pictures and texts
are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import __version__ as _pillow
from torch import Tensor

from minichat.images import CLIP_MEAN, CLIP_STD, READING, Source, load, to_pixels
from minichat.weights.zoo import BUILT_IN_STAGE1

if TYPE_CHECKING:
    from minichat.weights.stage1 import Stage1

DEFAULT = BUILT_IN_STAGE1[0]
Words = dict[str, Tensor]  # `input_ids` and `attention_mask` (T, length)


class Reader:
    """Reads pictures and texts in one precision, on one device."""

    def __init__(self, stage1: Stage1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.model = stage1.model.to(device=torch.device(device), dtype=dtype).eval()
        self.tokenizer = stage1.tokenizer

    @property
    def side(self) -> int:
        """The side of the pictures that the vision encoder sees, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def origin(self) -> str:
        """A hash of all that decides what `see` returns: weights, configuration, precision, preprocessing."""
        from minichat.weights.identity import identity

        # Pillow resizes alike within a major version.
        said = [self.side, CLIP_MEAN, CLIP_STD, _pillow.split(".")[0], READING, str(self.model.dtype)]
        network = identity(self.model, self.model.config)
        return hashlib.sha256(f"{network} {json.dumps(said)}".encode()).hexdigest()

    def pixels(self, picture: Source) -> Tensor:
        """A picture as the model sees it (1, 3, S, S). Raises `ImageError` for one that cannot be opened."""
        return to_pixels([load(picture)], self.side)

    @torch.inference_mode()
    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (I, 3, S, S) → patches (I, 1 + P, W), on the model's device, and unit vectors (I, n, E), float32."""
        patches = self.model.encode_patches(pixels.to(self.model.device, self.model.dtype))
        return patches, self.model.image_embeddings(patches)

    def words(self, texts: Sequence[str]) -> Words:
        """Texts in word pieces; what is longer than the Q-Former can read is cut."""
        from minichat.prompt.wordpiece import tokenize

        return tokenize(self.tokenizer, texts, self.model.embeddings.position_embeddings.num_embeddings)

    @torch.inference_mode()
    def read(self, words: Words) -> Tensor:
        """A unit vector for each text (T, E), float32."""
        return self.model.text_embeddings(**self._here(words))

    @torch.inference_mode()
    def match(self, patches: Tensor, words: Words) -> Tensor:
        """Pairs of patches (T, 1 + P, W) and a text → logits (T, 2), index 1 for a match."""
        return self.model.match(patches.to(self.model.device, self.model.dtype), **self._here(words))

    def _here(self, words: Words) -> Words:
        return {name: ids.to(self.model.device) for name, ids in words.items()}


def load_reader(name: str | os.PathLike[str], device: str | torch.device = "auto", dtype: str = "auto") -> Reader:
    """A stage-1 model, ready to read.

    Args:
        name: a known name, a folder or a hub id that holds a `Blip2ForImageTextRetrieval`.
        device, dtype: as in `minichat.load`.

    Raises `ModelError` for another model or one that is not whole, `SettingsError` for a device or dtype that is not.
    """
    from minichat.hardware.placement import choose_device, choose_dtype
    from minichat.weights.stage1 import read_stage1

    place = choose_device(device)
    precision = choose_dtype(dtype, place)  # both before the weights are read
    return Reader(read_stage1(os.fspath(name)), place, precision)
