"""A reply that is asked for: its prompt and settings, what was written of it so far, and the lock of its steps.

Shapes: T tokens, H the LLM's width.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from minichat.errors import ContextError
from minichat.inference.sampling import Decoder, GenerationSettings, ReplyText, Stops

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
    from minichat.prompt.conversation import Conversation


# --- What a reply is asked for with.


@dataclass(eq=False)
class Sight:
    """A picture that a model is shown: its pixels, until somebody encodes them, and then its features."""

    question: str  # with which it is read; empty where features do not depend on it
    pixels: Tensor | None = None  # (3, S, S)
    patches: Tensor | None = None  # (1 + P, W), where another question makes other features of them
    features: Tensor | None = None  # (n, D)

    @property
    def nbytes(self) -> int:
        """What it holds, in bytes."""
        return sum(each.nbytes for each in (self.pixels, self.patches, self.features) if each is not None)


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, ready to be read."""

    ids: list[int]  # T ids, a slot for each image token
    keys: list[int | str]  # T keys: a token's id, or the identity of its picture
    features: Tensor | None  # (I, n, D), the pictures in slot order
    sights: Sequence[Sight] = ()  # in place of features: the engine encodes those that nobody has yet

    @property
    def pictures(self) -> int:
        """How many there are."""
        return len(self.sights) if self.features is None else len(self.features)

    @property
    def new(self) -> list[Sight]:
        """Those that are still to be encoded, each once."""
        return list(dict.fromkeys(sight for sight in self.sights if sight.features is None))

    def seen(self, first: int = 0) -> Tensor | None:
        """The features (I, n, D) of the pictures from this one on, all encoded; None where there are none."""
        if first >= self.pictures:
            return None
        if self.features is not None:
            return self.features[first:]
        return torch.stack([sight.features for sight in self.sights[first:] if sight.features is not None])


def prompt_keys(ids: Sequence[int], identities: Sequence[str], config: MiniChatConfig) -> list[int | str]:
    """What the LLM's cache holds under each id: the id, or the identity of the picture whose slot it is."""
    slots = iter([identity for identity in identities for _ in range(config.num_image_tokens)])
    return [next(slots, token) if token == config.image_token_index else token for token in ids]


def check_context(conversation: Conversation, prompt: int, new_tokens: int, context: int | None) -> None:
    """Raise `ContextError` unless a prompt of `prompt` tokens, whose pictures are the conversation's, leaves room."""
    if context is None or prompt + new_tokens <= context:
        return
    pictures = len(conversation.pictures)
    what = f"The question with {pictures} picture{'s' * (pictures != 1)}" if pictures else "The question"
    mend = "ask more briefly" + (" or about fewer pictures" if pictures > 1 else "")
    if prompt < context:
        mend = f"set max_new_tokens to at most {context - prompt}, or {mend}"
    raise ContextError(
        f"{what} takes {prompt} tokens and the reply up to {new_tokens}; the model's context holds {context}: {mend}."
    )


def beginning(model: MiniChatForConditionalGeneration) -> int | None:
    """What a repetition penalty counts as said before a reply (`ReplyPenalty`)."""
    return None if model.config.is_encoder_decoder else model.config.text_config.bos_token_id


def unsaid(model: MiniChatForConditionalGeneration) -> list[int]:
    """Ids that no reply holds: the image slot, where the LLM has a row for it, and the model's `suppress_tokens`."""
    slot, vocabulary = model.config.image_token_index, model.config.text_config.vocab_size
    kept = getattr(model.generation_config, "suppress_tokens", None) or []
    return [*([slot] if slot < vocabulary else []), *(token for token in kept if token in range(vocabulary))]


# --- The request itself.


@dataclass(frozen=True)
class Scores:
    """How likely an id was that was chosen, and the likeliest ones, before any setting changes that."""

    logprob: float  # the natural logarithm of its probability
    likeliest: tuple[tuple[int, float], ...]  # ids with theirs


@dataclass(frozen=True)
class Figures:
    """What it took to write a reply."""

    tokens: int  # of the reply, its end included
    first: float  # seconds from asking to the first token that was written
    rate: float | None  # tokens a second after that; None where there was no other, or all came at once
    used: int  # tokens of the context: all that the model was shown, and the reply
    context: int | None  # how many there may be; None where the model sets no limit

    @classmethod
    def of(
        cls, times: Sequence[float], asked: float, begun: int, prompt: int, context: int | None, together: bool = False
    ) -> Figures | None:
        """Of a reply whose ids came at `times`, the first `begun` of them earlier; None where none was written.

        `together`: all came at once, as those of beams do.
        """
        new = times[begun:]
        if not new:
            return None
        spent = new[-1] - new[0]
        rate = (len(new) - 1) / spent if len(new) > 1 and spent > 0 and not together else None
        return cls(len(times), new[0] - asked, rate, prompt + len(times), context)


class Request:
    """A reply that is asked for. Iterating it yields the text piece by piece, as it becomes safe to show.

    Closing it, or an iterator of it, early ends the reply within a step; `reply` is then what was taken so far.
    """

    def __init__(
        self,
        prompt: Prompt,
        settings: GenerationSettings,
        tokenizer: Decoder,
        stops: Stops,
        cancelled: Callable[[], bool] = lambda: False,
        owner: object = None,
        common: int = 0,
        likeliest: int | None = None,
        begun: Sequence[int] = (),
        pace: Callable[[], float] | None = None,
    ) -> None:
        """Ask for a reply to `prompt`. It comes into being when the request is given to an engine.

        Args:
            cancelled: asked before each step; once it is true, nothing more is shown.
            owner: stands for the conversation, of which the engine then keeps this state alone, and until `forget`.
            common: so many of the prompt's first tokens are nobody's own, and stay when the conversation is over.
            likeliest: keep with each id how likely it was, and which so many ids were the likeliest; None: do not.
            begun: ids that the reply begins with, which were written before. Their text is the first piece.
            pace: how many seconds after a piece the next is wanted at the earliest; None: as soon as it is there.
        """
        self.owner, self.common, self.likeliest = owner, common, likeliest
        self.scores: list[Scores] = []  # of all `ids`, where they are asked for
        self.prompt, self.settings, self.cancelled, self.pace = prompt, settings, cancelled, pace
        self.due = 0.0  # when the next piece is wanted, on the clock `time.monotonic`
        self.over = False  # no other token will come
        self.error: Exception | None = None  # … because of this
        self.known = 0  # so many of the prompt's tokens had been read before, and were copied
        self._tokenizer, self._stops = tokenizer, stops
        self._written = ReplyText(tokenizer, stops)  # may be ahead of what was taken
        self._pieces: deque[tuple[str, int]] = deque()  # not taken yet; each with the number of ids behind it
        self._taken = 0  # ids behind what was taken
        self._closed = False
        for token in begun:
            self._written.push(token)
        self._taken = len(self.ids)
        if self._written.text:
            self._pieces.append((self._written.text, self._taken))
        # The engine's own:
        self.row = -1  # its place in the pool
        self.length = 0  # tokens that the pool holds of it
        self.unread: Tensor | None = None  # (1, T, H), what is still to be read of the prompt
        self.generator: torch.Generator | None = None

    @property
    def ids(self) -> list[int]:
        """All ids that were generated, the stop's included."""
        return self._written.generated

    @property
    def times(self) -> list[float]:
        """When each of `ids` came, in seconds on the clock `time.monotonic`."""
        return self._written.times

    @property
    def taken(self) -> int:
        """So many ids are behind what was taken."""
        return self._taken

    @property
    def keys(self) -> list[int | str]:
        """What the pool holds of it, or will: a key for each token of prompt and reply."""
        return [*self.prompt.keys, *self.ids]

    @property
    def ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self._pieces)

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more."""
        return self._closed or self.cancelled()

    @property
    def reply(self) -> ReplyText:
        """The reply as far as it was taken; all of it where it came to its end and every piece was."""
        if self.over and not self._pieces and not self._cut_short:
            return self._written
        taken = ReplyText(self._tokenizer, self._stops)
        for token in self.ids[: self._taken]:
            taken.push(token)
        return taken

    _cut_short = False  # it ended because nobody wanted it

    def take(self) -> str:
        """The next piece, or "" where none is ready."""
        if not self._pieces or self.dropped:
            return ""
        piece, self._taken = self._pieces.popleft()
        return piece

    @property
    def complete(self) -> bool:
        """Whether the last id was chosen."""
        return self._written.finished or len(self.ids) >= self.settings.max_new_tokens

    def push(self, token: int, scores: Scores | None = None) -> None:
        """Take the next id."""
        if scores is not None:
            self.scores.append(scores)
        if piece := self._written.push(token):
            self._pieces.append((piece, len(self.ids)))

    def close(self) -> None:
        """Nobody wants it any more; within a step it is gone."""
        self._closed = True

    def end(self, error: Exception | None = None) -> None:
        """No other token will come."""
        self._cut_short = error is not None or self.dropped
        if not self._cut_short and (piece := self._written.close()):
            self._pieces.append((piece, len(self.ids)))
        self.error, self.unread = error, None
        self.over = True


# --- A lock that is handed on in the order of asking, so that many replies come forward step by step together.


_LOOK_AGAIN = 1.0  # seconds after which one who waits looks by himself: Ctrl-C may have taken the call to him


class Ticket:
    """A place in a line, of the thread that makes it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self) -> None:
        """Sleep until the gate is opened, or for a moment."""
        self._gate.acquire(timeout=_LOOK_AGAIN)

    def open(self) -> None:
        """Let the one who waits look whether it is his turn."""
        with suppress(RuntimeError):  # it is open already
            self._gate.release()


_T = TypeVar("_T", bound=Ticket)


class Line(Generic[_T]):
    """Tickets in the order of coming. Wherever Ctrl-C breaks in, there is one first: each change is one atomic call.

    A ticket that Ctrl-C left behind is taken out when its thread leaves again.
    """

    def __init__(self) -> None:
        self._tickets: deque[_T] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[_T]:
        return iter(list(self._tickets))

    def join(self, ticket: _T) -> None:
        self._tickets.append(ticket)

    def is_first(self, ticket: _T) -> bool:
        return self._tickets[0] is ticket

    def leave(self) -> None:
        """Take this thread's ticket out, if it has one, and let the one who is first then look."""
        me = threading.get_ident()
        for ticket in self:
            if ticket.thread == me:
                self._tickets.remove(ticket)
        for first in list(self._tickets)[:1]:
            first.open()


class StepLock:
    """`with step_lock:` admits one thread at a time, first come, first served. A thread inside must not enter again.

    A plain lock lets the thread that just left in again before the others have woken up: one reply would then be
    written to its end while the others wait.
    """

    def __init__(self) -> None:
        self._queue = Line[Ticket]()  # the first is inside

    def __enter__(self) -> None:
        try:
            self._queue.leave()
            ticket = Ticket()
            self._queue.join(ticket)
            while not self._queue.is_first(ticket):
                ticket.wait()
        except BaseException:  # Ctrl-C while waiting
            self._queue.leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.leave()

    @property
    def taken(self) -> bool:
        """Whether a thread is inside, or about to be."""
        return len(self._queue) > 0

    def let_others_pass(self) -> None:
        """Called by the thread inside: admit everyone who waits now, then go on.

        Where Ctrl-C ends the wait, the thread is no longer inside, and to leave once more changes nothing.
        """
        if len(self._queue) > 1:
            self._queue.leave()
            self.__enter__()
