"""A server of a small bot for tests: on a real socket in a thread, or called as an ASGI application."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from minichat.inference.bot import MiniChat
from minichat.serve.server import Server, address_of, listen

PATH = "/v1/chat/completions"


def until(condition: Callable[[], Any], seconds: float = 30.0) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def on_a_socket(app: FastAPI) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    listening, server = listen("127.0.0.1", 0), Server(app)
    app.state.server = server
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        if not until(lambda: server.started):
            raise TimeoutError("The server has not started.")
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def stepwise(bot: MiniChat) -> Iterator[threading.Semaphore]:
    """Holds the engine before each step until the semaphore lets it go on; at the end it goes on by itself."""
    gate, step = threading.Semaphore(0), bot.engine.step
    open_ = threading.Event()

    def gated() -> None:
        while not open_.is_set() and not gate.acquire(timeout=0.01):
            pass
        step()

    bot.engine.step = gated  # type: ignore[method-assign]
    try:
        yield gate
    finally:
        open_.set()
        bot.engine.step = step  # type: ignore[method-assign]


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def shown(text: str, *pictures: Image.Image) -> dict[str, Any]:
    """A user's message, its pictures before its words."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def request(*messages: dict[str, Any] | str, **parameters: Any) -> dict[str, Any]:
    spelled = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return {"model": "tiny", "messages": spelled, "max_tokens": 12, **parameters}


def events(text: str) -> list[dict[str, Any]]:
    """What a stream holds; it must end with [DONE]."""
    lines = [line for line in text.split("\n\n") if line]
    if lines[-1] != "data: [DONE]" or not all(line.startswith("data: ") for line in lines):
        raise ValueError(f"No stream of events: {text}")
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def joined(found: list[dict[str, Any]], index: int = 0) -> str:
    """The words of one reply of a stream."""
    choices = [choice for event in found for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


class Client:
    """A client of a server on a socket."""

    def __init__(self, url: str, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def post(self, content: dict[str, Any]) -> httpx.Response:
        # Not `json=`, which refuses to send NaN and half characters.
        return self.http.post(PATH, content=json.dumps(content), headers={"Content-Type": "application/json"})

    def reply(self, *messages: dict[str, Any] | str, **parameters: Any) -> dict[str, Any]:
        answer = self.post(request(*messages, **parameters))
        if answer.status_code != 200:
            raise ValueError(answer.text)
        return dict(answer.json())

    def events(self, *messages: dict[str, Any] | str, **parameters: Any) -> list[dict[str, Any]]:
        return events(self.post(request(*messages, stream=True, **parameters)).text)

    def refused(self, content: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the error."""
        answer = self.post(content)
        return answer.status_code, answer.json()["error"]

    def metrics(self) -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in self.http.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}


class Call:
    """One request to an ASGI application, whose client does what the test says. For a test's event loop."""

    def __init__(self, app: FastAPI, content: dict[str, Any] | bytes, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.answers: list[dict[str, Any]] = []
        all_headers = {"content-type": "application/json", **headers}
        scope = {
            "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1),
            "server": ("test", 80), "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self.sent.get, self._answer))

    async def _answer(self, message: Any) -> None:
        self.answers.append(message)

    def leave(self) -> None:
        self.sent.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int | None:
        return self.answers[0]["status"] if self.answers else None

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.answers).decode()
