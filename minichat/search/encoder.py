"""A pre-trained Q-Former as search uses it: pictures and texts in, embeddings and matching out."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import __version__ as _pillow
from torch import Tensor

from minichat.errors import ImageError
from minichat.images import CLIP_MEAN, CLIP_STD, READING, Source, load, to_pixels
from minichat.weights.registry import BUILT_IN_STAGE1

if TYPE_CHECKING:
    from minichat.weights.qformer import Stage1


# --- A pre-trained Q-Former as it is used: pictures and texts in, what is compared and whether they match out.
#
# Shapes: I pictures, T texts, P patches, W the vision encoder's width, n queries, E the width in which pictures and
# texts are compared.


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
        from minichat.weights.checkpoint_io import identity

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
        from minichat.prompt.tokenizer import tokenize

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
    from minichat.device.placement import choose_device, choose_dtype
    from minichat.weights.qformer import read_stage1

    place = choose_device(device)
    precision = choose_dtype(dtype, place)  # both before the weights are read
    return Reader(read_stage1(os.fspath(name)), place, precision)


# --- Files → what the model is shown of them, several at a time; one that cannot be opened says why.


_SETTLED = 2_000_000_000  # nanoseconds: some file systems tell the time of a change no more precisely
_THREADS = 4


@dataclass(frozen=True)
class Opened:
    """A file as it was read: its pixels (1, 3, S, S) and their hash, or the error in their place.

    `changed` is when it was last changed, in nanoseconds; 0 if that was only just: it may change again unnoticed.
    """

    path: Path
    size: int = 0
    changed: int = 0
    pixels: Tensor | None = None
    key: bytes = b""
    error: str = ""


def open_all(reader: Reader, paths: Sequence[Path]) -> Iterator[Opened]:
    """The files, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda path: _open(reader, path), paths)


def state(path: Path) -> tuple[int, int] | None:
    """A file's size in bytes and the time of its last change in nanoseconds; None where there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _open(reader: Reader, path: Path) -> Opened:
    size, changed = state(path) or (0, 0)  # asked before: what changes while it is read is read again the next time
    if abs(time.time_ns() - changed) < _SETTLED:
        changed = 0
    try:
        pixels = reader.pixels(path)
    except ImageError as error:
        return Opened(path, error=str(error))
    return Opened(path, size, changed, pixels, hashlib.sha256(pixels.numpy().data).digest())
