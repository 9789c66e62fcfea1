"""Encoder–decoder LLMs, such as T5: the encoder reads pictures and question, the decoder writes the reply.

Shapes: B rows, T tokens of the prompt, R of the reply, H the LLM's width, V the vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from minichat.model.loss import only_at, token_loss
from minichat.prompt.render import IGNORED


def encode_and_decode(
    llm: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    num_items_in_batch: int | Tensor | None = None,
    skip_logits: bool = False,
    **kwargs: Any,
) -> tuple[Tensor | None, ModelOutput]:
    """One pass: prompts (B, T, H) and, as `labels`, replies (B, R) with −100 = no loss → loss, and the LLM's output.

    The decoder reads `decoder_input_ids` or `decoder_inputs_embeds` where they are given, else the labels behind a
    start token. `skip_logits`: logits (1, N, V) of the N supervised positions alone are computed.
    """
    given = any(kwargs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    if labels is not None and not given:
        kwargs["decoder_input_ids"] = llm.prepare_decoder_input_ids_from_labels(labels=labels)
    learnt = labels.ne(IGNORED) if labels is not None and skip_logits else None  # (B, R)
    with only_at(llm.get_output_embeddings(), learnt):
        output = llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
    if labels is None:
        return None, output
    return token_loss(output.logits, labels if learnt is None else labels[learnt], num_items_in_batch), output


def generate_from_encoder(llm: Any, default: GenerationConfig | None, **kwargs: Any) -> Any:
    """`llm.generate` for prompts as embeddings: ids of replies, a start token first, as Hugging Face has them."""
    given = kwargs.pop("generation_config", None) or default or GenerationConfig()
    settings = GenerationConfig.from_dict(given.to_dict())
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(llm.generation_config, name))
    others = settings.update(**kwargs)  # settings beside a configuration are on their way out of transformers
    return llm.generate(generation_config=settings, **others)
