"""The chat page on the server's engine: beside the protocol, behind the key, and ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from minichat.inference.bot import MiniChat
from minichat.inference.request import Sight
from minichat.serve.app import COOKIE, build_app
from minichat.web import Owned
from minichat.web.guard import DESK
from tests.serving import Client, on_a_socket, until
from tests.tiny import noise_picture, tiny_bot
from tests.web_visitor import DEFAULTS, Visitor, png

SETTINGS = [*DEFAULTS[:2], 12, *DEFAULTS[3:]]  # short replies


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot()


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where uploads lie; at the end nothing may be left there."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_page_and_programs_share_one_engine(bot: MiniChat) -> None:
    app = build_app(bot, page=True)
    with on_a_socket(app) as url:
        visitor, client = Visitor(url), Client(url)
        words = bot.chat(max_new_tokens=12).ask("What is it?")
        assert visitor.ask("What is it?", settings=SETTINGS).texts == ["What is it?", words]
        known = client.reply("What is it?")
        assert known["choices"][0]["message"]["content"] == words
        assert known["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert visitor.ask("And this?", [visitor.upload(png())], SETTINGS).texts[2] == "[picture] And this?"
        assert client.http.get("/v1/responses").json()["error"]["code"] == "not_found"
        assert client.http.get("/metrics").status_code == client.http.get("/health").status_code == 200
        visitor.upload(png("blue"))
        asyncio.run_coroutine_threadsafe(app.state.completions.end(10), app.state.completions.stepper.loop).result()
        assert visitor.send("Still there?").status_code == 503
        visitor.close()


def test_a_picture_is_encoded_while_its_question_is_typed(bot: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    see = bot.see

    def counted(sights: Sequence[Sight]) -> None:
        see(sights)
        encoded.append(len(sights))

    monkeypatch.setattr(bot, "see", counted)
    monkeypatch.setattr(bot.engine, "_see", counted)
    with on_a_socket(build_app(bot, page=True)) as url:
        visitor, other = Visitor(url), Visitor(url)
        file = visitor.upload(png("green"))
        assert until(lambda: encoded == [1])
        said = visitor.ask("What is it?", [file], SETTINGS).texts
        assert encoded == [1]
        assert other.ask("What is it?", [other.upload(png("green"))], SETTINGS).texts == said
        assert encoded == [1]  # as long as somebody has an equal one
        visitor.upload(b"no picture"), visitor.upload(b"words", "a.txt")  # nobody asks about them
        assert other.ask("And now?", settings=SETTINGS).texts[-1]
        with bot.step_lock:  # somebody is being answered
            assert bot.look_ahead(lambda: noise_picture(80)) is None
        visitor.close(), other.close()
    assert bot.look_ahead(lambda: noise_picture(80)) is not None and encoded == [1, 1]


def test_with_a_key_the_page_asks_for_it(bot: MiniChat, tmp_path: Path) -> None:
    owned = Owned(tmp_path / "set", "tiny", lambda name: bot, keyed=True)
    with on_a_socket(build_app(bot, key="open-sesame", page=owned)) as url:
        stranger = httpx.Client(base_url=url, trust_env=False, timeout=60)
        form = stranger.get("/")
        assert form.status_code == 401 and 'type="password"' in form.text and "sesame" not in form.text
        for path in (
            "/config",
            "/gradio_api/info",
            "/gradio_api/queue/data?session_hash=a",
            "/theme.css",
            "/v1/models",
        ):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/gradio_api/queue/join", json={}).status_code == 401
        assert stranger.post(DESK, json={"do": "list"}).status_code == 401
        for wrong in ({"key": "open"}, {"key": ""}, {}, {"other": "open-sesame"}, {"key": "x" * 10_000}):
            answer = stranger.post("/login", data=wrong)
            assert answer.status_code == 401 and COOKIE not in answer.headers.get("set-cookie", "")
        for forged in ("open-sesame", "", "a" * 64):
            assert stranger.get("/config", headers={"Cookie": f"{COOKIE}={forged}"}).status_code == 401

        opened = stranger.post("/login", data={"key": " open-sesame "})
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert "HttpOnly" in opened.headers["set-cookie"] and "SameSite=Strict" in opened.headers["set-cookie"]
        assert "sesame" not in opened.headers["set-cookie"]
        visitor = Visitor.__new__(Visitor)
        visitor.http = stranger
        Visitor.__init__(visitor, url, like=visitor)
        reply = visitor.ask("What is it?", settings=SETTINGS)
        assert reply.texts[1] == bot.chat(max_new_tokens=12).ask("What is it?")
        # Whoever has shown the key is the owner, also from elsewhere.
        kept = visitor.http.post(DESK, json={"do": "state"}, headers={"x-forwarded-for": "10.0.0.5"}).json()
        assert (kept["owner"], kept["records"]) == (True, 0)
        # The page's cookie is no key: a script of another page cannot make a browser ask the protocol.
        assert visitor.http.get("/v1/models").status_code == visitor.http.get("/metrics").status_code == 401
        visitor.close()


def test_without_a_page_nothing_asks_for_the_key(bot: MiniChat) -> None:
    with on_a_socket(build_app(bot, key="open-sesame")) as url:
        client = Client(url)
        assert client.http.get("/").json()["error"]["code"] == "invalid_api_key"
        assert client.http.post("/login", data={"key": "open-sesame"}).status_code == 401
