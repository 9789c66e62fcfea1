"""Ctrl-C and SIGTERM wait for the step at hand to end, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_HEEDED = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Meanwhile a signal is noted rather than obeyed; a second Ctrl-C is obeyed at once.

    Outside the main thread, where Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HEEDED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == number:
            raise KeyboardInterrupt
        self.signal = number


def leave_to_the_main_process(worker: int) -> None:
    """For a loader's worker: signals that reach the whole group are the main process's to answer."""
    for number in _HEEDED:
        signal.signal(number, signal.SIG_IGN)
