"""Attention as plain matrix products, which in bfloat16 on a CPU is faster to learn through than the fused kernel.

PyTorch's fused kernel for the CPU saves the memory of the probabilities; its way back takes twice as long as the
products that it replaces. So it is left for long texts, for other precisions and for what needs no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "minichat_products"
_MOST = 2**30  # bytes of probabilities that a step may keep, over all layers


def use_products(llm: Any) -> None:
    """Let an LLM that learns through the fused kernel, in bfloat16 on a CPU, take the products where they suit."""
    weight = llm.get_input_embeddings().weight
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and llm.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        llm.set_attn_implementation(_NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers asks of an attention: queries (B, Q, T, d), keys and values (B, K, S, d) → (B, T, Q, d).

    B rows, Q heads in groups that share one of K, T tokens that look at S. `attention_mask` (B, 1, T, S) is true where
    one may look; None: at what came before.
    """
    rows, heads, tokens, width = query.shape
    shared, seen = key.shape[1:3]
    layers: Any = module.config
    kept = rows * heads * tokens * seen * query.element_size() * layers.num_hidden_layers
    plain = dropout == 0 and getattr(module, "is_causal", True) and all(more.get(name) is None for name in _SPECIAL)
    if scaling is None or not (torch.is_grad_enabled() and plain and kept <= _MOST and _alike(attention_mask)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    if attention_mask is None:
        may = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(seen - tokens)
    else:
        may = attention_mask[0, 0]
    bias = torch.zeros(may.shape, dtype=query.dtype, device=query.device)
    bias = bias.masked_fill(~may, torch.finfo(query.dtype).min).repeat(heads // shared, 1)  # (Q / K · T, S)
    # Heads that share keys are rows of one product.
    asked = query.reshape(rows * shared, -1, width)  # (B · K, Q / K · T, d)
    found = key.reshape(rows * shared, seen, width).transpose(1, 2)
    scores = torch.baddbmm(bias, asked, found, alpha=scaling)  # (B · K, Q / K · T, S)
    mixed = scores.softmax(-1) @ value.reshape(rows * shared, seen, -1)
    return mixed.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


#: Options that change the scores, of single LLMs.
_SPECIAL = ("softcap", "position_bias", "s_aux", "cache", "is_causal")


def _alike(mask: Tensor | None) -> bool:
    """Whether it is the same for all rows and heads."""
    return mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1 and bool((mask == mask[:1]).all()))
