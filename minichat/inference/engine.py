"""Many replies at once: each step reads something of new prompts, or writes one token of every reply, or both.

New pictures that wait are encoded together before a step, as many as fit into one batch. Whose they are has first words
before the next batch's turn comes.

Whoever waits for a reply does the work: the first of the callers does the steps for all of them, under the step lock,
and the others sleep until what they wait for is there. So there is no thread to start or to end, one caller alone is
as lazy as the iterator that it reads, and nothing runs when nobody waits.

Shapes: B rows, T tokens, L columns of the pool, I pictures, n image tokens of a picture, H the LLM's width,
V the vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minichat.device.memory import free_memory, out_of_memory
from minichat.device.placement import entry_device, look
from minichat.errors import PromptError
from minichat.inference.kv_cache import KeyValuePool, PrefixTree, States, one_query, one_row, poolable, shared
from minichat.inference.request import Line, Request, Scores, Sight, StepLock, Ticket, beginning, unsaid
from minichat.inference.sampling import Sampler, noise_generator

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration

log = logging.getLogger(__name__)

ROWS = 32  # replies that are written at once; others wait
PICTURES = 4  # new ones that are encoded at once: with more each is hardly cheaper, and the first have to wait
CHUNK = 512  # tokens of prompts that are read between two steps of writing
_SHARE = 0.1  # of the device's memory that is free: for what is kept of conversations and prompts
_MOST_KEPT = 4 * 1024**3  # bytes
_WORTH_WAITING = 16  # tokens: where another row is just reading so many that a prompt needs too, it waits for them


def why_alone(model: MiniChatForConditionalGeneration) -> str | None:
    """Why this model's replies have to be written one by one, in words; None: they can be written together."""
    llm = model.config.text_config
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder, whose words all see each other"
    if not poolable(llm):
        return "some of its layers do not keep the keys and values of all tokens"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "it is spread over several devices"
    attention = model.language_model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"its attention ({attention}) takes no mask for each row"
    if not any(name.endswith("rotary_emb") for name, _ in model.language_model.named_modules()):
        return "its positions are not rotary"
    return None


class Engine:
    """Writes the replies of one model, as many together as it has rows. Any number of threads may ask.

    Requests are admitted first come, first served. What they begin with is read once: keys and values of prompts and
    conversations are kept, up to a number of bytes, and copied where another request begins alike.
    """

    def __init__(
        self,
        model: MiniChatForConditionalGeneration,
        *,
        step_lock: StepLock | None = None,
        rows: int = ROWS,
        chunk: int = CHUNK,
        kept_bytes: int | None = None,
        state: Callable[[], Any] = lambda: None,
        see: Callable[[Sequence[Sight]], None] | None = None,
    ) -> None:
        """Make an engine for `model`.

        Args:
            step_lock: guards the model, where others use it too; one that belongs to the engine otherwise.
            rows: the most replies that are written at once.
            chunk: the most tokens of prompts that are read in a step, so that a long prompt stalls nobody.
            kept_bytes: the most that is kept of what was read; None: a tenth of what is free on the device.
            state: changes when a weight does. What was read before is then forgotten.
            see: encodes pictures, all at once; whoever calls it holds the step lock. None: prompts bring features.
        """
        self.model = model
        self.step_lock = step_lock or StepLock()
        self.rows, self.chunk = rows, chunk
        self.alone = why_alone(model)
        if self.alone:
            log.info("Replies of this model are written one by one: %s.", self.alone)
        if kept_bytes is None:
            device = entry_device(model)
            kept_bytes = min(_MOST_KEPT, int(_SHARE * look(device).device(str(device)).available))
        self.kept = PrefixTree(kept_bytes)
        self._pool = KeyValuePool(0 if self.alone else model.config.text_config.num_hidden_layers)
        self._all: list[Request] = []  # that are not over, in the order of asking; who has no row yet waits for one
        self._reading: list[Request] = []  # whose prompts are being read; their rows follow those of …
        self._running: list[Request] = []  # … whose replies are being written; the row is the place in this list
        self._gone: deque[object] = deque()  # owners to be forgotten
        self._callers = Line[_Place]()  # those who wait for what is written; the first does the steps
        self._owing = False  # the step before has read only
        self._sampler: tuple[list[Request], Sampler] | None = None
        self._state_of, self._state = state, None
        self._see = see

    # --- for those who ask

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the reply piece by piece; the work is done while iterating. Raises what went wrong for this request.

        Raises `PromptError`, at the first step, where slots and pictures do not match, or the model has to be used
        alone.
        """
        self.submit(request)
        try:
            while True:
                if text := "".join(iter(request.take, "")):
                    yield text
                    if request.pace is not None:
                        request.due = time.monotonic() + request.pace()
                if (request.over and not request.ready) or request.dropped:
                    break
                self._advance(_Place(request))
            if request.error is not None:
                raise request.error
        finally:
            request.close()
            self._tidy()

    def run(self, requests: Iterable[Request], at_once: int | None = None) -> Iterator[Request]:
        """Write all these replies, `at_once` together, and yield the requests in their order, each when it is over.

        They are drawn from the iterable as rows become free, so it may be endless. An error is the request's own
        (`error`), and ends no other; one that is over already takes no row.
        """
        at_once = min(at_once or self.rows, self.rows)
        following = iter(requests)
        flying: deque[Request] = deque()
        drawn = False
        try:
            while True:
                while not drawn and sum(not each.over for each in flying) < at_once:
                    if (request := next(following, None)) is None:
                        drawn = True
                    else:
                        flying.append(request)
                        if not request.over:
                            self.submit(request)
                while flying and (flying[0].over or flying[0].dropped):
                    while flying[0].take():
                        pass
                    yield flying.popleft()
                if flying:
                    self._advance(_Place(flying[0], [each for each in flying if not each.over]))
                elif drawn:
                    return
        finally:
            for request in flying:
                request.close()

    def submit(self, request: Request) -> None:
        """Let a request wait for a row. Raises `PromptError` where its slots and pictures do not match."""
        if self.alone:
            raise PromptError(f"This model's replies cannot be written together: {self.alone}.")
        n = self.model.config.num_image_tokens
        slots = request.prompt.ids.count(self.model.config.image_token_index)
        pictures = request.prompt.pictures
        if slots != n * pictures:
            raise PromptError(f"There are {slots} image slots and {pictures} pictures, which need {n * pictures}.")
        self._all.append(request)

    @property
    def written_now(self) -> int:
        """How many requests have a row."""
        return len(self._reading) + len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait for a row."""
        return len(self._all) - self.written_now

    def forget(self, owner: object) -> None:
        """A conversation is over: what was kept of it goes. May be called from anywhere, also by a finalizer."""
        self._gone.append(owner)
        self._tidy()

    def _tidy(self) -> None:
        """Let go at once of what nobody wants; where somebody is in a step, he sees to it."""
        if not self.step_lock.taken:
            with self.step_lock, torch.inference_mode():
                self._let_go()

    def _advance(self, place: _Place) -> None:
        """Wait, in this place, until what its caller wants is there.

        The first of those who wait does the steps; the others sleep until a step has brought them what they wait for.
        So threads take turns when there is something to be handed out, and not at each step.
        """
        self._callers.leave()
        try:
            self._callers.join(place)
            while not place.served:
                if not self._callers.is_first(place):
                    place.wait()
                    continue
                with self.step_lock:
                    if not place.served:
                        self.step()
        finally:
            self._callers.leave()

    # --- a step

    def step(self) -> None:
        """Read some of what is new, and bring every reply one token forward; at the latest the next step does.

        Only who holds the step lock may call it.
        """
        try:
            with torch.inference_mode():
                self._step()
        except BaseException:  # Ctrl-C, at any line: whoever goes on begins from what is certain, prompts and ids
            self._begin_anew()
            raise
        finally:
            for place in self._callers:
                if place.served:
                    place.open()

    def _step(self) -> None:
        self._let_go()
        self._admit()
        # A prompt that is read to its end has its first token at once, before the others have theirs; then they do.
        pairs = [] if self._owing and self._running else self._read()
        self._owing = bool(pairs)
        for request, _ in pairs:
            self._start_running(request)
        pairs = pairs or self._write()
        if pairs:
            requests = [request for request, _ in pairs]
            logits = torch.cat([each for _, each in pairs])  # (B, V)
            before = _logprobs(requests, logits)  # the sampler uses the logits up
            ids = self._sampler_of(requests)(logits).tolist()  # the one wait
            for request, token in zip(requests, ids, strict=True):
                try:
                    request.push(token, _scores(request, token, before))
                    if request.complete:
                        self._end(request)
                except Exception as error:
                    self._fail(request, error)
        self._let_go()

    def _let_go(self) -> None:
        """End what nobody wants any more; where no row is left, give memory back."""
        for request in [each for each in self._all if each.dropped]:
            self._end(request)
        while self._gone:
            self.kept.disown(self._gone.popleft())
        if not self._running and not self._reading:
            self._pool.release()
            self._sampler = None

    def _admit(self) -> None:
        """Give rows to those who have waited longest.

        Of those with new pictures to one batch, when this step will read it and no other prompt is being read: so whose
        pictures were encoded first has first words before the next are encoded.
        """
        may_look = not self._reading and not (self._owing and self._running)
        for request in [each for each in self._all if each.row < 0]:
            if len(self._running) + len(self._reading) >= self.rows:
                return
            if self._reads_for(request) or (request.prompt.new and not may_look):
                continue
            try:
                if request.prompt.new:
                    may_look = False
                    self._look_for(request)
                self._place(request)
            except Exception as error:
                if out_of_memory(error) and (self._running or self._reading):
                    return  # it waits until another row is given back
                self._fail(request, error)

    def _look_for(self, request: Request) -> None:
        """Encode this request's new pictures, and with them those of others that wait, in one batch.

        Where that fails, its own alone: one that cannot be encoded ends its own request.
        """
        if self._see is None:
            raise PromptError("This engine encodes no pictures: ask with their features.")
        own = batch = request.prompt.new
        for other in self._all:
            more = [sight for sight in other.prompt.new if sight not in batch] if other.row < 0 else []
            if len(batch) + len(more) <= PICTURES:
                batch = batch + more
        if len(batch) > len(own):
            try:
                self._see(batch)
                return
            except Exception as error:
                log.info("Pictures are encoded one request at a time: %s.", error)
        for start in range(0, len(own), PICTURES):
            self._see(own[start : start + PICTURES])

    def _reads_for(self, request: Request) -> bool:
        """Whether another row is reading what this one begins with, too, and will have read it soon."""
        if not self._reading or not self.kept.limit:
            return False
        worth = self.kept.longest(request.keys) + _WORTH_WAITING
        return any(shared(request.keys, other.keys) >= worth for other in self._reading)

    def _place(self, request: Request) -> None:
        """Give a request the next row, with what is known of its prompt in it."""
        if (state := self._state_of()) != self._state:
            self.kept.clear()
            self._state = state
        prompt, config = request.prompt, self.model.config
        ids, keys = [*prompt.ids, *request.ids], request.keys  # a reply that was begun is read like a prompt
        known = min(self.kept.longest(keys), len(keys) - 1)
        slots = ids[:known].count(config.image_token_index)
        known -= slots % config.num_image_tokens  # a picture is known as a whole or not at all
        unread = torch.tensor([ids[known:]], device=entry_device(self.model))
        request.unread = self.model.splice(unread, prompt.seen(slots // config.num_image_tokens))  # (1, T, H)
        row = len(self._running) + len(self._reading)
        self._pool.reserve(row + 1, len(keys) + 1)
        start = 0
        for states in self.kept.find(keys[:known]):
            self._pool.write(row, start, states)
            start += states[0][0].shape[1]
        request.row, request.length, request.known = row, known, known
        if request.generator is None:
            request.generator = noise_generator(request.settings, unread.device)
        self._reading.append(request)

    def _read(self) -> list[tuple[Request, Tensor]]:
        """Read of the prompts as many tokens as a step may; returns those that are read to their end, with logits."""
        done: list[tuple[Request, Tensor]] = []
        left = self.chunk
        todo = deque(sorted(self._reading, key=self._all.index))
        while todo and left > 0:
            size = min(_unread(todo[0]), left)
            # Prompts with equally much to read go together: no padding is computed.
            alike = [request for request in todo if _unread(request) == size]
            group = alike[: left // size] if _unread(todo[0]) == size else [todo[0]]
            left -= size * len(group)
            for request in group:
                todo.remove(request)
            embeds = torch.cat([r.unread[:, :size] for r in group if r.unread is not None])  # (B, T, H)
            for request, logits in self._safely(group, embeds):
                rest = None if request.unread is None else request.unread[:, size:]
                request.unread = rest
                if rest is not None and rest.shape[1] == 0:
                    done.append((request, logits))
        return done

    def _write(self) -> list[tuple[Request, Tensor]]:
        """Read the last id of every reply that is being written; returns the logits (1, V) of the next."""
        if not self._running:
            return []
        last = torch.tensor([[request.ids[-1]] for request in self._running], device=entry_device(self.model))
        return self._safely(list(self._running), self.model.get_input_embeddings()(last))

    def _safely(self, requests: Sequence[Request], embeds: Tensor) -> list[tuple[Request, Tensor]]:
        """Pass requests together; where that fails, one by one: only the culprit ends."""
        try:
            return list(zip(requests, self._forward(requests, embeds).split(1), strict=True))
        except Exception as error:
            short = out_of_memory(error)
            failure = error.with_traceback(None) if short else error  # a traceback would hold on to tensors
        if short and self.kept.nbytes:
            self.kept.clear()
            free_memory()
            return self._safely(requests, embeds)
        if len(requests) > 1:
            return [
                pair
                for request, row in zip(requests, embeds.split(1), strict=True)
                for pair in self._safely([request], row)
            ]
        self._fail(requests[0], failure)
        return []

    def _forward(self, requests: Sequence[Request], embeds: Tensor) -> Tensor:
        """Read embeddings (B, T, H) behind what the pool holds of these requests; returns logits (B, V) in float32."""
        width = embeds.shape[1]
        length = max(request.length for request in requests) + width  # L
        self._pool.reserve(len(self._running) + len(self._reading), length)
        starts = torch.tensor([request.length for request in requests], device=embeds.device)
        columns = torch.arange(length, device=embeds.device)
        positions = starts[:, None] + columns[:width]  # (B, T)
        mask = torch.zeros(len(requests), 1, width, length, dtype=embeds.dtype, device=embeds.device)
        mask.masked_fill_((columns > positions[..., None])[:, None], torch.finfo(embeds.dtype).min)
        self._pool.aim([request.row for request in requests], positions, length)
        with one_row(embeds), one_query(self.model.language_model.config, embeds):
            output = self.model.language_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._pool,
                use_cache=True,
                logits_to_keep=1,
            )
        for request in requests:
            request.length += width
        return output.logits[:, -1].float()

    def _sampler_of(self, requests: list[Request]) -> Sampler:
        """The sampler of these rows; the one of the step before, where the rows are the same."""
        if self._sampler is not None and self._sampler[0] == requests:
            return self._sampler[1]
        sampler = Sampler(
            [request.settings for request in requests],
            [request.generator for request in requests],
            [request.ids for request in requests],
            self.model.config.text_config.vocab_size,
            entry_device(self.model),
            unsaid(self.model),
            beginning(self.model),
        )
        self._sampler = (requests, sampler)
        return sampler

    # --- rows

    def _start_running(self, request: Request) -> None:
        """A prompt is read: its row goes behind those that run, and others may begin with it."""
        first = next(each for each in self._reading if each.row == len(self._running))
        if first is not request:
            self._pool.swap(first.row, request.row, max(first.length, request.length))
            first.row, request.row = request.row, first.row
        self._reading.remove(request)
        self._running.append(request)
        self._keep(request)

    def _keep(self, request: Request) -> None:
        """Remember what was read of a request."""
        if self.kept.limit <= 0 or not request.length:
            return

        def read(start: int, end: int) -> States:
            return self._pool.read(request.row, start, end)

        keys = request.keys[: request.length]
        if request.owner is not None and request.common:
            self.kept.insert(keys[: request.common], read)
        self.kept.insert(keys, read, request.owner)

    def _fail(self, request: Request, error: Exception) -> None:
        request.end(error)
        self._leave(request, keep=False)

    def _end(self, request: Request) -> None:
        request.end()
        self._leave(request, keep=True)

    def _leave(self, request: Request, keep: bool) -> None:
        """Take a request out of wherever it is. Rows that run stay side by side, and those that are read follow."""
        if request not in self._running and request not in self._reading:
            self._all.remove(request)
            return
        if keep:
            try:
                self._keep(request)
            except Exception as error:  # only a convenience is lost
                log.info("What was read of a reply is not kept: %s.", error)
        self._pool.clear(request.row, request.length)
        hole = request.row
        if request in self._running:
            hole = self._fill(hole, self._running)
            self._running.sort(key=lambda each: each.row)
            self._running.remove(request)
        else:
            self._reading.remove(request)
        self._fill(hole, self._reading)
        self._all.remove(request)

    def _fill(self, hole: int, rows: Sequence[Request]) -> int:
        """Move the last of these rows into the hole before it; returns where the hole is then."""
        last = max(rows, key=lambda each: each.row, default=None)
        if last is None or last.row <= hole:
            return hole
        self._pool.move(last.row, hole, last.length)
        self._pool.clear(last.row, last.length)
        hole, last.row = last.row, hole
        return hole

    def _begin_anew(self) -> None:
        """Forget the pool; whoever is not over waits again, and is read again as far as it was written."""
        self._pool.release()
        self._running, self._reading, self._sampler = [], [], None
        for request in [each for each in self._all if each.over or each.complete]:
            if not request.over:
                request.end()
            self._all.remove(request)
        for request in self._all:
            request.row, request.length, request.unread = -1, 0, None


class _Place(Ticket):
    """The place of a caller who waits for a piece of a request, or for any of `ends` to end, so that others begin."""

    def __init__(self, request: Request, ends: Sequence[Request] = ()) -> None:
        super().__init__()
        self._request, self._ends = request, ends

    @property
    def served(self) -> bool:
        """Whether what the caller waits for is there: something that is due, or an end."""
        request = self._request
        if request.over or request.dropped:
            return True
        if self._ends:
            return any(each.over for each in self._ends)
        return request.ready and time.monotonic() >= request.due


def _unread(request: Request) -> int:
    return 0 if request.unread is None else request.unread.shape[1]


def _logprobs(requests: Sequence[Request], logits: Tensor) -> dict[Request, Tensor]:
    """The logarithms of all ids' probabilities (V,), of the rows for which they are asked."""
    return {
        request: row.log_softmax(-1)
        for request, row in zip(requests, logits, strict=True)
        if request.likeliest is not None
    }


def _scores(request: Request, token: int, logprobs: dict[Request, Tensor]) -> Scores | None:
    if request.likeliest is None:
        return None
    values, ids = logprobs[request].topk(min(request.likeliest, len(logprobs[request])))
    return Scores(float(logprobs[request][token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
