"""Many questions about many pictures → replies, in batches; and what every task is."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL import Image

from minichat.device.memory import memory_errors
from minichat.errors import SettingsError
from minichat.evaluate.metrics import Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from minichat.inference.bot import MiniChat
    from minichat.inference.sampling import GenerationSettings
    from minichat.prompt.conversation import Conversation
    from minichat.prompt.render import Rendered


# --- What every task is: a fixed set of questions that a bot, seeing or blind, can be put through.


class Content(Protocol):
    def content(self) -> Iterable[str]:
        """All that is asked and what is true, as text: what makes two exams the same."""
        ...


class Exam(Content, Protocol):
    """Equal exams ask the same of every bot."""

    def take(self, teller: Teller) -> Outcome:
        """Ask, and score what is replied."""
        ...


def fingerprint(exam: Content) -> str:
    """A hash of what is asked: figures can be compared where it is the same."""
    whole = hashlib.sha256()
    for text in exam.content():
        whole.update(text.encode("utf-8", "surrogatepass"))  # a file's name may be no Unicode
        whole.update(b"\n")
    return whole.hexdigest()


# --- Many questions about many pictures → replies, in batches; a picture is encoded once, however much is asked of it.


KEPT = 1024  # so many pictures' features are held at once
_TOO_MANY = "batch_size is {}, and so many questions do not fit into memory: lower it."
_COUNT = itertools.count()
_DOT = Image.new("RGB", (1, 1))  # stands in a conversation for a picture whose features are known


class Shown(Hashable, Protocol):
    """A picture that is drawn or read when it is needed; equal ones show the same."""

    def open(self) -> Image.Image: ...


@runtime_checkable
class Described(Shown, Protocol):
    """A picture of which it is known what is in it."""

    def content(self) -> dict[str, Any]:
        """What it shows, as JSON may hold it."""
        ...


@dataclass(frozen=True)
class Blank:
    """A picture in which there is nothing to see: what is answered of it is guessed from the words."""

    side: int = 96

    def open(self) -> Image.Image:
        return Image.new("RGB", (self.side, self.side), (128, 128, 128))


@dataclass(frozen=True)
class Reply:
    """What was said, the ids that spelled it, and whether it came to its end within the limit of tokens."""

    text: str
    ids: tuple[int, ...] | None = None
    whole: bool = True


@dataclass(frozen=True)
class Said:
    """An earlier turn: a question with the pictures that came with it, and its reply."""

    text: str
    pictures: tuple[Shown, ...]
    reply: Reply


@dataclass(frozen=True)
class Ask:
    """A question with its pictures, after what was said before."""

    text: str
    pictures: tuple[Shown, ...] = ()
    before: tuple[Said, ...] = ()
    system: str = ""  # what the conversation is told before all else
    spelled: bool = False  # the text is a whole prompt, put as what asks for a caption

    def all_pictures(self) -> tuple[Shown, ...]:
        """In the order in which the model is shown them."""
        return (*(picture for said in self.before for picture in said.pictures), *self.pictures)

    def then(self, reply: Reply, text: str, pictures: tuple[Shown, ...] = ()) -> Ask:
        """The next question of the same conversation."""
        return Ask(text, pictures, (*self.before, Said(self.text, self.pictures, reply)), self.system, self.spelled)


def check_batch_size(value: int) -> None:
    """Raises `SettingsError` for what is no number of questions at a time."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
        raise SettingsError(f"batch_size is {value!r}; it must be a whole number from 1 to 4096.")


class Teller:
    """Asks a bot, greedily. `blind`: it is shown a blank picture in place of every picture.

    Equal questions about equal pictures are answered once.

    Args:
        batch_size: questions at a time.
        progress: called after each batch with the number of questions answered so far, over all calls.
    """

    def __init__(
        self,
        bot: MiniChat,
        *,
        batch_size: int = 32,
        blind: bool = False,
        progress: Callable[[int], None] = lambda answered: None,
    ) -> None:
        check_batch_size(batch_size)
        self.bot, self.batch_size, self.blind = bot, batch_size, blind
        self.answered = 0
        self._progress = progress
        self._seen: OrderedDict[tuple[Shown, str], tuple[str, Tensor]] = OrderedDict()

    def replies(self, asks: Sequence[Ask], max_new_tokens: int = 32) -> list[Reply]:
        """A reply for each question, in order.

        Raises ContextError for a question that does not fit into the model's context, ImageError or DataError for a
        picture that cannot be opened, SettingsError for a batch that does not fit into memory.
        """
        wanted = [_blinded(ask) for ask in asks] if self.blind else list(asks)
        different = list(dict.fromkeys(wanted))
        found: dict[Ask, Reply] = {}
        for start in range(0, len(different), self.batch_size):
            batch = different[start : start + self.batch_size]
            found |= zip(batch, self._within_memory(batch, max_new_tokens), strict=True)
            self.answered += len(batch)
            self._progress(self.answered)
        return [found[ask] for ask in wanted]

    def _within_memory(self, asks: Sequence[Ask], max_new_tokens: int) -> list[Reply]:
        with memory_errors(lambda: SettingsError(_TOO_MANY.format(self.batch_size))):
            return self._answer(asks, max_new_tokens)

    def _answer(self, asks: Sequence[Ask], max_new_tokens: int) -> list[Reply]:
        import torch

        from minichat.inference.generate import generate_rows
        from minichat.inference.request import check_context
        from minichat.inference.sampling import GenerationSettings

        bot = self.bot
        settings = GenerationSettings(max_new_tokens=max_new_tokens)
        conversations = [_conversation(ask) for ask in asks]
        rendered = [
            (bot.captioner if ask.spelled else bot.processor).render(conversation, add_generation_prompt=True)
            for ask, conversation in zip(asks, conversations, strict=True)
        ]
        for conversation, prompt in zip(conversations, rendered, strict=True):
            check_context(conversation, len(prompt.ids), max_new_tokens, bot.context)
        seen = self._look([(picture, ask.text) for ask in asks for picture in ask.all_pictures()])
        if bot.engine.alone is None:
            return self._together(rendered, seen, settings)
        batch = bot.processor.batch([replace(prompt, pictures=()) for prompt in rendered]).to(bot.device)
        features = torch.stack([each for _, each in seen]) if seen else None  # (I, n, D)
        with bot.step_lock, torch.inference_mode():
            embeds = bot.model.embed(batch["input_ids"], image_features=features)  # (B, T, H)
        rows = generate_rows(
            bot.model,
            embeds,
            batch["attention_mask"],
            settings,
            bot.processor.content_tokenizer,
            bot.stops,
            step_lock=bot.step_lock,
        )
        return [Reply(row.text, row.ids(), row.finished) for row in rows]

    def _together(
        self, rendered: Sequence[Rendered], seen: Sequence[tuple[str, Tensor]], settings: GenerationSettings
    ) -> list[Reply]:
        """Through the bot's engine, which reads once what questions begin with alike: the picture that they share."""
        import torch

        from minichat.inference.request import Prompt, Request, prompt_keys

        bot, following, requests = self.bot, iter(seen), []
        for prompt in rendered:
            found = [next(following) for _ in prompt.pictures]
            features = torch.stack([each for _, each in found]) if found else None  # (I, n, D)
            keys = prompt_keys(prompt.ids, [name for name, _ in found], bot.model.config)
            asked = Prompt(prompt.ids, keys, features)
            requests.append(Request(asked, settings, bot.processor.content_tokenizer, bot.stops))
        replies = []
        for request in bot.engine.run(requests, self.batch_size):
            if request.error is not None:
                raise request.error
            replies.append(Reply(request.reply.text, request.reply.ids(), request.reply.finished))
        return replies

    def _look(self, asked: Sequence[tuple[Shown, str]]) -> list[tuple[str, Tensor]]:
        """Names and features (n, D) of pictures with what is asked of them; those seen lately are not encoded again."""
        if not self.bot.processor.instructed:
            asked = [(picture, "") for picture, _ in asked]
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._seen]
        if new:
            features = self.bot.encode([picture.open() for picture, _ in new], [question for _, question in new])
            # Names that nobody else uses: what is measured does not depend on what the bot has read before.
            self._seen |= {pair: (f"asked {next(_COUNT)}", each) for pair, each in zip(new, features, strict=True)}
        for pair in asked:
            self._seen.move_to_end(pair)
        seen = [self._seen[pair] for pair in asked]
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return seen

    def choices(self, asks: Sequence[Ask], candidates: Sequence[str]) -> list[Reply]:
        """Of given answers the likeliest to each question, which is put as it is (`MiniChat.rank`)."""
        found = []
        for ask in map(_blinded, asks) if self.blind else asks:
            pictures = [picture.open() for picture in ask.pictures]
            with memory_errors(lambda: SettingsError(_TOO_MANY.format(self.batch_size))):
                found.append(Reply(self.bot.rank([pictures], ask.text, candidates)[0][0][0]))
            self.answered += 1
            self._progress(self.answered)
        return found


def _blinded(ask: Ask) -> Ask:
    before = tuple(replace(said, pictures=(Blank(),) * len(said.pictures)) for said in ask.before)
    return replace(ask, pictures=(Blank(),) * len(ask.pictures), before=before)


def _conversation(ask: Ask) -> Conversation:
    from minichat.prompt.conversation import Conversation, Message, Picture, Text

    def user(text: str, pictures: Sequence[Shown]) -> Message:
        return Message("user", (*(Picture(_DOT) for _ in pictures), *((Text(text),) if text else ())))

    messages = [Message("system", (Text(ask.system),))] if ask.system else []
    for said in ask.before:
        reply = Message("assistant", (Text(said.reply.text),), said.reply.ids)
        messages += [user(said.text, said.pictures), reply]
    return Conversation((*messages, user(ask.text, ask.pictures)))
