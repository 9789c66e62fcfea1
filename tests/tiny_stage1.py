"""A Q-Former to pre-train, made in a moment, with random weights that are large enough to tell pairs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.model.config import PretrainingConfig
from minichat.model.qformer_pretrain import QFormerPretraining

SIDE, PATCHES, QUERIES, VOCABULARY = 28, 5, 3, 23
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "star",
    "of",
    "left",
    "##s",
]


def tiny_sizes(**changes: Any) -> PretrainingConfig:
    """W = 16, D = 12, E = 8; four layers, so that queries read twice and see each other after that."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 12,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return PretrainingConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 14,
        },
        bridge_config={"num_query_tokens": QUERIES, "qformer": {**sizes, **changes.pop("qformer", {})}},
        **{"contrast_size": 8, **changes},
    )


def tiny_pretraining(seed: int = 0, attention: str = "sdpa", **changes: Any) -> QFormerPretraining:
    torch.manual_seed(seed)
    model = QFormerPretraining(tiny_sizes(**changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    model.bridge.qformer.set_attn_implementation(attention)
    return model


def pairs(count: int, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Random pairs: patches (count, 5, 16) and texts (count, `length`) of unlike lengths, the first the longest."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY - 1, (count, length), generator=draw)
    words = torch.ones_like(ids)
    for row in range(count):
        end = length - row % (length - 3)
        ids[row, 0], ids[row, end - 1], ids[row, end:] = 2, 3, 0
        words[row, end:] = 0
    return {
        "patches": torch.randn(count, PATCHES, 16, generator=draw),
        "input_ids": ids,
        "attention_mask": words,
    }


def vocabulary(folder: Path) -> Path:
    """A BERT vocabulary's folder; `[DEC]` becomes the word piece 14."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder
