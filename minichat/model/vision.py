"""The vision encoder: BLIP-2's, or one of those that transformers makes of a configuration (`AutoModel`).

Shapes: I pictures, S their side, p a patch's side, P = (S // p)² patches, R tokens before them (the class token and
registers), W the width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Blip2VisionConfig, Blip2VisionModel, PreTrainedConfig

from minichat.errors import ModelError

EVA = "blip_2_vision_model"
SIGLIP2 = "siglip2_vision_model"
#: Of transformers' own, each with the number of class tokens that stand before its patches.
KINDS = {
    EVA: 1,
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    SIGLIP2: 0,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
}
#: Their last block's output has no norm: what other models take for it belongs to another output, or to the bridge.
UNNORMED = (EVA, "clip_vision_model")


def vision_config(given: Any) -> PreTrainedConfig:
    """A configuration from a dict, BLIP-2's where none says its type. Raises `ModelError` for one of another type."""
    config = given
    if not isinstance(config, PreTrainedConfig):
        values = dict(config or {})
        kind = values.pop("model_type", EVA)
        if kind in (EVA, "instructblip_vision_model"):
            # Blip2VisionConfig's own 1e-10 makes a vision encoder that cannot be trained from scratch.
            return Blip2VisionConfig(**{"initializer_range": 0.02, **values})
        if kind not in KINDS:
            raise ModelError(f"vision_config.model_type is {kind!r}; it must be one of {', '.join(KINDS)}.")
        config = AutoConfig.for_model(kind, **values)
    elif config.model_type not in KINDS:
        raise ModelError(f"vision_config.model_type is {config.model_type!r}; it must be one of {', '.join(KINDS)}.")
    for name in ("image_size", "patch_size"):
        held = getattr(config, name, 1)
        if isinstance(held, bool) or not isinstance(held, int):
            raise ModelError(f"vision_config.{name} is {held!r}; pictures and patches are squares here, so one number.")
    if config.model_type == SIGLIP2 and math.isqrt(config.num_patches) ** 2 != config.num_patches:
        raise ModelError(f"vision_config.num_patches is {config.num_patches}; pictures are squares here, as 256 is.")
    return config


def picture_side(config: PreTrainedConfig) -> int:
    """S: how many pixels wide and high a picture is."""
    if config.model_type == SIGLIP2:  # it has no size of pictures, but so many patches
        return math.isqrt(config.num_patches) * int(config.patch_size)
    return int(config.image_size)


def grid_side(config: PreTrainedConfig) -> int:
    """√P. Where patches do not fill a picture, what is left at its right and at its foot is not seen."""
    return picture_side(config) // int(config.patch_size)


def leading_tokens(config: PreTrainedConfig) -> int:
    """R: how many tokens stand before the patches."""
    return KINDS[config.model_type] + int(getattr(config, "num_register_tokens", 0))


def inner_width(config: PreTrainedConfig) -> int:
    """The width of a block's MLP."""
    return int(getattr(config, "intermediate_size", None) or config.hidden_size * config.mlp_ratio)


def build_vision(config: PreTrainedConfig) -> nn.Module:
    """The encoder, without the norm of another output."""
    if config.model_type == EVA:
        encoder: nn.Module = Blip2VisionModel(config)
    else:
        encoder = AutoModel.from_config(config, dtype=torch.get_default_dtype())
    if config.model_type in UNNORMED:
        encoder.post_layernorm = nn.Identity()
    return encoder


def encode_pixels(encoder: nn.Module, config: PreTrainedConfig, pixel_values: Tensor) -> Tensor:
    """Pictures (I, 3, S, S) → (I, R + P, W)."""
    pixel_values = pixel_values.to(next(encoder.parameters()).dtype)
    if config.model_type != SIGLIP2:
        states: Tensor = encoder(pixel_values=pixel_values).last_hidden_state
        return states
    side, patch = grid_side(config), int(config.patch_size)
    pieces = pixel_values.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # (I, 3, √P, p, √P, p)
    pieces = pieces.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (I, P, 3 · p²), row by row
    shapes = torch.tensor([[side, side]] * len(pieces))  # read number by number, so it stays here
    return encoder(pixel_values=pieces, pixel_attention_mask=None, spatial_shapes=shapes).last_hidden_state
