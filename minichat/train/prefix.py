"""What all rows begin with, such as a system prompt, passed through the frozen LLM once instead of at every step.

No position before the first picture depends on anything that trains, and in a causal LLM none sees what comes after it.
So its keys and values are the same at every step, and nothing is lost if its gradients are never computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from minichat.data.rows import Rows

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration

_WORTHWHILE = 4  # ids: for fewer, attention over two pieces costs what is saved


def common_prefix(sets: Sequence[Rows], image_token_id: int) -> list[int]:
    """The ids with which every row of every set begins (`Rows.common_prefix`)."""
    found = [rows.common_prefix(image_token_id) for rows in sets]
    alike = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*found, strict=False))
    return [ids[0] for ids in alike]


class Prefix:
    """The keys and values of ids (P,) with which every row begins; none at all (P = 0) where they would not hold.

    They hold while the LLM is frozen and keeps its activations: a part that trains changes them, and gradient
    checkpointing runs its layers again without them.
    """

    def __init__(self, model: MiniChatForConditionalGeneration, ids: Sequence[int]) -> None:
        self._config = model.config.text_config
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values (1, heads, P, size of a head) of each layer
        llm: Any = model.language_model
        trains = any(weight.requires_grad for weight in llm.parameters())
        holds = not trains and not any(getattr(part, "gradient_checkpointing", False) for part in llm.modules())
        #: P
        self.length = len(ids) if holds and len(ids) >= _WORTHWHILE else 0
        if self.length:
            embedding: Any = model.get_input_embeddings()
            self._compute(llm, torch.tensor([list(ids)], device=embedding.weight.device))

    def _compute(self, llm: Any, ids: Tensor) -> None:
        cache = DynamicCache(config=self._config)
        with torch.no_grad():
            llm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self, rows: int) -> DynamicCache | None:
        """For a batch of so many rows that go on from here: what the LLM takes as `past_key_values`."""
        if not self.length:
            return None
        cache = DynamicCache(config=self._config)
        for number, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache
