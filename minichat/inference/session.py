"""A conversation with a bot: what fits into the context, streamed replies, a KV cache that is kept between turns."""

from __future__ import annotations

import atexit
import inspect
import os
import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

import torch
from PIL import Image
from torch import Tensor

from minichat.device.memory import out_of_memory
from minichat.errors import ContextError, PromptError, SettingsError
from minichat.images import Source, identity
from minichat.inference.engine import Engine
from minichat.inference.generate import generate_rows, stream
from minichat.inference.kv_cache import KVCache, shared
from minichat.inference.request import Figures, Prompt, Request, Sight, StepLock, check_context, prompt_keys
from minichat.inference.sampling import MAX_NEW_TOKENS, GenerationSettings, ReplyText, Stops
from minichat.prompt.conversation import Conversation, Message, Picture, Text

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processor import MiniChatProcessor
    from minichat.prompt.render import Rendered


# --- What a model is shown of a conversation: the oldest text goes when the context is full, pictures never do.


def without_oldest(conversation: Conversation, turns: int) -> Conversation:
    """Forget the words of the first `turns` questions and replies; their pictures move to the next question.

    A system message stays. `turns` is less than the number of questions.
    """
    if turns == 0:
        return conversation
    system = () if conversation.system is None else (conversation.system,)
    cut = 2 * turns  # question and reply
    pictures = tuple(Picture(picture) for message in conversation.turns[:cut] for picture in message.pictures)
    question = conversation.turns[cut]
    first = replace(question, parts=(*pictures, *question.parts))
    return Conversation((*system, first, *conversation.turns[cut + 1 :]))


def fit(
    conversation: Conversation,
    render: Callable[[Conversation], Rendered],
    new_tokens: int,
    context: int | None,
    forgotten: int = 0,
) -> tuple[int, Rendered]:
    """Forget as many of the oldest turns as it takes to fit the prompt and `new_tokens` into `context` tokens.

    Args:
        conversation: ends with the question to be answered.
        render: a conversation's prompt.
        context: None where there is no limit.
        forgotten: turns that are forgotten already and stay so.

    Returns:
        How many turns are forgotten, and the prompt without them.

    Raises:
        ContextError: with the numbers, if the pictures, the question and `new_tokens` alone do not fit.
    """
    last = sum(m.role == "user" for m in conversation) - 1
    forgotten = min(forgotten, last)
    prompts: dict[int, Rendered] = {}

    def prompt(turns: int) -> Rendered:
        if turns not in prompts:
            prompts[turns] = render(without_oldest(conversation, turns))
        return prompts[turns]

    def fits(turns: int, spare: int = 0) -> bool:
        return context is None or len(prompt(turns).ids) + new_tokens + spare <= context

    if not fits(forgotten):
        check_context(conversation, len(prompt(last).ids), new_tokens, context)
        # What goes changes the prompt from its beginning, so that all of it is read again: free an eighth at once, that
        # the next turns may add to what has been read.
        spare = (context or 0) // 8
        if not fits(last, spare):
            spare = 0
        forgotten += 1 + bisect_left(range(forgotten + 1, last), True, key=lambda turns: fits(turns, spare))
    return forgotten, prompt(forgotten)


def as_published(conversation: Conversation) -> Conversation:
    """Replies as the original programs put them into the next prompt, to be spelled from their text.

    MiniGPT-4, `conversation.py`, `Chat.answer`: cut at "###", all up to the last "Assistant:" dropped, stripped.
    """
    return Conversation(tuple(_cleaned(m) if m.role == "assistant" else m for m in conversation))


def _cleaned(reply: Message) -> Message:
    text = reply.text.split("###")[0].split("Assistant:")[-1].strip()
    return Message("assistant", (Text(text),))


# --- A conversation with a bot: questions in, streamed replies out, nothing computed twice.


@dataclass(frozen=True)
class _Shown:
    """A picture that the model is shown; it is kept so that its id() stays its own."""

    picture: Image.Image
    identity: str
    sight: Sight

    @property
    def name(self) -> str:
        """What the LLM's cache knows the features by."""
        return f"{self.identity} {self.sight.question}" if self.sight.question else self.identity


class Bot(Protocol):
    """What a conversation needs of a bot (`MiniChat`)."""

    model: MiniChatForConditionalGeneration
    processor: MiniChatProcessor
    step_lock: StepLock
    stops: Stops
    engine: Engine

    @property
    def device(self) -> torch.device: ...

    @property
    def context(self) -> int | None: ...

    @property
    def beginning(self) -> list[int]: ...

    def encode_patches(self, pictures: Sequence[Image.Image]) -> Tensor: ...

    def sight(self, picture: Image.Image, question: str) -> Sight: ...

    def look(self, sights: Sequence[Sight]) -> None: ...

    def state(self) -> tuple[Any, ...]: ...


_OPEN: weakref.WeakSet[Generator[str]] = weakref.WeakSet()  # replies that are asked for, until they are dropped


@atexit.register
def _end_open() -> None:
    """End what is still being written when the program ends: a moment later, the modules that it needs are gone."""
    for reply in list(_OPEN):
        with suppress(ValueError):  # another thread is inside
            reply.close()


class ChatSession:
    """One conversation with a bot. It keeps the encoded pictures and the LLM's key–value cache of all turns so far.

    A request that fails leaves the session as it was. A reply that is stopped (its `cancel` event set, its iterator
    closed, or another request made meanwhile) stays in the conversation as far as it was shown; if nothing was shown,
    the session is as it was. Use a session from one thread at a time; sessions of one bot are independent.
    """

    def __init__(
        self,
        bot: Bot,
        *,
        history: Literal["ids", "text"] = "ids",
        conversation: Conversation | None = None,
        **defaults: Any,
    ) -> None:
        if history not in ("ids", "text"):
            raise SettingsError(f"history is {history!r}; it must be 'ids' or 'text'.")
        if conversation is not None and not isinstance(conversation, Conversation):
            kind = type(conversation).__name__
            raise PromptError(f"conversation is a {kind}: make it with minichat.Conversation.from_messages(messages).")
        self.bot = bot
        self.history = history
        self._stops = bot.stops if history == "ids" else bot.stops.as_published(bot.processor.content_tokenizer)
        self._defaults = GenerationSettings().updated(**defaults)
        self._conversation = conversation or Conversation()
        self._kv_cache = KVCache()  # of a model whose replies are written alone; else the engine remembers …
        self._owner = object()  # … under this name
        weakref.finalize(self, bot.engine.forget, self._owner).atexit = False
        self._pictures: dict[int, _Shown] = {}  # by id() of the picture, which `_Shown` keeps alive
        self._state: tuple[Any, ...] = ()
        self._forgotten = 0  # turns whose words the model is no longer shown …
        self._forgotten_at = 0  # … since there were so many questions
        self._figures: Figures | None = None  # of the reply that was written last
        self._cut: Conversation | None = None  # whose last reply has no end of its own
        self._running: Callable[[], Generator[str] | None] = lambda: None  # the reply being written
        self._superseded = threading.Event()

    def __reduce_ex__(self, protocol: object) -> NoReturn:  # two would own one line of the engine's cache
        raise PromptError("A chat is not copied or pickled: bot.chat(conversation=chat.conversation) goes on from it.")

    @property
    def conversation(self) -> Conversation:
        """All that was asked and answered, also what no longer fits into the model's context."""
        return self._conversation

    @property
    def cut(self) -> bool:
        """Whether the last reply ran into `max_new_tokens`, or was stopped, so that there may be more to say."""
        return self._cut is self._conversation

    @property
    def figures(self) -> Figures | None:
        """What it took to write the reply that was written last."""
        return self._figures

    @property
    def notices(self) -> tuple[str, ...]:
        """What the person should know about this conversation, in sentences."""
        if not self._forgotten:
            return ()
        turns = "question and its reply are" if self._forgotten == 1 else f"{self._forgotten} questions and replies are"
        return (
            f"The conversation has outgrown the model's context of {self.bot.context} tokens: the oldest {turns} "
            "no longer taken into account (all pictures are).",
        )

    def ask(
        self,
        text: str,
        images: Source | Sequence[Source] | None = None,
        *,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> str:
        """Ask, with any pictures, and return the whole reply. Raises as `stream` does."""
        return "".join(self.stream(text, images, cancel=cancel, **settings))

    def stream(
        self,
        text: str,
        images: Source | Sequence[Source] | None = None,
        *,
        cancel: threading.Event | None = None,
        pace: Callable[[], float] | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """Ask, and yield the reply piece by piece; all pieces joined are the reply. The work is done while iterating.

        Args:
            text: the question.
            images: one picture or several, as `minichat.images.load` takes them.
            cancel: set it to stop the reply within a step.
            pace: how many seconds after a piece the next is wanted at the earliest. None: as soon as it is there.
            settings: fields of `GenerationSettings`, for this reply alone.

        Raises:
            ImageError, PromptError, SettingsError: at once.
            ContextError: on the first step, if the question and the pictures do not fit, or memory runs out.
        """
        chosen = self._defaults.updated(**settings)
        question = _question(text, sources(images))
        self._interrupt()
        return self._start(Conversation((*self._conversation.messages, question)), chosen, cancel, pace=pace)

    def regenerate(self, *, cancel: threading.Event | None = None, **settings: Any) -> str:
        """Answer the last question anew and return the reply."""
        return "".join(self.stream_again(cancel=cancel, **settings))

    def stream_again(self, *, cancel: threading.Event | None = None, **settings: Any) -> Iterator[str]:
        """`regenerate`, piece by piece. Raises `PromptError` if nothing was asked."""
        chosen = self._defaults.updated(**settings)
        self._interrupt()
        questions = self._questions()
        if not questions:
            raise PromptError("There is no reply to generate anew: ask something first.")
        return self._start(Conversation(self._conversation.messages[: questions[-1] + 1]), chosen, cancel)

    def go_on(self, *, cancel: threading.Event | None = None, **settings: Any) -> str:
        """Go on with the last reply and return all of it. `max_new_tokens` is how many may be added."""
        return "".join(self.stream_on(cancel=cancel, **settings))

    def stream_on(
        self, *, cancel: threading.Event | None = None, pace: Callable[[], float] | None = None, **settings: Any
    ) -> Iterator[str]:
        """`go_on`, piece by piece: the first is what the reply has been so far, as far as nothing can change it.

        It goes on from the ids that were generated, so that greedily it becomes what a larger `max_new_tokens` would
        have made of it at once. A reply that nobody generated here goes on from its words.

        Raises `PromptError` if there is no reply, `SettingsError` for beams, which write whole replies, and
        `ContextError` on the first step if the reply has filled the context.
        """
        chosen = self._defaults.updated(**settings)
        if chosen.num_beams > 1:
            raise SettingsError(f"num_beams is {chosen.num_beams}: beams write whole replies; go on with num_beams=1.")
        self._interrupt()
        if not self._conversation.turns or self._conversation.turns[-1].role != "assistant":
            raise PromptError("There is no reply to go on with: ask something first.")
        *before, begun = self._conversation.messages
        return self._start(Conversation(tuple(before)), chosen, cancel, begun, pace)

    def edit(
        self,
        turn: int,
        text: str,
        images: Source | Sequence[Source] | None = None,
        *,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> str:
        """Ask question number `turn` (the first is 0) in other words, drop what followed, return the new reply.

        `images` replace the turn's pictures; None keeps them, [] drops them. Raises `PromptError` for another number.
        """
        chosen = self._defaults.updated(**settings)
        given = None if images is None else _question(text, sources(images))
        self._interrupt()
        questions = self._questions()
        if isinstance(turn, bool) or not isinstance(turn, int) or not 0 <= turn < len(questions):
            raise PromptError(f"There is no turn {turn!r}: this conversation has {len(questions)}, the first is 0.")
        messages = self._conversation.messages
        question = given or _question(text, list(messages[questions[turn]].pictures))
        return "".join(self._start(Conversation((*messages[: questions[turn]], question)), chosen, cancel))

    def undo(self) -> Conversation:
        """Drop the last question with its reply; returns the conversation that is left.

        A reply that is being written is dropped with its question. Raises `PromptError` if there is nothing to undo.
        """
        before = self._conversation
        if self._interrupt() and self._conversation is before:
            return before  # the question was not in the conversation yet
        questions = self._questions()
        if not questions:
            raise PromptError("There is nothing to undo: the conversation has no question yet.")
        self._conversation = Conversation(self._conversation.messages[: questions[-1]])
        self._forgotten = min(self._forgotten, max(0, len(questions) - 2))
        return self._conversation

    def _questions(self) -> list[int]:
        return [i for i, message in enumerate(self._conversation) if message.role == "user"]

    def _interrupt(self) -> bool:
        """End the reply that is being written, if there is one; True if there was."""
        running = self._running()
        if running is None or inspect.getgeneratorstate(running) == inspect.GEN_CLOSED:
            return False
        self._superseded.set()
        while True:
            try:
                running.close()
                return True
            except ValueError:  # another thread is inside; it leaves within a step
                time.sleep(0.005)

    def _start(
        self,
        conversation: Conversation,
        settings: GenerationSettings,
        cancel: threading.Event | None,
        begun: Message | None = None,
        pace: Callable[[], float] | None = None,
    ) -> Iterator[str]:
        self._superseded = superseded = threading.Event()
        reply = self._reply(
            conversation, settings, lambda: superseded.is_set() or (cancel is not None and cancel.is_set()), begun, pace
        )
        # Weak, so that a caller who drops the iterator ends the reply.
        self._running = weakref.ref(reply)
        _OPEN.add(reply)
        return reply

    def _reply(
        self,
        conversation: Conversation,
        settings: GenerationSettings,
        cancelled: Callable[[], bool],
        begun: Message | None = None,
        pace: Callable[[], float] | None = None,
    ) -> Generator[str]:
        """Answer the conversation's last question, by going on with `begun` where it is given, and keep the answer."""
        asked = time.monotonic()
        reply = ReplyText(self.bot.processor.content_tokenizer, self._stops)
        request: Request | None = None
        ids: tuple[int, ...] = ()  # of what was begun

        def keep(reply: ReplyText) -> None:
            if begun is None or len(reply.generated) > len(ids):
                self._keep(conversation, reply, forgotten)
                times = (reply if request is None else request).times[: len(reply.generated)]
                together = settings.num_beams > 1
                self._figures = Figures.of(times, asked, len(ids), len(prompt.ids), self.bot.context, together)

        try:
            if begun is not None:
                ids = self._ids(conversation, begun)
                settings = self._longer(conversation, settings, len(ids))
            prompt, forgotten = self._prompt(conversation, settings)
            if settings.num_beams > 1 or self.bot.engine.alone is not None:
                self.bot.look(prompt.new)
            if settings.num_beams > 1:
                yield from self._search(prompt, settings, reply, cancelled)
            elif self.bot.engine.alone is None:
                tokenizer = self.bot.processor.content_tokenizer
                common = shared(prompt.ids, self.bot.beginning)
                request = Request(
                    prompt, settings, tokenizer, self._stops, cancelled, self._owner, common, begun=ids, pace=pace
                )
                yield from self.bot.engine.stream(request)
                reply = request.reply
            else:
                for token in ids:
                    reply.push(token)
                if reply.text:
                    yield reply.text
                yield from stream(
                    self.bot.model,
                    prompt,
                    self._kv_cache,
                    settings.updated(max_new_tokens=settings.max_new_tokens - len(ids)),
                    reply,
                    step_lock=self.bot.step_lock,
                    cancelled=cancelled,
                )
        except GeneratorExit:
            reply = reply if request is None else request.reply
            if reply.text:
                keep(reply)
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            self._kv_cache.clear()
            raise ContextError(
                "There was not enough memory for this reply: use fewer pictures or a shorter conversation."
            ) from error
        if reply.text or not cancelled():
            keep(reply)

    def _ids(self, conversation: Conversation, reply: Message) -> tuple[int, ...]:
        """A reply's ids: those that were generated, else those that spell its words after this conversation."""
        if reply.ids is not None:
            return reply.ids
        asked = self.bot.processor.render(conversation, add_generation_prompt=True)
        told = self.bot.processor.render(conversation.assistant(reply.text), continue_final_message=True)
        return tuple(told.ids[len(asked.ids) :])

    def _longer(self, conversation: Conversation, settings: GenerationSettings, begun: int) -> GenerationSettings:
        """Settings for a whole reply whose first `begun` ids are there; it may be as long as the context lets it."""
        most = begun + settings.max_new_tokens
        if self.bot.context is not None:
            questions = sum(message.role == "user" for message in conversation)
            last = without_oldest(conversation, questions - 1)
            asked = self.bot.processor.render(last, add_generation_prompt=True, history=self.history)
            most = min(most, self.bot.context - len(asked.ids))
        if begun >= most:
            raise ContextError(f"The model's context of {self.bot.context} is full: the reply cannot go on.")
        return settings.updated(max_new_tokens=min(most, MAX_NEW_TOKENS))

    def _keep(self, conversation: Conversation, reply: ReplyText, forgotten: int) -> None:
        self._conversation = conversation.assistant(reply.text, ids=reply.ids())
        self._cut = None if reply.finished else self._conversation
        self._forgotten, self._forgotten_at = forgotten, len(self._questions())

    def _search(
        self, prompt: Prompt, settings: GenerationSettings, reply: ReplyText, cancelled: Callable[[], bool]
    ) -> Iterator[str]:
        """Beam search: the whole reply in one piece, or nothing when it was cancelled."""
        bot = self.bot
        ids = torch.tensor([prompt.ids], device=bot.device)  # (1, T)
        with bot.step_lock, torch.inference_mode():
            embeds = bot.model.embed(ids, image_features=prompt.seen())  # (1, T, H)
        found = generate_rows(
            bot.model,
            embeds,
            torch.ones_like(ids),
            settings,
            bot.processor.content_tokenizer,
            self._stops,
            step_lock=bot.step_lock,
            cancelled=cancelled,
        )
        if not cancelled() and (text := reply.read(found[0].generated)):
            yield text

    def _prompt(self, conversation: Conversation, settings: GenerationSettings) -> tuple[Prompt, int]:
        """The prompt that asks for a reply to `conversation`, and how many turns it leaves out."""
        state = self.bot.state()
        if self._state and self._state != state:  # other weights or preprocessing: nothing computed before holds
            self._kv_cache.clear()
            self._pictures.clear()
        self._state = state
        shown = as_published(conversation) if self.history == "text" else conversation
        questions = sum(message.role == "user" for message in conversation)
        forgotten, rendered = fit(
            shown,
            lambda c: self.bot.processor.render(c, add_generation_prompt=True, history=self.history),
            settings.max_new_tokens,
            self.bot.context,
            # After an edit further back there may be room again.
            self._forgotten if questions >= self._forgotten_at else 0,
        )
        pictures = self._show(rendered.pictures, rendered.question)
        keys = prompt_keys(rendered.ids, [one.name for one in pictures], self.bot.model.config)
        return Prompt(rendered.ids, keys, None, [one.sight for one in pictures]), forgotten

    def _show(self, pictures: Sequence[Image.Image], question: str) -> list[_Shown]:
        """Each picture as the model is shown it. Only those that are new are to be encoded, only those given are kept.

        An instructed Q-Former reads the patches again for another question; the vision encoder sees a picture once.
        """
        asked = question if self.bot.processor.instructed else ""
        before = {one.identity: one.sight for one in self._pictures.values()}
        identities = [self._pictures[id(p)].identity if id(p) in self._pictures else identity(p) for p in pictures]
        sights: dict[str, Sight] = {}
        for picture, name in zip(pictures, identities, strict=True):
            if name in sights:
                continue
            sight = before.get(name)
            if sight is not None and sight.question != asked:
                sight = None if sight.patches is None else Sight(asked, patches=sight.patches)
            sights[name] = sight or self.bot.sight(picture, asked)
        shown = [_Shown(p, name, sights[name]) for p, name in zip(pictures, identities, strict=True)]
        self._pictures = {id(one.picture): one for one in shown}
        return shown


def sources(images: Any) -> list[Any]:
    """One picture or several → a list."""
    if images is None:
        return []
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read"):
        return [images]
    return list(images)


def _question(text: str, images: Sequence[Source]) -> Message:
    """A person's message. Raises `PromptError` for one that says and shows nothing, `ImageError` for a bad picture."""
    message = Conversation().user(text, images).messages[0]
    if not message.text.strip() and not message.pictures:
        raise PromptError("The question is empty: ask something, or show a picture.")
    return message
