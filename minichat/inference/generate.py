"""Generation: the decoding loop with its KV cache, for one reply or a batch, and the lock that takes turns at steps."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TopPLogitsWarper,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import ModelOutput

from minichat.device.placement import entry_device
from minichat.errors import SettingsError
from minichat.inference.sampling import Decoder, GenerationSettings, ReplyText, Stops
from minichat.model.minichat import ReplyPenalty

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration


# --- One row times a bfloat16 matrix on a CPU, by PyTorch's own code in place of oneDNN's.
#
# To write a token is to read each of the LLM's matrices once, for one row. oneDNN, which PyTorch takes for bfloat16
# where there is AVX-512, needs about twice the time of PyTorch's own product then (`benchmarks/full_size.py`); for
# more rows than two it is far faster.


_ONEDNN: Any = torch.backends.mkldnn


class _Aside:
    """oneDNN put aside for as long as anyone wants it. The setting is the whole process's, so users are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = bool(_ONEDNN.enabled)
                _ONEDNN.enabled = False
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _ONEDNN.enabled = self._before


_aside = _Aside()


@contextmanager
def one_row(embeds: Tensor) -> Iterator[None]:
    """Around the reading of embeddings (B, T, H): puts oneDNN aside where there is one row, in bfloat16 on a CPU.

    What another thread multiplies meanwhile is right, but slower.
    """
    if embeds.device.type == "cpu" and embeds.dtype == torch.bfloat16 and embeds.shape[0] * embeds.shape[1] == 1:
        with _aside:
            yield
    else:
        yield


# --- Attention of one new token of each row, on a CPU, in 16 bits: as plain matrix products.
#
# PyTorch's scaled dot product attention is made for many queries. For one, with keys of its own for each head, it needs
# two to four times what two batched products do (`benchmarks/engine.py --dtype bfloat16`). Where heads share keys,
# transformers lets their queries be one matrix, and it is as fast.


_NAME = "minichat_one_query"


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Queries (B, H, 1, D), keys and values (B, H, L, D), a mask to be added (B, 1, 1, L) → (B, 1, H, D)."""
    other = any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if query.shape[2] != 1 or query.shape[1] != key.shape[1] or other or scaling is None or attention_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scores = torch.matmul(key, (query * scaling).transpose(2, 3)).transpose(2, 3)  # (B, H, 1, L)
    weights = (scores + attention_mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)


@contextmanager
def one_query(config: PretrainedConfig, embeds: Tensor) -> Iterator[None]:
    """Around an LLM's pass over embeddings (B, T, H), by one thread at a time: takes this way where it is the faster.

    `config` is the LLM's own, by which its layers choose how to attend.
    """
    heads = getattr(config, "num_attention_heads", 0)
    shared = heads != getattr(config, "num_key_value_heads", heads)
    if (
        embeds.shape[1] != 1
        or embeds.device.type != "cpu"
        or embeds.dtype == torch.float32
        or shared
        or config._attn_implementation != "sdpa"
    ):
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


# --- A lock that is handed on in the order of asking, so that many replies come forward step by step together.


_LOOK_AGAIN = 1.0  # seconds after which one who waits looks by himself: Ctrl-C may have taken the call to him


class _Ticket:
    """A place in the queue; whose gate is opened looks whether it is the first."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.gate = threading.Lock()
        self.gate.acquire()


class StepLock:
    """`with step_lock:` admits one thread at a time, first come, first served. A thread inside must not enter again.

    A plain lock lets the thread that just left in again before the others have woken up: one reply would then be
    written to its end while the others wait.

    The first in the queue is inside, so there are never two, wherever Ctrl-C breaks in: each change of the queue is one
    atomic call. A place that Ctrl-C left behind is given back when its thread comes again.
    """

    def __init__(self) -> None:
        self._queue: deque[_Ticket] = deque()

    def __enter__(self) -> None:
        try:
            self._leave()
            ticket = _Ticket()
            self._queue.append(ticket)
            while self._queue[0] is not ticket:
                ticket.gate.acquire(timeout=_LOOK_AGAIN)
        except BaseException:  # Ctrl-C while waiting
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def taken(self) -> bool:
        """Whether a thread is inside, or about to be."""
        return bool(self._queue)

    def let_others_pass(self) -> None:
        """Called by the thread inside: admit everyone who waits now, then go on.

        Where Ctrl-C ends the wait, the thread is no longer inside, and to leave once more changes nothing.
        """
        if len(self._queue) > 1:
            self._leave()
            self.__enter__()

    def _leave(self) -> None:
        """Give this thread's place back, if it has one, and call the one who is first then."""
        me = threading.get_ident()
        for ticket in list(self._queue):
            if ticket.thread == me:
                self._queue.remove(ticket)
        for first in list(self._queue)[:1]:
            with suppress(RuntimeError):  # it has been called already
                first.gate.release()


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
        processors.append(SuppressTokensLogitsProcessor(list(never), device=device))
    if settings.repetition_penalty != 1:
        processors.append(ReplyPenalty(float(settings.repetition_penalty), begin))
    if settings.temperature > 0:
        processors.append(_Temperature(float(settings.temperature)))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(float(settings.top_p)))
        processors.append(_GumbelNoise([settings.seed] * rows if seeds is None else seeds, device))
    return processors


@dataclass
class KVCache:
    """What the LLM has read of a conversation: its key–value cache and, entry for entry, what was read.

    A key is a token's id, or for an image token the identity of its picture. An encoder–decoder keeps nothing from one
    prompt to the next, whose words all see each other: of it, this is what is written of one reply.
    """

    keys: list[int | str] = field(default_factory=list)
    past: Cache | None = None
    encoded: ModelOutput | None = None  # an encoder–decoder's prompt, as its encoder read it

    def clear(self) -> None:
        self.keys, self.past, self.encoded = [], None, None

    def keep(self, wanted: Sequence[int | str]) -> int:
        """Crop to the longest beginning shared with `wanted` that leaves something to read. Returns its length.

        A picture is kept whole or not at all.
        """
        length = 0
        limit = min(len(self.keys), len(wanted) - 1)
        while length < limit and self.keys[length] == wanted[length]:
            length += 1
        while 0 < length < len(wanted) and isinstance(wanted[length], str) and wanted[length - 1] == wanted[length]:
            length -= 1
        if length == 0 or not self._crop(length):
            self.clear()
            return 0
        return length

    def _crop(self, length: int) -> bool:
        """Shorten the cache; False where it cannot be (a sliding window has moved on)."""
        if self.past is None:
            return False
        surplus = self.past.get_seq_length() - length
        try:
            if surplus > 0:
                # Negative = remove so many: the one meaning that crop has had throughout transformers 5.
                self.past.crop(-surplus)
        except (RuntimeError, ValueError):
            return False
        del self.keys[length:]
        return self.past.get_seq_length() == length

    def read(self, model: MiniChatForConditionalGeneration, embeds: Tensor, keys: Sequence[int | str]) -> Tensor:
        """Read embeddings (1, T, H), called `keys`; returns the logits (1, V) of what comes next, in float32."""
        if self.past is None:
            self.past = DynamicCache(config=model.config.text_config)
        try:
            with one_row(embeds):
                output = model(inputs_embeds=embeds, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        except BaseException:
            self.clear()  # some layers have read it and some have not
            raise
        self.keys.extend(keys)
        return output.logits[:, -1].float()

    def encode(self, model: MiniChatForConditionalGeneration, embeds: Tensor) -> Tensor:
        """Begin an encoder–decoder's reply to a prompt (1, T, H); returns the logits (1, V) of its first id."""
        self.clear()
        self.encoded = model.language_model.get_encoder()(inputs_embeds=embeds)
        start = torch.tensor([[_start(model)]], device=embeds.device)
        return self.write(model, start)

    def write(self, model: MiniChatForConditionalGeneration, ids: Tensor) -> Tensor:
        """Go on with an encoder–decoder's reply by ids (1, 1); returns the logits (1, V) of what comes next."""
        output = model.language_model(
            encoder_outputs=self.encoded, decoder_input_ids=ids, past_key_values=self.past, use_cache=True
        )
        self.past = output.past_key_values
        return output.logits[:, -1].float()


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, ready to be read."""

    ids: list[int]  # T ids, a slot for each image token
    keys: list[int | str]  # T keys, see `KVCache`
    features: Tensor | None  # (I, n, D), the pictures in slot order


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
        return cache.encode(model, model.embed(ids, image_features=prompt.features))
    known = cache.keep(prompt.keys)
    slots = prompt.ids[:known].count(model.config.image_token_index)
    features = prompt.features
    if features is not None:
        features = features[slots // model.config.num_image_tokens :]  # the pictures that are not known yet
    ids = torch.tensor([prompt.ids[known:]], device=_device(model))  # (1, T)
    embeds = model.embed(ids, image_features=features if features is not None and len(features) else None)  # (1, T, H)
    return cache.read(model, embeds, prompt.keys[known:])


def _device(model: MiniChatForConditionalGeneration) -> torch.device:
    """Where ids go: an LLM may be spread over several devices."""
    return entry_device(model)


def _never(model: MiniChatForConditionalGeneration) -> list[int]:
    """Ids that may not be generated: the image slot, where the LLM has a row for it; what only begins a reply."""
    slot, llm = model.config.image_token_index, model.config.text_config
    starts = [_start(model)] if model.config.is_encoder_decoder else []
    return [*starts, *([slot] if slot < llm.vocab_size else [])]


def beginning(model: MiniChatForConditionalGeneration) -> int | None:
    """What a repetition penalty counts as said before a reply (`ReplyPenalty`)."""
    return None if model.config.is_encoder_decoder else model.config.text_config.bos_token_id


def _start(model: MiniChatForConditionalGeneration) -> int:
    """What an encoder–decoder's replies begin with, before any of their words."""
    llm = model.config.text_config
    start = getattr(llm, "decoder_start_token_id", None)
    return int(llm.bos_token_id if start is None else start)


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
        self._tokenizer, self._stops, self._turnstile, self._cancelled = tokenizer, stops, step_lock, cancelled
        self._lengths = lengths

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._turnstile.let_others_pass()
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
