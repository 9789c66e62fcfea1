"""Hard negatives: pictures and texts that do not belong together but might."""

from __future__ import annotations

import torch
from torch import Tensor

from minichat.model.gathering import first_row, gather


def hard_negatives(
    to_texts: Tensor, to_images: Tensor, own: Tensor, seed: int, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw for each text a picture that is not its own, and for each picture a text: (B,) and (B,).

    The likelier, the more alike they are. Args: pictures' logits (B, G) over all texts, texts' over all pictures,
    which are their `own`, and the places (B,) of these pairs in an order of the joined batch that does not depend on
    the processes (default: one process after the other). The noise is the order's, from a generator of its own, so
    that it draws the same however many processes share the batch. −1 where all of the batch is its own. (The Gumbel-max
    trick: argmax(scores + noise) is distributed as softmax(scores).)

    So draws LAVIS's `blip2_qformer.py` today: the softmax of the others. In its first version each had 1e-4 more.
    """
    if places is None:
        places = first_row(own) + torch.arange(len(own), device=own.device)
    everyone = gather(places)  # (G,)
    size = int(everyone.max()) + 1
    noise = torch.empty(2, size, size).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    noise = noise[:, places.cpu()][:, :, everyone.cpu()]  # (2, B, G)
    scores = torch.stack([to_images, to_texts]) - noise.to(to_texts)
    pictures, texts = scores.masked_fill(own, -torch.inf).argmax(-1).where(~own.all(1), -1)
    return pictures, texts
