"""What each patch of a drawn picture must tell of the thing that it shows, and the heads that read it there.

A caption names a dozen facts about thousands of pixels, and a small ViT needs millions of captions to find out which
pixels they speak of. The drawn world knows where everything is, so each patch on a thing must name its shape, colour
and size, and where its centre is. The heads are linear and are thrown away: what they can read, a Q-Former can read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from minichat.scenes.description import LEVELS
from minichat.scenes.world import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, SIZES, Scene

_NOTHING = len(SHAPES)  # the shape of a patch that shows no thing
_OUTSIDE = len(BACKGROUNDS)  # the background of a picture that is not of the drawn world
_IGNORED = -100
_MARGIN = 0.01  # of the side: a patch this near to a thing's circle is on it
_NOTHING_WEIGHS = 0.1  # most patches show nothing, which would be the answer everywhere for a long time

_OF_A_PATCH = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "size": len(SIZES), "x": LEVELS, "y": LEVELS}
_WEIGHTS = {
    "shape": 1.0,
    "colour": 1.0,
    "size": 0.5,
    "x": 0.5,
    "y": 0.5,
    "background": 0.5,
    "colours": 3.0,
    "count": 0.5,
}
_OF_A_PICTURE = {"background": len(BACKGROUNDS) + 1, "colours": len(COLOURS), "count": MAX_THINGS + 1}

Labels = dict[str, NDArray[np.int64]]


def labels(scene: Scene | None, patches: int) -> Labels:
    """What is true of a picture, P = `patches`² patches in raster order.

    `shape`, `colour`, `size`, `x`, `y`: (P,) indices, the last two of levels; −100 where there is nothing to tell.
    `background`, `count`: (); `colours`: (11,) zeros and ones. Without a scene: nothing of patches and colours.
    """
    told: Labels = {name: np.full(patches * patches, _IGNORED) for name in _OF_A_PATCH}
    if scene is None:
        colours = np.full(len(COLOURS), _IGNORED)
        return told | {"background": np.array(_OUTSIDE), "colours": colours, "count": np.array(0)}
    told["shape"][:] = _NOTHING
    centres = (np.arange(patches) + 0.5) / patches
    x, y = np.tile(centres, patches), np.repeat(centres, patches)
    for thing in scene.things:
        inside = (x - thing.x) ** 2 + (y - thing.y) ** 2 < (thing.radius + _MARGIN) ** 2
        told["shape"][inside] = SHAPES.index(thing.shape)
        told["colour"][inside] = COLOURS.index(thing.colour)
        told["size"][inside] = SIZES.index(thing.size)
        told["x"][inside], told["y"][inside] = int(thing.x * LEVELS), int(thing.y * LEVELS)
    return told | {
        "background": np.array(BACKGROUNDS.index(scene.background.kind)),
        "colours": np.array([colour in scene.background.colours for colour in COLOURS], np.int64),
        "count": np.array(len(scene.things)),
    }


class SightHeads(nn.Module):
    """Linear readings of a ViT's patches, and of its class token for the picture as a whole."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(_OF_A_PATCH.values()))
        self.picture = nn.Linear(width, sum(_OF_A_PICTURE.values()))

    def forward(self, states: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """States (B, 1 + P, W), class token first, and `labels` as a batch → the sum of the pictures' losses.

        A picture's loss of shape, say, is the mean over its patches that have one to tell.
        """
        patches = self.patch(states[:, 1:]).float().split(list(_OF_A_PATCH.values()), -1)  # (B, P, …)
        whole = self.picture(states[:, 0]).float().split(list(_OF_A_PICTURE.values()), -1)  # (B, …)
        losses = dict(zip(_OF_A_PATCH, map(_mean_over_patches, patches, [truth[n] for n in _OF_A_PATCH]), strict=True))
        for name, logits in zip(_OF_A_PICTURE, whole, strict=True):
            if name == "colours":
                known = truth[name] >= 0
                each = binary_cross_entropy_with_logits(logits, truth[name].clamp(min=0).float(), reduction="none")
                losses[name] = (each * known).mean(-1)
            else:
                losses[name] = cross_entropy(logits, truth[name], reduction="none")
        return torch.stack([_WEIGHTS[name] * loss.sum() for name, loss in losses.items()]).sum()


def _mean_over_patches(logits: Tensor, truth: Tensor) -> Tensor:
    """(B, P, C), (B, P) → (B,): the weighted mean of the patches that have something to tell, 0 where none has."""
    each = cross_entropy(logits.transpose(1, 2), truth, reduction="none", ignore_index=_IGNORED)  # (B, P)
    weight = (truth >= 0).float()
    if logits.shape[-1] == _NOTHING + 1:
        weight = weight.masked_fill(truth == _NOTHING, _NOTHING_WEIGHS)
    return (each * weight).sum(-1) / weight.sum(-1).clamp(min=_NOTHING_WEIGHS)
