"""Lines that a person types: edited and completed with readline where there is one (not on Windows), and Ctrl-C."""

from __future__ import annotations

import glob
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn, TextIO

from minichat.errors import DataError, PromptError

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
