"""The originals' files → an account of our tensors, and the sizes that their shapes tell."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.errors import ModelError, SettingsError
from minichat.weights.account import Account
from minichat.weights.keys import BLIP2, EVA_VIT, MINIGPT4
from minichat.weights.reading import Checkpoint, read_checkpoint

#: What shapes do not tell, by the width of the published part: attention heads, and how many blocks are used.
VISION_HEADS = {1408: 16}
VISION_LAYERS = {1408: 39}
QFORMER_HEADS = {768: 12}
MERGE = 4  # patches that are joined where there is no Q-Former

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_QUERIES = "bridge.query_tokens"
_POSITIONS = "vision_model.embeddings.position_embedding"


@dataclass(frozen=True)
class Sizes:
    """What shapes do not tell, where it is not as published."""

    vision_heads: int | None = None
    vision_layers: int | None = None
    qformer_heads: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("vision_heads", "vision_layers", "qformer_heads", "image_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least 1.")


def open_part(path: Path, what: str, *names: str) -> Checkpoint:
    """A file that must hold tensors of these names. Raises `ModelError`, saying what it was taken for."""
    checkpoint = read_checkpoint(path)
    for name in names:
        if name not in checkpoint:
            raise ModelError(f"{checkpoint.file} is no {what}: it has no tensor {name}.")
    return checkpoint


def add_vision(account: Account, checkpoint: Checkpoint, sizes: Sizes) -> dict[str, Any]:
    """Take in an EVA ViT; returns the vision encoder's configuration.

    The originals use one block less than the published file holds: all but the last, unless the width is a published
    one or `vision_layers` says how many.
    """
    width = checkpoint.plain("cls_token").shape[-1]
    blocks = {int(found[1]) for name in checkpoint if (found := _BLOCK.match(name))}
    held = len(blocks)
    layers = sizes.vision_layers or VISION_LAYERS.get(width, held - 1)
    if blocks != set(range(held)) or not 1 <= layers <= held:
        raise ModelError(f"{checkpoint.file} holds {held} blocks, and {layers} are needed: it is not a whole encoder.")
    account.add(checkpoint, EVA_VIT, lambda name: (found := _BLOCK.match(name)) is not None and int(found[1]) >= layers)
    patch = checkpoint.plain("patch_embed.proj.weight").shape[-1]
    side = math.isqrt(max(0, checkpoint.plain("pos_embed").shape[1] - 1))
    size = sizes.image_size or side * patch
    if size % patch:
        raise SettingsError(f"image_size is {size}; it must be a multiple of the patch size {patch}.")
    resize_positions(account, size // patch)
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads("vision", width, sizes.vision_heads, VISION_HEADS),
        "intermediate_size": checkpoint.plain("blocks.0.mlp.fc1.weight").shape[0],
        "image_size": size,
        "patch_size": patch,
    }


def resize_positions(account: Account, side: int) -> None:
    """Have `side` × `side` patches: position embeddings for another number are interpolated."""
    piece = account.piece(_POSITIONS)
    if piece.plain.shape[1] != 1 + side * side:
        account.replace(_POSITIONS, lambda: _resized(piece.checkpoint[piece.name], side))


def _resized(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + P, W) → (1, 1 + side², W) (minigpt4/models/eva_vit.py, interpolate_pos_embed)."""
    head, grid = positions.float().split([1, positions.shape[1] - 1], dim=1)
    old = math.isqrt(grid.shape[1])
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, W, √P, √P)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([head, grid.flatten(2).transpose(1, 2)], dim=1)


def heads(part: str, width: int, given: int | None, published: dict[int, int]) -> int:
    """How many attention heads a part of this width has. Raises `SettingsError` where nothing tells."""
    count = given or published.get(width)
    if count is None:
        known = ", ".join(map(str, published))
        raise SettingsError(f"A {part} part of width {width} is not a published one ({known}): give --{part}-heads.")
    if width % count:
        raise SettingsError(f"{part}_heads is {count}, which does not divide the width {width}.")
    return count


def add_bridge(account: Account, qformer: Checkpoint | None, projection: Checkpoint | None) -> None:
    """Take in the Q-Former's file, then what a training run saved, which comes later and replaces it."""
    if qformer is not None:
        account.add(qformer, BLIP2)
    if projection is not None:
        account.add(projection, MINIGPT4)


def bridge_sizes(account: Account, vision: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The bridge's configuration: a Q-Former where one was taken in, else patches joined.

    A projection that was taken in must fit; where there is none, it is to be trained, and four patches are joined.
    """
    patches = vision["hidden_size"]
    trained = "projection.weight" in account
    if _QUERIES not in account:
        merge = _merge(account, patches) if trained else MERGE
        if "bridge.ln_vision.weight" not in account:  # the original leaves it as it was made
            account.replace("bridge.ln_vision.weight", lambda: torch.ones(patches))
            account.replace("bridge.ln_vision.bias", lambda: torch.zeros(patches))
        return {"kind": "patch_merge", "merge": merge}
    _, _, width = _shape(account, _QUERIES, 3)
    if trained and projection_sizes(account)[1] != width:
        asked, taken = projection_sizes(account)
        raise ModelError(
            f"{asked} takes features of width {taken}, but {account.source(_QUERIES)} has the width {width}: they do "
            "not belong together."
        )
    return qformer_sizes(account, patches, sizes)


def _merge(account: Account, patches: int) -> int:
    """How many patches the projection takes as one."""
    asked, taken = projection_sizes(account)
    merge, rest = divmod(taken, patches)
    if rest or not merge:
        raise ModelError(
            f"{asked} takes features of width {taken}, but patches have the width {patches}: give --qformer, or "
            "another vision encoder."
        )
    return merge


def qformer_sizes(account: Account, patches: int, sizes: Sizes) -> dict[str, Any]:
    """The configuration of the Q-Former that was taken in; it must read patches of the width `patches`."""
    _, count, width = _shape(account, _QUERIES, 3)
    layer = "bridge.qformer.encoder.layer"
    reading = [number for number in range(512) if f"{layer}.{number}.crossattention.attention.key.weight" in account]
    if not reading or f"{layer}.0.intermediate_query.dense.weight" not in account:
        raise ModelError(f"The Q-Former of {account.source(_QUERIES)} has no layers: it is not a whole one.")
    reader = f"{layer}.{reading[0]}.crossattention.attention.key.weight"
    if (read := _shape(account, reader, 2)[1]) != patches:
        raise ModelError(
            f"{account.source(reader)} reads patches of width {read}, but the vision encoder's have the width "
            f"{patches} (hidden_size): they do not belong together."
        )
    layers = sum(f"{layer}.{number}.output_query.dense.weight" in account for number in range(512))
    return {
        "kind": "qformer",
        "num_query_tokens": count,
        "qformer": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads("qformer", width, sizes.qformer_heads, QFORMER_HEADS),
            "intermediate_size": _shape(account, f"{layer}.0.intermediate_query.dense.weight", 2)[0],
            "cross_attention_frequency": reading[1] - reading[0] if len(reading) > 1 else layers,
        },
    }


def projection_sizes(account: Account) -> tuple[str, int]:
    """How to speak of the projection, and the width that it takes."""
    return account.source("projection.weight"), _shape(account, "projection.weight", 2)[1]


def _shape(account: Account, name: str, dimensions: int) -> tuple[int, ...]:
    shape = account.shape(name)
    if len(shape) != dimensions:
        raise ModelError(f"The tensor {account.source(name)} has the shape {shape}: it is not what its name says.")
    return shape
