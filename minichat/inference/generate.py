"""Generation: the decoding loop with its KV cache, for one reply or a batch, and the lock that takes turns at steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TopPLogitsWarper,
)

from minichat.device.placement import entry_device
from minichat.errors import SettingsError
from minichat.inference.kv_cache import KVCache, decoder_start
from minichat.inference.request import Prompt, StepLock, beginning, unsaid
from minichat.inference.sampling import Decoder, GenerationSettings, ReplyText, Stops
from minichat.model.generation import ReplyPenalty

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration


# --- Embeddings → stream of text: choosing the next id, the key–value cache, one reply or a batch of them.
#
# Shapes: I pictures, n image tokens of a picture, D the bridge's width, H the LLM's width, B rows, T tokens, V the
# vocabulary.


class _Temperature(LogitsProcessor):
    """Divides scores by the temperature, after moving the best to 0: no temperature overflows."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return (scores - scores.amax(-1, keepdim=True)) / self._temperature


class _GumbelNoise(LogitsProcessor):
    """Makes the likeliest id a sample: argmax(scores + Gumbel noise) is distributed as softmax(scores).

    So sampling needs no global random numbers, and a row draws the same whichever batch it is in.
    (The Gumbel-max trick: Maddison, Tarlow and Minka, A* Sampling, 2014, section 2.)
    """

    def __init__(self, seeds: Sequence[int | None], device: torch.device) -> None:
        chosen = [secrets.randbits(63) if seed is None else int(seed) for seed in seeds]
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in chosen]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores)  # (B, V)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()


class _Never(SuppressTokensLogitsProcessor):
    """Of a type of its own: of two of one type, its own and this one, transformers warns."""


def logits_processors(
    settings: GenerationSettings,
    rows: int,
    device: torch.device,
    never: Sequence[int] = (),
    seeds: Sequence[int | None] | None = None,
    begin: int | None = None,
) -> LogitsProcessorList:
    """What turns logits (B, V) into scores whose largest is the next id.

    Args:
        never: ids that may not be generated.
        begin: what a repetition penalty counts as said before the reply.
        seeds: of the rows, where they are sampled and each has its own.
    """
    processors = LogitsProcessorList()
    if never:
        processors.append(_Never(list(never), device=device))
    if settings.repetition_penalty != 1:
        processors.append(ReplyPenalty(float(settings.repetition_penalty), begin))
    if settings.temperature > 0:
        processors.append(_Temperature(float(settings.temperature)))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(float(settings.top_p)))
        processors.append(_GumbelNoise([settings.seed] * rows if seeds is None else seeds, device))
    return processors


def stream(
    model: MiniChatForConditionalGeneration,
    prompt: Prompt,
    cache: KVCache,
    settings: GenerationSettings,
    reply: ReplyText,
    *,
    step_lock: StepLock | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Generate one reply, greedily or by sampling; yields text as it becomes safe to show.

    Only what `cache` does not hold yet is read, and `cache` is left holding all that was. `step_lock` is passed once
    for each step, so that replies of one model come forward together. `cancelled` is asked after each step; when it is
    true, or the iterator is closed, no other step is done. A `reply` that holds ids is gone on with.
    """
    step_lock = step_lock or StepLock()
    device = _device(model)
    choose = logits_processors(settings, 1, device, _never(model), begin=beginning(model))
    with step_lock, torch.inference_mode():
        logits = _read_prompt(model, prompt, cache)
        if reply.generated:
            logits = _read_last(model, torch.tensor([reply.generated], device=device), cache)
    for step in range(settings.max_new_tokens):
        with step_lock, torch.inference_mode():
            if step > 0:
                last = torch.tensor([reply.generated[-1:]], device=device)  # (1, 1)
                logits = _read_last(model, last, cache)
            if choose:
                logits = choose(torch.tensor([reply.generated], dtype=torch.long, device=device), logits)
            token = int(logits.argmax())
        piece = reply.push(token)
        if piece:
            yield piece
        if reply.finished or cancelled():
            return
    if piece := reply.close():
        yield piece


def _read_last(model: MiniChatForConditionalGeneration, ids: Tensor, cache: KVCache) -> Tensor:
    """Read the reply's last ids (1, T); returns the logits (1, V) of the next."""
    if model.config.is_encoder_decoder:
        return cache.write(model, ids)
    return cache.read(model, model.get_input_embeddings()(ids), ids[0].tolist())


def _read_prompt(model: MiniChatForConditionalGeneration, prompt: Prompt, cache: KVCache) -> Tensor:
    """Read what is new in the prompt; returns the logits (1, V) of the reply's first id."""
    if model.config.is_encoder_decoder:
        ids = torch.tensor([prompt.ids], device=_device(model))  # (1, T)
        return cache.encode(model, model.embed(ids, image_features=prompt.seen()))
    known = cache.keep(prompt.keys)
    slots = prompt.ids[:known].count(model.config.image_token_index)
    features = prompt.seen(slots // model.config.num_image_tokens)  # of the pictures that are not known yet
    ids = torch.tensor([prompt.ids[known:]], device=_device(model))  # (1, T)
    embeds = model.embed(ids, image_features=features)  # (1, T, H)
    return cache.read(model, embeds, prompt.keys[known:])


def _device(model: MiniChatForConditionalGeneration) -> torch.device:
    """Where ids go: an LLM may be spread over several devices."""
    return entry_device(model)


def _never(model: MiniChatForConditionalGeneration) -> list[int]:
    """Ids that may not be generated: what no reply holds, and what only begins one."""
    return [*([decoder_start(model)] if model.config.is_encoder_decoder else []), *unsaid(model)]


class _StopRows(StoppingCriteria):
    """Ends each row at its own stop or its own length, and all of them when `cancelled`; between steps lets other
    replies pass. Without `lengths` rows have no length of their own.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        stops: Stops,
        step_lock: StepLock,
        cancelled: Callable[[], bool],
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._tokenizer, self._stops, self._step_lock, self._cancelled = tokenizer, stops, step_lock, cancelled
        self._lengths = lengths

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._step_lock.let_others_pass()
        over = self._cancelled()
        rows = input_ids.tolist()
        done = [over or self._stopped(row) for row in rows]
        if self._lengths is not None:
            done = [end or len(row) >= most for end, row, most in zip(done, rows, self._lengths, strict=True)]
        return torch.tensor(done, device=input_ids.device)  # (B,)

    def _stopped(self, ids: list[int]) -> bool:
        if self._stops.ended_by(ids):
            return True
        return (
            self._stops.strings_end
            and bool(self._stops.strings)
            and self._stops.found_in(self._tokenizer.decode(ids)) >= 0
        )


def generate_rows(
    model: MiniChatForConditionalGeneration,
    embeds: Tensor,
    attention_mask: Tensor,
    settings: GenerationSettings,
    tokenizer: Decoder,
    stops: Stops,
    *,
    seeds: Sequence[int | None] | None = None,
    lengths: Sequence[int] | None = None,
    step_lock: StepLock | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[ReplyText]:
    """B prompts at once, also with beams: embeddings (B, T, H) padded on the left and their mask (B, T) → B replies.

    `seeds` and `lengths` are those of the rows, in place of the settings' `seed` and `max_new_tokens`. Beams take all
    rows to one length.
    """
    if lengths is not None and settings.num_beams > 1:
        raise SettingsError("Beam search takes all rows to one length: give one max_new_tokens, or num_beams=1.")
    step_lock = step_lock or StepLock()
    ends = [s[0] for s in stops.sequences if len(s) == 1]
    begun = int(model.config.is_encoder_decoder)  # an encoder–decoder's rows begin with its start token
    whole = None if lengths is None else [begun + length for length in lengths]
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens if lengths is None else max(lengths),
        num_beams=settings.num_beams,
        do_sample=False,  # sampling is done by the processors
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        # A model's own generation_config.json must not change what was asked for here.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=float(settings.length_penalty),
        early_stopping=False,
        min_length=0,
        num_return_sequences=1,
        return_dict_in_generate=False,
        use_cache=True,
    )
    with step_lock, torch.inference_mode():
        rows = model.generate(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=logits_processors(
                settings, embeds.shape[0], embeds.device, _never(model), seeds, beginning(model)
            ),
            stopping_criteria=StoppingCriteriaList([_StopRows(tokenizer, stops, step_lock, cancelled, whole)]),
        ).tolist()
    rows = [row[begun:] for row in rows]
    if lengths is not None:  # a row that has ended is filled up while others go on
        rows = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    replies = [ReplyText(tokenizer, stops) for _ in rows]
    for reply, row in zip(replies, rows, strict=True):
        reply.read(row)
    return replies
