"""A chat in the terminal: lines in, replies streamed out, and a few commands that begin with a slash."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TextIO

from minichat import dropped, images
from minichat.errors import MiniChatError, PromptError
from minichat.keyboard import Cleared

if TYPE_CHECKING:
    from PIL import Image

    from minichat.chat import ChatSession
    from minichat.prompt.conversation import Conversation

HELP = """\
Write a message and press Enter. Pictures that are dropped on the terminal, or paths
that are typed, may stand before it: they are shown with it, or alone with the next.
  /image FILE ...   show pictures with the next message
  /regenerate       another reply to the last message
  /edit MESSAGE     put the last message in other words
  /undo             take the last message and its reply back
  /clear            start anew
  /save FILE        write the conversation to a new file (JSON lines of messages), its
                    pictures to a folder beside it: it can be trained on
  /load FILE        go on with a conversation that was saved
  /help             this list
  /quit             leave (so does Ctrl-D)
\"\"\" begins a message of several lines, and \"\"\" ends it. Tab completes commands and paths.
Ctrl-C stops a reply or clears the line; twice on an empty line it leaves.
A message that begins with a slash is written with two: //like this."""

COMMANDS = ("/image", "/regenerate", "/edit", "/undo", "/clear", "/save", "/load", "/help", "/quit")
WITH_PATHS = ("/image", "/save", "/load")
_SEVERAL_LINES = '"""'


class NewSession(Protocol):
    """Makes a `ChatSession`, empty or with what was said already."""

    def __call__(self, conversation: Conversation | None = None) -> ChatSession: ...


class TerminalChat:
    """Reads lines and answers them, until they end or `/quit`.

    Args:
        new_session: called at the start, by `/clear`, and with a conversation by `/load`.
        read: gives the next line, after a prompt if anyone is to see it. It raises `EOFError` at the end, `Cleared`
            where what was typed is taken back, and `PromptError` for a line that cannot be read.
        out: where replies go, and nothing else.
        notes: where everything else goes: help, errors.
    """

    def __init__(
        self,
        new_session: NewSession,
        read: Callable[[str], str],
        out: TextIO = sys.stdout,
        notes: TextIO = sys.stderr,
    ) -> None:
        self._new_session = new_session
        self._session = new_session()
        self._read = read
        self._out = out
        self._notes = notes
        self._pictures: list[Image.Image] = []  # shown with the next message
        self._noticed: set[str] = set()  # what the person has been told
        self.failures = 0  # lines that could not be answered

    def run(self) -> None:
        """Answer message after message. A `KeyboardInterrupt` of `read` is the caller's to handle."""
        while (message := self._next()) is not None:
            try:
                self._answer(message)
            except OSError:  # the output cannot be written: no other reply can
                raise
            except MiniChatError as error:
                self._fail(error)

    def add_picture(self, path: str) -> None:
        """Show a picture with the next message. Raises ImageError."""
        self._add_pictures([path])

    def _next(self) -> str | None:
        """The next message without blanks round it; None: there is no other."""
        while True:
            try:
                text = self._read("> ").strip()
                if text.startswith(_SEVERAL_LINES):
                    text = self._several_lines(text)
            except EOFError:
                return None
            except Cleared:
                continue
            except PromptError as error:
                self._fail(error)
                continue
            if text == "/quit":
                return None
            if text:
                return text

    def _several_lines(self, text: str) -> str:
        """What stands between two `\"\"\"`, the first of which begins `text`; words, also where a slash begins it."""
        lines, wrong = [text.removeprefix(_SEVERAL_LINES)], list[PromptError]()
        while not lines[-1].rstrip().endswith(_SEVERAL_LINES):
            try:
                lines.append(self._read(". "))
            except PromptError as error:  # the rest of the message is no message of its own
                wrong.append(error)
            except EOFError:
                raise PromptError(
                    f"The message that {_SEVERAL_LINES} begins has no end: end it with another."
                ) from None
        if wrong:
            raise wrong[0]
        whole = "\n".join(lines).rstrip().removesuffix(_SEVERAL_LINES).strip("\n").rstrip()
        return f"/{whole}" if whole.startswith("/") else whole

    def _answer(self, text: str) -> None:
        if text.startswith("//"):
            self._say(text.removeprefix("/"))
            return
        paths, words = dropped.split(text)
        if paths:
            before = list(self._pictures)
            self._add_pictures(paths)
            if words:
                try:
                    self._say(words)
                except MiniChatError:
                    self._pictures = before  # the line is to be given once more, with its paths
                    raise
            return
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        actions: dict[str, Callable[[], None]] = {
            "/image": lambda: self._add_pictures(dropped.all_paths(rest)),
            "/regenerate": self._regenerate,
            "/edit": lambda: self._edit(rest),
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": lambda: self._save(rest),
            "/load": lambda: self._load(rest),
            "/help": lambda: self._note(HELP),
        }
        if not text.startswith("/"):
            self._say(text)
        elif command in actions:
            actions[command]()
        elif "/" in command[1:]:
            raise MiniChatError(f"There is no file {text!r}: check the path. // begins a message with a slash.")
        else:
            raise MiniChatError(
                f"There is no command {command}: /help lists them, and // begins a message with a slash."
            )

    def _say(self, text: str) -> None:
        pictures = self._pictures
        self._show(lambda cancel: self._session.stream(text, pictures or None, cancel=cancel))
        self._pictures = []  # only now: after an error they are still there for the next try

    def _add_pictures(self, paths: list[str]) -> None:
        """All of them, or none."""
        if not paths:
            raise MiniChatError("Name a picture: /image FILE.")
        opened = [images.load(dropped.expanded(path)) for path in paths]
        self._pictures = [*self._pictures, *opened]
        for path, picture in zip(paths, opened, strict=True):
            name = dropped.expanded(path).name
            self._note(f"[{name}: {picture.width} × {picture.height}, shown with your next message]")

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
        self._begin(self._new_session())
        self._note("[a new chat]")

    def _save(self, rest: str) -> None:
        from minichat.transcript import save

        path = _one_path("/save", rest)
        save(self._session.conversation, path)
        self._note(f"[the conversation is in {str(path)!r}]")

    def _load(self, rest: str) -> None:
        from minichat.transcript import load

        conversation = load(_one_path("/load", rest))
        self._begin(self._new_session(conversation))
        asked = sum(message.role == "user" for message in conversation)
        self._note(f"[questions: {asked}, pictures: {len(conversation.pictures)}; the chat goes on from there]")

    def _begin(self, session: ChatSession) -> None:
        self._session = session
        self._pictures = []
        self._noticed = set()

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

    def _fail(self, error: MiniChatError) -> None:
        self.failures += 1
        self._note(f"! {error}")

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


def _one_path(command: str, rest: str) -> Path:
    paths = dropped.all_paths(rest)
    if len(paths) != 1:
        raise MiniChatError(f"Name one file: {command} FILE. Quote a name that has blanks in it.")
    return dropped.expanded(paths[0])


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
