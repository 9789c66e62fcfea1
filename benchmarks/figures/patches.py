"""What each patch of stage 0a's ViT tells of a held-out picture, through linear heads.

The heads of the training were thrown away. These are of the same kind, trained anew on what the finished ViT makes of
other pictures: what they can read is in the patches.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import Blip2VisionConfig, Blip2VisionModel

from benchmarks.figures.paper import FROZEN, INK, WIDTH, Missing, picture, say, sheet, whole
from benchmarks.figures.world import SHOWN
from minichat.images import to_pixels
from minichat.toy.captions import LEVELS
from minichat.toy.dataset import SyntheticPicture
from minichat.toy.evaluate import held_out_scene
from minichat.toy.train_vision import AuxiliaryHeads, labels
from minichat.toy.world import COLOURS, POLYGONS, RGB, SHAPES, SIZES, random_scene
from minichat.toy.world import draw as draw_scene
from minichat.weights.qformer import read_vision

PICTURES, STEPS, BATCH = 320, 500, 32  # that the heads learn from
_TOLD = (len(SHAPES) + 1, len(COLOURS), len(SIZES), LEVELS, LEVELS)  # of a patch, in the heads' order
_NOTHING = len(SHAPES)
Values = NDArray[np.float64]


class Eyes:
    """A finished ViT whose patches are read by heads of stage 0a, P = side² of them."""

    def __init__(self, folder: Path) -> None:
        """Raises `ModelError` for a folder that holds no vision encoder."""
        sizes, weights = read_vision(str(folder))
        self.config = Blip2VisionConfig(**sizes)
        self._vit: Any = Blip2VisionModel(self.config).eval()
        self._vit.post_layernorm = nn.Identity()
        self._vit.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self.side = self.config.image_size // self.config.patch_size
        torch.manual_seed(0)
        self.heads = AuxiliaryHeads(self.config.hidden_size)

    @torch.no_grad()
    def states(self, image: Image.Image) -> Tensor:
        """A picture → (1, 1 + P, W), normalised as by whoever reads a ViT."""
        states: Tensor = self._vit(pixel_values=to_pixels([image], self.config.image_size)).last_hidden_state
        return layer_norm(states, states.shape[-1:])

    def learn(self, pictures: int = PICTURES, steps: int = STEPS) -> None:
        """Train the heads, and nothing else."""
        scenes = [random_scene(random.Random(f"heads {number}")) for number in range(pictures)]
        states = torch.cat([self.states(SyntheticPicture("", b"", s, n).open()) for n, s in enumerate(scenes)])
        told = [labels(scene, self.side) for scene in scenes]
        truth = {name: torch.from_numpy(np.stack([each[name] for each in told])) for name in told[0]}
        optimizer = torch.optim.Adam(self.heads.parameters(), lr=1e-2)
        for step in range(steps):
            chosen = torch.randperm(pictures)[:BATCH]
            loss = self.heads(states[chosen], {name: value[chosen] for name, value in truth.items()}) / BATCH
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def tell(self, image: Image.Image) -> tuple[list[int], list[int], Values]:
        """Of each patch the shape, 8 for nothing, the colour, and where its thing's centre is: (P, 2) in sides."""
        told = self.heads.patch(self.states(image)[0, 1:]).split(_TOLD, -1)
        shape, colour, _, x, y = (logits.argmax(-1) for logits in told)
        return shape.tolist(), colour.tolist(), (torch.stack([x, y], 1).double().numpy() + 0.5) / LEVELS


def centres(side: int) -> Values:
    """The patches' middles (P, 2), across and down, in raster order."""
    at = (np.arange(side) + 0.5) / side
    return np.stack([np.tile(at, side), np.repeat(at, side)], 1)


def draw(road: Path) -> Any:
    """A picture, and what its patches say: colour, shape, and where the centre of their thing is."""
    folder = road / "0a_vision"
    if not (folder / "config.json").is_file():
        raise Missing(f"there is no {folder / 'config.json'}, which the end of stage 0a leaves")
    eyes = Eyes(folder)
    eyes.learn()
    scene, _ = held_out_scene(SHOWN)
    image = draw_scene(scene, eyes.config.image_size, SHOWN)
    shapes, colours, places = eyes.tell(image)
    step = WIDTH / 4
    figure = sheet(step + 0.3)
    axes = whole(figure)
    names = "a picture never seen", "the colours that patches name", "the shapes", "where each thing's centre is"
    for number, name in enumerate(names):
        left, size = number * step + 0.06, step - 0.12
        say(axes, left, 0.16, name)
        if number in (0, 3):
            picture(axes, image, left, 0.3, size)
        else:
            axes.add_patch(_square((left, 0.3), size, "white", FROZEN))
        for patch, (x, y) in enumerate(centres(eyes.side)):
            if number and shapes[patch] != _NOTHING:
                at = np.array([left + x * size, 0.3 + y * size])
                end = np.array([left, 0.3]) + places[patch] * size
                fill = tuple(channel / 255 for channel in RGB[COLOURS[colours[patch]]])
                _mark(axes, number, at, size / eyes.side, fill, SHAPES[shapes[patch]], end)
    return figure


def _mark(axes: Any, panel: int, at: Values, cell: float, fill: tuple[float, ...], shape: str, end: Values) -> None:
    """What one patch says, in its place: a square of the colour, the shape, or a line to the centre."""
    if panel == 1:
        axes.add_patch(_square((at[0] - cell / 2, at[1] - cell / 2), cell, fill, "white"))
    elif panel == 2:
        _shape(axes, shape, at, cell * 0.42)
    else:
        axes.plot([at[0], end[0]], [at[1], end[1]], color="white", linewidth=0.9, zorder=4)
        axes.plot(*end, "o", color="white", markeredgecolor=INK, markersize=3, markeredgewidth=0.5, zorder=5)


def _square(corner: tuple[float, float], side: float, fill: Any, edge: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, side, side, facecolor=fill, edgecolor=edge, linewidth=0.6)


def _shape(axes: Any, shape: str, at: Values, radius: float) -> None:
    from matplotlib.patches import Circle, Polygon

    if shape in POLYGONS:
        axes.add_patch(Polygon(at + radius * np.array(POLYGONS[shape]), facecolor=INK))
    else:
        hollow = shape == "ring"
        axes.add_patch(
            Circle((at[0], at[1]), radius * 0.8, facecolor="white" if hollow else INK, edgecolor=INK, linewidth=1.6)
        )
