"""Clients that vanish, read slowly, send halves or too much: nothing is left of them, and all others are served."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from fastapi import FastAPI

from minichat.inference.bot import MiniChat
from minichat.serve import server
from minichat.serve.app import build_app
from minichat.serve.completions import _READERS
from minichat.serve.protocol import Limits
from tests.serving import PATH, Client, data_url, events, joined, on_a_socket, request, stepwise, until
from tests.tiny import noise_picture, tensor_bytes, tiny_bot

LIMITS = Limits(queue=16, body_seconds=2, body_bytes=12 * 2**20, waiting_bytes=64 * 2**20)
COUNTS = [
    pytest.param({"vanish": 12, "slow": 3, "half": 4, "over": 40, "megabytes": 1}, id="some"),
    pytest.param(
        {"vanish": 200, "slow": 30, "half": 60, "over": 1000, "megabytes": 10}, id="many", marks=pytest.mark.long
    ),
]


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot(context=300)


class Raw:
    """A connection that sends bytes as it is told."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._place = host, int(port)

    async def send(self, data: bytes, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(50):
            try:
                reader, writer = await asyncio.open_connection(*self._place, limit=limit)
                break
            except (ConnectionResetError, TimeoutError):
                await asyncio.sleep(0.05)
        writer.write(data)
        return reader, writer


def posted(content: dict[str, Any] | bytes, length: int | None = None) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@contextmanager
def nothing_left(bot: MiniChat, app: FastAPI, url: str) -> Iterator[None]:
    """After what happens inside, the server holds what it held before."""
    completions, state, process = app.state.completions, app.state.server.server_state, psutil.Process()

    def busy() -> dict[str, int]:
        return {
            "jobs": len(completions._jobs) + len(completions.stepper._jobs),
            "places": completions.places.taken,
            "bytes": completions._waiting_bytes,
            "rows": bot.engine.waiting + bot.engine.written_now,
            "connections": len(state.connections),
            "tasks": len(state.tasks),
        }

    def held() -> dict[str, int]:
        assert until(lambda: not any(busy().values())), busy()
        bot.engine.kept.clear()
        completions._preparer.bot.sights._kept.clear()
        return {"tensors": tensor_bytes(), "files": process.num_fds(), "threads": threading.active_count()}

    async def warm(raw: Raw) -> None:
        for reader, writer in [await raw.send(posted(request(f"Warm {n}?"))) for n in range(8)]:
            await reader.readuntil(b"}}}")
            writer.close()

    asyncio.run(warm(Raw(url)))
    everybody = threading.Barrier(_READERS + 1)  # all threads that read bodies are there, however quick each is
    for _ in range(_READERS):
        completions._readers.submit(everybody.wait)
    everybody.wait(60)
    before = held()
    yield
    after = held()
    assert abs(after.pop("tensors") - before.pop("tensors")) < 4096  # of the last pass its places are left
    assert after == before


def served_meanwhile(url: str, wanted: dict[str, str], stop: threading.Event, wrong: list[str]) -> None:
    """A client as they should be, who asks again and again, and comes back when the server is busy."""
    client, number, right = Client(url), 0, 0
    while not stop.is_set() or not right:
        question, number = list(wanted)[number % len(wanted)], number + 1
        answer = client.post(request(question, stream=number % 2 == 0))
        if answer.status_code == 429:
            time.sleep(0.02)
            continue
        text = answer.text
        reply = joined(events(text)) if number % 2 == 0 else json.loads(text)["choices"][0]["message"]["content"]
        right += 1
        if reply != wanted[question]:
            wrong.append(f"{question}: {reply}")
    client.http.close()


def amid(bot: MiniChat, url: str, chaos: Callable[[Raw], Awaitable[None]]) -> None:
    """Let two clients ask while `chaos` goes on; their replies must be right."""
    questions = [f"What is number {n}?" for n in range(5)]
    wanted = {question: bot.chat(max_new_tokens=12).ask(question) for question in questions}
    stop, wrong = threading.Event(), list[str]()
    good = [threading.Thread(target=served_meanwhile, args=(url, wanted, stop, wrong)) for _ in range(2)]
    for thread in good:
        thread.start()
    try:
        asyncio.run(chaos(Raw(url)))
    finally:
        stop.set()
        for thread in good:
            thread.join()
    assert wrong == []


async def vanish(raw: Raw, count: int) -> None:
    """Clients that leave at any moment: before, while and after they are answered, and some by a reset."""
    chance = random.Random(1)

    async def one(number: int) -> None:
        picture = {"type": "image_url", "image_url": {"url": data_url(noise_picture(number))}}
        parts = [picture, {"type": "text", "text": "Tell me a long story."}]
        content = request({"role": "user", "content": parts}, stream=number % 3 > 0, max_tokens=60, n=1 + number % 2)
        data = posted(content)
        reader, writer = await raw.send(data if number % 5 else data[: chance.randrange(len(data))])
        for _ in range(chance.randrange(4)):
            try:
                await asyncio.wait_for(reader.read(500), chance.random() / 5)
            except (TimeoutError, ConnectionError):
                break
        if number % 2:
            writer.transport.abort()
        writer.close()

    for start in range(0, count, 20):
        await asyncio.gather(*(one(number) for number in range(start, min(count, start + 20))))


@pytest.mark.parametrize("counts", COUNTS)
def test_clients_that_vanish(bot: MiniChat, counts: dict[str, int]) -> None:
    app = build_app(bot, limits=LIMITS)
    with on_a_socket(app) as url, nothing_left(bot, app, url):
        amid(bot, url, lambda raw: vanish(raw, counts["vanish"]))


@pytest.mark.parametrize("counts", COUNTS)
def test_slow_readers_get_all_of_it_and_hold_nobody_up(bot: MiniChat, counts: dict[str, int]) -> None:
    wanted = bot.chat(max_new_tokens=12).ask("Slowly, please?")

    async def read_slowly(raw: Raw) -> None:
        async def one() -> str:
            content = request("Slowly, please?", stream=True, logprobs=True, top_logprobs=20)  # 100 KB
            while True:
                reader, writer = await raw.send(posted(content), limit=1000)
                data = b""
                while not data.endswith(b"\r\n0\r\n\r\n") and not data.endswith(b"}}"):
                    data += await reader.read(2000)
                    await asyncio.sleep(0.001)
                writer.close()
                if b" 200 OK" in data[:20]:
                    return data.decode()

        for text in await asyncio.gather(*(one() for _ in range(counts["slow"]))):
            chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
            assert joined(chunks) == wanted and "data: [DONE]" in text

    app = build_app(bot, limits=LIMITS)
    with on_a_socket(app) as url, nothing_left(bot, app, url):
        amid(bot, url, read_slowly)


@pytest.mark.parametrize("counts", COUNTS)
def test_halves_and_too_much(bot: MiniChat, counts: dict[str, int]) -> None:
    """Bodies of which a half is sent, and megabytes of JSON that is no request."""
    size = counts["megabytes"] * 2**20
    large = [
        b"[" * size,
        b'{"model": "' + b"a" * size + b'"}',
        json.dumps(request("a" * size)).encode(),
        b'{"a":' * (size // 5),
        json.dumps(request("Hi") | {f"key {n}": n for n in range(size // 20)}).encode(),
        json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}] * (size // 40)}).encode(),
        b" " * (LIMITS.body_bytes + 1),
    ]

    async def refused(raw: Raw, data: bytes, statuses: tuple[int, ...]) -> None:
        for _ in range(1000):
            reader, writer = await raw.send(data)
            status = int((await reader.readline()).split()[1])
            writer.transport.abort()  # of a large body not all may have been sent
            if status != 429 or 429 in statuses:
                assert status in statuses
                return
            await asyncio.sleep(0.02)

    async def send(raw: Raw) -> None:
        half = [posted(b'{"model": "tiny"', 1000) for _ in range(counts["half"])]
        await asyncio.gather(*(refused(raw, data, (408, 429)) for data in half))
        for body in large:
            await refused(raw, posted(body), (400, 404, 413))

    app = build_app(bot, limits=LIMITS)
    with on_a_socket(app) as url, nothing_left(bot, app, url):
        amid(bot, url, send)


def test_who_says_nothing_more_is_not_waited_for(bot: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request, one with half of its head, and one whose body was refused before its end."""
    monkeypatch.setattr(server, "_IDLE", 0.3)
    monkeypatch.setattr(server, "_LINGER", 0.3)
    halves = [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost:", posted(b"{", LIMITS.body_bytes + 1)]

    async def wait(raw: Raw) -> None:
        for data in halves:
            reader, _ = await raw.send(data)
            async with asyncio.timeout(30):
                assert (await reader.read()).startswith(b"HTTP/1.1 413" if data.endswith(b"{") else b"")

    with on_a_socket(build_app(bot, limits=LIMITS)) as url:
        asyncio.run(wait(Raw(url)))


@pytest.mark.parametrize("counts", COUNTS)
def test_connections_over_the_limit(bot: MiniChat, counts: dict[str, int]) -> None:
    """All at once; each is told when to come again, and those that were let in are answered rightly."""
    server._allow_many_files()
    app = build_app(bot, limits=LIMITS)
    places = bot.engine.rows + LIMITS.queue

    async def flood(raw: Raw) -> None:
        inside = [await raw.send(posted(request(f"Number {n}?"))) for n in range(places)]
        async with asyncio.timeout(60):
            while app.state.completions.places.taken < places:
                await asyncio.sleep(0.01)
        over = await asyncio.gather(*(raw.send(posted(request("Me too?"))) for _ in range(counts["over"])))
        for reader, writer in over:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert " 429 " in head
            assert 1 <= int(head.split("retry-after: ")[1].split("\r")[0]) <= 120
            writer.close()
        gate.release(10**6)
        for number, (reader, writer) in enumerate(inside):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            content = json.loads(await reader.readuntil(b"}}}"))
            writer.close()
            if number % 16 == 0:
                assert content["choices"][0]["message"]["content"] == wanted[number]

    wanted = {n: bot.chat(max_new_tokens=12).ask(f"Number {n}?") for n in range(0, places, 16)}
    with on_a_socket(app) as url, nothing_left(bot, app, url), stepwise(bot) as gate:
        asyncio.run(flood(Raw(url)))
