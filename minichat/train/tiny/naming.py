"""The projection's first task: to name, in the LLM's own words, what each query sees.

An image token that lies near "small" + "red" + "star" + "top" + "left" can be found by the very words of a question,
and what it says can be copied into a reply. Without this, the LLM has to learn each word's likeness among the image
tokens from the few words of its replies that depend on it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minichat.prompt.tokenizer import ContentTokenizer
from minichat.scenes.world import COLOURS, SHAPES, SIZES, Scene
from minichat.train.tiny.sight import CELLS, GRID_COLUMNS, GRID_ROWS, IGNORE

ROWS, COLUMNS = ("top", "centre", "bottom"), ("left", "centre", "right")
WORDS = (SIZES, COLOURS, SHAPES, ROWS, COLUMNS)
THIRDS = (0.36, 0.64)  # of the side: where "left" ends and "right" begins
SHARPNESS = 20  # of the likeness, a cosine: five words summed are each within 0.45 of their sum


def names(scene: Scene) -> np.ndarray:
    """(30, 5): for each cell the indices of the thing's size, colour, shape, row and column; −100 where it is empty."""
    cells = np.full((CELLS, len(WORDS)), IGNORE)
    for thing in scene.things:
        cell = int(thing.y * GRID_ROWS) * GRID_COLUMNS + int(thing.x * GRID_COLUMNS)
        row, column = (sum(place > edge for edge in THIRDS) for place in (thing.y, thing.x))
        cells[cell] = SIZES.index(thing.size), COLOURS.index(thing.colour), SHAPES.index(thing.shape), row, column
    return cells


class Naming:
    """Cross-entropy of each kind of word, by the likeness of image tokens and word embeddings."""

    def __init__(self, tokenizer: ContentTokenizer) -> None:
        self.ids = [torch.tensor([tokenizer.encode(word)[0] for word in words]) for words in WORDS]

    def loss(self, image_tokens: Tensor, embedding: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Image tokens (I, n, H), the LLM's embedding (V, H), names (I, 30, 5) → the summed loss, the share right."""
        seen = truth[..., 0] != IGNORE  # (I, 30)
        if not seen.any():
            return image_tokens.sum() * 0, {}
        places = F.normalize(image_tokens[:, :CELLS][seen], dim=-1)  # (things, H)
        loss, right = image_tokens.new_zeros(()), []
        for ids, wanted in zip(self.ids, truth[seen].unbind(-1), strict=True):
            likeness = places @ F.normalize(embedding[ids], dim=-1).T  # (things, words)
            loss = loss + F.cross_entropy(SHARPNESS * likeness, wanted)
            right.append(likeness.argmax(-1) == wanted)
        return loss, {"named": torch.stack(right).float().mean().item()}
