"""A lock that is handed on in the order of asking, so that many replies come forward step by step together."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from types import TracebackType

_LOOK_AGAIN = 1.0  # seconds after which one who waits looks by himself: Ctrl-C may have taken the call to him


class _Ticket:
    """A place in the queue; whose gate is opened looks whether it is the first."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.gate = threading.Lock()
        self.gate.acquire()


class Turnstile:
    """`with turnstile:` admits one thread at a time, first come, first served. A thread inside must not enter again.

    A plain lock lets the thread that just left in again before the others have woken up: one reply would then be
    written to its end while the others wait.

    The first in the queue is inside, so there are never two, wherever Ctrl-C breaks in: each change of the queue is one
    atomic call. A place that Ctrl-C left behind is given back when its thread comes again.
    """

    def __init__(self) -> None:
        self._queue: deque[_Ticket] = deque()

    def __enter__(self) -> None:
        try:
            self._leave()
            ticket = _Ticket()
            self._queue.append(ticket)
            while self._queue[0] is not ticket:
                ticket.gate.acquire(timeout=_LOOK_AGAIN)
        except BaseException:  # Ctrl-C while waiting
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def taken(self) -> bool:
        """Whether a thread is inside, or about to be."""
        return bool(self._queue)

    def let_others_pass(self) -> None:
        """Called by the thread inside: admit everyone who waits now, then go on.

        Where Ctrl-C ends the wait, the thread is no longer inside, and to leave once more changes nothing.
        """
        if len(self._queue) > 1:
            self._leave()
            self.__enter__()

    def _leave(self) -> None:
        """Give this thread's place back, if it has one, and call the one who is first then."""
        me = threading.get_ident()
        for ticket in list(self._queue):
            if ticket.thread == me:
                self._queue.remove(ticket)
        for first in list(self._queue)[:1]:
            with suppress(RuntimeError):  # it has been called already
                first.gate.release()
