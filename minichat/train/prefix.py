"""What rows begin with, such as a system prompt, passed through the frozen LLM once instead of at every step.

No position before the first picture depends on anything that trains, and in a causal LLM none sees what comes after it.
So its keys and values are the same at every step, and nothing is lost if its gradients are never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from minichat.data.rows import Ids, Row
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import IGNORED

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processing import MiniChatProcessor

_WORTHWHILE = 4  # ids: for fewer, attention over two pieces costs what is saved


class Prefix:
    """The keys and values of the ids (P,) with which a conversation about a picture begins.

    Rows may begin with fewer of them: then with as many as they do. There are none (P = 0) where they would not hold:
    a part of the LLM that trains changes them, gradient checkpointing runs its layers again without them, a layer whose
    attention slides keeps only the last of them, and an encoder sees both ways.
    """

    def __init__(self, model: MiniChatForConditionalGeneration, processor: MiniChatProcessor) -> None:
        self._config = model.config.text_config
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values (1, heads, P, size of a head) of each layer
        llm: Any = model.language_model
        trains = any(weight.requires_grad for weight in llm.parameters())
        checkpoints = any(getattr(part, "gradient_checkpointing", False) for part in llm.modules())
        #: (P,)
        self.ids: Ids = np.empty(0, np.int32)
        if not (trains or checkpoints or self._config.is_encoder_decoder):
            self.ids = _beginning(processor)
        if len(self.ids) >= _WORTHWHILE:
            self._compute(model)

    def _compute(self, model: MiniChatForConditionalGeneration) -> None:
        embedding: Any = model.get_input_embeddings()
        cache = DynamicCache(config=self._config)
        ids = torch.tensor(self.ids[None], dtype=torch.long, device=embedding.weight.device)
        with torch.no_grad():
            model.language_model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        if any(keys.shape[-2] != len(self.ids) for keys, _ in self._layers):
            self.ids = self.ids[:0]

    def cache(self, rows: int, length: int) -> DynamicCache | None:
        """For a batch of so many rows without their first `length` ids: what the LLM takes as `past_key_values`."""
        if length == 0:
            return None
        cache = DynamicCache(config=self._config)
        for number, layer in enumerate(self._layers):
            cache.update(*(held[:, :, :length].expand(rows, -1, -1, -1) for held in layer), number)
        return cache


def shared(ids: Ids, rows: Sequence[Row]) -> int:
    """How many of the ids (P,) all rows begin with, short of what predicts an id that is learnt."""
    found = len(ids)
    for row in rows:
        head = row.ids[:found]
        differ = (head != ids[: len(head)]).nonzero()[0]
        learnt = (row.labels != IGNORED).nonzero()[0]
        found = max(0, min([len(head), *differ[:1].tolist(), *(learnt[:1] - 1).tolist()]))
    return found if found >= _WORTHWHILE else 0


def _beginning(processor: MiniChatProcessor) -> Ids:
    """The ids before the slots of a picture with which a conversation begins."""
    rendered = processor.render(Conversation().user("", [Image.new("RGB", (1, 1))]))
    return np.array(rendered.ids[: rendered.ids.index(processor.image_token_id)], np.int32)
