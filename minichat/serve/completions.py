"""`POST /v1/chat/completions`, as an ASGI application of its own: limits, then work, then an answer, whole or streamed.

No framework stands between it and the connection, so that a client who leaves is known at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from minichat.device.memory import out_of_memory
from minichat.errors import MiniChatError
from minichat.inference.bot import MiniChat
from minichat.inference.request import Request
from minichat.serve.conversation import File, Prepared, Preparer, Said
from minichat.serve.image_hosts import ImageHosts
from minichat.serve.metrics import Metrics
from minichat.serve.protocol import (
    BAD,
    DONE,
    FAILED,
    NO_METHOD,
    OTHER_TYPE,
    TIMEOUT,
    TOO_LARGE,
    TOO_MANY,
    UNAVAILABLE,
    ApiError,
    Asked,
    Limits,
    boxes,
    choice,
    chunk,
    completion,
    encode,
    event,
    token_logprob,
    usage,
)
from minichat.serve.stepper import Job, Stepper

log = logging.getLogger(__name__)

_READERS = 4  # bodies that are read, and pictures opened, at once
_LOOK = 0.05  # seconds between two looks at the engine, at the end
_LEFT = 499  # the status under which clients are counted that left before the end, as nginx does
_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class _LeftError(Exception):
    """The client is gone."""


class Places:
    """The queue and its limit: how many replies may be written or wait at once. For the event loop alone."""

    def __init__(self, rows: int, most: int) -> None:
        """`rows` are written at once, `most` in all."""
        self._rows, self._most = rows, most
        self.taken = 0
        self._seconds = 1.0  # of a reply, of late

    @contextmanager
    def one(self) -> Iterator[Place]:
        """A place for one reply. Raises `ApiError` where there is none."""
        place = Place(self)
        place.take(1)
        try:
            yield place
        finally:
            place.free()

    def check(self, count: int) -> None:
        if self.taken + count > self._most:
            wait = self._seconds * self.taken / self._rows
            raise ApiError(TOO_MANY, "The server is busy: ask again in a moment.", code="queue_full", wait=wait)

    def took(self, seconds: float) -> None:
        """A reply was written in this time."""
        self._seconds += 0.1 * (seconds - self._seconds)


class Place:
    """The place of one request, which may have several replies."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._count = 0

    def take(self, count: int) -> None:
        self._places.check(count)
        self._places.taken += count
        self._count += count

    def free(self) -> None:
        """Others may have it. To free it again changes nothing."""
        self._places.taken -= self._count
        self._count = 0


class Completions:
    """Answers chat completions by one bot."""

    def __init__(
        self, bot: MiniChat, name: str, limits: Limits, metrics: Metrics, hosts: ImageHosts | None = None
    ) -> None:
        """Make ready. `hosts`: from where pictures are fetched by their addresses; None: from nowhere."""
        self.bot, self.limits, self.metrics, self._hosts = bot, limits, metrics, hosts
        self.stepper = Stepper(bot.engine)
        self.places = Places(bot.engine.rows, bot.engine.rows + limits.queue)
        self._preparer = Preparer(bot, name, limits, metrics)
        self._readers = ThreadPoolExecutor(_READERS, "minichat-reader")
        self._waiting_bytes = 0  # of bodies
        self._jobs: set[Job] = set()
        self.ending = False
        self.on_end: list[Callable[[], None]] = []  # called when the last reply is written
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self.stepper.start(asyncio.get_running_loop())

    def health(self) -> tuple[bool, str]:
        """Whether requests are answered, and how it is in words."""
        if self.ending:
            return False, "The server is about to end."
        return (False, "The last step of the engine failed.") if self.stepper.failing else (True, "ok")

    async def end(self, seconds: float) -> None:
        """Refuse what is not being written yet, and wait until the rest is; what takes longer is cut off."""
        self.ending = True
        self.stepper.refuse_waiting()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
                while self.bot.engine.waiting or self.bot.engine.written_now:  # others', such as the page's
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            for job in list(self._jobs):
                job.refused = True
                job.cancel()
            await self._idle.wait()
        self._end_others()

    def _end_others(self) -> None:
        while self.on_end:
            self.on_end.pop()()

    def close(self) -> None:
        self._end_others()
        self.stepper.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = Job()
        self._jobs.add(job)
        self._idle.clear()
        try:
            status = await self._answer(job, scope, receive, send)
        except ApiError as error:
            status = error.status
            await respond(send, error.status, error.headers, encode(error.content))
        except _LeftError:
            status = _LEFT
        finally:
            job.cancel()
            if job.listening is not None:
                job.listening.cancel()
            self.metrics.generated_tokens.inc(job.tokens)
            self._jobs.discard(job)
            if not self._jobs:
                self._idle.set()
        self.metrics.requests.labels(status).inc()

    async def _answer(self, job: Job, scope: Scope, receive: Receive, send: Send) -> int:
        """Returns the status under which the request is counted."""
        began = time.perf_counter()
        if scope["method"] != "POST":
            raise ApiError(NO_METHOD, "Chat with POST, not " + scope["method"] + ".")
        with self.places.one() as place:
            asked, prepared = await self._prepare(job, place, Headers(scope=scope), receive)
            if prepared is None or job.cancelled:
                raise _LeftError
            if self.ending:
                raise about_to_end()
            job.requests = prepared.requests
            self.stepper.submit(job)
            answer = _Answer(self, job, asked, prepared, place, began)
            return await (answer.stream(send) if asked.stream else answer.whole(send))

    async def _prepare(
        self, job: Job, place: Place, headers: Headers, receive: Receive
    ) -> tuple[Asked, Prepared | None]:
        """Take in the request; once its body is there, `job` is cancelled when the client leaves."""
        with self._counted() as count:
            body = await self._read(headers, receive, count)
            job.listening = asyncio.create_task(_listen(receive, job))
            asked, said = await self._aside(self._preparer.read, body)
            del body
            place.take(asked.n - 1)
            said = await self._fetched(said)
            return asked, await self._aside(self._preparer.prepare, asked, said, lambda: job.cancelled)

    async def _aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Work that takes a while, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)

    @contextmanager
    def _counted(self) -> Iterator[Callable[[int], None]]:
        """Counts bytes that wait, as long as they do."""
        mine = 0

        def count(size: int) -> None:
            nonlocal mine
            mine += size
            self._waiting_bytes += size

        try:
            yield count
        finally:
            self._waiting_bytes -= mine

    async def _read(self, headers: Headers, receive: Receive, count: Callable[[int], None]) -> bytes:
        """The body. Raises `ApiError` before more than the limits allow is held."""
        limits = self.limits
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(OTHER_TYPE, "The request must be JSON: send the header Content-Type: application/json.")
        too_large = ApiError(
            TOO_LARGE, f"A request may have at most {limits.body_bytes / 2**20:.3g} MB; this has more."
        )
        stated = headers.get("content-length", "")
        if stated.isdecimal() and (len(stated) > 15 or int(stated) > limits.body_bytes):
            raise too_large
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _LeftError
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
                    size += len(parts[-1])
                    count(len(parts[-1]))
                    if size > limits.body_bytes:
                        raise too_large
                    if self._waiting_bytes > limits.waiting_bytes:
                        raise ApiError(TOO_MANY, "Too much is being sent at once: ask again in a moment.", wait=5)
        except TimeoutError:
            raise ApiError(TIMEOUT, f"The request did not arrive within {limits.body_seconds:g} seconds.") from None
        return b"".join(parts)

    async def _fetched(self, said: list[Said]) -> list[Said]:
        """The messages, and in place of pictures' addresses what is there."""
        found = []
        for message in said:
            parts: list[str | File] = []
            for part in message.parts:
                if isinstance(part, File) and isinstance(part.source, str):
                    if self._hosts is None:
                        raise ApiError(
                            BAD,
                            "Pictures are not fetched from addresses here: send the picture itself, as "
                            "data:image/png;base64,…",
                            part.param,
                            "image_address",
                        )
                    part = replace(part, source=await self._hosts.fetch(part.source, part.param))
                parts.append(part)
            found.append(replace(message, parts=parts))
        return found

    def remember(self, prepared: Prepared) -> None:
        """Keep the ids of the replies, for who goes on with one of them."""
        for request in prepared.requests:
            if (ids := request.reply.ids()) is not None:
                self._preparer.replies.add(prepared.name, request.reply.text, ids)


class _Answer:
    """One answer while it is written."""

    def __init__(
        self, server: Completions, job: Job, asked: Asked, prepared: Prepared, place: Place, began: float
    ) -> None:
        self._server, self._job, self._asked, self._prepared, self._place = server, job, asked, prepared, place
        self._began = began
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model}
        self._opened: set[int] = set()  # choices that have begun
        self._closed: set[int] = set()  # … and ended
        self._scored = [0] * asked.n  # ids whose logprobs were sent

    async def whole(self, send: Send) -> int:
        job = self._job
        while not job.over:
            await self._news()
            if trouble := self._trouble():
                raise trouble
        choices = [
            choice(number, request.reply.text, _finish(request), self._logprobs(number, _spelling(request)))
            for number, request in enumerate(job.requests)
        ]
        content = encode(completion(self._head, choices, self._usage()))
        self._finish()
        await respond(send, 200, {"Content-Type": "application/json"}, content)
        return 200

    async def stream(self, send: Send) -> int:
        job, begun = self._job, False
        while True:
            await self._news()
            trouble = self._trouble()
            if trouble and not begun:
                raise trouble
            over = job.over or trouble is not None
            events = event(trouble.content) if trouble else b"".join(self._events())
            if over and not trouble:
                if self._asked.include_usage:
                    last = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
                    events += event(last)
                self._finish()  # a client may leave as soon as it reads the end
            if events:
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": _raw(_STREAM)})
                    begun = True
                await send({"type": "http.response.body", "body": events + DONE * over, "more_body": not over})
            if over:
                return trouble.status if trouble else 200

    async def _news(self) -> None:
        await self._job.changed.wait()
        self._job.changed.clear()
        if self._job.cancelled and not self._job.refused:
            raise _LeftError

    def _trouble(self) -> ApiError | None:
        """Why there will be no reply, or no end of it."""
        if self._job.refused:
            return about_to_end()
        failure = self._job.failure()
        if failure is None:
            return None
        if isinstance(failure, MiniChatError):
            return ApiError(BAD, str(failure), "messages", "invalid_value")
        if out_of_memory(failure):
            return ApiError(
                UNAVAILABLE, "There was not enough memory for this reply: send fewer pictures, or ask later.", wait=10
            )
        log.error("A reply could not be written.", exc_info=failure)
        return ApiError(FAILED, "Something went wrong while the reply was written.")

    def _events(self) -> Iterator[bytes]:
        """What there is to send, by choices."""
        for number, written in enumerate(self._job.written):
            if number in self._closed or not (written.text or written.over):
                continue
            if number not in self._opened:
                self._opened.add(number)
                yield self._event(number, {"role": "assistant", "content": ""})
            request = self._job.requests[number]
            upto = _spelling(request) if written.over else written.ids
            text, written.text = written.text, ""
            scores = self._logprobs(number, upto)
            if text or scores:
                yield self._event(number, {"content": text}, scores=scores)
            if written.over:
                self._closed.add(number)
                yield self._event(number, boxes(request.reply.text), _finish(request))

    def _event(
        self, number: int, delta: dict[str, Any], finish: str | None = None, scores: list[dict[str, Any]] | None = None
    ) -> bytes:
        content = chunk(self._head, number, delta, finish, scores)
        if self._asked.include_usage:
            content["usage"] = None
        return event(content)

    def _logprobs(self, number: int, upto: int) -> list[dict[str, Any]] | None:
        """Of the ids up to this one that were not sent yet."""
        if self._asked.likeliest is None:
            return None
        request, spelled = self._job.requests[number], self._server.bot.processor.content_tokenizer.spelled
        start, self._scored[number] = self._scored[number], max(upto, self._scored[number])
        return [
            {
                **token_logprob(spelled(token), scores.logprob),
                "top_logprobs": [token_logprob(spelled(other), logprob) for other, logprob in scores.likeliest],
            }
            for token, scores in zip(request.ids[start:upto], request.scores[start:upto], strict=True)
        ]

    def _usage(self) -> dict[str, Any]:
        return usage(self._prepared.prompt_tokens, self._known, self._job.tokens)

    @property
    def _known(self) -> int:
        """So much of the prompt was known before; where there are more replies, the first one reads for all."""
        return min(request.known for request in self._job.requests)

    def _finish(self) -> None:
        """Count, keep, and give the place to others."""
        job, metrics, now = self._job, self._server.metrics, time.perf_counter()
        self._server.remember(self._prepared)
        self._server.places.took(now - self._began)
        metrics.prompt_tokens.inc(self._prepared.prompt_tokens)
        metrics.cached_tokens.inc(self._known)
        metrics.prefix_hits.inc(self._known > 0)
        metrics.whole.observe(now - self._began)
        if job.first is not None:
            metrics.first_token.observe(job.first - self._began)
            if (longest := max(len(request.ids) for request in job.requests)) > 1:
                metrics.token.observe((job.last - job.first) / (longest - 1))
        self._place.free()


def about_to_end() -> ApiError:
    return ApiError(UNAVAILABLE, "The server is about to end: ask again in a moment.", code="ending", wait=5)


def _finish(request: Request) -> str:
    return "stop" if request.reply.finished else "length"


def _spelling(request: Request) -> int:
    """So many of the ids spell the reply; what follows belongs to its end."""
    ids = request.reply.ids()
    return len(request.ids) if ids is None else len(ids)


async def _listen(receive: Receive, job: Job) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


async def respond(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    """A whole answer."""
    raw = [*_raw(headers), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
