"""From patches to image tokens, before the projection: (I, 1 + P, W) → (I, n, D).

I pictures, P patches (and one class token), W the vision encoder's width, n image tokens, D the bridge's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerModel

from minichat.model.configuration import BridgeConfig, MiniChatConfig


def build_bridge(config: MiniChatConfig) -> QFormerBridge | PatchMergeBridge:
    """The bridge that `config.bridge_config.kind` names."""
    kind = QFormerBridge if config.bridge_config.kind == "qformer" else PatchMergeBridge
    return kind(config.bridge_config, config.vision_config.hidden_size)


def _ln_vision(config: BridgeConfig, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.ln_vision_eps) if config.ln_vision else nn.Identity()


class QFormerBridge(nn.Module):
    """`ln_vision`, then learned queries that read the patches through the Q-Former (arXiv:2301.12597, section 3.1)."""

    def __init__(self, config: BridgeConfig, vision_width: int) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.qformer.hidden_size))
        self.qformer = Blip2QFormerModel(config.qformer)

    def forward(self, patches: Tensor) -> Tensor:
        """(I, 1 + P, W) → (I, n, D)."""
        patches = self.ln_vision(patches)
        queries = self.query_tokens.expand(patches.shape[0], -1, -1)  # (I, n, D)
        return self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state


class PatchMergeBridge(nn.Module):
    """`ln_vision`, then neighbours joined: MiniGPT-4 with Llama-2 (its `minigpt4/models/minigpt4.py::encode_img`)."""

    def __init__(self, config: BridgeConfig, vision_width: int) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.merge = config.merge

    def forward(self, patches: Tensor) -> Tensor:
        """(I, 1 + P, W) → (I, P / merge, merge · W): each token is a row of `merge` patches, not a square."""
        patches = self.ln_vision(patches)[:, 1:]  # without the class token: (I, P, W)
        pictures, count, width = patches.shape
        return patches.reshape(pictures, count // self.merge, self.merge * width)
