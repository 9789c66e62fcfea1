"""From patches to image tokens, before the projection: (I, R + P, W) → (I, n, D).

Shapes: I pictures, P patches and R tokens before them (the class token, and a DINO's registers), W the vision encoder's
width, n image tokens, D the bridge's width, L word pieces of a question.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from minichat.model.config import BridgeConfig, MiniChatConfig
from minichat.model.vision import grid_side, leading_tokens

Words = tuple[Tensor, Tensor]  # ids and mask (I, L), padded on the right: what an instructed Q-Former reads


def words_of(batch: Mapping[str, Tensor], device: torch.device | None = None) -> Words | None:
    """The words in a batch as a processor makes it, on the device; None where it has none."""
    if "qformer_input_ids" not in batch:
        return None
    return batch["qformer_input_ids"].to(device), batch["qformer_attention_mask"].to(device)


def build_bridge(config: MiniChatConfig) -> QFormerBridge | PatchMergeBridge | PoolBridge:
    """The bridge that `config.bridge_config.kind` names."""
    bridge, vision = config.bridge_config, config.vision_config
    if bridge.kind == "qformer":
        return QFormerBridge(bridge, vision.hidden_size)
    if bridge.kind == "pool":
        return PoolBridge(bridge, vision.hidden_size, leading_tokens(vision), grid_side(vision))
    return PatchMergeBridge(bridge, vision.hidden_size, leading_tokens(vision))


def _ln_vision(config: BridgeConfig, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.ln_vision_eps) if config.ln_vision else nn.Identity()


class QFormerBridge(nn.Module):
    """`ln_vision`, then learned queries that read the patches through the Q-Former (arXiv:2301.12597, section 3.1).

    An instructed one has an embedding of words, which the queries attend to as well (InstructBLIP).
    """

    def __init__(self, config: BridgeConfig, vision_width: int) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.qformer.hidden_size))
        if config.instructed:
            self.embeddings = Blip2TextEmbeddings(config.qformer)
        self.qformer = Blip2QFormerModel(config.qformer)

    def forward(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """(I, R + P, W) → (I, n, D). `words`: of an instructed one, what is asked of each picture."""
        patches = self.ln_vision(patches)
        queries = self.query_tokens.expand(patches.shape[0], -1, -1)  # (I, n, D)
        if words is None:
            return self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        ids, mask = words
        n = queries.shape[1]
        places = torch.arange(ids.shape[1], device=ids.device)[None]  # transformers' own are left empty by a load
        return self.qformer(
            query_embeds=self.embeddings(input_ids=ids, position_ids=places, query_embeds=queries),  # (I, n + L, D)
            query_length=n,
            attention_mask=torch.cat([mask.new_ones(len(mask), n), mask], dim=1),
            encoder_hidden_states=patches,
        ).last_hidden_state[:, :n]


class PatchMergeBridge(nn.Module):
    """`ln_vision`, then neighbours joined: MiniGPT-4 with Llama-2 (its `minigpt4/models/minigpt4.py::encode_img`)."""

    def __init__(self, config: BridgeConfig, vision_width: int, leading: int = 1) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.merge, self.leading = config.merge, leading

    def forward(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """(I, R + P, W) → (I, P / merge, merge · W): each token is a row of `merge` patches, not a square."""
        patches = self.ln_vision(patches)[:, self.leading :]  # without the class token: (I, P, W)
        pictures, count, width = patches.shape
        return patches.reshape(pictures, count // self.merge, self.merge * width)


class PoolBridge(nn.Module):
    """`ln_vision`, then the mean of each square of patches: tokens as they lie in the picture."""

    def __init__(self, config: BridgeConfig, vision_width: int, leading: int, side: int) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.pool_side, self.leading, self.side = config.pool_side, leading, side

    def forward(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """(I, R + P, W) → (I, ⌈√P / pool_side⌉², W). Squares at the right and at the foot may be smaller."""
        grid = self.ln_vision(patches)[:, self.leading :].unflatten(1, (self.side, self.side))  # (I, √P, √P, W)
        means = nn.functional.avg_pool2d(grid.permute(0, 3, 1, 2), self.pool_side, ceil_mode=True)
        return means.flatten(2).transpose(1, 2)
