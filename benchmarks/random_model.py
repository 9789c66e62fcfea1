"""A model's folder with random weights in a real model's sizes: `python -m benchmarks.random_model full OUT`.

What it says is babble; what it costs to load, to hold and to run is what a trained model of these sizes costs.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from minichat.errors import ModelError
from minichat.fileio import new_folder
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.prompt.processor import MODEL_FILE, MiniChatProcessor
from minichat.weights.checkpoint_io import Entry, write_tensors
from minichat.weights.registry import find

_TEMPLATE = "vicuna-v0"
_DEVIATION = 0.02
_SHARD = 256 * 1024**2  # bytes: few are in memory while the model is written


def _vision(width: int, layers: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "image_size": 224,
        "patch_size": 14,
    }


def _qformer(width: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "cross_attention_frequency": 2,
    }
    return {"kind": "qformer", "num_query_tokens": 32, "qformer": sizes}


def _llama(width: int, layers: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


#: "full": EVA-CLIP's ViT-g and BLIP-2's Q-Former as published, and TinyLlama's sizes (1.1 billion parameters).
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "vision_config": _vision(384, 12, 6, 1536),
        "bridge_config": _qformer(384, 6, 6),
        "text_config": _llama(768, 12, 12, 12, 2048),
    },
    "medium": {
        "vision_config": _vision(1024, 24, 16, 4096),
        "bridge_config": _qformer(768, 12, 12),
        "text_config": _llama(1280, 16, 20, 4, 3456),
    },
    "full": {
        "vision_config": _vision(1408, 39, 16, 6144),
        "bridge_config": _qformer(768, 12, 12),
        "text_config": _llama(2048, 22, 32, 4, 5632),
    },
}


def write_random_model(size: str, out: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a model of one of the `SIZES` to the new folder `out`, a tensor at a time; the projection in float32.

    Its words are the built-in model's, fewer than its vocabulary. Raises `ModelError` where `out` is there already.
    """
    config = MiniChatConfig(
        **SIZES[size],
        template=_TEMPLATE,
        architectures=[MiniChatForConditionalGeneration.__name__],
        dtype=str(dtype).removeprefix("torch."),
    )
    with torch.device("meta"):
        state = MiniChatForConditionalGeneration(config).state_dict()
    entries = [_entry(name, tensor, dtype) for name, tensor in state.items()]
    processor = MiniChatProcessor.from_tokenizer_model(
        find("minichat-tiny") / MODEL_FILE,
        image_size=config.vision_config.image_size,
        template=config.template,
        num_image_tokens=config.num_image_tokens,
        image_token_id=config.image_token_index,
    )
    with new_folder(out, ModelError) as folder:
        write_tensors(folder, entries, shard=_SHARD)
        config.save_pretrained(folder)
        GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(folder)
        processor.save_pretrained(folder)
    return out


def _entry(name: str, tensor: Tensor, dtype: torch.dtype) -> Entry:
    stored = torch.float32 if name.startswith("projection.") else dtype
    return Entry(name, tensor.numel() * stored.itemsize, _maker(name, tensor.shape, stored))


def _maker(name: str, shape: torch.Size, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Norms as they begin and no biases; else small random numbers, the same ones each time."""

    def make() -> Tensor:
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=dtype)
        if len(shape) == 1 and name.endswith("weight"):
            return torch.ones(shape, dtype=dtype)
        random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.empty(shape, dtype=dtype).normal_(0, _DEVIATION, generator=random)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    out = write_random_model(arguments.size, arguments.out, getattr(torch, arguments.dtype))
    total = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {total / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
