"""What the server keeps for its visitors: open chats and waiting uploads, both bounded in number and in time.

A chat lives here and not in Gradio's state, which is copied, and kept for an hour after its page is closed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from minichat.errors import MiniChatError
from minichat.web.limits import Limits

_UNSAFE = re.compile(r"[^\w.-]")

GRACE = 60.0  # seconds that a chat outlives its page: a connection may break and come back


class BusyError(MiniChatError):
    """There is no room for another chat or upload at the moment."""


@dataclass
class Session:
    """One open page and its chat."""

    key: str
    visitor: str
    chat: Any  # ChatSession; replaced by a fresh one when the visitor clears the chat
    last_used: float
    notice: str = ""  # to tell the visitor with the next answer
    shown: dict[int, tuple[Any, dict[str, Any]]] = field(default_factory=dict)  # id(picture) -> it, as shown
    answering: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)


class Sessions:
    """The open chats by session key. All methods may be called from any thread."""

    def __init__(
        self, new_chat: Callable[..., Any], limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.new_chat = new_chat  # `MiniChat.chat`
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._open: OrderedDict[str, Session] = OrderedDict()  # the one idle longest first
        self._dropped: OrderedDict[str, None] = OrderedDict()  # keys whose visitor does not know yet
        self.on_close: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        return len(self._open)

    def open_keys(self) -> list[str]:
        """The keys of the open chats."""
        with self._lock:
            return list(self._open)

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def get(self, key: str, visitor: str) -> Session:
        """The session of this key, opened if need be.

        Raises:
            BusyError: when the server is full of chats that are all being answered.
        """
        self.sweep()
        with self._lock:
            session = self._open.get(key)
            if session is None:
                while len(self._open) >= self._limits.sessions:
                    self._make_room()
                session = Session(key, visitor, self.new_chat(), self._clock())
                if key in self._dropped:
                    del self._dropped[key]
                    session.notice = "Your earlier chat was idle for long and has been closed; this is a new one."
                self._open[key] = session
            session.last_used = self._clock()
            self._open.move_to_end(key)
            return session

    def find(self, key: str) -> Session | None:
        """The session of this key, if it is open."""
        return self._open.get(key)

    def clear(self, session: Session) -> None:
        """Stop what is being answered and start the chat anew."""
        session.stopping.set()
        session.chat = self.new_chat()
        session.shown = {}
        session.notice = ""

    def leave(self, key: str) -> None:
        """The page is gone: stop what is being answered now, and close the chat soon unless the page comes back."""
        with self._lock:
            session = self._open.get(key)
            if session is not None:
                session.stopping.set()
                session.last_used = self._clock() - self._limits.session_life + GRACE
                self._open.move_to_end(key, last=False)
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
        """Close the sessions that showed no sign of life for longer than their life."""
        oldest = self._clock() - self._limits.session_life
        with self._lock:
            stale = [key for key, session in self._open.items() if session.last_used < oldest]
            for key in stale:
                self._drop(key)

    def visitors(self) -> set[str]:
        """Who has a chat open."""
        with self._lock:
            return {session.visitor for session in self._open.values()}

    def _make_room(self) -> None:
        idle = next((key for key, session in self._open.items() if not session.answering.locked()), None)
        if idle is None:
            raise BusyError("The server is busy answering others: try again in a minute.")
        self._drop(idle)

    def _drop(self, key: str) -> None:
        self._dropped[key] = None
        while len(self._dropped) > 4 * self._limits.sessions:
            self._dropped.popitem(last=False)
        self.close(key)


@dataclass(frozen=True)
class _File:
    visitor: str
    size: int
    since: float


class Uploads:
    """Files that visitors have uploaded and not used yet: who may use which, and when they are deleted.

    Each file lies in a folder of its own with a random name, so no two visitors ever share one.
    """

    def __init__(self, folder: Path, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}  # by path, the oldest first

    def __len__(self) -> int:
        return len(self._files)

    def has_room(self) -> bool:
        """Whether another upload may be taken now."""
        self.sweep()
        with self._lock:
            return sum(file.size for file in self._files.values()) < self._limits.waiting_bytes

    def add(self, content: BinaryIO, name: str, visitor: str) -> str:
        """Store a visitor's file and return its path. Beyond a few messages' worth, their oldest goes."""
        place = self._folder / secrets.token_hex(16)
        place.mkdir(parents=True)
        path = place / (_UNSAFE.sub("_", name)[-60:].lstrip(".") or "picture")
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
            size = file.tell()
        with self._lock:
            self._files[str(path)] = _File(visitor, size, self._clock())
            mine = [path for path, file in self._files.items() if file.visitor == visitor]
        for old in mine[: -4 * self._limits.pictures_per_message]:
            self.release(old, visitor)
        return str(path)

    def owns(self, path: str, visitor: str) -> bool:
        """Whether this visitor, and not somebody else, uploaded the file."""
        file = self._files.get(path)
        return file is not None and file.visitor == visitor

    def release(self, path: str, visitor: str) -> None:
        """This visitor needs the file no more: it is deleted from disk."""
        with self._lock:
            if not self.owns(path, visitor):
                return
            del self._files[path]
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)

    def release_all(self, visitor: str) -> None:
        """Let go of everything that one visitor has uploaded."""
        for path, file in list(self._files.items()):
            if file.visitor == visitor:
                self.release(path, visitor)

    def sweep(self) -> None:
        """Delete what has been waiting for longer than a session's life."""
        oldest = self._clock() - self._limits.session_life
        for path, file in list(self._files.items()):
            if file.since < oldest:
                self.release(path, file.visitor)

    def close(self) -> None:
        """Delete everything."""
        with self._lock:
            self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
