"""A network small enough to make in a moment, with random weights that are large enough to tell rows apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration

VOCABULARY = 50  # also the slot's id: the first that the embedding has no row for
SIDE = 56
KINDS = ("qformer", "patch_merge")


def tiny_config(kind: str = "qformer", text: dict[str, Any] | None = None, **changes: Any) -> MiniChatConfig:
    """n = 4 image tokens for either bridge."""
    bridge: dict[str, Any] = {"kind": kind}
    if kind == "qformer":
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        bridge |= {"num_query_tokens": 4, "qformer": sizes}
    return MiniChatConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 14,
        },
        bridge_config=bridge,
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 40,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **(text or {}),
        },
        **changes,
    )


def tiny_network(
    kind: str = "qformer", seed: int = 0, text: dict[str, Any] | None = None, **changes: Any
) -> MiniChatForConditionalGeneration:
    torch.manual_seed(seed)
    model = MiniChatForConditionalGeneration(tiny_config(kind, text, **changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return model


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def row(*parts: int | str) -> list[int]:
    """Ids, with "picture" for the slots of one."""
    ids: list[int] = []
    for part in parts:
        ids += [VOCABULARY] * 4 if isinstance(part, str) else [part]
    return ids


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows → ids and attention mask (B, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


# Unlike lengths; none, one, two and three pictures, at the start, inside, at the end and side by side.
ROWS = [
    row(1, "picture", 5, 6, 7),
    row(1, 8, 9),
    row(1, 3, "picture", 4, "picture"),
    row("picture", "picture", 11, "picture", 12, 13, 14, 15),
    row(1, 16, 17, 18, 19, 20),
]
PICTURES_IN_ROW = [1, 0, 2, 3, 0]
