"""What transformers' `generate` needs here: the cache of an earlier turn, penalties, and encoder–decoders."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from minichat.errors import PromptError

# --- `generate` with the cache of an earlier turn: what is given may be the whole conversation, or only what is new.
#
# Shapes: B rows, P positions in the cache, T tokens given, H the LLM's width.


_READ = "_minichat_read"  # an attribute, and not a table beside it: a copied cache keeps it


@dataclass(frozen=True)
class Read:
    """What a cache was filled with: prompt and reply, the reply's last token too, which no step has read."""

    ids: Tensor  # (B, P + 1)
    mask: Tensor  # (B, P + 1)


def remember(cache: Cache | None, ids: Tensor, mask: Tensor) -> None:
    """Note which ids (B, P + 1) a cache holds; `mask` (B, ≤ P + 1) is the prompt's."""
    if cache is not None and ids.shape[0] == mask.shape[0]:
        rest = mask.new_ones(ids.shape[0], ids.shape[1] - mask.shape[1])
        setattr(cache, _READ, Read(ids, torch.cat([mask, rest], 1)))


@dataclass(frozen=True)
class Start:
    """Where a generation goes on: ids and mask of the whole conversation, and how much of it is not in `given`."""

    ids: Tensor | None  # (B, whole), as far as they are known
    mask: Tensor  # (B, whole)
    before: int  # positions before the first given one that the cache holds
    unread: Tensor | None  # (B, 1): the last reply's last token, where it is neither in the cache nor given


def generation_start(cache: Cache | None, ids: Tensor | None, count: tuple[int, int], mask: Tensor | None) -> Start:
    """How given ids, `count` (B, T) of them or of embeddings, stand to a cache.

    A mask of P + T positions says that only what is new was given, and one of T where the cache holds T or more cannot
    say anything else. Where that leaves it open, ids that begin as the cache does are the whole conversation. To ids
    that are the next turn's alone belongs the reply's last token, which the cache has not: it is put before them,
    unless they begin with it.

    Raises `PromptError` for a mask of another length.
    """
    rows, given = count
    device = None if ids is None else ids.device
    past = 0 if cache is None else int(cache.get_seq_length())
    own = torch.ones(rows, given, dtype=torch.long, device=device) if mask is None else mask
    if own.shape[1] not in (given, past + given):
        raise PromptError(
            f"attention_mask covers {own.shape[1]} positions; {given} are given and {past} are in past_key_values: "
            f"let it cover {given} or {past + given}."
        )
    read: Read | None = getattr(cache, _READ, None)
    if read is not None and (read.ids.shape[0] != rows or read.ids.shape[1] < past):
        read = None
    if past == 0:
        return Start(ids, own, 0, None)
    if own.shape[1] == past + given:
        return Start(
            None if read is None or ids is None else torch.cat([read.ids[:, :past].to(ids), ids], 1), own, past, None
        )
    if read is None or ids is None:
        if given > past:
            return Start(ids, own, 0, None)
        return Start(None, torch.cat([own.new_ones(rows, past), own], 1), past, None)
    known, last = read.ids.to(ids).tensor_split([past], 1)
    if given > past and torch.equal(ids[:, :past], known):
        return Start(ids, own, 0, None)
    kept = read.mask[:, :past].to(own)
    if last.shape[1] != 1 or torch.equal(ids[:, :1], last):
        return Start(torch.cat([known, ids], 1), torch.cat([kept, own], 1), past, None)
    return Start(torch.cat([known, last, ids], 1), torch.cat([kept, own.new_ones(rows, 1), own], 1), past, last)


# --- Penalties of a reply, and replies of an encoder–decoder.


class ReplyPenalty(LogitsProcessor):
    """The repetition penalty of a reply's ids (B, T) and of `begin`, which in the originals stands for the prompt.

    MiniGPT-4 and LAVIS give transformers 4.30 to 4.33 embeddings, and those versions count one `<s>` in their place.
    """

    def __init__(self, penalty: float, begin: int | None) -> None:
        self._penalise, self._begin = RepetitionPenaltyLogitsProcessor(penalty), begin

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen = input_ids if self._begin is None else nn.functional.pad(input_ids, (1, 0), value=self._begin)
        return self._penalise(seen, scores)


def penalising_replies(settings: dict[str, Any], default: GenerationConfig, begin: int | None) -> dict[str, Any]:
    """The keywords of `generate`, with a repetition penalty of whole replies alone, as the originals have it.

    transformers 5.23 leaves out as many ids of a row as its prompt has padding; without a prompt's ids before them
    those are the reply's own, and a row would depend on the batch it is in.
    """
    given = settings.get("generation_config")
    penalty = settings.get("repetition_penalty", (given or default).repetition_penalty)
    if penalty is None or penalty == 1:
        return settings
    processors = [ReplyPenalty(float(penalty), begin), *(settings.get("logits_processor") or ())]
    settings = {**settings, "repetition_penalty": 1.0, "logits_processor": LogitsProcessorList(processors)}
    if given is not None:  # keywords beside it are on their way out of transformers
        settings["generation_config"] = copy.deepcopy(given)
        settings["generation_config"].repetition_penalty = settings.pop("repetition_penalty")
    return settings


def generate_from_encoder(llm: Any, default: GenerationConfig | None, **kwargs: Any) -> Any:
    """`llm.generate` for prompts as embeddings: ids of replies, a start token first, as Hugging Face has them."""
    given = kwargs.pop("generation_config", None) or default or GenerationConfig()
    settings = GenerationConfig.from_dict(given.to_dict())
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(llm.generation_config, name))
    others = settings.update(**kwargs)  # settings beside a configuration are on their way out of transformers
    return llm.generate(generation_config=settings, **others)
