"""A chat in the terminal: lines typed and edited, pictures dropped on it, replies streamed, slash commands."""

from __future__ import annotations

import glob
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, NoReturn, Protocol, TextIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import minichat.images as images
from minichat.errors import DataError, MiniChatError, PromptError
from minichat.images import SUFFIXES

if TYPE_CHECKING:
    from PIL import Image

    from minichat.inference.session import ChatSession
    from minichat.prompt.conversation import Conversation


# --- Paths as a terminal writes them when files are dropped on it: bare, quoted, with escaped blanks, or as `file://`.
#
# Some terminals quote (GNOME's, Windows'), some escape (macOS', Konsole's), some give addresses; and a bare path may
# have blanks in it, so that where it ends is told by which files there are.


_LONGEST = 4096  # characters of a path
_QUOTED = re.compile(r"""'([^'\n]*)'|"([^"\n]*)\"""")
_ESCAPED = re.compile(r"\\([^\w\n])")  # "\ " and "\(", but not the "\p" of C:\pictures
_ABSOLUTE = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\")
_WORD = re.compile(r"(?:\\[^\n]|[^\\\s])+")


def split(text: str) -> tuple[list[str], str]:
    """The pictures that a line begins with, and the words after them.

    A path counts if it is absolute, quoted or an address, and there is such a file; a relative one must also end as
    pictures do. So `cat.png` alone is a picture where that file is, and a word where it is not.
    """
    paths = []
    while (found := _first(text)) is not None:
        path, text = found
        paths.append(path)
    return paths, text


def all_paths(text: str) -> list[str]:
    """A text of paths and nothing else, also of files that are not there."""
    if os.path.isfile(os.path.expanduser(text)):  # as it stands, whatever is in its name
        return [text]
    paths: list[str] = []
    while text := text.strip():
        found = _first(text, named=True) or _word(text)
        paths.append(found[0])
        text = found[1]
    return paths


def _first(text: str, named: bool = False) -> tuple[str, str] | None:
    """The path that `text` begins with, and what follows it. `named`: it was said to be one, so any file is meant."""
    text = text.lstrip()
    quoted = _QUOTED.match(text)
    if quoted is not None:
        path = _plain(quoted[1] or quoted[2] or "")
        return (path, text[quoted.end() :].lstrip()) if os.path.isfile(os.path.expanduser(path)) else None
    for end in _ends(text):
        for path in _readings(text[:end]):
            meant = named or _ABSOLUTE.match(text) or text.startswith("file:") or path.lower().endswith(SUFFIXES)
            if meant and os.path.isfile(os.path.expanduser(path)):
                return path, text[end:].lstrip()
    return None


def _ends(text: str) -> Iterator[int]:
    """Where a path that the text begins with may end: before a blank, the longest first."""
    line = text.split("\n", 1)[0]
    ends = [match.start() for match in re.finditer(r"\s", line[:_LONGEST])]
    return reversed(ends if len(line) > _LONGEST else [*ends, len(line)])


def _readings(written: str) -> Iterator[str]:
    """What a path that is written so may be."""
    written = written.rstrip()
    yield _plain(written)
    if "\\" in written:
        yield _ESCAPED.sub(r"\1", written)


def _plain(path: str) -> str:
    """A path, or that of a file's address (RFC 8089)."""
    if not path.startswith("file:"):
        return path
    try:
        place = urlsplit(path)
    except ValueError:
        return path
    host = "" if place.netloc in ("", "localhost") else f"//{place.netloc}"
    # Of an address, # and ? are no part; a terminal writes them as %23 and %3F, and one that does not means the file.
    rest = path.split("//", 1)[1].removeprefix(place.netloc) if "//" in path else path.removeprefix("file:")
    return host + (url2pathname(rest) if os.name == "nt" else unquote(rest))


def _word(text: str) -> tuple[str, str]:
    """What stands before the next blank, or in quotation marks, as a path."""
    quoted = _QUOTED.match(text)
    if quoted is not None:
        return _plain(quoted[1] or quoted[2] or ""), text[quoted.end() :]
    word = _WORD.match(text)
    if word is None:  # a backslash at the end
        return text, ""
    *_, path = _readings(word[0])
    return path, text[word.end() :]


def expanded(path: str) -> Path:
    """With `~` as the person's folder, and of a file's address its path."""
    return Path(os.path.expanduser(_plain(path)))


# --- Lines that a person types: edited and completed with readline where there is one (not on Windows), and Ctrl-C.


readline: ModuleType | None
try:
    import readline
except ImportError:  # Windows
    readline = None

_LAST_WORD = re.compile(r"(?:\\.|[^\\\s])*$")  # up to a blank that is not escaped
_SPECIAL = re.compile(r"([\s\\'\"])")


class Cleared(Exception):
    """Ctrl-C took back what had been typed."""


class Keyboard:
    """`keyboard(prompt)` returns the next line.

    Ctrl-C clears a line that was begun. On an empty line the first says that another leaves, and that one is a
    `KeyboardInterrupt`.

    Args:
        notes: where prompts go if standard output is no terminal: replies alone go there.
        commands: those that Tab completes; after the ones in `with_paths`, it completes paths.
    """

    def __init__(self, notes: TextIO, commands: Sequence[str] = (), with_paths: Sequence[str] = ()) -> None:
        self._notes = notes
        self._warned = False  # that another Ctrl-C leaves
        self._edited = readline is not None and sys.stdout.isatty()
        if readline is not None and self._edited:
            readline.set_completer_delims("")  # the whole line is completed: paths may hold any character
            readline.set_completer(Completer(commands, with_paths))
            editline = "libedit" in (readline.__doc__ or "")  # macOS' stand-in for readline
            readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")

    def __call__(self, prompt: str) -> str:
        """Raises `EOFError` at Ctrl-D, `Cleared` and `KeyboardInterrupt` at Ctrl-C, `PromptError` for no text."""
        try:
            with _interrupted_by(self._interrupt):
                line = self._ask(prompt)
        except EOFError:
            print(file=self._notes, flush=True)
            raise
        except UnicodeDecodeError:
            raise PromptError("Not all that was typed is text in the terminal's encoding.") from None
        except OSError as error:
            raise DataError(f"The terminal cannot be read ({error.strerror}).") from None
        self._warned = False
        return line

    def _interrupt(self) -> NoReturn:
        # Asked at once: when `input` has come to an end, so has its line.
        begun = readline is not None and self._edited and bool(readline.get_line_buffer())
        print(file=self._notes, flush=True)
        if not begun:
            if self._warned:
                raise KeyboardInterrupt
            self._warned = True
            print("[Ctrl-C again leaves, and so does Ctrl-D]", file=self._notes, flush=True)
        raise Cleared

    def _ask(self, prompt: str) -> str:
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=self._notes, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


@contextmanager
def _interrupted_by(handle: Callable[[], NoReturn]) -> Iterator[None]:
    """While this lasts, Ctrl-C calls `handle`."""
    before = signal.signal(signal.SIGINT, lambda signum, frame: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Completer:
    """What readline asks for: the `state`-th way to complete a line."""

    def __init__(self, commands: Sequence[str], with_paths: Sequence[str]) -> None:
        self._commands, self._with_paths = commands, with_paths
        self._found: list[str] = []

    def __call__(self, line: str, state: int) -> str | None:
        if state == 0:
            self._found = self.complete(line)
        return self._found[state] if state < len(self._found) else None

    def complete(self, line: str) -> list[str]:
        """All lines that this may become."""
        command, blank, _ = line.partition(" ")
        if not blank:
            paths = {f"{name} " if name in self._with_paths else name for name in self._commands}
            return sorted(name for name in paths if name.startswith(line)) if line.startswith("/") else []
        if command not in self._with_paths:
            return []
        word = _LAST_WORD.search(line)
        start = word.start() if word is not None else len(line)
        typed = re.sub(r"\\(.)", r"\1", line[start:])
        folder = os.path.expanduser(typed)
        home = folder[: len(folder) - len(typed.removeprefix("~"))] if typed.startswith("~") else ""
        found = []
        for path in sorted(glob.glob(glob.escape(folder) + "*")):
            shown = "~" + path.removeprefix(home) if home else path
            found.append(line[:start] + _SPECIAL.sub(r"\\\1", shown) + ("/" if os.path.isdir(path) else ""))
        return found


# --- A chat in the terminal: lines in, replies streamed out, and a few commands that begin with a slash.


HELP = """\
Write a message and press Enter. Pictures that are dropped on the terminal, or paths
that are typed, may stand before it: they are shown with it, or alone with the next.
  /image FILE ...   show pictures with the next message
  /regenerate       another reply to the last message
  /continue         go on with a reply that was cut or stopped
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

COMMANDS = ("/image", "/regenerate", "/continue", "/edit", "/undo", "/clear", "/save", "/load", "/help", "/quit")
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
        paths, words = split(text)
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
            "/image": lambda: self._add_pictures(all_paths(rest)),
            "/regenerate": self._regenerate,
            "/continue": self._continue,
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
        opened = [images.load(expanded(path)) for path in paths]
        self._pictures = [*self._pictures, *opened]
        for path, picture in zip(paths, opened, strict=True):
            name = expanded(path).name
            self._note(f"[{name}: {picture.width} × {picture.height}, shown with your next message]")

    def _regenerate(self) -> None:
        self._show(lambda cancel: self._session.stream_again(cancel=cancel))

    def _continue(self) -> None:
        self._show(lambda cancel: self._session.stream_on(cancel=cancel))

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
        from minichat.data.export import save

        path = _one_path("/save", rest)
        save(self._session.conversation, path)
        self._note(f"[the conversation is in {str(path)!r}]")

    def _load(self, rest: str) -> None:
        from minichat.data.export import load

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
    paths = all_paths(rest)
    if len(paths) != 1:
        raise MiniChatError(f"Name one file: {command} FILE. Quote a name that has blanks in it.")
    return expanded(paths[0])


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
