"""Hard negatives: pictures and texts that do not belong together but might."""

from __future__ import annotations

import torch
from torch import Tensor

from minichat.model.gathering import first_row


def hard_negatives(to_texts: Tensor, to_images: Tensor, own: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw for each text a picture that is not its own, and for each picture a text: (B,) and (B,).

    The likelier, the more alike they are. Args: pictures' logits (B, G) over all texts, texts' over all pictures, and
    which are their `own`. The noise is the joined batch's, from a generator of its own, so that it draws the same
    however many processes share the batch. −1 where all of the batch is its own. (The Gumbel-max trick: argmax(scores +
    noise) is distributed as softmax(scores).)
    """
    rows, everyone, start = *own.shape, first_row(own)
    noise = torch.empty(2, everyone, everyone).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    scores = torch.stack([to_images, to_texts]) - noise[:, start : start + rows].to(to_texts)  # (2, B, G)
    pictures, texts = scores.masked_fill(own, -torch.inf).argmax(-1).where(~own.all(1), -1)
    return pictures, texts
