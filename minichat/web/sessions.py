"""Open chats and waiting uploads, bounded in number and time; the limits; and the settings a visitor may change."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from PIL import Image

from minichat import images
from minichat.errors import ImageError, MiniChatError, SettingsError
from minichat.prompt.conversation import Conversation
from minichat.web.talk import Album

# --- What one page may cost its host, and what one visitor may take of that: sizes, counts and lifetimes.


@dataclass(frozen=True)
class Limits:
    """Bounds of the chat page; each is a number greater than 0.

    Raises:
        SettingsError: for a bound that is no positive number; the message names it.
    """

    upload_bytes: int = 20 * 2**20  # one picture file
    waiting_bytes: int = 512 * 2**20  # all uploads together that no message has used yet
    pictures_per_message: int = 6
    pictures_per_chat: int = 24
    picture_side: int = 1024  # pictures are kept no larger than this; no model here sees more
    characters: int = 250_000  # of one message, some 60,000 tokens; the model's context is mostly the closer bound
    new_tokens: int = 1000  # the longest reply that can be asked for
    sessions: int = 64  # open chats; the one idle longest goes first
    sessions_per_visitor: int = 8  # of them; beyond, the visitor's own oldest goes
    session_life: float = 30 * 60  # seconds without a sign of life
    queue: int = 32  # messages that wait for an answer
    queue_per_visitor: int = 4  # messages of one visitor that wait or are being answered
    concurrent: int = 8  # answers at a time; more wait in the queue

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            wanted = (int, float) if limit.name == "session_life" else int
            if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value < float("inf"):
                raise SettingsError(f"{limit.name} must be a number greater than 0, not {value!r}.")


# --- The settings a visitor may change, each described once: the panel is drawn and every request checked by it.


@dataclass(frozen=True)
class Field:
    """One number: its name in `ChatSession.stream`, what the page calls it, and its range. Whole when `step` is."""

    name: str
    label: str
    info: str
    low: float
    high: float
    step: float
    default: float | None  # None: the setting may be left empty

    def read(self, value: Any) -> float | int | None:
        """The value as the bot takes it.

        Raises:
            SettingsError: naming the field, when the value is no number, not whole, or out of range.
        """
        if self.default is None:  # shown as a text field: Gradio's number field turns "empty" into 0
            value = value.strip() if isinstance(value, str) else value
            if value in (None, ""):
                return None
            if isinstance(value, str) and value.isdecimal() and len(value) < 20:
                value = int(value)
        whole = isinstance(self.step, int)
        kind = "a whole number" if whole else "a number"
        rule = f"{self.name} must be {kind} from {self.low:g} to {self.high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{rule}, not {str(value)[:40]!r}.")
        if not self.low <= value <= self.high or (whole and value != int(value)):  # NaN compares as false
            shown = f"{value:.12g}" if isinstance(value, float) or abs(value) < 10**12 else "a number of so many digits"
            raise SettingsError(f"{rule}, not {shown}.")
        return int(value) if whole else float(value)


def panel(limits: Limits, context: int | None = None) -> tuple[Field, ...]:
    """The settings of the page, in the order in which requests send them.

    Args:
        context: the model's, in tokens; a reply may have half of it at most.
    """
    most = limits.new_tokens if context is None else max(1, min(limits.new_tokens, context // 2))
    return (
        Field("temperature", "Temperature", "0: always the likeliest word. Higher: more varied.", 0.0, 2.0, 0.05, 0.0),
        Field("top_p", "Top-p", "Sample only from the likeliest words that make up this share.", 0.05, 1.0, 0.05, 1.0),
        Field("max_new_tokens", "Longest reply", "In tokens; a token is about a word.", 1, most, 1, min(200, most)),
        Field("repetition_penalty", "Repetition penalty", "Above 1: repeats itself less.", 1.0, 2.0, 0.05, 1.0),
        Field("seed", "Seed", "Equal seeds give equal samples. Empty: a new one each time.", 0, 2**31 - 1, 1, None),
    )


def read(fields: Sequence[Field], values: Sequence[Any]) -> dict[str, float | int | None]:
    """Check the values of a request, in the panel's order.

    Raises:
        SettingsError: naming the first field that is out of range.
    """
    return {field.name: field.read(value) for field, value in zip(fields, values, strict=True)}


# --- What the server keeps for its visitors: open chats and waiting uploads, both bounded in number and in time.
#
# Each visitor has a share of both, and so has each address, for visitors who come anew with every request. Who wants
# more than their share gives up what they used longest ago.
#
# A chat lives here and not in Gradio's state, which is copied, and kept for an hour after its page is closed.


_UNSAFE = re.compile(r"[^\w.-]")

GRACE = 60.0  # seconds that a chat outlives its page: a connection may break and come back
UPLOAD_GRACE = 10.0  # the same for pictures that were not sent
IN_USE = 5 * 60.0  # seconds for which a chat with an open page is not closed for the sake of other visitors

IDLE = "Your earlier chat was idle for more than {minutes:.3g} minutes and has been closed; this is a new one."
LEFT = "The connection to your earlier chat was lost, so it has been closed; this is a new one."
OWN = "You opened more chats than a visitor may have, so this one, your oldest, has been closed; this is a new one."
ROOM = "The server needed room for others, so your earlier chat, idle the longest, has been closed; this is a new one."
GONE = "A picture of this message is no longer here: take it out and upload it again."


class BusyError(MiniChatError):
    """There is no room for another chat at the moment."""


@dataclass
class Session:
    """One open page and its chat."""

    key: str
    visitor: str
    address: str  # "": no address to count by
    chat: Any  # ChatSession; replaced by a fresh one when the visitor clears the chat
    model: Callable[..., Any]  # the `new_chat` that made it
    last_used: float
    left: float | None = None  # since when its page is gone
    notice: str = ""  # to tell the visitor with the next answer
    album: Album = field(default_factory=Album)  # the pictures of the chat
    answering: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)


class Sessions:
    """The open chats by session key. All methods may be called from any thread."""

    def __init__(
        self,
        new_chat: Callable[..., Any],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        name: str = "",
    ) -> None:
        self.new_chat = new_chat  # `MiniChat.chat`; another one after `swap`
        self.name = name  # of that model
        self.also: dict[str, Callable[..., Any]] = {}  # of other models, by name: a visitor may choose among them
        self._chosen: OrderedDict[str, str] = OrderedDict()  # visitor -> the name of one of them
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._open: OrderedDict[str, Session] = OrderedDict()  # the one idle longest first
        self._pages: Counter[str] = Counter()  # open connections that keep a page alive, by session key
        self._dropped: OrderedDict[str, str] = OrderedDict()  # key -> what to tell its visitor, who does not know yet
        self._stopped: OrderedDict[str, float] = OrderedDict()  # key -> when its visitor last said stop
        self.on_close: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        return len(self._open)

    def open_keys(self) -> list[str]:
        """The keys of the open chats."""
        with self._lock:
            return list(self._open)

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def get(self, key: str, visitor: str, address: str = "") -> Session:
        """The session of this key, opened if need be.

        Raises:
            BusyError: where the visitor, their address or the server has no room and no chat that may be closed.
        """
        self.sweep()
        with self._lock:
            session = self._open.get(key)
            if session is None:
                self._make_room(visitor, address)
                new_chat, _ = self.model_of(visitor)
                session = Session(key, visitor, address, new_chat(), new_chat, self._clock())
                session.notice = self._dropped.pop(key, "")
                self._open[key] = session
            session.last_used, session.left = self._clock(), None
            self._open.move_to_end(key)
            return session

    def find(self, key: str) -> Session | None:
        """The session of this key, if it is open."""
        return self._open.get(key)

    def pictures_of(self, visitor: str) -> dict[str, Any]:
        """The pictures of all chats of a visitor, by their names."""
        with self._lock:
            mine = [session.album for session in self._open.values() if session.visitor == visitor]
        return {name: picture for album in mine for name, picture in album.by_name().items()}

    def answering(self) -> int:
        """How many chats are being answered, at least 1."""
        with self._lock:
            return max(1, sum(session.answering.locked() for session in self._open.values()))

    def model_of(self, visitor: str) -> tuple[Callable[..., Any], str]:
        """What makes chats of the model that answers this visitor now, and the model's name."""
        name = self._chosen.get(visitor, "")
        return (self.also[name], name) if name in self.also else (self.new_chat, self.name)

    def bot_of(self, visitor: str) -> Any:
        """The model that answers this visitor now."""
        return self.model_of(visitor)[0]().bot

    def choose(self, visitor: str, name: str) -> None:
        """Let another model answer this visitor alone, or again the one that answers all who chose none.

        Chats go on by it, as after `swap`. Raises `SettingsError` where there is none of that name.
        """
        if name != self.name and name not in self.also:
            raise SettingsError(f"There is no model {name!r} to choose: look at the list again.")
        with self._lock:
            _remember(self._chosen, visitor, name, 4 * self._limits.sessions)
            mine = [session for session in self._open.values() if session.visitor == visitor]
        self._renew_idle(mine)

    def clear(self, session: Session) -> None:
        """Stop what is being answered and start the chat anew."""
        session.stopping.set()
        self.begin(session)
        session.album = Album()
        session.notice = ""

    def begin(self, session: Session, conversation: Conversation = Conversation()) -> None:  # noqa: B008 (frozen)
        """Give the session a chat that goes on with this conversation, by the model that answers now.

        Ids that another model wrote are left out: the replies are spelled anew.
        """
        with self._lock:
            new_chat, _ = self.model_of(session.visitor)
            if session.model != new_chat:
                conversation = Conversation(tuple(replace(message, ids=None) for message in conversation))
            session.chat, session.model = new_chat(conversation=conversation), new_chat

    def renew(self, session: Session) -> bool:
        """Go on by the model that answers now; whether it was another before. Only while nothing is being answered."""
        stale = session.model != self.model_of(session.visitor)[0]
        if stale:
            self.begin(session, session.chat.conversation)
        return stale

    def swap(self, new_chat: Callable[..., Any], name: str) -> None:
        """Another model, of this name, answers from now on all who chose none.

        A reply that is being written ends by the one before, which is let go of then, and else at once.
        """
        with self._lock:
            self.new_chat, self.name = new_chat, name
            chats = list(self._open.values())
        self._renew_idle(chats)

    def _renew_idle(self, chats: Sequence[Session]) -> None:
        for session in chats:
            if session.answering.acquire(blocking=False):
                try:
                    self.renew(session)
                finally:
                    session.answering.release()

    def stop(self, key: str) -> None:
        """Stop what is being answered, and what was asked before now and waits to be answered."""
        with self._lock:
            _remember(self._stopped, key, self._clock(), 4 * self._limits.sessions)
            session = self._open.get(key)
        if session is not None:
            session.stopping.set()

    def stopped_since(self, key: str, when: float) -> bool:
        """Whether `stop` was called at this time (of the clock) or later."""
        return self._stopped.get(key, float("-inf")) >= when

    def now(self) -> float:
        """The time on the clock."""
        return self._clock()

    def enter(self, key: str) -> None:
        """A page is open, as its connection shows; several connections of one page count as one."""
        with self._lock:
            self._pages[key] += 1
            session = self._open.get(key)
            if session is not None and session.left is not None:
                session.last_used, session.left = self._clock(), None

    def leave(self, key: str) -> None:
        """The page is gone: stop what is being answered now, and close the chat soon unless the page comes back."""
        with self._lock:
            self._pages[key] -= 1
            if self._pages[key] > 0:
                return
            del self._pages[key]
            if (session := self._open.get(key)) is not None:
                session.stopping.set()
                session.left = self._clock()
        if session is None:  # nothing was asked, and what was prepared for it goes
            self.close(key)
        self.sweep()

    def close(self, key: str) -> None:
        """Stop what is being answered and forget the chat. Closing twice is no error."""
        with self._lock:
            session = self._open.pop(key, None)
        if session is not None:
            session.stopping.set()
        for listener in self.on_close:
            listener(key)

    def sweep(self) -> None:
        """Close the sessions that showed no sign of life for longer than their life, or whose page is gone."""
        now, life = self._clock(), self._limits.session_life
        with self._lock:
            for key, session in list(self._open.items()):
                if session.left is not None and session.left < now - GRACE:
                    self._drop(key, LEFT)
                elif session.last_used < now - life:
                    self._drop(key, IDLE.format(minutes=life / 60))

    def _make_room(self, visitor: str, address: str) -> None:
        """Close one chat where the visitor, the address or the server has its full number: the visitor's own first."""
        chats, most = list(self._open.values()), self._limits.sessions
        full = len(chats) >= most
        mine = [chat for chat in chats if chat.visitor == visitor]
        near = [chat for chat in chats if address and chat.address == address]
        if mine and (full or len(mine) >= self._limits.sessions_per_visitor):
            idle = [chat for chat in mine if not chat.answering.locked()]
            if not idle:
                raise BusyError(f"You have {len(mine)} chats that are being answered: wait for one of the replies.")
            self._drop(min(idle, key=self._importance).key, OWN)
        elif full or len(near) >= share_of_address(most):
            idle = [chat for chat in (chats if full else near) if not chat.answering.locked()]
            spare = min(idle, key=self._importance, default=None)
            if spare is None:
                raise BusyError("The server is busy answering others: try again in a minute.")
            if spare.key in self._pages and spare.last_used > self._clock() - IN_USE:
                raise BusyError("All chats that this server can keep are in use: try again in a few minutes.")
            self._drop(spare.key, ROOM)

    def _importance(self, session: Session) -> tuple[bool, bool, float]:
        """What is closed first: a chat whose page is gone, then one that never had a page, then the longest idle."""
        return session.key in self._pages, session.left is None, session.last_used

    def _drop(self, key: str, why: str) -> None:
        _remember(self._dropped, key, why, 4 * self._limits.sessions)
        self.close(key)


def share_of_address(most: int) -> int:
    """How much of what all visitors may have together those of one address may have: half."""
    return max(1, most // 2)


def _remember(table: OrderedDict[str, Any], key: str, value: Any, most: int) -> None:
    """Put this into the table, which keeps its newest `most` entries."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)


@dataclass(frozen=True)
class _File:
    visitor: str
    address: str
    size: int
    since: float
    made: list[Any] = field(default_factory=list)


class Uploads:
    """Files that visitors have uploaded and not used yet: who may use which, and when they are deleted.

    Each file lies in a folder of its own with a random name, so no two visitors ever share one. Where room is needed,
    the oldest file of whoever keeps most bytes goes.
    """

    def __init__(self, folder: Path, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._files: dict[str, _File] = {}  # by path, the oldest first
        self._pages: Counter[str] = Counter()  # open connections that keep pages alive, by visitor
        self._left: dict[str, float] = {}  # when the last page of a visitor who has files was closed
        self._alive = FileLock(f"{folder}.lock", blocking=False, thread_local=False)

    def __len__(self) -> int:
        return len(self._files)

    def start(self) -> None:
        """Delete what servers that were killed have left beside this folder, and show others that this one lives.

        Raises:
            MiniChatError: where nothing can be written.
        """
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._alive.acquire()
        except OSError as error:
            raise MiniChatError(
                f"Uploads cannot be kept in {self._folder.parent.name!r} ({error.strerror}): "
                "let the environment variable GRADIO_TEMP_DIR name a folder that can be written."
            ) from None
        for lock in self._folder.parent.glob("minichat-*.lock"):
            folder = lock.with_suffix("")
            if folder == self._folder:
                continue
            try:
                with FileLock(lock, blocking=False):  # its server has ended, or it would hold the lock
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink(missing_ok=True)
            except (Timeout, OSError):  # it lives, or is another user's
                continue

    def add(self, content: BinaryIO, name: str, visitor: str, address: str = "") -> str:
        """Store a visitor's file and return its path. Where that is more than their share, their oldest goes."""
        place = self._folder / secrets.token_hex(16)
        place.mkdir(parents=True)
        path = place / (_UNSAFE.sub("_", name)[-60:].lstrip(".") or "picture")
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
            size = file.tell()
        with self._lock:
            self._files[str(path)] = _File(visitor, address, size, self._clock())
        self._make_room(visitor, address)
        return str(path)

    def owns(self, path: str, visitor: str) -> bool:
        """Whether this visitor, and not somebody else, uploaded the file."""
        file = self._files.get(path)
        return file is not None and file.visitor == visitor

    def open(self, path: str, visitor: str) -> Image.Image:
        """The picture that this visitor uploaded, at the size at which pictures are kept.

        Raises:
            ImageError: where it is not here (any more), not this visitor's, or no picture that can be opened.
        """
        if not self.owns(path, visitor):
            raise ImageError(GONE)
        picture = images.load(path)
        picture.thumbnail((self._limits.picture_side, self._limits.picture_side), Image.Resampling.BICUBIC)
        return picture

    def hold(self, path: str, made: Any) -> None:
        """Keep what was made of a file as long as the file."""
        if file := self._files.get(path):
            file.made.append(made)

    def release(self, path: str, visitor: str) -> None:
        """This visitor needs the file no more: it is deleted from disk."""
        with self._lock:
            if not self.owns(path, visitor):
                return
            del self._files[path]
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)

    def enter(self, visitor: str) -> None:
        """A page of this visitor is open, as its connection shows."""
        with self._lock:
            self._pages[visitor] += 1

    def leave(self, visitor: str) -> None:
        """A page of this visitor is gone. What was not sent goes soon after the last of them."""
        with self._lock:
            self._pages[visitor] -= 1
            if self._pages[visitor] <= 0:
                del self._pages[visitor]
                if any(file.visitor == visitor for file in self._files.values()):
                    self._left[visitor] = self._clock()

    def sweep(self) -> None:
        """Delete what has been waiting for longer than a session's life, and what pages that are gone did not send."""
        now = self._clock()
        with self._lock:
            gone = {v: left for v, left in self._left.items() if left < now - UPLOAD_GRACE and v not in self._pages}
            stale = [
                (path, file.visitor)
                for path, file in self._files.items()
                if file.since < now - self._limits.session_life or file.since <= gone.get(file.visitor, float("-inf"))
            ]
            for path, visitor in stale:
                self.release(path, visitor)
            waiting = {file.visitor for file in self._files.values()}
            self._left = {visitor: left for visitor, left in self._left.items() if visitor in waiting - gone.keys()}

    def close(self) -> None:
        """Delete everything."""
        with self._lock:
            self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._alive.is_locked:
            self._alive.release()
            Path(self._alive.lock_file).unlink(missing_ok=True)

    def _make_room(self, visitor: str, address: str) -> None:
        limits = self._limits
        message = limits.pictures_per_message
        bytes_, files = limits.waiting_bytes, 4 * message * limits.sessions
        self._shrink(lambda file: file.visitor == visitor, message * limits.upload_bytes, 4 * message)
        if address:
            self._shrink(lambda file: file.address == address, share_of_address(bytes_), share_of_address(files))
        self._shrink(lambda file: True, bytes_, files)

    def _shrink(self, counted: Callable[[_File], bool], most_bytes: int, most_files: int) -> None:
        """Delete files until those that count are no more than this; of whoever has most bytes the oldest first."""
        while True:
            with self._lock:
                held = {path: file for path, file in self._files.items() if counted(file)}
                sizes: Counter[str] = Counter()
                for file in held.values():
                    sizes[file.visitor] += file.size
                if sizes.total() <= most_bytes and len(held) <= most_files:
                    return
                largest = max(sizes, key=lambda visitor: sizes[visitor])  # of equal ones, who has been waiting longest
                oldest = next(path for path, file in held.items() if file.visitor == largest)
            self.release(oldest, largest)
