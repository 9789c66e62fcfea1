"""The server's limits come before its work; who leaves ends it; who has no key gets in nowhere; how it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys
import threading
import weakref
import zlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Message, Text
from minichat.serve.app import build_app
from minichat.serve.completions import Places
from minichat.serve.conversation import Replies
from minichat.serve.protocol import ApiError, Limits
from minichat.serve.server import listen
from tests import processes
from tests.serving import PATH, Call, Client, events, joined, on_a_socket, request, shown, stepwise, until
from tests.tiny import counting, noise_picture, tiny_bot

JSON = {"Content-Type": "application/json"}
SMALL = Limits(
    body_bytes=200_000, waiting_bytes=300_000, body_seconds=0.5, messages=4, characters=500, pictures=2, pixels=5000,
    max_tokens=40, queue=2, stop_seconds=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot(context=300)


@pytest.fixture(scope="module")
def client(bot: MiniChat) -> Iterator[Client]:
    with on_a_socket(build_app(bot, limits=SMALL)) as url:
        yield Client(url)


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[FastAPI]:
    async with app.router.lifespan_context(app):
        yield app


async def turns(condition: Any) -> None:
    """Let the event loop go on until the condition is true."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


# --- limits


def test_who_is_refused_is_told_to_wait_as_long_as_replies_take_of_late() -> None:
    waits = []
    for seconds in (1, 30):
        places = Places(rows=2, most=4)
        for _ in range(100):
            places.took(seconds)
        places.taken = 4
        with pytest.raises(ApiError) as refused:
            places.check(1)
        waits.append(refused.value.wait)
    assert waits == [2, 60]


def test_of_replies_those_that_were_used_last_are_remembered() -> None:
    replies = Replies(limit=4)
    names = {word: Replies.after(word, Message("assistant", (Text("Yes."),)), iter(())) for word in (b"a", b"b", b"c")}
    replies.add(b"a", "Yes.", (1, 2))
    replies.add(b"b", "Yes.", (3, 4))
    assert replies.find(names[b"a"]) == (1, 2)
    replies.add(b"c", "Yes.", (5, 6))
    assert [replies.find(name) for name in names.values()] == [(1, 2), None, (5, 6)]


def png_of(width: int, height: int) -> bytes:
    """A small file that says how large its picture is, and holds none of it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_what_is_beyond_a_limit_is_refused_before_work(bot: MiniChat, client: Client) -> None:
    huge = {
        "type": "image_url",
        "image_url": {"url": "data:;base64," + base64.b64encode(png_of(20_000, 20_000)).decode()},
    }
    cases = [
        (request(*["Hi"] * 5), "messages"),
        (request("a" * 501), "messages"),
        (request(shown("Hi", *[noise_picture(1, (4, 4))] * 3)), "messages"),
        (request(shown("Hi", noise_picture(1, (100, 51)))), "messages[0].content[0].image_url.url"),
        (request(shown("Hi", *[noise_picture(1, (60, 50))] * 2)), "messages[0].content[1].image_url.url"),
        (request({"role": "user", "content": [huge]}), "messages[0].content[0].image_url.url"),
        (request("Hi", max_tokens=41), "max_tokens"),
    ]
    with counting(bot) as counts:
        for content, param in cases:
            status, error = client.refused(content)
            assert (status, error["param"]) == (400, param)
    assert counts == {"steps": 0, "tokens": 0, "pictures": 0}


def test_a_body_that_is_too_large_is_refused_while_it_comes(client: Client) -> None:
    for content in (b" " * 200_001, iter([b" " * 100_000] * 3)):  # with its length stated, and in chunks
        answer = client.http.post(PATH, content=content, headers=JSON)
        assert answer.status_code == 413 and answer.json()["error"]["message"]
    stated = {**JSON, "Content-Length": "9" * 30}
    with contextlib.suppress(httpx.HTTPError):  # h11 may refuse such a number itself
        assert client.http.post(PATH, content=b"{}", headers=stated).status_code in (400, 413)


def test_only_json_is_read(client: Client) -> None:
    """What a form of another web page can send asks no browser for leave."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"):
        answer = client.http.post(PATH, content=json.dumps(request("Hi")), headers={"Content-Type": kind})
        assert answer.status_code == 415
    kind = "Application/JSON; charset=utf-8"
    assert client.http.post(PATH, content=json.dumps(request("Hi")), headers={"Content-Type": kind}).status_code == 200


def test_half_a_body_gives_its_place_back(client: Client) -> None:
    with socket.create_connection(client.http.base_url.netloc.decode().rsplit(":", 1)) as sent:
        sent.sendall(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n".encode())
        sent.sendall(b"Content-Length: 1000\r\n\r\n{")
        assert b" 408 " in sent.recv(1000)
    assert client.reply("Hi")


def test_all_bodies_together_are_bounded(bot: MiniChat) -> None:
    async def check() -> None:
        async with running(build_app(bot, limits=SMALL)) as app:
            calls = [Call(app, b"") for _ in range(2)]
            for call in calls:
                call.sent.get_nowait()
                call.sent.put_nowait({"type": "http.request", "body": b" " * 160_000, "more_body": True})
            await turns(lambda: any(call.status for call in calls))
            refused = next(call for call in calls if call.status)
            assert refused.status == 429 and dict(refused.answers[0]["headers"])[b"retry-after"]
            for call in calls:
                call.leave()
                await call.task
            assert app.state.completions._waiting_bytes == 0

    asyncio.run(check())


@pytest.mark.parametrize("wait", [0.0, 0.4, 7, 500])
def test_clients_are_asked_to_wait_for_1_to_120_seconds(wait: float) -> None:
    assert 1 <= int(ApiError(429, "Busy.", wait=wait).headers["Retry-After"]) <= 120


def test_over_the_limit_is_told_at_once_and_the_rest_finish(bot: MiniChat) -> None:
    """34 are let in, 32 to be written and 2 to wait; the others are refused before anything was done."""

    async def check() -> None:
        async with running(build_app(bot, limits=SMALL)) as app:
            with stepwise(bot):
                calls = [Call(app, request(f"Number {n}?", stream=n % 2 == 0)) for n in range(34)]
                await turns(lambda: app.state.completions.places.taken == 34)
                over = [Call(app, b"{") for _ in range(50)]  # not even read
                await asyncio.gather(*(call.task for call in over))
                assert {call.status for call in over} == {429}
                for call in over:
                    assert 1 <= int(dict(call.answers[0]["headers"])[b"retry-after"]) <= 120
                    assert json.loads(call.text)["error"]["type"] == "rate_limit_error"
            await asyncio.gather(*(call.task for call in calls))
            assert {call.status for call in calls} == {200}
            replies = [
                joined(events(call.text)) if n % 2 == 0 else json.loads(call.text)["choices"][0]["message"]["content"]
                for n, call in enumerate(calls)
            ]
            assert app.state.completions.places.taken == 0
        assert replies == [bot.chat(max_new_tokens=12).ask(f"Number {n}?") for n in range(34)]

    asyncio.run(check())


def test_each_of_n_replies_takes_a_place(bot: MiniChat) -> None:
    async def check() -> None:
        async with running(build_app(bot, limits=SMALL)) as app:
            with stepwise(bot):
                calls = [Call(app, request("Hi", n=8)) for _ in range(4)]
                await turns(lambda: app.state.completions.places.taken == 32)
                over = Call(app, request("Hi", n=3))
                await over.task
                assert over.status == 429 and app.state.completions.places.taken == 32
            await asyncio.gather(*(call.task for call in calls))
            assert {call.status for call in calls} == {200}

    asyncio.run(check())


# --- who leaves


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_work_within_a_step(bot: MiniChat, stream: bool) -> None:
    async def check() -> None:
        async with running(build_app(bot)) as app:
            completions = app.state.completions
            with stepwise(bot) as gate:
                call = Call(app, request("Tell me a long story.", max_tokens=100, stream=stream))
                gate.release(6)
                await turns(lambda: any(len(job.requests) and job.tokens >= 4 for job in completions._jobs))
                (job,) = completions._jobs
                reply = weakref.ref(job.requests[0])
                await turns(lambda: len(call.answers) > 1 or not stream)
                call.leave()
                await call.task
                written = job.tokens
                assert completions.places.taken == 0
                gate.release(1)  # one step, and it is gone
                await turns(lambda: bot.engine.waiting + bot.engine.written_now == 0)
                assert job.tokens <= written + 1
            assert not completions._jobs
            del job
            await turns(lambda: not completions.stepper._jobs)
            await turns(lambda: gc.collect() >= 0 and reply() is None)  # the steps' thread may just be letting go of it

    asyncio.run(check())


def test_who_leaves_before_their_turn_is_never_begun(bot: MiniChat) -> None:
    async def check() -> None:
        async with running(build_app(bot)) as app:
            with stepwise(bot), counting(bot) as counts:
                call = Call(app, request("Tell me."))
                await turns(lambda: app.state.completions.stepper._jobs)
                call.leave()
                await call.task
            await turns(lambda: not app.state.completions.stepper._jobs)
            assert counts["steps"] == 0

    asyncio.run(check())


def test_who_leaves_a_connection_is_noticed(bot: MiniChat, client: Client) -> None:
    address = client.http.base_url.netloc.decode().rsplit(":", 1)
    body = json.dumps(request("Tell me a long story.", max_tokens=40, stream=True)).encode()
    with stepwise(bot) as gate:
        for _ in range(20):
            with socket.create_connection(address) as sent:
                sent.sendall(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n".encode())
                sent.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert until(lambda: bot.engine.waiting + bot.engine.written_now > 0)
                gate.release(4)
                received = b""
                while b"data: " not in received:  # in one piece or in several
                    received += (part := sent.recv(10_000))
                    assert part
            assert until(lambda: gate.release() or bot.engine.waiting + bot.engine.written_now == 0)
    assert client.reply("Hi")
    assert client.metrics()['minichat_requests_total{status="499"}'] >= 20


def test_a_place_is_free_before_the_end_is_sent(bot: MiniChat) -> None:
    """Clients close as soon as they read [DONE]."""

    taken = []

    class Looking(Call):
        async def _answer(self, message: Any) -> None:
            if b"[DONE]" in message.get("body", b""):
                taken.append(completions.places.taken)

    async def check() -> None:
        nonlocal completions
        async with running(build_app(bot)) as app:
            completions = app.state.completions
            await Looking(app, request("Hi", stream=True)).task

    completions: Any = None
    asyncio.run(check())
    assert taken == [0]


# --- the key, and other web pages


@pytest.fixture(scope="module")
def locked(bot: MiniChat) -> Iterator[Client]:
    with on_a_socket(build_app(bot, key="open-sesame", origins=["https://example.org"])) as url:
        yield Client(url)


WRONG = [
    "",
    "Bearer",
    "Bearer open-sesam",
    "Bearer open-sesame2",
    "Basic open-sesame",
    "open-sesame",
    "Bearer é",
]


@pytest.mark.parametrize("shown_key", WRONG)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", PATH), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/nowhere"), ("POST", "/login")],
)
def test_without_the_key_nothing_is_answered(locked: Client, method: str, path: str, shown_key: str) -> None:
    headers = {"Authorization": shown_key.encode("latin-1")} if shown_key else {}
    answer = locked.http.request(method, path, headers={**JSON, **headers}, content=json.dumps(request("Hi")))
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key" and "sesame" not in answer.text


def test_with_the_key_all_is_answered_and_health_without(bot: MiniChat, locked: Client) -> None:
    opened = Client(str(locked.http.base_url), Authorization="Bearer open-sesame")
    assert opened.reply("Hi")["choices"]
    assert opened.http.get("/v1/models").status_code == opened.http.get("/metrics").status_code == 200
    assert opened.http.get("/nowhere").status_code == 404
    assert locked.http.get("/health").json() == {"status": "ok"}


def test_other_web_pages_are_let_in_by_name_alone(client: Client, locked: Client) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = "access-control-allow-origin"
    for origin in ("https://example.org", "https://evil.example"):
        headers = {"Origin": origin, **asking}
        assert allowed not in client.http.options(PATH, headers=headers).headers
        assert allowed not in client.http.get("/health", headers=headers).headers
        found = locked.http.options(PATH, headers=headers).headers.get(allowed)
        assert found == (origin if origin == "https://example.org" else None)
    refused = locked.http.post(PATH, headers={"Origin": "https://example.org", **JSON}, content=b"{}")
    assert refused.status_code == 401 and refused.headers[allowed] == "https://example.org"


def test_what_is_not_here_says_so_in_openais_shape(client: Client) -> None:
    for method, path, status in (
        ("GET", "/", 404), ("POST", "/v1/responses", 404), ("GET", "/v1/embeddings", 404), ("GET", PATH, 405),
        ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("DELETE", "/health", 405),
    ):  # fmt: skip
        answer = client.http.request(method, path)
        assert answer.status_code == status, (method, path)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# --- how it ends


def test_at_the_end_what_is_being_written_is_finished_and_the_rest_refused(bot: MiniChat) -> None:
    async def check() -> None:
        async with running(build_app(bot)) as app:
            completions = app.state.completions
            with stepwise(bot) as gate:
                written = [Call(app, request(f"Number {n}?", stream=n % 2 == 0)) for n in range(32)]
                await turns(lambda: len(completions.stepper._jobs) == 32)
                gate.release(2)
                await turns(lambda: bot.engine.written_now == 32)
                waiting = [Call(app, request("Me too?", stream=n % 2 == 0)) for n in range(4)]
                await turns(lambda: bot.engine.waiting == 4)
                ending = asyncio.create_task(completions.end(60))
                await turns(lambda: completions.ending)
                new = Call(app, request("And me?"))
                await new.task
                gate.release(3)
                await asyncio.gather(*(call.task for call in waiting))
                for call in [new, *waiting]:
                    assert call.status == 503 and 1 <= int(dict(call.answers[0]["headers"])[b"retry-after"]) <= 120
                assert not ending.done()
            await asyncio.gather(*(call.task for call in written), ending)
            assert {call.status for call in written} == {200}
            assert joined(events(written[0].text)) == bot.chat(max_new_tokens=12).ask("Number 0?")

    asyncio.run(check())


def test_what_takes_too_long_at_the_end_is_cut_with_an_error(bot: MiniChat) -> None:
    async def check() -> None:
        async with running(build_app(bot)) as app:
            with stepwise(bot) as gate:
                streamed = Call(app, request("Tell me a long story.", stream=True, max_tokens=100))
                whole = Call(app, request("Tell me another.", max_tokens=100))
                gate.release(8)
                await turns(lambda: len(streamed.answers) > 1)
                await app.state.completions.end(0.01)
                await asyncio.gather(streamed.task, whole.task)
            assert events(streamed.text)[-1]["error"]["code"] == "ending"
            assert whole.status == 503

    asyncio.run(check())


def _serve(port: int) -> None:
    sys.argv = ["minichat", "serve", "--port", str(port), "--model", "minichat-tiny"]
    from minichat import cli

    cli.main()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_a_stream_end_and_refuses_what_is_new(number: int, code: int) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    program = processes.started(partial(_serve, port), {"MINICHAT_API_KEY": "key"})
    try:
        client = Client(f"http://127.0.0.1:{port}", Authorization="Bearer key")
        assert until(lambda: alive(client), 200)
        content = json.dumps(request("Tell me a long story.", model="minichat-tiny", stream=True, n=8, temperature=2))
        with client.http.stream("POST", PATH, content=content, headers=JSON) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(program.pid or 0, number)
            status = new_status(port)
            rest = [line for line in lines if line]
        assert status in (503, None)  # None: all was over before
        assert rest[-1] == "data: [DONE]"
    finally:
        assert processes.ended(program) == code


def alive(client: Client) -> bool:
    try:
        return client.http.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def new_status(port: int) -> int | None:
    """What somebody new is answered, once the signal is known."""
    client = Client(f"http://127.0.0.1:{port}", Authorization="Bearer key")
    for _ in range(1000):
        try:
            answer = client.post(request("Hi", model="minichat-tiny", max_tokens=1))
        except httpx.HTTPError:
            return None
        if answer.status_code != 200:
            return answer.status_code
    return 200


# --- before it begins


def test_a_port_that_is_taken_is_told() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MiniChatError, match=f"port {port} .*--port"):
            listen("127.0.0.1", port)
    for host, port in (("no.such.host.invalid", 8000), ("127.0.0.1", 70_000), ("203.0.113.1", 8000)):
        with pytest.raises(MiniChatError, match="Cannot listen"):
            listen(host, port)


def test_limits_are_positive_numbers() -> None:
    for wrong in (0, -1, True, "5", float("nan"), 1.5):
        with pytest.raises(SettingsError, match="queue"):
            Limits(queue=wrong)  # type: ignore[arg-type]


def test_a_model_whose_replies_are_written_alone_is_not_served(bot: MiniChat) -> None:
    bot.engine.alone, before = "it is an encoder-decoder", bot.engine.alone
    try:
        with pytest.raises(ModelError, match="encoder-decoder"):
            build_app(bot)
    finally:
        bot.engine.alone = before


def test_threads_end_with_the_server(bot: MiniChat) -> None:
    before = set(threading.enumerate())
    with on_a_socket(build_app(bot)) as url:
        Client(url).reply("Hi")
        assert len({thread.name for thread in set(threading.enumerate()) - before} & {"minichat-stepper"}) == 1
    assert until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize(
    "origin", ["https://example.org/", "example.org", "https://Example.org", "https://a.org/x", ""]
)
def test_what_no_browser_sends_is_no_origin(bot, origin):
    """It would let in nobody, without a word."""
    with pytest.raises(SettingsError, match="is no page's origin: write it as in https://example"):
        build_app(bot, origins=[origin])
    build_app(bot, origins=["https://example.org", "http://127.0.0.1:3000", "*", "null"])
