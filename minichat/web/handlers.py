"""What happens when a visitor writes, stops, retries, edits, undoes or clears, and how the chat shows it."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from minichat.device.memory import free_memory, out_of_memory
from minichat.errors import ImageError, MiniChatError, PromptError
from minichat.inference.looked import MEASURED
from minichat.prompt.boxes import numbered
from minichat.prompt.conversation import Conversation
from minichat.web.guard import COOKIE, SENT, Sent, Waiting, address_of
from minichat.web.sessions import GONE, Field, Limits, Session, Sessions, Uploads, read
from minichat.web.talk import Talk, bubble, escape, reply_bubble, unescape, user_bubble

log = logging.getLogger(__name__)

Update = tuple[Any, Any]  # for the chat, and of the conversation, for the browser to keep

PACE = 0.04  # seconds between two updates of a growing reply: fluent to the eye, and cheap
AGAIN = 0.7  # the temperature of another reply, where the likeliest words are asked for: those it would repeat
KEEP = 1.0  # seconds after which a browser keeps what has come of it
IDLE = {"submit_btn": True, "stop_btn": False}
BUSY = {"submit_btn": False, "stop_btn": True}  # the browser shows this itself: Gradio makes a component anew for that
THINKING = bubble(
    "assistant",
    [
        {
            "type": "component",
            "component": "html",
            "value": '<span class="mc-thinking" role="status" aria-label="Thinking"><i></i><i></i><i></i></span>',
            "constructor_args": {},
            "props": {},
        }
    ],
)
FAILED, NOTE = "That did not work", "Please note"  # above the sentences
HALF = "The text holds half of a surrogate pair, which is no character: take it out."
LOST = "Something went wrong while answering: try again, or start a new chat."
TEXT = ".txt"  # files of this ending are text, as if it had been typed
NO_MEMORY = "There was not enough memory for this answer: try a shorter reply, fewer pictures, or a new chat."


Turn = Generator[Update, None, Update]  # what a reply yields as it grows, and its end


class Handlers:
    """The page's event listeners, bound to the open chats. They take what was sent from the request (`Sent`).

    The first value of each is the conversation as the page has it (`Talk`): what the server holds gives way to that.
    """

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

    # --- what a page asks for

    def submit(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """A message from the box: words, pictures, or both."""
        yield from self._alone(request, self._ask)

    def example(self, question: str, picture: Callable[[], Image.Image]) -> Callable[..., Iterator[Update]]:
        """The listener that puts this scene and a question about it into the chat."""

        def ask(session: Session, sent: Sent) -> Turn:
            return self._answer(session, sent, question, [picture()])

        def listener(request: gr.Request, *_: None) -> Iterator[Update]:
            yield from self._alone(request, ask)

        return listener

    def retry(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """Answer the last question anew."""
        yield from self._alone(request, self._retry)

    def go_on(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """Go on with the last reply."""
        yield from self._alone(request, self._go_on)

    def look(self, request: gr.Request, *_: None) -> Any:
        """Where the model looked for one of the replies, for the page to draw."""
        sent = _sent(request)
        try:
            talk, place = Talk.read(sent.values[0]), _place(sent.values[1])
            session = self._session(request, restored=True)
            if not session.answering.acquire(blocking=False):
                return gr.skip()
            try:
                if talk is not None:
                    self._take_up(session, talk)
                conversation = session.chat.conversation
                end = len(conversation) - len(conversation.turns) + place + 1
                return self._seen(session, Conversation(conversation.messages[:end]))
            finally:
                self._sessions.renew(session)
                session.answering.release()
        except MiniChatError as error:
            _warn(str(error))
        except Exception as error:
            log.exception("where it looked could not be told")
            _warn(NO_MEMORY if out_of_memory(error) else LOST)
        return gr.skip()

    def edit(self, request: gr.Request, *_: None) -> Iterator[Update]:
        """Change a question; what followed it goes, and it is answered anew."""
        yield from self._alone(request, self._edit)

    def show(self, request: gr.Request, *_: None) -> tuple[Any, Any, Any]:
        """Show the conversation that the page has: in the chat, with the message box ready, and to be kept."""
        talk = Talk.read(_sent(request).values[0])
        if talk is None or not talk.messages:  # no chat has to be opened for that
            return [], gr.update(**IDLE), gr.skip()
        shown, told = next(self._alone(request, self._show))
        return shown, gr.update(**IDLE), told

    async def stop(self, request: gr.Request) -> Any:
        """End the reply at its next step; what was said so far stays. What waits for its turn is not answered."""
        key = request.session_hash or ""
        self._sessions.stop(key)
        await self._waiting.withdraw(key)
        session = self._sessions.find(key)
        return gr.skip() if session is not None and session.answering.locked() else gr.update(**IDLE)

    async def clear(self, request: gr.Request) -> tuple[Any, Any, Any]:
        """Forget the chat, and what waits for its turn, and start anew. Outputs as those of `show`."""
        key = request.session_hash or ""
        self._sessions.stop(key)
        await self._waiting.withdraw(key)
        session = self._sessions.find(key)
        if session is not None:
            self._sessions.clear(session)
        return [], gr.update(**IDLE), gr.skip()

    def look_ahead(self, path: str, visitor: str) -> None:
        """Let the model look at an uploaded picture while its question is being typed, if it has nothing else to do."""
        if path.lower().endswith(TEXT):
            return
        try:
            bot = self._sessions.bot_of(visitor)
            self._uploads.hold(path, bot.look_ahead(lambda: self._uploads.open(path, visitor)))
        except Exception as error:  # which whoever asks about the picture is told
            log.info("An uploaded picture was not looked at ahead: %s", error)

    # --- one after another

    def _alone(self, request: gr.Request, act: Callable[[Session, Sent], Turn]) -> Iterator[Update]:
        """Act on the session of a request, when nothing else does, and on the conversation that came with it."""
        session, sent = None, _sent(request)
        try:
            talk = Talk.read(sent.values[0])
            session = self._session(request, restored=talk is not None)
            if not session.answering.acquire(blocking=False):
                gr.Info("Wait for the reply, or stop it, before you go on.", title=NOTE)
                yield gr.skip(), gr.skip()
                return
            try:
                self._sessions.renew(session)
                if talk is not None:
                    self._take_up(session, talk)
                last = yield from act(session, sent)
            finally:
                if self._sessions.renew(session):  # the model that wrote this is not needed any more
                    free_memory()
                session.answering.release()
            yield last
        except MiniChatError as error:
            _warn(str(error))
            shown = gr.skip() if session is None or not len(session.chat.conversation) else self._shown(session)
            yield shown, gr.skip()

    def _session(self, request: gr.Request, restored: bool) -> Session:
        visitor, address = request.cookies.get(COOKIE, ""), address_of(request.client)
        session = self._sessions.get(request.session_hash or "", visitor, address)
        if session.notice and not restored:
            gr.Info(session.notice, title=NOTE)
        session.notice = ""
        return session

    def _take_up(self, session: Session, talk: Talk) -> None:
        """Go on with the conversation that the page has, unless it is the session's already.

        Raises:
            ImageError, PromptError: where a picture is not here, or cannot be used.
        """
        if talk.says(Talk.of(session.chat.conversation, session.album)):
            return
        pictures = self._sessions.pictures_of(session.visitor) | session.album.by_name()
        for name, path in (talk.files or {}).items():
            if name not in pictures:
                pictures[name] = self._uploads.open(path, session.visitor)
            self._uploads.release(path, session.visitor)
        if len(talk.pictures) > self._limits.pictures_per_chat:
            raise PromptError(f"A chat may hold at most {self._limits.pictures_per_chat} pictures: start a new chat.")
        conversation = talk.conversation(pictures)
        for name in talk.pictures:
            session.album.add(pictures[name], name)
        self._sessions.begin(session, conversation)

    # --- what is done

    def _ask(self, session: Session, sent: Sent) -> Turn:
        box = _box(sent.values[1])
        if _without_halves(box["text"]) != box["text"]:
            raise PromptError(HALF)
        text, pictures = self._read(session, box)
        if not text:
            return gr.skip(), gr.skip()
        return (yield from self._answer(session, sent, text, pictures, uploads=box["files"]))

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
        pictures = [self._uploads.open(path, session.visitor) for path in paths]
        if pictures and not text:
            text = "Describe the picture." if len(pictures) == 1 else "Describe the pictures."
        return text, pictures

    def _retry(self, session: Session, sent: Sent) -> Turn:
        asked = [message for message in session.chat.conversation if message.role == "user"]
        if not asked:
            return self._shown(session), gr.skip()
        return (yield from self._answer(session, sent, asked[-1].text, list(asked[-1].pictures), drop=1, again=True))

    def _seen(self, session: Session, conversation: Conversation) -> dict[str, Any]:
        """What the page draws: pieces of the reply, their weights (R, I, n), maps (I, n, h, w), and what is known."""
        bot = session.chat.bot  # which the page's owner may have changed
        found = bot.looked(conversation)
        return {
            "words": found.words,
            "weights": [[[round(w, 5) for w in row] for row in token] for token in found.weights.tolist()],
            "maps": [[[round(v, 5) for v in m] for m in picture] for picture in found.maps.flatten(2).tolist()],
            "side": found.maps.shape[-1],
            "boxes": found.boxes,
            "pictures": [session.album.add(picture).part["value"] for picture in found.pictures],
            "share": MEASURED.get(bot.name),
            "name": bot.name,
            "at": time.monotonic(),  # a page that asks twice is told twice
        }

    def _go_on(self, session: Session, sent: Sent) -> Turn:
        turns = session.chat.conversation.turns
        if not turns or turns[-1].role == "user":
            return self._shown(session), gr.skip()
        return (yield from self._answer(session, sent, "", [], on=True))

    def _edit(self, session: Session, sent: Sent) -> Turn:
        asked = [message for message in session.chat.conversation if message.role == "user"]
        index, words = _edit(sent.event)
        turn = _turn(session.chat.conversation, index)
        if not 0 <= turn < len(asked):
            return self._shown(session), gr.skip()
        if not words or len(words) > self._limits.characters:
            raise PromptError(f"A message must have 1 to {self._limits.characters} characters.")
        pictures = list(asked[turn].pictures)
        return (yield from self._answer(session, sent, words, pictures, drop=len(asked) - turn))

    def _show(self, session: Session, sent: Sent) -> Turn:
        yield from ()
        return self._shown(session), gr.skip()

    def _answer(
        self,
        session: Session,
        sent: Sent,
        text: str,
        pictures: list[Image.Image],
        *,
        uploads: Sequence[str] = (),
        drop: int = 0,
        again: bool = False,
        on: bool = False,
    ) -> Turn:
        """Stream one reply into the chat.

        Args:
            uploads: files of the question, which are needed no more when it is answered.
            drop: how many of the last turns to take back first. They come back if there is no answer.
            again: another reply is wanted: it is sampled, by a seed of its own.
            on: there is no question: the last reply goes on.

        Raises:
            SettingsError: a setting is out of range.
        """
        chosen = read(self._fields, sent.values[-len(self._fields) :])
        if again:
            chosen |= {"seed": None, "temperature": chosen["temperature"] or AGAIN}
        failure, answered = "", False
        chat, before, told = session.chat, session.chat.conversation, set(session.chat.notices)
        start = before
        try:
            session.stopping.clear()
            if self._sessions.stopped_since(session.key, sent.when):  # while this message waited for its turn
                return self._shown(session), gr.skip()
            for _ in range(drop):
                chat.undo()
            start = chat.conversation
            shown = self._shown(session)
            if on:
                yield shown, gr.skip()
                shown.pop()
            else:
                shown.append(user_bubble(session.album.parts(pictures), text))
                asked = start.user(text, pictures)
                yield [*shown, THINKING], self._told(session, sent, asked)
            pictured = bool(pictures or start.pictures)
            try:
                if on:
                    stream = chat.stream_on(cancel=session.stopping, pace=self._pace, **chosen)
                else:
                    stream = chat.stream(text, pictures or None, cancel=session.stopping, pace=self._pace, **chosen)
                with contextlib.closing(_growing(stream, self._pace)) as growing:
                    for reply, settled in growing:
                        kept = {"reply": reply} if settled and sent.values[0] is not None else gr.skip()
                        yield [*shown, reply_bubble(numbered(reply) if pictured else reply)], kept
            except MiniChatError as error:
                failure = str(error)
            except Exception as error:
                log.exception("a reply failed")
                failure = NO_MEMORY if out_of_memory(error) else LOST
        finally:  # also where the visitor leaves at any of these steps
            answered = chat.conversation is not start
            if not answered and start is not before and session.chat is chat:
                self._sessions.begin(session, before)
        for notice in chat.notices:
            if notice not in told:
                gr.Info(notice, title=NOTE)
        if failure:
            _warn(failure)
        for path in uploads if answered else ():
            self._uploads.release(path, session.visitor)
        return self._shown(session), self._told(session, sent, answered=answered)

    def _pace(self) -> float:
        """Seconds between two updates of a reply. All that grow share the pace: each update is work for the server."""
        return PACE * self._sessions.answering()

    def _told(self, session: Session, sent: Sent, asked: Conversation | None = None, answered: bool = False) -> Any:
        """The conversation for a browser to keep: what it is, or as a question is `asked`, with its new pictures."""
        known = Talk.read(sent.values[0])
        if known is None:
            return gr.skip()
        talk = Talk.of(session.chat.conversation if asked is None else asked, session.album)
        held = session.album.shown() if asked is not None else {}
        new = {name: held[name] for name in talk.pictures if name in held and name not in known.pictures}
        told = talk.as_dict(new)
        if answered:
            figures = session.chat.figures
            told["messages"][-1] |= {"cut": session.chat.cut, "figures": figures and asdict(figures)}
        return {**told, "answered": answered, "model": self._sessions.model_of(session.visitor)[1]}

    def _shown(self, session: Session) -> list[dict[str, Any]]:
        """The whole conversation as the chat shows it."""
        conversation = session.chat.conversation
        session.album.keep(conversation.pictures)
        shown: list[dict[str, Any]] = []
        for message in conversation.turns:
            if message.role == "user":
                shown.append(user_bubble(session.album.parts(message.pictures), message.text))
            else:
                shown.append(reply_bubble(message.text, _last_picture(shown)))
        return shown


def _last_picture(shown: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The picture that was shown last, of which a reply's boxes are."""
    asked = (part for bubble in reversed(shown) if bubble["role"] == "user" for part in reversed(bubble["content"]))
    return next((part for part in asked if part["type"] == "component"), None)


def _warn(sentence: str) -> None:
    """Show the sentence, which may quote what somebody typed, above the page: Gradio would take it for HTML."""
    gr.Warning(escape(sentence), title=FAILED)


def _box(message: Any) -> dict[str, Any]:
    """The message box's content: {"text": str, "files": [path, …]}.

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


def _place(value: Any) -> int:
    """The place of a reply in the chat. Raises `PromptError` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10_000:
        raise PromptError(f"The reply's place must be a whole number, not {_kind(value)}.")
    return value


def _sent(request: gr.Request) -> Sent:
    """What came with the request."""
    inner: Any = request.request
    sent: Sent = inner.scope[SENT]
    return sent


def _growing(stream: Iterator[str], pace: Callable[[], float]) -> Generator[tuple[str, bool]]:
    """The reply as it grows, at this pace, and whether to keep it now. Closing this closes the stream."""
    reply, last, kept = "", 0.0, time.monotonic()
    with contextlib.closing(stream):  # type: ignore[type-var]
        for piece in stream:
            reply += piece
            now = time.monotonic()
            if now - last >= pace():  # pieces of a model that writes replies one by one come as they are written
                settled = now - kept >= KEEP
                last, kept = now, now if settled else kept
                yield reply, settled


def _turn(conversation: Any, index: int) -> int:
    """Which turn the chat's message at `index` asks; −1 when it is not a user's."""
    shown = [message for message in conversation if message.role != "system"]
    if not 0 <= index < len(shown) or shown[index].role != "user":
        return -1
    return sum(message.role == "user" for message in shown[:index])
