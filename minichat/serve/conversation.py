"""Messages of a request → a conversation → what the engine is asked, with what is remembered of earlier requests."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import minichat.images as images
from minichat.errors import ImageError, MiniChatError, PromptError
from minichat.inference.bot import MiniChat
from minichat.inference.request import Prompt, Request, prompt_keys
from minichat.inference.sampling import GenerationSettings, Stops
from minichat.prompt.conversation import Conversation, Message, Picture, Text, decode_base64
from minichat.serve.metrics import Metrics
from minichat.serve.protocol import BAD, ApiError, Asked, Limits, not_done, read_request, refuse

# --- Messages as they came → messages whose every key is understood; pictures are still files or addresses.


@dataclass(frozen=True)
class File:
    """A picture that was sent: the file, not opened yet, or the address from which it is to be fetched."""

    param: str  # where it is in the request
    source: bytes | str


@dataclass(frozen=True)
class Said:
    """A message; neighbours of one role are one."""

    param: str
    role: str
    parts: list[str | File]


_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_BETWEEN = {"system": "\n\n", "user": "\n", "assistant": "\n"}  # messages of one role that follow each other
# Of an assistant's message as OpenAI's clients send it back.
_ECHOED = ("annotations", "audio", "function_call", "refusal", "tool_calls")


def read_messages(messages: list[Any], limits: Limits) -> list[Said]:
    """Check every key of the messages, and count what they hold. Raises `ApiError`, which names the place."""
    said: list[Said] = []
    for number, message in enumerate(messages):
        read = _read_message(f"messages[{number}]", message)
        if said and said[-1].role == read.role:
            said[-1].parts.extend([_BETWEEN[read.role], *read.parts])
        elif read.role == "system" and said:
            raise _bad(f"{read.param}.role", "A system message must be the first: say it there, or as a user.")
        else:
            said.append(read)
    turns = said[1:] if said[0].role == "system" else said
    if not turns or turns[0].role != "user":
        first = turns[0] if turns else said[0]
        raise _bad(f"{first.param}.role", "After system messages the user must speak first.")
    if turns[-1].role != "user":
        raise _bad(f"{turns[-1].param}.role", "The last message must be a user's, for a reply to be written.")
    if not any(isinstance(part, File) or part.strip() for part in turns[-1].parts):
        raise _bad(f"{turns[-1].param}.content", "The question is empty: ask something, or show a picture.")
    parts = [part for message in said for part in message.parts]
    pictures = sum(isinstance(part, File) for part in parts)
    characters = sum(len(part) for part in parts if isinstance(part, str))
    if pictures > limits.pictures:
        raise _bad("messages", f"There are {pictures} pictures; at most {limits.pictures} are taken.", "too_many")
    if characters > limits.characters:
        raise _bad("messages", f"There are {characters} characters; at most {limits.characters} are read.", "too_many")
    return said


def _bad(param: str, sentence: str, code: str = "invalid_value") -> ApiError:
    return ApiError(BAD, sentence, param, code)


def _read_message(param: str, message: Any) -> Said:
    if not isinstance(message, dict):
        raise refuse(param, message, "an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise refuse(f"{param}.role", role, f"one of {', '.join(_ROLES)}")
    _refuse_unknown(param, message, ("role", "content"), _ECHOED)
    content = message.get("content")
    parts: list[str | File] = []
    if isinstance(content, str):
        parts = [_checked(f"{param}.content", content)]
    elif isinstance(content, list):
        for number, part in enumerate(content):
            parts.append(_read_part(f"{param}.content[{number}]", part, role))
    else:
        raise refuse(f"{param}.content", content, "a text or a list of parts")
    return Said(param, _ROLES[role], parts)


def _read_part(param: str, part: Any, role: str) -> str | File:
    if not isinstance(part, dict):
        raise refuse(param, part, "an object with a type")
    kind = part.get("type")
    if kind == "text":
        _refuse_unknown(param, part, ("type", "text"))
        return _checked(f"{param}.text", part.get("text"))
    if kind != "image_url":
        raise refuse(f"{param}.type", kind, "'text' or 'image_url'")
    if role != "user":
        raise _bad(param, f"Only a user's message can hold pictures, not one of the role {role!r}.")
    _refuse_unknown(param, part, ("type", "image_url"))
    at, address = f"{param}.image_url", part.get("image_url")
    if isinstance(address, dict):
        _refuse_unknown(at, address, ("url", "detail"))
        if address.get("detail") not in (None, "auto", "low", "high"):  # the model sees one size, whatever is said
            raise refuse(f"{at}.detail", address["detail"], "'auto', 'low' or 'high'")
        at, address = f"{at}.url", address.get("url")
    if not isinstance(address, str):
        raise refuse(at, address, "an address: data:image/png;base64,… holds the picture itself")
    if not address.startswith("data:"):
        return File(at, address)
    try:
        return File(at, decode_base64(at, address))
    except PromptError as error:
        raise _bad(at, str(error)) from None


def _refuse_unknown(
    param: str, given: Mapping[str, Any], known: tuple[str, ...], if_empty: tuple[str, ...] = ()
) -> None:
    for key, value in given.items():
        if key not in known and value is not None and not (key in if_empty and value in ([], {}, "")):
            raise not_done(f"{param}.{key[:80]}", value, None)


def _checked(param: str, text: Any) -> str:
    if not isinstance(text, str):
        raise refuse(param, text, "a text")
    try:
        return Text(text).text
    except PromptError as error:
        raise _bad(param, str(error)) from None


# --- What is remembered of earlier requests: of replies the ids. (Of pictures the bot keeps the features: `Sights`.)


class Replies:
    """The ids of the replies that were written last, by all that was said before and the reply's words.

    A client sends words back, which may be spelled by other ids than the model wrote; with these what was read of a
    conversation holds, and its next reply is the one that a `ChatSession` gives.
    """

    def __init__(self, limit: int = 2**20) -> None:
        self._limit = limit  # ids
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._size = 0

    def add(self, before: bytes, text: str, ids: tuple[int, ...]) -> None:
        name = self.after(before, Message("assistant", (Text(text),)), iter(()))
        with self._lock:
            self._size += len(ids) - len(self._kept.pop(name, ()))
            self._kept[name] = ids
            while self._size > self._limit:
                self._size -= len(self._kept.popitem(last=False)[1])

    def find(self, name: bytes) -> tuple[int, ...] | None:
        """The ids of the reply with which a conversation of this name ends."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    @staticmethod
    def after(before: bytes, message: Message, identities: Iterator[str]) -> bytes:
        """The name of a conversation that goes on with this message: a digest of all that was said and shown."""
        digest = hashlib.sha256(before + message.role.encode())
        for part in message.parts:
            content = part.text.encode() if isinstance(part, Text) else next(identities).encode()
            digest.update(b"%d:%d:" % (isinstance(part, Text), len(content)) + content)
        return digest.digest()


# --- A request → what the engine is asked.


@dataclass(frozen=True)
class Prepared:
    """What the engine is asked for one request: a reply for each choice."""

    requests: list[Request]
    name: bytes  # of the conversation, see `Replies`
    prompt_tokens: int


class Preparer:
    """Makes of requests what the engine is asked. For any thread."""

    def __init__(self, bot: MiniChat, name: str, limits: Limits, metrics: Metrics) -> None:
        self.bot, self.name, self.limits = bot, name, limits
        self.metrics, self.replies = metrics, Replies()

    def read(self, body: bytes) -> tuple[Asked, list[Said]]:
        """The request in a body, checked but for its pictures. Raises `ApiError`."""
        asked = read_request(body, self.name, self.limits)
        return asked, read_messages(asked.messages, self.limits)

    def prepare(self, asked: Asked, said: list[Said], cancelled: Callable[[], bool]) -> Prepared | None:
        """Open the pictures, which the engine encodes, and render the prompt; None: nobody wants it any more.

        Raises `ApiError`, also for what the model refuses.
        """
        try:
            conversation = self._open(said)
            if cancelled():
                return None
            return self._render(asked, conversation, cancelled)
        except MiniChatError as error:
            raise _bad("messages", str(error)) from None

    def _open(self, said: list[Said]) -> Conversation:
        left = self.limits.pixels
        messages = []
        for message in said:
            parts: list[Text | Picture] = []
            for part in message.parts:
                if isinstance(part, str):
                    parts += [Text(part)] if part else []
                    continue
                try:
                    picture = images.load(part.source, max_pixels=min(left, images.MAX_PIXELS))
                except ImageError as error:
                    raise _bad(part.param, str(error), "invalid_image") from None
                left -= picture.width * picture.height
                parts.append(Picture(picture))
            messages.append(Message(message.role, tuple(parts)))  # type: ignore[arg-type]
        return Conversation(tuple(messages))

    def _render(self, asked: Asked, conversation: Conversation, cancelled: Callable[[], bool]) -> Prepared | None:
        bot = self.bot
        identities = [images.identity(picture) for picture in conversation.pictures]
        conversation, name = self._with_ids(conversation, identities)
        rendered = bot.processor.render(conversation, add_generation_prompt=True)
        most = self._most(asked, len(rendered.ids))
        self._check_room(asked, len(rendered.ids), most)
        names, question = identities, rendered.question
        if cancelled():
            return None
        if bot.processor.instructed:  # its Q-Former reads the question, too
            names = [bot.seen_as(picture, question) for picture in conversation.pictures]
        pictures = {n: (picture, question) for n, picture in zip(names, conversation.pictures, strict=True)}
        sights = bot.sights.of(pictures) if pictures else {}
        prompt = Prompt(
            rendered.ids, prompt_keys(rendered.ids, names, bot.model.config), None, [sights[name] for name in names]
        )
        self.metrics.pictures_encoded.inc(len(prompt.new))
        self.metrics.pictures_known.inc(len(pictures) - len(prompt.new))
        stops = Stops((*bot.stops.strings, *asked.stop), bot.stops.sequences, bot.stops.strings_end)
        requests = [
            Request(
                prompt,
                GenerationSettings(max_new_tokens=most, seed=asked.seed_of(number), **asked.sampling),
                bot.processor.content_tokenizer,
                stops,
                cancelled,
                likeliest=asked.likeliest,
            )
            for number in range(asked.n)
        ]
        return Prepared(requests, name, len(rendered.ids))

    def _with_ids(self, conversation: Conversation, identities: list[str]) -> tuple[Conversation, bytes]:
        """The conversation with the ids of the replies that were written here, and its name."""
        messages, name, shown_here = [], b"", iter(identities)
        for message in conversation:
            name = Replies.after(name, message, shown_here)
            if message.role == "assistant":
                message = Message("assistant", message.parts, self.replies.find(name))
            messages.append(message)
        return Conversation(tuple(messages)), name

    def _check_room(self, asked: Asked, prompt: int, most: int) -> None:
        context = self.bot.context
        if context is None or prompt + most <= context:
            return
        param, mend = "messages", "send fewer words or pictures"
        if asked.max_tokens is not None and prompt < context:
            param, mend = "max_tokens", f"set max_tokens to at most {context - prompt}, or {mend}"
        takes = f"The messages take {prompt} tokens and the reply up to {most}"
        raise _bad(param, f"{takes}; the model's context holds {context}: {mend}.", "context_length_exceeded")

    def _most(self, asked: Asked, prompt: int) -> int:
        """How long the reply may become: as asked, or what the context leaves."""
        if asked.max_tokens is not None:
            return asked.max_tokens
        most, context = self.limits.max_tokens, self.bot.context
        return most if context is None else max(1, min(most, context - prompt))
