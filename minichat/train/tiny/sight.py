"""Teaching the built-in model's eyes: what a patch and a query must tell about the scene behind the picture.

A caption names a dozen facts about thousands of pixels, and a small ViT needs millions of captions to find out which
pixels they speak of. The drawn world knows where everything is, so here every patch inside a thing must name that
thing, and every query but two keeps watch over one cell of a grid and must name the thing whose centre lies there. The
heads that read the names are linear and are thrown away afterwards: what they can read, the projection can read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minichat.scenes.world import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, SIZES, Scene

GRID_COLUMNS, GRID_ROWS = 5, 6  # the cells that queries 0 to 29 watch
CELLS = GRID_COLUMNS * GRID_ROWS
QUERIES = CELLS + 2  # query 30 tells the background, query 31 how many things there are
NOTHING = len(SHAPES)  # the shape of an empty place
IGNORE = -100

# A place is described by five numbers: shape, colour, size, and the way to the thing's centre.
Places = dict[str, np.ndarray]


def labels(scene: Scene, patches: int) -> dict[str, np.ndarray]:
    """What is true of a scene, place by place.

    Args:
        scene: the scene.
        patches: patches in a row of the picture.

    Returns:
        `patch_*` of (patches²,) and `cell_*` of (30,): shape (8: nothing), colour and size as indices (−100:
        nothing), way (…, 2) to the thing's centre in sides (from a cell's centre); `background` (),
        `background_colours` (11,) zeros and ones, `count` () less one.
    """
    centres = (np.arange(patches) + 0.5) / patches
    x, y = np.tile(centres, patches), np.repeat(centres, patches)  # raster order, as the ViT's
    patch, cell = _empty(patches * patches), _empty(CELLS)
    for thing in scene.things:
        inside = (x - thing.x) ** 2 + (y - thing.y) ** 2 < thing.radius**2
        _fill(patch, inside, thing.shape, thing.colour, thing.size)
        patch["way"][inside] = np.stack([thing.x - x[inside], thing.y - y[inside]], -1)
        column, row = int(thing.x * GRID_COLUMNS), int(thing.y * GRID_ROWS)
        index = row * GRID_COLUMNS + column
        _fill(cell, index, thing.shape, thing.colour, thing.size)
        cell["way"][index] = thing.x - (column + 0.5) / GRID_COLUMNS, thing.y - (row + 0.5) / GRID_ROWS
    colours = np.array([colour in scene.background.colours for colour in COLOURS], np.float32)
    return {
        **{f"patch_{name}": value for name, value in patch.items()},
        **{f"cell_{name}": value for name, value in cell.items()},
        "background": np.array(BACKGROUNDS.index(scene.background.kind)),
        "background_colours": colours,
        "count": np.array(len(scene.things) - 1),
    }


def _empty(places: int) -> Places:
    return {
        "shape": np.full(places, NOTHING),
        "colour": np.full(places, IGNORE),
        "size": np.full(places, IGNORE),
        "way": np.zeros((places, 2), np.float32),
    }


def _fill(places: Places, where: np.ndarray | int, shape: str, colour: str, size: str) -> None:
    places["shape"][where] = SHAPES.index(shape)
    places["colour"][where] = COLOURS.index(colour)
    places["size"][where] = SIZES.index(size)


class PlaceHead(nn.Module):
    """Names the thing at each place: (B, P, D) to shape, colour, size and way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = (len(SHAPES) + 1, len(COLOURS), len(SIZES), 2)
        self.linear = nn.Linear(width, sum(self.widths))

    def loss(
        self, places: Tensor, shape: Tensor, colour: Tensor, size: Tensor, way: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and the share of things whose shape, colour and size come out right."""
        shapes, colours, sizes, ways = self.linear(places).float().flatten(0, 1).split(self.widths, -1)
        shape, colour, size, way = shape.flatten(), colour.flatten(), size.flatten(), way.flatten(0, 1)
        thing = shape != NOTHING
        # Most places are empty: they weigh a tenth, or "nothing" would be the answer everywhere for a long time.
        weight = torch.ones(len(SHAPES) + 1)
        weight[NOTHING] = 0.1
        loss = F.cross_entropy(shapes, shape, weight=weight.to(shapes.device))
        loss = loss + F.cross_entropy(colours, colour) + 0.5 * F.cross_entropy(sizes, size)
        loss = loss + 20 * (ways[thing] - way[thing]).square().sum(-1).mean()
        right = {
            "shape": (shapes.argmax(-1) == shape)[thing].float().mean(),
            "colour": (colours.argmax(-1) == colour)[thing].float().mean(),
            "size": (sizes.argmax(-1) == size)[thing].float().mean(),
            "empty": (shapes.argmax(-1) == shape)[~thing].float().mean(),
        }
        return loss, {name: value.detach() for name, value in right.items()}


class SightHeads(nn.Module):
    """The linear heads of the first stage, on patches (B, 1 + P, V) and queries (B, 32, D)."""

    def __init__(self, vision_width: int, query_width: int) -> None:
        super().__init__()
        self.patch = PlaceHead(vision_width)
        self.cell = PlaceHead(query_width)
        self.background = nn.Linear(query_width, len(BACKGROUNDS) + len(COLOURS))
        self.count = nn.Linear(query_width, MAX_THINGS)

    def forward(self, patches: Tensor, queries: Tensor, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        patch_loss, patch_right = self.patch.loss(patches[:, 1:], *_places(truth, "patch"))
        cell_loss, cell_right = self.cell.loss(queries[:, :CELLS], *_places(truth, "cell"))
        kinds, colours = self.background(queries[:, CELLS]).float().split((len(BACKGROUNDS), len(COLOURS)), -1)
        counts = self.count(queries[:, CELLS + 1]).float()
        loss = patch_loss + cell_loss + 0.5 * F.cross_entropy(kinds, truth["background"])
        loss = loss + F.binary_cross_entropy_with_logits(colours, truth["background_colours"])
        loss = loss + 0.5 * F.cross_entropy(counts, truth["count"])
        right = {f"patch_{name}": value for name, value in patch_right.items()}
        right |= {f"cell_{name}": value for name, value in cell_right.items()}
        right["background"] = (kinds.argmax(-1) == truth["background"]).float().mean()
        right["count"] = (counts.argmax(-1) == truth["count"]).float().mean()
        return loss, {name: float(value) for name, value in right.items()}


def _places(truth: dict[str, Tensor], kind: str) -> list[Tensor]:
    return [truth[f"{kind}_{name}"] for name in ("shape", "colour", "size", "way")]
