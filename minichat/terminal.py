"""A chat in the terminal: lines in, replies streamed out, and a few commands that begin with a slash."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from minichat import images
from minichat.errors import MiniChatError

if TYPE_CHECKING:
    from PIL import Image

    from minichat.chat import ChatSession

HELP = """\
Write a message and press Enter.
  /image FILE ...   show pictures with the next message
  /regenerate       another reply to the last message
  /edit MESSAGE     put the last message in other words
  /undo             take the last message and its reply back
  /clear            start anew
  /help             this list
  /quit             leave (so does Ctrl-D)
Ctrl-C stops a reply. A message that begins with a slash is written with two: //like this."""


class TerminalChat:
    """Reads lines and answers them, until they end or `/quit`.

    Args:
        new_session: makes an empty `ChatSession`; called at the start and by `/clear`.
        lines: where messages are read; a terminal is prompted, anything else (a pipe, a file) is not.
        out: where replies go, and nothing else.
        notes: where everything else goes: prompts, help, errors.
    """

    def __init__(
        self,
        new_session: Callable[[], ChatSession],
        lines: TextIO,
        out: TextIO = sys.stdout,
        notes: TextIO = sys.stderr,
    ) -> None:
        self._new_session = new_session
        self._session = new_session()
        self._lines = lines
        self._out = out
        self._notes = notes
        self._pictures: list[Image.Image] = []  # shown with the next message
        self._noticed: set[str] = set()  # what the person has been told
        self.failures = 0  # lines that could not be answered

    def run(self) -> None:
        """Answer line after line. Ctrl-C while a line is awaited is the caller's to handle."""
        for line in self._read():
            text = line.strip()
            if text == "/quit":
                return
            if not text:
                continue
            try:
                self._answer(text)
            except MiniChatError as error:
                self.failures += 1
                self._note(f"! {error}")

    def add_picture(self, path: str) -> None:
        """Show a picture with the next message. Raises ImageError."""
        picture = images.load(Path(path).expanduser())
        self._pictures.append(picture)
        self._note(f"[{Path(path).name}: {picture.width} × {picture.height}, shown with your next message]")

    def _read(self) -> Iterator[str]:
        if not self._lines.isatty():
            yield from self._lines
            return
        try:
            import readline  # noqa: F401 (gives input() its editing and history)
        except ImportError:
            pass
        while True:
            try:
                yield input("> ")
            except EOFError:
                self._note("")
                return

    def _answer(self, text: str) -> None:
        if not text.startswith("/") or text.startswith("//"):
            self._say(text.removeprefix("/") if text.startswith("//") else text)
            return
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        actions: dict[str, Callable[[], None]] = {
            "/image": lambda: self._add_pictures(rest),
            "/regenerate": self._regenerate,
            "/edit": lambda: self._edit(rest),
            "/undo": self._undo,
            "/clear": self._clear,
            "/help": lambda: self._note(HELP),
        }
        if command not in actions:
            raise MiniChatError(
                f"There is no command {command}: /help lists them, and // begins a message with a slash."
            )
        actions[command]()

    def _say(self, text: str) -> None:
        pictures = self._pictures
        self._show(lambda cancel: self._session.stream(text, pictures or None, cancel=cancel))
        self._pictures = []  # only now: after an error they are still there for the next try

    def _add_pictures(self, rest: str) -> None:
        if not rest:
            raise MiniChatError("Name a picture: /image FILE.")
        for path in _paths(rest):
            self.add_picture(path)

    def _regenerate(self) -> None:
        self._show(lambda cancel: self._session.stream_again(cancel=cancel))

    def _edit(self, text: str) -> None:
        if not text:
            raise MiniChatError("Write the message anew after the command: /edit MESSAGE.")
        turns = sum(message.role == "user" for message in self._session.conversation)
        if not turns:
            raise MiniChatError("There is no message to edit: write one first.")
        self._show(lambda cancel: iter([self._session.edit(turns - 1, text, cancel=cancel)]))

    def _undo(self) -> None:
        self._session.undo()
        self._note("[the last message and its reply are taken back]")

    def _clear(self) -> None:
        self._session = self._new_session()
        self._pictures = []
        self._noticed = set()
        self._note("[a new chat]")

    def _show(self, reply: Callable[[threading.Event], Iterator[str]]) -> None:
        """Print a reply as it comes. Ctrl-C ends it within a step; a second Ctrl-C is the caller's."""
        with _cancelled_by_interrupt() as cancel:
            begun = False
            try:
                for piece in reply(cancel):
                    begun = True
                    self._out.write(piece)
                    self._out.flush()
            finally:
                if begun:
                    self._out.write("\n")
                    self._out.flush()
        if cancel.is_set():
            self._note("[stopped]")
        for notice in self._session.notices:
            if notice not in self._noticed:
                self._noticed.add(notice)
                self._note(f"[{notice}]")

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


def _paths(rest: str) -> list[str]:
    """One path with spaces as it stands, or several as a shell would split them."""
    if Path(rest).expanduser().exists():
        return [rest]
    try:
        return shlex.split(rest)
    except ValueError:  # an odd quotation mark
        return [rest]


@contextmanager
def _cancelled_by_interrupt() -> Iterator[threading.Event]:
    """While this lasts the first Ctrl-C only sets the event, so that it cannot break into a step of the model."""
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield cancel
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
