"""A lock that is handed on in the order of asking, so that many replies come forward step by step together."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turnstile:
    """`with turnstile:` admits one thread at a time, first come, first served.

    A plain lock lets the thread that just left in again before the others have woken up: one reply would then be
    written to its end while the others wait.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._queue: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._queue.append(gate)
        try:
            gate.acquire()  # opened by the thread that hands its turn on
        except BaseException:  # Ctrl-C while waiting: leave the queue, or pass on a turn that came meanwhile
            with self._guard:
                waiting = gate in self._queue
                if waiting:
                    self._queue.remove(gate)
            if not waiting:
                self._hand_on()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_on()

    def let_others_pass(self) -> None:
        """Called by the thread inside: admit everyone who waits now, then go on."""
        with self._guard:
            if not self._queue:
                return
        self._hand_on()
        self.__enter__()

    def _hand_on(self) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._taken = False
