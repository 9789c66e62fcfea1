"""The thread that brings an engine's requests forward, and hands what was written to asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from minichat.inference.engine import Engine
from minichat.inference.request import Request

log = logging.getLogger(__name__)


@dataclass
class Written:
    """What has been written of one reply and not been sent; filled in the event loop alone."""

    text: str = ""
    ids: int = 0  # so many of the request's ids are behind all text up to here
    over: bool = False


@dataclass(eq=False)
class Job:
    """The replies of one request, all of which begin with the same prompt."""

    requests: Sequence[Request] = ()
    written: list[Written] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    told: set[int] = field(default_factory=set)  # whose end has been handed over; the thread's own
    cancelled: bool = False  # nobody wants it any more: within a step it is gone
    listening: asyncio.Task[None] | None = None  # waits for the client to leave
    refused: bool = False  # the server ends, and this had not begun
    error: Exception | None = None  # of a step, which is nobody's own
    first: float | None = None  # when the first token was there, on `time.perf_counter`'s clock
    last: float = 0.0  # … and the last one

    def cancel(self) -> None:
        """End it within a step. For the event loop."""
        self.cancelled = True
        self.changed.set()

    @property
    def over(self) -> bool:
        return all(each.over for each in self.written)

    @property
    def tokens(self) -> int:
        return sum(len(request.ids) for request in self.requests)

    def failure(self) -> Exception | None:
        """What went wrong, if something did."""
        return self.error or next((each.error for each in self.requests if each.error is not None), None)


News = tuple[Job, int, str, int, bool]  # of a job's reply: its number, more text, the ids behind it, whether it is over


class Stepper:
    """Steps while there are jobs. Others may step the same engine meanwhile: steps are under its step lock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failing = False  # the last step failed: perhaps none will succeed again
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._ending = self._refusing = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="minichat-stepper", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread.start()

    def close(self) -> None:
        """End the thread; what is being written is left."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Have the job's replies written. May be called from any thread. Raises as `Engine.submit` does."""
        job.written = [Written() for _ in job.requests]
        for request in job.requests:
            self.engine.submit(request)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def refuse_waiting(self) -> None:
        """From now on nothing new is begun: what no row has been given to is `refused`."""
        with self._changed:
            self._refusing = True

    def _run(self) -> None:
        while self._wait():
            self._bring_forward()

    def _wait(self) -> bool:
        """Until there are jobs; False at the end."""
        with self._changed:
            while not self._jobs and not self._ending:
                self._changed.wait()
            return not self._ending

    def _bring_forward(self) -> None:
        with self._changed:
            jobs = list(self._jobs)
        news = self._step(jobs)
        with self._changed:
            # One that was submitted meanwhile may be over, and its end not handed over yet.
            self._jobs = [job for job in self._jobs if len(job.told) < len(job.requests)]
        if news and self.loop is not None:
            self.loop.call_soon_threadsafe(_deliver, news)

    def _step(self, jobs: list[Job]) -> list[News]:
        with self.engine.step_lock:
            if self._refusing:
                self._refuse(jobs)
            try:
                self.engine.step()
                self.failing = False
            except Exception as error:
                log.exception("A step of the engine failed.")
                self.failing = True
                # They are answered now: where no step succeeds any more, none would let go of them.
                for job in jobs:
                    job.error = error
                    self._drop(job)
                    for request in job.requests:
                        request.end(error)
            now = time.perf_counter()
            return [piece for job in jobs for piece in _news(job, now)]

    def _refuse(self, jobs: list[Job]) -> None:
        for job in jobs:
            if all(request.row < 0 and not request.ids and not request.over for request in job.requests):
                job.refused = True
                self._drop(job)

    @staticmethod
    def _drop(job: Job) -> None:
        for request in job.requests:
            request.close()


def _news(job: Job, now: float) -> list[News]:
    """What a step has brought. Within the step lock, so that it is whole."""
    news = []
    if job.tokens:
        job.first = job.first or now
        job.last = now
    for number, request in enumerate(job.requests):
        if number in job.told:
            continue
        text = ""
        while piece := request.take():
            text += piece
        if request.over:
            job.told.add(number)
        if text or request.over:
            news.append((job, number, text, request.taken, request.over))
    return news


def _deliver(news: list[News]) -> None:
    for job, number, text, ids, over in news:
        written = job.written[number]
        written.text += text
        written.ids = ids
        written.over = over
        job.changed.set()
