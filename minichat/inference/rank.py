"""Given answers, put in order by how likely the model holds each of them: VQA by ranking.

As in InstructBLIP (`predict_class` of lavis/models/blip2_models/blip2_vicuna_instruct.py and blip2_t5_instruct.py): an
answer's score is the sum of its tokens' log-probabilities, not divided by their number, so that short ones are
favoured. A decoder-only LLM is not asked for the end of it, an encoder–decoder is.

Shapes: T tokens of a prompt, C candidates, R tokens of the longest, H the LLM's width, V the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration

AT_ONCE = 64  # candidates; of a large vocabulary their logits are what takes memory


def log_probabilities(
    model: MiniChatForConditionalGeneration, embeds: Tensor, candidates: Sequence[Sequence[int]]
) -> list[float]:
    """The prompt (1, T, H) is read once; each candidate is ids, one at least. In nats, summed over its tokens."""
    if model.config.is_encoder_decoder:
        encoded = model.language_model.get_encoder()(inputs_embeds=embeds).last_hidden_state
        return [score for some in _parts(candidates) for score in _decoded(model, encoded, some)]
    cache = DynamicCache(config=model.config.text_config)
    output = model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
    first = output.logits[0, -1].float().log_softmax(-1)  # (V,)
    return [score for some in _parts(candidates) for score in _continued(model, cache, first, some)]


def _parts(candidates: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    return [candidates[start : start + AT_ONCE] for start in range(0, len(candidates), AT_ONCE)]


def _continued(
    model: MiniChatForConditionalGeneration, cache: Any, first: Tensor, candidates: Sequence[Sequence[int]]
) -> list[float]:
    """After a prompt that `cache` holds and whose last logits gave `first` (V,)."""
    ids, held = _padded(candidates, first.device)  # (C, R)
    scores = first[ids[:, 0]]
    if ids.shape[1] > 1:
        read = copy.deepcopy(cache)
        read.batch_repeat_interleave(len(candidates))
        embeds = model.get_input_embeddings()(ids[:, :-1])
        logits = model(inputs_embeds=embeds, past_key_values=read, use_cache=True).logits  # (C, R - 1, V)
        scores = scores + _summed(logits, ids[:, 1:], held[:, 1:])
    return [float(score) for score in scores]


def _decoded(
    model: MiniChatForConditionalGeneration, encoded: Tensor, candidates: Sequence[Sequence[int]]
) -> list[float]:
    ids, held = _padded(candidates, encoded.device)  # (C, R)
    outputs = BaseModelOutput(last_hidden_state=encoded.expand(len(candidates), -1, -1))
    start = model.language_model.prepare_decoder_input_ids_from_labels(labels=ids)
    logits = model.language_model(encoder_outputs=outputs, decoder_input_ids=start).logits  # (C, R, V)
    return [float(score) for score in _summed(logits, ids, held)]


def _padded(candidates: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (C, R), 0 where one is shorter than the longest, and where they are a candidate's own (C, R)."""
    longest = max(map(len, candidates))
    rows = [[*ids, *[0] * (longest - len(ids))] for ids in candidates]
    held = [[True] * len(ids) + [False] * (longest - len(ids)) for ids in candidates]
    return torch.tensor(rows, device=device), torch.tensor(held, device=device)


def _summed(logits: Tensor, ids: Tensor, held: Tensor) -> Tensor:
    """(C, R, V) → the log-probabilities of ids (C, R) where they are `held`, summed (C,)."""
    of_ids = logits.float().log_softmax(-1).gather(-1, ids[..., None].to(logits.device))[..., 0]
    return of_ids.masked_fill(~held.to(of_ids.device), 0.0).sum(-1)
