"""Where the queries of a trained Q-Former look in a picture: the attention of its last layer that reads patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.figures.paper import LARGE, SMALL, SOFT, WIDTH, Missing, picture, say, sheet, whole
from benchmarks.figures.world import SHOWN
from minichat.images import to_pixels
from minichat.model.qformer_pretrain import QFormerPretraining
from minichat.toy.evaluate import held_out_scene
from minichat.toy.world import draw as draw_scene
from minichat.weights.qformer import read_stage1

_ACROSS, _PATCH = 8, 16  # pictures in a row; pixels of a patch as it is shown
Maps = NDArray[np.float64]  # (queries, patches in a column, patches in a row), each summing up to 1


def looks(model: QFormerPretraining, pixels: Tensor) -> Maps:
    """What share of its attention each query gives to each patch of one picture (1, 3, S, S), the heads' mean.

    Of the last layer that reads patches. What a query gives to the class token is left out of the sum.
    """
    reading = [layer for layer in model.bridge.qformer.encoder.layer if layer.has_cross_attention][-1]
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        kept.append(output[1])  # (1, heads, n, 1 + P)

    model.bridge.qformer.set_attn_implementation("eager")  # the one that tells its weights
    handle = reading.crossattention.attention.register_forward_hook(keep)
    try:
        with torch.no_grad():
            model.query_states(model.encode_patches(pixels))
    finally:
        handle.remove()
    weights = kept[0][0].mean(0)[:, 1:].double()  # (n, P)
    side = round(weights.shape[1] ** 0.5)
    return np.asarray((weights / weights.sum(-1, keepdim=True)).view(-1, side, side).numpy())


def draw(road: Path) -> Any:
    """The picture, and for each query the picture with what it looks at lit up. Raises `Missing` without a model."""
    folder = road / "1_qformer"
    if not (folder / "config.json").is_file():
        raise Missing(f"there is no {folder / 'config.json'}, which the end of stage 1 leaves")
    model = read_stage1(str(folder)).model
    scene, _ = held_out_scene(SHOWN)
    side = model.config.vision_config.image_size
    maps = looks(model, to_pixels([draw_scene(scene, side, SHOWN)], side))
    shown = np.asarray(draw_scene(scene, _PATCH * maps.shape[1], SHOWN), np.float64)
    return _sheet(shown, maps)


def _sheet(shown: NDArray[np.float64], maps: Maps) -> Any:
    step = WIDTH / _ACROSS
    rows = -(-len(maps) // _ACROSS)
    figure = sheet(0.4 + rows * (step + 0.14))
    axes = whole(figure)
    say(axes, 0.08, 0.2, "Where each of the queries looks: the brighter, the more", size=LARGE, weight="bold")
    for query, looked in enumerate(maps):
        left, top = query % _ACROSS * step + 0.04, 0.4 + query // _ACROSS * (step + 0.14)
        picture(axes, _lit(shown, looked), left, top, step - 0.08)
        say(
            axes,
            left + step / 2 - 0.04,
            top + step - 0.02,
            f"query {query + 1}",
            size=SMALL - 0.5,
            color=SOFT,
            ha="center",
        )
    return figure


def _lit(shown: NDArray[np.float64], looked: NDArray[np.float64]) -> Image.Image:
    """The picture, dark where a query does not look, patch by patch."""
    patch = shown.shape[0] // looked.shape[0]
    light = np.kron(np.sqrt(looked / looked.max()), np.ones((patch, patch)))[..., None]
    return Image.fromarray((shown * (0.16 + 0.84 * light)).astype(np.uint8), "RGB")
