"""What happens when a visitor writes, stops, retries, edits, undoes or clears, and how the chat shows it."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

import minichat.images as images
from minichat.device.memory import out_of_memory
from minichat.errors import ImageError, MiniChatError, PromptError
from minichat.toy.world import Background, Scene, Thing, draw
from minichat.web.guard import COOKIE, GONE, SENT, Sent, Waiting, address_of
from minichat.web.sessions import Field, Limits, Session, Sessions, Uploads, read

# --- Synthetic scenes with a question each, one click away on the page.


SIDE = 256  # pixels


@dataclass(frozen=True)
class Example:
    """A scene, what the page suggests to ask about it, and a word that a right reply holds (None: many are right)."""

    scene: Scene
    question: str
    answer: str | None

    def picture(self) -> Image.Image:
        """The scene, drawn. Always the same picture."""
        return draw(self.scene, SIDE)


def _plain(colour: str) -> Background:
    return Background("plain", (colour,))


EXAMPLES = (
    Example(
        Scene((Thing("heart", "red", "large", 0.5, 0.5, 0.2),), _plain("white")),
        "What is in the picture?",
        "heart",
    ),
    Example(
        Scene(
            (
                Thing("star", "yellow", "large", 0.27, 0.3, 0.17, 12),
                Thing("circle", "orange", "large", 0.7, 0.66, 0.18),
            ),
            _plain("blue"),
        ),
        "What colour is the star?",
        "yellow",
    ),
    Example(
        Scene(
            (
                Thing("circle", "red", "large", 0.22, 0.24, 0.16),
                Thing("circle", "red", "small", 0.5, 0.5, 0.095),
                Thing("circle", "red", "large", 0.77, 0.76, 0.17),
                Thing("square", "black", "small", 0.76, 0.24, 0.095, 8),
            ),
            Background("gradient", ("white", "gray")),
        ),
        "How many circles are there?",
        "three",
    ),
    Example(
        Scene(
            (
                Thing("triangle", "green", "large", 0.27, 0.5, 0.19, 5),
                Thing("ring", "purple", "large", 0.74, 0.5, 0.18),
            ),
            _plain("pink"),
        ),
        "What is to the right of the triangle?",
        "ring",
    ),
    Example(
        Scene(
            (
                Thing("diamond", "blue", "large", 0.5, 0.27, 0.18),
                Thing("cross", "orange", "large", 0.5, 0.74, 0.17, 10),
            ),
            Background("noisy", ("green",)),
        ),
        "What colour is the background?",
        "green",
    ),
    Example(
        Scene(
            (
                Thing("star", "pink", "large", 0.24, 0.26, 0.16, 20),
                Thing("heart", "purple", "small", 0.73, 0.24, 0.1),
                Thing("square", "white", "large", 0.68, 0.7, 0.17, -10),
                Thing("ring", "yellow", "small", 0.25, 0.76, 0.1),
            ),
            Background("gradient", ("black", "blue")),
        ),
        "Describe the picture in detail.",
        None,
    ),
)


# --- A conversation as the chat shows it: every word a person or a model wrote as plain text, every picture inline.
#
# Pictures travel inside the page as data, never as addresses, so there is no address that someone else could fetch.


SHOWN_SIDE = 480  # pixels; the chat shows pictures no larger
ALT = "A picture in the conversation"

# What HTML would read as the start of a tag or of a character's name. All else stays as typed, so that the chat's copy
# and edit buttons, which see this text and not the page, give back what was written.
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])")


def escape(text: str) -> str:
    """Text that an HTML page shows exactly as it is."""
    return _MARKUP.sub(lambda found: "&lt;" if found.group() == "<" else "&amp;", text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return text.replace("&lt;", "<").replace("&amp;", "&")


def data_url(picture: Image.Image, side: int = SHOWN_SIDE) -> str:
    """The picture as a `data:` address, reduced to `side` pixels."""
    small = picture.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    if picture.width <= side and picture.height <= side:
        small.save(file, "PNG")  # small drawings stay sharp
    if not 0 < file.tell() <= 64 * 2**10:
        file = io.BytesIO()
        small.save(file, "WEBP", quality=82)
    kind = "png" if file.getvalue().startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_part(picture: Image.Image) -> dict[str, Any]:
    """A picture as a part of a chat message."""
    value = f'<img class="mc-picture" src="{data_url(picture)}" alt="{html.escape(ALT)}">'
    return {"type": "component", "component": "html", "value": value, "constructor_args": {}, "props": {}}


def text_part(text: str) -> dict[str, str]:
    """Plain text as a part of a chat message."""
    return {"type": "text", "text": escape(text)}


def user_bubble(pictures: Iterable[dict[str, Any]], text: str) -> dict[str, Any]:
    """A person's message: its pictures (`picture_part`), then its words."""
    return {"role": "user", "content": [*pictures, text_part(text)]}


def reply_bubble(text: str) -> dict[str, Any]:
    """The model's message."""
    return {"role": "assistant", "content": [text_part(text)]}


# --- What happens when a visitor writes, stops, retries, edits, undoes or clears. All of it stands on `ChatSession`.


log = logging.getLogger(__name__)

Update = tuple[Any, Any]  # for the chat and for the message box

PACE = 0.04  # seconds between two updates of a growing reply: fluent to the eye, and cheap
IDLE = {"submit_btn": True, "stop_btn": False}
BUSY = {"submit_btn": False, "stop_btn": True}
THINKING = {
    "role": "assistant",
    "content": [
        {
            "type": "component",
            "component": "html",
            "value": '<span class="mc-thinking" role="status" aria-label="Thinking"><i></i><i></i><i></i></span>',
            "constructor_args": {},
            "props": {},
        }
    ],
}
FAILED, NOTE = "That did not work", "Please note"  # above the sentences
HALF = "The text holds half of a surrogate pair, which is no character: it has been taken out: send the rest."
LOST = "Something went wrong while answering: try again, or start a new chat."
TEXT = ".txt"  # files of this ending are text, as if it had been typed
NO_MEMORY = "There was not enough memory for this answer: try a shorter reply, fewer pictures, or a new chat."


class Handlers:
    """The page's event listeners, bound to the open chats. They take what was sent from the request (`Sent`)."""

    def __init__(
        self,
        sessions: Sessions,
        uploads: Uploads,
        waiting: Waiting,
        fields: Sequence[Field],
        limits: Limits,
    ) -> None:
        self._sessions = sessions
        self._uploads = uploads
        self._waiting = waiting
        self._fields = fields
        self._limits = limits

    def submit(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """A message from the box: words, pictures, or both."""
        sent = _sent(request)
        try:
            session = self._session(request)
            box = _box(sent.values[0])
            whole = _without_halves(box["text"])
            if whole != box["text"]:
                _warn(HALF)
                yield gr.skip(), gr.update(value={**box, "text": whole}, **IDLE)
                return
            text, pictures = self._read(session, box)
            if text:
                yield from self._answer(session, sent, text, pictures, box=box)
            else:
                yield gr.skip(), gr.update(**IDLE)
        except MiniChatError as error:
            _warn(str(error))
            yield gr.skip(), gr.update(**IDLE)

    def example(self, example: Example) -> Callable[..., Iterator[Update]]:
        """The listener that puts this scene and its question into the chat."""

        def listener(request: gr.Request, *_: None) -> Iterator[Update]:
            try:
                session = self._session(request)
                yield from self._answer(session, _sent(request), example.question, [example.picture()])
            except MiniChatError as error:
                _warn(str(error))
                yield gr.skip(), gr.update(**IDLE)

        return listener

    def retry(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """Answer the last question anew."""
        yield from self._again(request, edited=False)

    def edit(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """Change a question; what followed it goes, and it is answered anew."""
        yield from self._again(request, edited=True)

    def undo(self, request: gr.Request) -> Update:
        """Take back the last question and its reply."""
        session = self._sessions.find(request.session_hash or "")
        if session is None:
            return [], gr.update()
        if not session.answering.acquire(blocking=False):
            gr.Info("Stop the reply before you undo it.", title=NOTE)
            return gr.skip(), gr.skip()
        try:
            if len(session.chat.conversation):
                session.chat.undo()
            return self._shown(session), gr.update()
        finally:
            session.answering.release()

    async def stop(self, request: gr.Request) -> Any:
        """End the reply at its next step; what was said so far stays. What waits for its turn is not answered."""
        key = request.session_hash or ""
        self._sessions.stop(key)
        await self._waiting.withdraw(key)
        session = self._sessions.find(key)
        return gr.skip() if session is not None and session.answering.locked() else gr.update(**IDLE)

    async def clear(self, request: gr.Request) -> Update:
        """Forget the chat, and what waits for its turn, and start anew."""
        key = request.session_hash or ""
        self._sessions.stop(key)
        await self._waiting.withdraw(key)
        session = self._sessions.find(key)
        if session is not None:
            self._sessions.clear(session)
        return [], gr.update(**IDLE)

    def _session(self, request: gr.Request) -> Session:
        visitor, address = request.cookies.get(COOKIE, ""), address_of(request.client)
        session = self._sessions.get(request.session_hash or "", visitor, address)
        if session.notice:
            gr.Info(session.notice, title=NOTE)
            session.notice = ""
        return session

    def _read(self, session: Session, box: dict[str, Any]) -> tuple[str, list[Image.Image]]:
        """The words and pictures of a message. Empty words mean that there is nothing to answer.

        Raises:
            ImageError, PromptError: a file cannot be used, or a limit is passed.
        """
        limits = self._limits
        if not all(self._uploads.owns(path, session.visitor) for path in box["files"]):
            raise ImageError(GONE)
        texts = [path for path in box["files"] if path.lower().endswith(TEXT)]
        paths = [path for path in box["files"] if path not in texts]
        text = "\n\n".join(filter(None, (_trimmed(part) for part in (box["text"], *map(_text_of, texts)))))
        if len(text) > limits.characters:
            raise PromptError(f"A message may have at most {limits.characters} characters; this has {len(text)}.")
        if len(paths) > limits.pictures_per_message:
            raise PromptError(f"A message may hold at most {limits.pictures_per_message} pictures, not {len(paths)}.")
        if paths and len(paths) + len(session.chat.conversation.pictures) > limits.pictures_per_chat:
            raise PromptError(f"A chat may hold at most {limits.pictures_per_chat} pictures: start a new chat.")
        pictures = []
        for path in paths:
            picture = images.load(path)
            picture.thumbnail((limits.picture_side, limits.picture_side), Image.Resampling.BICUBIC)
            pictures.append(picture)
        if pictures and not text:
            text = "Describe the picture." if len(pictures) == 1 else "Describe the pictures."
        return text, pictures

    def _again(self, request: gr.Request, *, edited: bool) -> Iterator[Update]:
        """Answer the last question anew, or the one that was edited, in its new words."""
        session, sent = None, _sent(request)
        try:
            session = self._session(request)
            asked = [message for message in session.chat.conversation if message.role == "user"]
            index, words = _edit(sent.event) if edited else (0, "")
            turn = _turn(session.chat.conversation, index) if edited else len(asked) - 1
            if not 0 <= turn < len(asked):
                yield self._shown(session), gr.update(**IDLE)
                return
            question = words if edited else asked[turn].text
            if not question or len(question) > self._limits.characters:
                raise PromptError(f"A message must have 1 to {self._limits.characters} characters.")
            pictures = list(asked[turn].pictures)
            yield from self._answer(session, sent, question, pictures, drop=len(asked) - turn)
        except MiniChatError as error:
            _warn(str(error))
            yield gr.skip() if session is None else self._shown(session), gr.update(**IDLE)

    def _answer(
        self,
        session: Session,
        sent: Sent,
        text: str,
        pictures: list[Image.Image],
        *,
        box: dict[str, Any] | None = None,
        drop: int = 0,
    ) -> Iterator[Update]:
        """Stream one reply into the chat.

        Args:
            box: the message box's content when the question came from it: emptied now, given back if the answer fails.
            drop: how many of the last turns to take back first. They come back if there is no answer.

        Raises:
            SettingsError: a setting is out of range.
        """
        chosen = read(self._fields, sent.values[-len(self._fields) :])
        if not session.answering.acquire(blocking=False):
            gr.Info("Wait for the reply, or stop it, before you go on.", title=NOTE)
            yield gr.skip(), gr.skip()
            return
        failure, answered = "", False
        chat, before, told = session.chat, session.chat.conversation, set(session.chat.notices)
        start = before
        try:
            session.stopping.clear()
            if self._sessions.stopped_since(session.key, sent.when):  # while this message waited for its turn
                yield self._shown(session), gr.update(**IDLE)
                return
            for _ in range(drop):
                chat.undo()
            start = chat.conversation
            shown = [*self._shown(session), user_bubble(self._parts(session, pictures), text)]
            yield [*shown, THINKING], gr.update(**BUSY) if box is None else gr.update(value=None, **BUSY)
            try:
                stream = chat.stream(text, pictures or None, cancel=session.stopping, **chosen)
                with contextlib.closing(_growing(stream)) as growing:
                    for reply in growing:
                        yield [*shown, reply_bubble(reply)], gr.skip()
            except MiniChatError as error:
                failure = str(error)
            except Exception as error:
                log.exception("a reply failed")
                failure = NO_MEMORY if out_of_memory(error) else LOST
        finally:  # also where the visitor leaves at any of these steps
            answered = chat.conversation is not start
            if not answered and start is not before and session.chat is chat:
                session.chat = self._sessions.new_chat(conversation=before)
            session.answering.release()
        for notice in chat.notices:
            if notice not in told:
                gr.Info(notice, title=NOTE)
        if failure:
            _warn(failure)
        if answered and box is not None:
            self._release(session, box)
        back = {} if answered or box is None else {"value": box}
        yield self._shown(session), gr.update(**back, **IDLE)

    def _release(self, session: Session, box: dict[str, Any]) -> None:
        """The uploads of a message that has been answered are needed no more."""
        for path in box["files"]:
            self._uploads.release(path, session.visitor)

    def _parts(self, session: Session, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """The pictures as the chat shows them, each encoded once per session."""
        for picture in pictures:
            if id(picture) not in session.shown:
                session.shown[id(picture)] = (picture, picture_part(picture))
        return [session.shown[id(picture)][1] for picture in pictures]

    def _shown(self, session: Session) -> list[dict[str, Any]]:
        """The whole conversation as the chat shows it."""
        conversation = session.chat.conversation
        kept = {id(picture) for picture in conversation.pictures}
        session.shown = {key: value for key, value in session.shown.items() if key in kept}
        return [
            user_bubble(self._parts(session, message.pictures), message.text)
            if message.role == "user"
            else reply_bubble(message.text)
            for message in conversation
            if message.role != "system"
        ]


def _warn(sentence: str) -> None:
    """Show the sentence, which may quote what somebody typed, above the page: Gradio would take it for HTML."""
    gr.Warning(escape(sentence), title=FAILED)


def _box(message: Any) -> dict[str, Any]:
    """The message box's content as a listener may give it back: {"text": str, "files": [path, …]}.

    Raises:
        PromptError: naming the field that is not what a message box sends.
    """
    message = {} if message is None else message
    if not isinstance(message, dict):
        raise PromptError(f"The message must be an object with “text” and “files”, not {_kind(message)}.")
    text, files = message.get("text"), message.get("files")
    text, files = "" if text is None else text, [] if files is None else files
    if not isinstance(text, str):
        raise PromptError(f"The message's text must be a text, not {_kind(text)}.")
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and isinstance(file.get("path"), str) for file in files
    ):
        raise PromptError("The message's files must be a list of uploaded files, each an object with its “path”.")
    return {"text": text, "files": [file["path"] for file in files]}


def _kind(value: Any) -> str:
    """What JSON calls it."""
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "nothing"}
    return names.get(type(value), "a number")


def _without_halves(text: str) -> str:
    """The text without halves of surrogate pairs, which no encoding has."""
    return re.sub("[\ud800-\udfff]", "", text)


def _trimmed(text: str) -> str:
    """The text without blanks, and without a byte order mark, before and after it."""
    return text.strip().removeprefix("\ufeff").strip()


def _text_of(path: str) -> str:
    """The words of a text file.

    Raises:
        PromptError: naming the file, if it is no text in UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError:
        raise PromptError(GONE) from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise PromptError(f"“{Path(path).name}” is no text in UTF-8: save it as that, or paste its words.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _edit(event: Any) -> tuple[int, str]:
    """The place of an edited message in the chat, and its new words.

    Raises:
        PromptError: naming the field that is not what a chat sends.
    """
    event = event if isinstance(event, dict) else {}
    index, text = event.get("index"), event.get("value")
    index = index[0] if isinstance(index, list) and index else index
    if isinstance(index, bool) or not isinstance(index, int):
        raise PromptError(f"The edited message's index must be a whole number, not {_kind(index)}.")
    if not isinstance(text, str):
        raise PromptError(f"The edited text must be a text, not {_kind(text)}.")
    if _without_halves(text) != text:
        raise PromptError("The edited text holds half of a surrogate pair, which is no character: write it anew.")
    return index, _trimmed(unescape(text))


def _sent(request: gr.Request) -> Sent:
    """What came with the request."""
    inner: Any = request.request
    sent: Sent = inner.scope[SENT]
    return sent


def _growing(stream: Iterator[str]) -> Generator[str]:
    """The reply as it grows, at a pace for the eye. Closing this closes the stream."""
    reply, last = "", 0.0
    with contextlib.closing(stream):  # type: ignore[type-var]
        for piece in stream:
            reply += piece
            if time.monotonic() - last >= PACE:
                last = time.monotonic()
                yield reply


def _turn(conversation: Any, index: int) -> int:
    """Which turn the chat's message at `index` asks; −1 when it is not a user's."""
    shown = [message for message in conversation if message.role != "system"]
    if not 0 <= index < len(shown) or shown[index].role != "user":
        return -1
    return sum(message.role == "user" for message in shown[:index])
