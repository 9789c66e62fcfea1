"""What happens when a visitor writes, stops, retries, edits, undoes or clears. All of it stands on `ChatSession`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from minichat import images
from minichat.errors import ImageError, MiniChatError, PromptError
from minichat.hardware.exhaustion import out_of_memory
from minichat.web import bubbles, settings
from minichat.web.examples import Example
from minichat.web.guard import COOKIE
from minichat.web.limits import Limits
from minichat.web.store import Session, Sessions, Uploads

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
LOST = "Something went wrong while answering: try again, or start a new chat."
NO_MEMORY = "There was not enough memory for this answer: try a shorter reply, fewer pictures, or a new chat."


class Handlers:
    """The page's event listeners, bound to the open chats."""

    def __init__(self, sessions: Sessions, uploads: Uploads, fields: Sequence[settings.Field], limits: Limits) -> None:
        self._sessions = sessions
        self._uploads = uploads
        self._fields = fields
        self._limits = limits

    def submit(self, request: gr.Request, message: dict[str, Any] | None, *values: Any) -> Iterator[Update]:
        """A message from the box: words, pictures, or both."""
        message = message or {}
        try:
            session = self._session(request)
            text, pictures = self._read(session, message)
            if text:
                yield from self._answer(session, text, pictures, values, box=message)
            else:
                yield gr.skip(), gr.skip()
        except MiniChatError as error:
            gr.Warning(str(error), title=FAILED)
            yield gr.skip(), gr.skip()

    def example(self, example: Example) -> Callable[..., Iterator[Update]]:
        """The listener that puts this scene and its question into the chat."""

        def listener(request: gr.Request, *values: Any) -> Iterator[Update]:
            try:
                yield from self._answer(self._session(request), example.question, [example.picture()], values)
            except MiniChatError as error:
                gr.Warning(str(error), title=FAILED)
                yield gr.skip(), gr.skip()

        return listener

    def retry(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        """Answer the last question anew."""
        yield from self._again(request, None, None, values)

    def edit(self, request: gr.Request, event: gr.EditData, *values: Any) -> Iterator[Update]:
        """Change a question; what followed it goes, and it is answered anew."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        yield from self._again(request, index, bubbles.unescape(str(event.value)), values)

    def undo(self, request: gr.Request) -> Update:
        """Take back the last question and its reply."""
        session = self._sessions.find(request.session_hash or "")
        if session is None:
            return [], gr.update()
        if session.answering.locked():
            gr.Info("Stop the reply before you undo it.", title=NOTE)
            return gr.skip(), gr.skip()
        if len(session.chat.conversation):
            session.chat.undo()
        return self._shown(session), gr.update()

    def stop(self, request: gr.Request) -> None:
        """End the reply at its next step; what was said so far stays."""
        session = self._sessions.find(request.session_hash or "")
        if session is not None:
            session.stopping.set()

    def clear(self, request: gr.Request) -> Update:
        """Forget the chat and start anew."""
        session = self._sessions.find(request.session_hash or "")
        if session is not None:
            self._sessions.clear(session)
        return [], gr.update(**IDLE)

    def leave(self, request: gr.Request) -> None:
        """The page was closed, or its connection broke."""
        visitor = request.cookies.get(COOKIE, "")
        self._sessions.leave(request.session_hash or "")
        if visitor not in self._sessions.visitors():
            self._uploads.release_all(visitor)

    def _session(self, request: gr.Request) -> Session:
        session = self._sessions.get(request.session_hash or "", request.cookies.get(COOKIE, ""))
        if session.notice:
            gr.Info(session.notice, title=NOTE)
            session.notice = ""
        return session

    def _read(self, session: Session, message: dict[str, Any]) -> tuple[str, list[Image.Image]]:
        """The words and pictures of a message. Empty words mean that there is nothing to answer.

        Raises:
            ImageError, PromptError: a picture cannot be used, or a limit is passed.
        """
        paths = _paths(message)
        limits = self._limits
        text = (message.get("text") or "").strip()
        if len(text) > limits.characters:
            raise PromptError(f"A message may have at most {limits.characters} characters; this has {len(text)}.")
        if len(paths) > limits.pictures_per_message:
            raise PromptError(f"A message may hold at most {limits.pictures_per_message} pictures, not {len(paths)}.")
        if paths and len(paths) + len(session.chat.conversation.pictures) > limits.pictures_per_chat:
            raise PromptError(f"A chat may hold at most {limits.pictures_per_chat} pictures: start a new chat.")
        pictures = []
        for path in paths:
            if not self._uploads.owns(path, session.visitor):
                raise ImageError("A picture of this message is no longer here: upload it again.")
            picture = images.load(path)
            picture.thumbnail((limits.picture_side, limits.picture_side), Image.Resampling.BICUBIC)
            pictures.append(picture)
        if pictures and not text:
            text = "Describe the picture." if len(pictures) == 1 else "Describe the pictures."
        return text, pictures

    def _again(
        self, request: gr.Request, index: int | None, text: str | None, values: Sequence[Any]
    ) -> Iterator[Update]:
        """Answer anew the user's message at `index` in the chat (None: the last one), with `text` in its place."""
        try:
            session = self._session(request)
            asked = [message for message in session.chat.conversation if message.role == "user"]
            turn = len(asked) - 1 if index is None else _turn(session.chat.conversation, index)
            if not 0 <= turn < len(asked):
                yield self._shown(session), gr.update()
                return
            question = asked[turn].text if text is None else text.strip()
            if not question or len(question) > self._limits.characters:
                raise PromptError(f"A message must have 1 to {self._limits.characters} characters.")
            yield from self._answer(session, question, list(asked[turn].pictures), values, drop=len(asked) - turn)
        except MiniChatError as error:
            gr.Warning(str(error), title=FAILED)
            yield self._shown(session), gr.update()

    def _answer(
        self,
        session: Session,
        text: str,
        pictures: list[Image.Image],
        values: Sequence[Any],
        *,
        box: dict[str, Any] | None = None,
        drop: int = 0,
    ) -> Iterator[Update]:
        """Stream one reply into the chat.

        Args:
            box: the message box's content when the question came from it: emptied now, given back if the answer fails.
            drop: how many of the last turns to take back first.

        Raises:
            SettingsError: a setting is out of range.
        """
        chosen = settings.read(self._fields, values)
        if not session.answering.acquire(blocking=False):
            gr.Info("Wait for the reply, or stop it, before you go on.", title=NOTE)
            yield gr.skip(), gr.skip()
            return
        failure, answered = "", False
        try:
            session.stopping.clear()
            chat, before, told = session.chat, session.chat.conversation, set(session.chat.notices)
            for _ in range(drop):
                chat.undo()
            start = chat.conversation
            shown = [*self._shown(session), bubbles.user_bubble(self._parts(session, pictures), text)]
            yield [*shown, THINKING], gr.update(**BUSY) if box is None else gr.update(value=None, **BUSY)
            try:
                for reply in _growing(chat.stream(text, pictures or None, cancel=session.stopping, **chosen)):
                    yield [*shown, bubbles.reply_bubble(reply)], gr.skip()
            except MiniChatError as error:
                failure = str(error)
            except Exception as error:
                log.exception("a reply failed")
                failure = NO_MEMORY if out_of_memory(error) else LOST
            answered = chat.conversation is not start
            if drop and not answered and session.chat is chat:
                session.chat = self._sessions.new_chat(conversation=before)
            for notice in chat.notices:
                if notice not in told:
                    gr.Info(notice, title=NOTE)
        finally:
            session.answering.release()
        if failure:
            gr.Warning(failure, title=FAILED)
        if answered and box is not None:
            self._release(session, box)
        back = {} if answered or box is None else {"value": box}
        yield self._shown(session), gr.update(**back, **IDLE)

    def _release(self, session: Session, message: dict[str, Any]) -> None:
        """The uploads of a message that has been answered are needed no more."""
        for path in _paths(message):
            self._uploads.release(path, session.visitor)

    def _parts(self, session: Session, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """The pictures as the chat shows them, each encoded once per session."""
        for picture in pictures:
            if id(picture) not in session.shown:
                session.shown[id(picture)] = (picture, bubbles.picture_part(picture))
        return [session.shown[id(picture)][1] for picture in pictures]

    def _shown(self, session: Session) -> list[dict[str, Any]]:
        """The whole conversation as the chat shows it."""
        conversation = session.chat.conversation
        kept = {id(picture) for picture in conversation.pictures}
        session.shown = {key: value for key, value in session.shown.items() if key in kept}
        return [
            bubbles.user_bubble(self._parts(session, message.pictures), message.text)
            if message.role == "user"
            else bubbles.reply_bubble(message.text)
            for message in conversation
            if message.role != "system"
        ]


def _paths(message: dict[str, Any]) -> list[str]:
    return [file["path"] for file in message.get("files") or []]


def _growing(stream: Iterator[str]) -> Iterator[str]:
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
