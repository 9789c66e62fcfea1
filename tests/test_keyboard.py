"""`minichat.cli.terminal`: what Tab completes, and a chat that is typed into a terminal."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from minichat.cli.terminal import COMMANDS, WITH_PATHS, Completer
from tests.test_cli import FAKE, ROOT

COMPLETER = Completer(COMMANDS, WITH_PATHS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (7, 5)).save("my cat.png")
    Image.new("RGB", (2, 2)).save("it's.png")
    Path("pictures").mkdir()
    Image.new("RGB", (3, 3)).save("pictures/star.png")
    return tmp_path


def test_tab_completes_commands_and_paths(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPLETER.complete("/e") == ["/edit"]
    assert COMPLETER.complete("/im") == ["/image "]
    assert COMPLETER.complete("/") == sorted(name + " " * (name in WITH_PATHS) for name in COMMANDS)
    assert COMPLETER.complete("/image my") == ["/image my\\ cat.png"]
    assert COMPLETER.complete("/image my\\ c") == ["/image my\\ cat.png"]
    assert COMPLETER.complete("/load it") == ["/load it\\'s.png"]
    assert COMPLETER.complete("/save pic") == ["/save pictures/"]
    assert COMPLETER.complete("/image my\\ cat.png pictures/") == ["/image my\\ cat.png pictures/star.png"]
    assert COMPLETER.complete("/image *.png") == []
    assert COMPLETER.complete("/edit my") == COMPLETER.complete("What is my") == COMPLETER.complete("") == []
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    assert COMPLETER.complete("/image ~/pictures/s") == ["/image ~/pictures/star.png"]
    assert [COMPLETER("/image ~/pictures/s", state) for state in (0, 1)] == ["/image ~/pictures/star.png", None]


class Terminal:
    """A `minichat chat` on a pseudo-terminal, with a session that says what it was asked."""

    def __init__(self) -> None:
        pty = pytest.importorskip("pty")  # not on Windows
        pytest.importorskip("readline")
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever the tests were started by
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
            os.execve(sys.executable, [sys.executable, "-c", FAKE, "chat"], environment)
        self.seen = ""

    def until(self, text: str) -> str:
        """What is shown up to and with `text`."""
        self._wait(lambda: text in self.seen)
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def _wait(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 1)[0]:
                with suppress(OSError):  # it has ended
                    self.seen += os.read(self.fd, 4096).decode()
            else:
                # A Ctrl-C that comes between the prompt and the waiting is seen by Python when the next signal comes.
                os.kill(self.pid, signal.SIGWINCH)

    def leave(self) -> int:
        """The exit code after Ctrl-C."""
        os.write(self.fd, b"\x03")
        found: list[int] = []

        def over() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            found.extend([os.waitstatus_to_exitcode(status)] if pid else [])
            return bool(found)

        self._wait(over)
        os.close(self.fd)
        return found[0]

    def type(self, keys: str, then: str) -> str:
        time.sleep(0.2)  # until what was shown is also what is waited in
        os.write(self.fd, keys.encode())
        return self.until(then)


def test_a_chat_in_a_terminal(here: Path) -> None:
    terminal = Terminal()
    terminal.until("> ")
    for _ in range(2):  # Ctrl-C clears a line that was begun, as often as one likes
        terminal.type("half a line", "half a line")
        assert "leaves" not in terminal.type("\x03", "> ")
    assert "Said 'a whole one', 0 pictures." in terminal.type("a whole one\r", "> ")
    assert "leaves" in terminal.type("\x03", "> ")
    assert "Said 'still here'" in terminal.type("still here\r", "> ")
    assert '. last"""' in terminal.type('"""first\rlast"""\r', 'last"""')
    assert r"Said 'first\nlast', 0 pictures." in terminal.type("", "> ")
    terminal.type('"""never said\r', ". ")
    assert "leaves" in terminal.type("\x03", "> ")  # a message of several lines is taken back as a whole
    assert "my cat.png: 7 × 5" in terminal.type("/image my\t\r", "next message]")
    assert "Said 'What?', 1 pictures." in terminal.type("What?\r", "pictures.")
    terminal.until("> ")
    assert "leaves" in terminal.type("\x03", "> ")
    assert terminal.leave() == 130
