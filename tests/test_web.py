"""The chat page over HTTP, with a bot that follows a script."""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from minichat import cli
from minichat.errors import MiniChatError, PromptError
from minichat.web import Limits, Running, build_app, launch
from minichat.web.handlers import HALF
from minichat.web.sessions import OWN
from tests.fake_bot import FakeBot
from tests.web_visitor import API, DEFAULTS, Reply, Visitor, png, words

LONG_REPLY = " ".join(str(n) for n in range(500))


@contextlib.contextmanager
def serving(bot: FakeBot, limits: Limits | None = None) -> Iterator[Running]:
    running = launch(build_app(bot, limits or Limits()))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where uploads lie; at the end nothing may be left there."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def page(files: Path) -> Iterator[Running]:
    with serving(FakeBot(), Limits(upload_bytes=200_000)) as running:
        yield running


@pytest.fixture
def bot(page: Running) -> FakeBot:
    """The script of the page's bot, empty."""
    bot = page.page.sessions.new_chat.__self__
    bot.script.clear()
    bot.settings.clear()
    bot.pause = 0.0
    return bot


@pytest.fixture
def visitor(page: Running, bot: FakeBot) -> Iterator[Visitor]:
    visitor = Visitor(page.url)
    yield visitor
    visitor.close()


@pytest.fixture
def other(page: Running) -> Iterator[Visitor]:
    other = Visitor(page.url)
    yield other
    other.close()


def until(condition, seconds: float = 20.0) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# --- talking


def test_pictures_in_any_turn_and_replies_streamed(bot, visitor):
    bot.pause = 0.05
    bot.enqueue("A red square on white.", "It is small.", "The second is blue.")
    first = visitor.ask("What is it?", [visitor.upload(png("red"))])
    assert first.texts == ["[picture] What is it?", "A red square on white."]
    assert first.steps >= 6  # the question, then a word at a time
    assert visitor.ask("How large?").texts[2:] == ["How large?", "It is small."]
    third = visitor.ask("And these?", [visitor.upload(png("blue")), visitor.upload(png("green"))])
    assert third.texts[4:] == ["[picture] [picture] And these?", "The second is blue."]
    assert third.chat[0]["content"][0]["value"].count("data:image/png;base64,") == 1


def test_an_example_is_one_click_away(bot, visitor):
    visitor.join("mc-scene-1", "click", [None, *DEFAULTS]).raise_for_status()
    assert Reply(list(visitor.messages())).texts == [
        "[picture] What colour is the star?",
        "You asked “What colour is the star?”, pictures: 1.",
    ]


def test_a_picture_without_words_is_described(bot, visitor):
    assert visitor.ask("  ", [visitor.upload(png())]).texts[0] == "[picture] Describe the picture."
    assert visitor.ask("  ").chat == {"__type__": "update"}  # nothing was asked, nothing changes


def test_retry_and_edit(bot, visitor):
    bot.enqueue("one", "two", "three", "four")
    visitor.ask("first", [visitor.upload(png())])
    visitor.ask("second")
    assert visitor.retry().texts == ["[picture] first", "one", "second", "three"]
    assert bot.settings[-1]["temperature"] > 0  # else it would be the same again
    assert visitor.edit(0, "1 &lt;b> &amp;c").texts == ["[picture] 1 &lt;b> &amp;c", "four"]  # as the edit box shows it
    (session,) = [s for s in page_sessions(bot) if s.chat.conversation.messages[0].text == "1 <b> &c"]
    assert len(session.chat.conversation.pictures) == 1


def page_sessions(bot: FakeBot) -> list:
    sessions = next(o for o in gc.get_objects() if type(o).__name__ == "Sessions" and o.new_chat.__self__ is bot)
    return [sessions.find(key) for key in sessions.open_keys()]


def test_new_chat_also_ends_the_reply(bot, visitor):
    bot.pause = 0.02
    bot.enqueue(LONG_REPLY, "fresh")
    visitor.send("long").raise_for_status()
    messages = visitor.messages()
    for _ in range(8):
        next(messages)
    assert visitor.direct("mc-new", "click")[0] == []
    assert list(messages)[-2]["output"]["data"][0] == []
    assert until(lambda: bot.running == 0)
    assert visitor.ask("again").texts == ["again", "fresh"]


def test_stop_keeps_what_was_said_and_ends_within_a_step(bot, visitor):
    bot.pause = 0.05
    bot.enqueue(LONG_REPLY)
    visitor.send("count").raise_for_status()
    messages = visitor.messages()
    for _ in range(6):
        next(messages)
    visitor.direct("mc-box", "stop")
    said = bot.words
    final = list(messages)[-2]["output"]["data"]
    assert bot.running == 0
    assert bot.words - said <= 1
    assert LONG_REPLY.startswith(words(final[0])[1])


def test_a_reply_in_progress_is_not_disturbed_by_another_question(bot, visitor):
    bot.pause = 0.1
    bot.enqueue("a b c d e f g h")
    visitor.send("first").raise_for_status()
    messages = visitor.messages()
    assert until(lambda: bot.words > 1)
    visitor.send("second").raise_for_status()
    assert visitor.direct("mc-show", "click", said(("a", "b")))[0] == {"__type__": "update"}
    got = list(messages)
    assert any("Wait for the reply" in m.get("log", "") for m in got)
    assert visitor.ask("third").texts[:2] == ["first", "a b c d e f g h"]


# --- what people type is shown as text


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![](http://x/y.png)", "&lt;b&gt; & </div>", "a < b"],
)
def test_no_words_become_markup(text, bot, visitor):
    bot.enqueue(text)
    import html

    reply = visitor.ask(text)
    for shown in reply.texts:
        assert html.unescape(shown) == text
        assert not any(shown[i] == "<" and shown[i + 1 : i + 2].isalpha() for i in range(len(shown)))


# --- errors


def test_an_error_in_a_reply_is_a_sentence_and_the_next_succeeds(bot, visitor, caplog):
    bot.enqueue(["half", RuntimeError("at /srv/secret/model.py 0x7f00")], MemoryError(), PromptError("Too much."), "ok")
    path = visitor.upload(png())
    with caplog.at_level(logging.CRITICAL):
        failed = visitor.ask("first", [path])
        assert failed.toasts == ["Something went wrong while answering: try again, or start a new chat."]
        assert failed.chat == []
        assert visitor.fetch(path).status_code == 200  # the page, which has the words, may send it again
        assert "secret" not in json.dumps(failed.messages)
        assert "not enough memory" in visitor.ask("second").toasts[0]
    assert visitor.ask("third").toasts == ["Too much."]
    assert visitor.ask("first", [path]).texts == ["[picture] first", "ok"]
    assert bot.running == 0


def test_a_failed_retry_or_edit_leaves_the_chat_as_it_was(bot, visitor):
    bot.enqueue("one", "two", PromptError("No."), PromptError("No."))
    visitor.ask("first", [visitor.upload(png())])
    before = visitor.ask("second").texts
    assert visitor.retry().texts == before
    assert visitor.edit(0, "other").texts == before
    assert visitor.ask("third").texts[:4] == before


@pytest.mark.parametrize(
    ("position", "value", "name"),
    [
        (0, -1, "temperature"),
        (0, float("nan"), "temperature"),
        (0, "hot", "temperature"),
        (1, 0, "top_p"),
        (1, True, "top_p"),
        (2, 10**9, "max_new_tokens"),
        (2, -1, "max_new_tokens"),
        (2, 1.5, "max_new_tokens"),
        (2, None, "max_new_tokens"),
        (3, float("inf"), "repetition_penalty"),
        (4, -1, "seed"),
        (4, [1], "seed"),
        (4, "lucky", "seed"),
        (4, "9" * 5000, "seed"),
        (0, 10**400, "temperature"),
        (1, {"value": 1}, "top_p"),
        (2, 10**400, "max_new_tokens"),
        (3, "\ud800", "repetition_penalty"),
        (4, "\ud800", "seed"),
    ],
)
def test_a_setting_out_of_range_is_named(position, value, name, bot, visitor):
    settings = [*DEFAULTS]
    settings[position] = value
    (toast,) = visitor.ask("hello", settings=settings).toasts
    assert toast.startswith(f"{name} must be ")
    assert bot.settings == []
    assert visitor.ask("hello", settings=[0.5, 0.9, 7, 1.1, " 3 "]).toasts == []
    assert bot.settings == [
        {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7, "repetition_penalty": 1.1, "seed": 3}
    ]


SHAPES = [
    ([], "message"),
    ("hello", "message"),
    (7, "message"),
    ({"text": {"a": 1}}, "text"),
    ({"text": ["hello"], "files": []}, "text"),
    ({"text": 10**400}, "text"),
    ({"text": "hello", "files": "a.png"}, "files"),
    ({"text": "hello", "files": {"0": {}}}, "files"),
    ({"text": "hello", "files": [None]}, "files"),
    ({"text": "hello", "files": [{"url": "http://127.0.0.1:1/x.png"}]}, "files"),
]


def test_a_message_of_another_shape_is_refused_and_the_field_named(bot, visitor):
    for message, field in SHAPES:
        visitor.join("mc-box", "submit", [None, message, *DEFAULTS]).raise_for_status()
        (toast,) = Reply(list(visitor.messages())).toasts
        assert toast.startswith("The message")
        assert field in toast
        assert toast.endswith(".")
    for empty in (None, {}, {"text": None, "files": None}):
        visitor.join("mc-box", "submit", [None, empty, *DEFAULTS]).raise_for_status()
        assert Reply(list(visitor.messages())).toasts == []
    assert bot.settings == []
    assert visitor.ask("hello").toasts == []


def test_an_edit_of_another_shape_is_refused_and_the_field_named(bot, visitor):
    before = visitor.ask("hello").texts
    places = [None, [], {}, {"index": None}, {"index": 10**400}, {"index": True}, {"index": []}]
    words = [{"index": 0, "value": 5}, {"index": 0, "value": None}, {"index": [0, 0], "value": "\ud83d"}]
    for event, field in [(event, "index") for event in places] + [(event, "text") for event in words]:
        visitor.join("mc-chat", "edit", [None, *DEFAULTS], event).raise_for_status()
        reply = Reply(list(visitor.messages()))
        assert field in reply.toasts[0]
        assert reply.texts == before


def test_half_a_surrogate_pair_is_refused_and_the_picture_stays(bot, visitor):
    path = visitor.upload(png())
    for text in ("\ud83d", "a\ud83d", "\ude00b", "a\ude00\ud83d 😀 b"):
        assert visitor.ask(text, [path]).toasts == [HALF]
    assert visitor.ask("a 😀 b", [path]).texts[0] == "[picture] a 😀 b"


# --- long texts, and text files


@pytest.mark.parametrize("size", [4_001, 20_000, 200_000])
def test_a_long_text_arrives_whole(size, bot, visitor, page):
    text = ("Zeile \t ü😀 <b>\n" * size)[: size - 1] + "."
    bot.enqueue("Long.")
    assert visitor.ask(text).toasts == []
    session = page.page.sessions.find(_private(page, visitor))
    assert session.chat.conversation.messages[0].text == text


def test_a_text_that_does_not_fit_into_the_context_is_said_so(files):
    from tests.tiny import tiny_bot

    with serving(tiny_bot(context=200)) as page:
        visitor = Visitor(page.url)
        reply = visitor.ask("Please look at this. " * 1000, settings=[*DEFAULTS[:2], 5, *DEFAULTS[3:]])
        assert re.match(r"The question takes \d+ tokens .* context holds 200", reply.toasts[0])
        visitor.close()


def test_a_text_file_is_what_it_says(bot, visitor, page):
    parts = ["\ufeffErste\r\nZeile\t<b>\n".encode(), b"second"]
    paths = [visitor.upload(part, f"{n}.TXT") for n, part in enumerate(parts)]
    visitor.ask("Read:", [paths[0], visitor.upload(png()), paths[1]])
    session = page.page.sessions.find(_private(page, visitor))
    assert session.chat.conversation.messages[0].text == "Read:\n\nErste\nZeile\t<b>\n\nsecond"
    assert len(session.chat.conversation.pictures) == 1
    assert not any(Path(path).exists() for path in paths)


@pytest.mark.parametrize("data", [b"\xff\xfeh\0i\0", b"caf\xe9", b"a\0b", png()])
def test_a_text_file_that_is_no_text_is_refused_by_name(data, bot, visitor):
    (toast,) = visitor.ask("Read this.", [visitor.upload(data, "notes.txt")]).toasts
    assert toast.startswith("“notes.txt” is no text in UTF-8")
    assert bot.settings == []


def _svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def _huge_header() -> bytes:
    data = bytearray(png())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize("data", [b"not a picture", _svg(), _huge_header(), b""])
def test_a_file_that_is_no_picture_is_refused_in_a_sentence(data, bot, visitor, files):
    reply = visitor.ask("What is it?", [visitor.upload(data, "holiday.png")])
    (toast,) = reply.toasts
    assert toast.endswith(".")
    assert str(files) not in toast
    assert reply.chat == {"__type__": "update"}
    assert visitor.ask("Are you there?").toasts == []


def test_limits_of_a_message(bot, visitor, page):
    limits = page.page.limits
    (toast,) = visitor.ask("x" * (limits.characters + 1)).toasts
    assert str(limits.characters) in toast
    many = [visitor.upload(png(side=8 + n)) for n in range(limits.pictures_per_message + 1)]
    (toast,) = visitor.ask("?", many).toasts
    assert str(limits.pictures_per_message) in toast
    body = {"data": ["x" * 2_000_000], "session_hash": visitor.session, "fn_index": 0}
    assert visitor.http.post(f"{API}/queue/join", json=body).status_code == 413


def test_an_upload_has_a_bound(visitor, files):
    with pytest.raises(Exception, match="413"):
        visitor.upload(b"x" * 300_000)
    noise = Image.effect_noise((600, 600), 100)
    with io.BytesIO() as file:
        noise.save(file, "PNG")
        assert len(file.getvalue()) > 200_000
        with pytest.raises(Exception, match="413"):
            visitor.upload(file.getvalue())
    parts = [("files", (f"{n}.png", b"x" * 150_000, "image/png")) for n in range(20)]
    assert visitor.http.post(f"{API}/upload", files=parts).status_code == 413
    parts = [("files", (f"{n}.png", b"x", "image/png")) for n in range(20)]
    assert visitor.http.post(f"{API}/upload", files=parts).status_code == 400
    assert visitor.http.post(f"{API}/upload", files=[("others", ("a.png", b"x", "image/png"))]).json() == []
    assert visitor.http.post(f"{API}/upload", content=b"nonsense").json() == []
    assert visitor.http.post(f"{API}/upload", content=iter([b"x"])).status_code == 411


# --- each to their own


def test_the_file_of_one_visitor_is_of_no_use_to_another(bot, visitor, other):
    path = visitor.upload(png("blue"))
    assert visitor.fetch(path).content == png("blue")
    assert other.fetch(path).status_code == 404
    other.http.cookies.clear()
    assert other.fetch(path).status_code == 403
    stranger = Visitor(str(other.http.base_url))
    assert stranger.send("What is it?", [path]).status_code == 403
    assert stranger.http.get(f"{API}/file/{path}").status_code == 404
    assert visitor.ask("What is it?", [path]).texts[0] == "[picture] What is it?"
    assert visitor.fetch(path).status_code == 404  # answered: gone, from disk too
    assert not Path(path).exists()
    stranger.close()


def test_two_visitors_may_upload_the_same_file(bot, visitor, other):
    mine, theirs = visitor.upload(png("pink")), other.upload(png("pink"))
    visitor.ask("Mine?", [mine])
    assert other.fetch(theirs).status_code == 200
    assert other.ask("Mine?", [theirs]).texts[0] == "[picture] Mine?"
    assert not Path(mine).exists()
    assert not Path(theirs).exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x.png", "../../etc/passwd"])
def test_no_other_file_is_served_or_read(path, bot, visitor):
    assert visitor.fetch(path).status_code == 404
    assert visitor.send("?", [path]).status_code == 403


def test_the_session_id_of_one_visitor_is_of_no_use_to_another(bot, visitor, other):
    bot.pause = 0.05
    bot.enqueue(" ".join(["secret"] * 60), "theirs")
    visitor.send("mine").raise_for_status()
    messages = visitor.messages()
    assert until(lambda: bot.words > 2)
    own, other.session = other.session, visitor.session
    with pytest.raises(Exception, match=r"40\d|unexpected"):
        got = list(other.messages())
        assert "secret" not in json.dumps(got)
        raise LookupError("unexpected_error: nothing is waiting under this id")
    other.direct("mc-box", "stop")
    other.direct("mc-new", "click")
    with other.http.stream("GET", f"{API}/heartbeat/{visitor.session}") as beat:
        next(beat.iter_raw())
    assert other.ask("what did they say?").texts == ["what did they say?", "theirs"]
    assert words(list(messages)[-2]["output"]["data"][0]) == ["mine", " ".join(["secret"] * 60)]
    other.session = own


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{API}/call/submit"),
        ("POST", f"{API}/cancel"),
        ("POST", f"{API}/component_server"),
        ("POST", f"{API}/process_recording"),
        ("GET", f"{API}/proxy=http://127.0.0.1:1/"),
        ("GET", f"{API}/run-history/records"),
        ("GET", f"{API}/call/submit/abc"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("PUT", "/"),
        ("POST", f"{API}/run/%00"),
        ("GET", "/static/%00"),
    ],
)
def test_only_the_routes_of_the_page_exist(method, path, visitor):
    assert visitor.http.request(method, path).status_code == 404


def test_requests_that_make_no_sense(visitor):
    join = f"{API}/queue/join"
    assert visitor.http.post(join, content=b"{").status_code == 400
    assert visitor.http.post(join, content=b"[" * 100_000).status_code == 400
    assert visitor.http.post(join, json={"data": []}).status_code == 400
    known = {"session_hash": "a", "fn_index": visitor.functions[("mc-box", "submit")], "data": [None, None, *DEFAULTS]}
    wrong = [{"data": []}, {"data": {}}, {"data": None}, {"data": [None] * 8}, {"fn_index": 10**6}, {"fn_index": "0"}]
    for change in [*wrong, {"fn_index": True}, {"fn_index": None}, {"session_hash": 5}]:
        (field,) = change
        answer = visitor.http.post(join, json={**known, **change})
        assert answer.status_code == 400
        assert field in answer.json()["detail"]
    odd = {"trigger_id": "x", "event_id": [], "batched": True, "event_data": "\ud800", "session_hash": "\ud800"}
    kind = {"content-type": "application/json"}
    assert visitor.http.post(join, content=json.dumps({**known, **odd}), headers=kind).status_code == 200
    visitor.http.cookies.clear()
    assert visitor.send("?").status_code == 403


# --- shares


def test_one_visitor_with_many_chats_ends_nobody_elses(files):
    with serving(FakeBot(), Limits(sessions=6, sessions_per_visitor=3)) as page:
        other, greedy = Visitor(page.url), Visitor(page.url)
        other.ask("remember me")
        pages = [Visitor(page.url, like=greedy) for _ in range(8)]
        for each in pages:
            assert each.ask("more").toasts == []
        assert len(page.page.sessions) == 4
        assert other.ask("and now?").texts[0] == "remember me"
        assert pages[0].ask("still there?").toasts == [OWN]
        for visitor in (other, greedy, *pages):
            visitor.close()


def test_uploads_of_two_visitors_stop_nobody_elses(files):
    with serving(FakeBot(), Limits(pictures_per_message=2, upload_bytes=10_000, waiting_bytes=40_000)) as page:
        greedy, other = [Visitor(page.url) for _ in range(2)], Visitor(page.url)
        mine = other.upload(png())
        paths = [visitor.upload(b"x" * 10_000) for _ in range(4) for visitor in greedy]
        assert [Path(path).exists() for path in paths] == [False] * 5 + [True] * 3
        assert other.ask("Mine?", [mine, other.upload(png("blue"))]).texts[0] == "[picture] [picture] Mine?"
        gone = greedy[0].send("?", [paths[0]])
        assert gone.status_code == 403
        assert "picture" in gone.json()["detail"]
        for visitor in (*greedy, other):
            visitor.close()


def test_one_visitor_cannot_fill_the_queue_nor_can_one_address(files):
    bot = FakeBot(pause=0.05)
    bot.enqueue(LONG_REPLY)
    with serving(bot, Limits(concurrent=1, queue=8, queue_per_visitor=2)) as page:
        greedy = [Visitor(page.url) for _ in range(3)]
        for visitor in greedy:
            visitor.http.headers["x-forwarded-for"] = "203.0.113.7"  # believed, since it comes from this machine
        codes = [greedy[0].send(f"{n}").status_code for n in range(3)]
        assert until(lambda: bot.running == 1)
        refused = greedy[0].send("again")
        assert "2 messages" in refused.json()["detail"]
        assert (codes, refused.status_code) == ([200, 200, 429], 429)
        codes = [visitor.send("hello").status_code for visitor in greedy[1:] for _ in range(2)]
        assert codes == [200, 200, 429, 429]  # four of eight places are the most for one address
        other = Visitor(page.url)
        assert other.send("hello").status_code == 200
        page.close()
        for visitor in (*greedy, other):
            visitor.close()


def test_where_the_server_is_full_it_says_so(files):
    bot = FakeBot(pause=0.05)
    bot.enqueue(LONG_REPLY)
    with serving(bot, Limits(sessions=1)) as page:
        first, second = Visitor(page.url), Visitor(page.url)
        first.send("hello").raise_for_status()
        assert until(lambda: bot.running == 1)
        for reply in (second.ask("hello"), second.retry(), second.edit(0, "hello")):
            assert reply.toasts == ["The server is busy answering others: try again in a minute."]
        first.close()
        second.close()


# --- while a message waits for its turn, and before its first word


@pytest.mark.parametrize("how", [("mc-box", "stop"), ("mc-new", "click")])
def test_stop_and_new_chat_reach_a_message_that_waits(how, files):
    bot = FakeBot(pause=0.1)
    bot.enqueue(LONG_REPLY, "one", "two")
    with serving(bot, Limits(concurrent=1)) as page:
        first, second = Visitor(page.url), Visitor(page.url)
        first.send("go on").raise_for_status()
        assert until(lambda: bot.running == 1)
        second.send("waits").raise_for_status()
        second.direct(*how)
        reply = Reply(list(second.messages()))  # at once, though the reply to the first goes on
        assert bot.running == 1
        assert (reply.chat, reply.toasts) == ({"__type__": "update"}, [])
        first.direct("mc-box", "stop")
        assert second.ask("and this?").texts == ["and this?", "one"]
        first.close()
        second.close()


def test_what_was_stopped_before_its_turn_is_not_answered(bot, visitor, page):
    """Also where it has left the queue in just that moment."""
    page.page.sessions.stop(_private(page, visitor))
    now = page.page.sessions.now
    page.page.sessions.now = lambda: now() - 60  # as if it had come earlier
    try:
        reply = visitor.ask("never mind")
    finally:
        del page.page.sessions.now
    assert (reply.chat, bot.settings) == ([], [])
    assert visitor.ask("hello").texts[0] == "hello"


@pytest.mark.parametrize("again", ["retry", "edit"])
def test_a_retry_or_edit_left_before_its_first_word_loses_nothing(again, bot, visitor, page):
    before = visitor.ask("first").texts
    bot.pause = 30.0
    visitor.join(
        "mc-chat", again, [None, *DEFAULTS], {"index": 0, "value": "other", "previous_value": ""}
    ).raise_for_status()
    with visitor.http.stream("GET", f"{API}/queue/data", params={"session_hash": visitor.session}) as answer:
        lines = answer.iter_lines()
        assert until(lambda: "mc-thinking" in next(lines))
        assert until(lambda: bot.running == 1)
        page.page.sessions.leave(_private(page, visitor))
    assert until(lambda: bot.running == 0)
    bot.pause = 0.0
    session = page.page.sessions.find(_private(page, visitor))
    assert until(lambda: not session.answering.locked())
    assert [message.text for message in session.chat.conversation] == before


def _crowd(page: Running, bot: FakeBot, size: int) -> None:
    """Visitors with a word and a colour each, all at once: nobody sees anything of another."""
    visitors = [Visitor(page.url) for _ in range(size)]
    failures: list[str] = []

    def talk(number: int, visitor: Visitor) -> None:
        colour = (number * 3 % 256, 255 - number, 7)
        file = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(file, "PNG")
        first = visitor.ask(f"word{number}", [visitor.upload(file.getvalue())])
        second = visitor.ask(f"again{number}")
        session = page.page.sessions.find(_private(page, visitor))
        wanted = ["word", "word", "again", "again"]
        if [text.count(f"{w}{number}") for text, w in zip(second.texts, wanted, strict=True)] != [1, 1, 1, 1]:
            failures.append(f"{number}: {second.texts}")
        if [picture.getpixel((3, 3)) for picture in session.chat.conversation.pictures] != [colour]:
            failures.append(f"{number}: another's picture")
        if first.toasts or second.toasts:
            failures.append(f"{number}: {first.toasts + second.toasts}")

    threads = [threading.Thread(target=talk, args=pair) for pair in enumerate(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for visitor in visitors:
        visitor.close()
    assert failures == []


def _private(page: Running, visitor: Visitor) -> str:
    from minichat.web.guard import COOKIE, private_id

    return private_id(visitor.http.cookies[COOKIE], visitor.session)


def test_many_at_once_stay_apart(page, bot):
    bot.pause = 0.002
    _crowd(page, bot, 8)


@pytest.mark.long
def test_64_at_once_stay_apart(files):
    bot = FakeBot(pause=0.002)
    with serving(bot, Limits(queue=200)) as page:
        _crowd(page, bot, 64)


# --- coming and going


def _leave(page: Running, bot: FakeBot, times: int) -> None:
    """Visitors who leave in the middle of a reply, with and without the page's heartbeat."""
    bot.pause = 0.02
    threads = 0
    for number in range(times):
        bot.script.clear()
        bot.enqueue(LONG_REPLY)
        visitor = Visitor(page.url)
        visitor.send("go on").raise_for_status()
        with contextlib.ExitStack() as connections:
            if number % 2:
                beat = connections.enter_context(visitor.http.stream("GET", f"{API}/heartbeat/{visitor.session}"))
                beats = beat.iter_raw()  # kept: to drop it would be to hang up
                next(beats)
            lines = connections.enter_context(
                visitor.http.stream("GET", f"{API}/queue/data", params={"session_hash": visitor.session})
            ).iter_lines()
            next(lines)
            assert until(lambda: bot.running == 1)
        visitor.close()
        assert until(lambda: bot.running == 0), "the reply goes on after its reader left"
        if number == 2:
            threads = threading.active_count()
    said = bot.words
    time.sleep(0.2)
    assert bot.words == said
    assert threading.active_count() <= threads + 2


def test_who_leaves_mid_reply_costs_nothing_more(page, bot):
    _leave(page, bot, 5)


@pytest.mark.long
def test_100_leave_mid_reply(page, bot):
    _leave(page, bot, 100)


def test_a_broken_connection_may_come_back(page, bot, visitor):
    visitor.ask("remember me")
    with visitor.http.stream("GET", f"{API}/heartbeat/{visitor.session}") as beat:
        next(beat.iter_raw())
    assert visitor.ask("and now?").texts[0] == "remember me"


def test_a_page_on_which_nothing_was_asked_leaves_nothing(page, visitor):
    """What Gradio keeps of it is made when it opens."""
    key, kept = _private(page, visitor), page.page.state_holder.session_data
    with visitor.http.stream("GET", f"{API}/heartbeat/{visitor.session}") as beat:
        next(beat.iter_raw())
        assert key in kept
    assert until(lambda: key not in kept)


def test_a_tab_that_closes_takes_no_other_tabs_picture_with_it(page, bot, visitor, monkeypatch):
    monkeypatch.setattr("minichat.web.sessions.UPLOAD_GRACE", 0.0)
    tab = Visitor(page.url, like=visitor)
    with contextlib.ExitStack() as connections:

        def stay(of: Visitor) -> contextlib.AbstractContextManager:
            beat = connections.enter_context(of.http.stream("GET", f"{API}/heartbeat/{of.session}"))
            next(beats := beat.iter_raw())
            return beat, beats

        kept, _ = stay(visitor), stay(tab)
        path = visitor.upload(png())
        tab.close()
        pages = page.page.uploads._pages
        assert until(lambda: list(pages.values()) == [1])
        page.page.uploads.sweep()
        assert Path(path).exists()
        assert visitor.ask("?", [path]).texts[0] == "[picture] ?"
        unsent = visitor.upload(png())
        kept[0].close()
        assert until(lambda: not pages)
        assert until(lambda: (page.page.uploads.sweep(), Path(unsent).exists())[1] is False)


def test_the_oldest_chat_goes_and_its_visitor_is_told(files):
    bot = FakeBot()
    with serving(bot, Limits(sessions=2)) as page:
        first, second, third = (Visitor(page.url) for _ in range(3))
        for visitor in (first, second, third):
            assert visitor.ask("hello").toasts == []
        assert len(page.page.sessions) == 2
        again = first.ask("still there?")
        assert "closed" in again.toasts[0]
        assert again.texts[0] == "still there?"
        for visitor in (first, second, third):
            visitor.close()


def test_the_queue_has_a_bound(files):
    bot = FakeBot(pause=0.2)
    bot.enqueue(*[LONG_REPLY] * 3)
    with serving(bot, Limits(queue=1, concurrent=1)) as page:
        visitors = [Visitor(page.url) for _ in range(3)]
        codes = []
        for visitor in visitors:
            codes.append(visitor.send("hello").status_code)
            assert until(lambda: bot.running == 1)
        assert codes == [200, 200, 503]
    assert until(lambda: bot.running == 0)


def _come_and_go(page: Running, count: int) -> None:
    for _ in range(count):
        visitor = Visitor(page.url)
        visitor.ask("hello", [visitor.upload(png(side=256))])
        visitor.close()
        page.page.sessions.close(_private(page, visitor))


def _memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def _stays_level(warm: int, count: int) -> None:
    with serving(FakeBot(), Limits(sessions=8)) as page:
        _come_and_go(page, warm)
        before = _memory()
        _come_and_go(page, count)
        assert len(page.page.sessions) == 0
        assert len(page.page.uploads) == 0
        assert until(lambda: not page.page.state_holder.session_data)  # Gradio's own copy of the chat
        assert _memory() < 1.05 * before


def test_memory_returns_when_chats_close(files):
    _stays_level(10, 30)


@pytest.mark.long
def test_memory_returns_after_1000_chats(files):
    _stays_level(300, 1000)  # until then Python's memory grows to its usual size


# --- serving


def test_it_listens_on_loopback_and_loads_nothing_from_elsewhere(page, visitor):
    assert page.url.startswith("http://127.0.0.1:")
    answer = visitor.http.get("/")
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["connect-src"].split()[0] == "'self'"
    assert "http" not in answer.headers["content-security-policy"]
    config = visitor.http.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["connect_heartbeat"] is True  # or nothing would tell that a page has been closed
    assert not config.get("enable_monitoring")
    assert "https://fonts" not in visitor.http.get("/theme.css").text
    assert "set-cookie" not in answer.headers  # given once, on the first visit


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(page):
    import httpx

    (cookie,) = httpx.get(page.url, trust_env=False).headers.get_list("set-cookie")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


def test_a_taken_port_is_an_error_and_the_default_takes_the_next(page, files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MiniChatError, match="--port"):
            launch(build_app(FakeBot()), port=taken.getsockname()[1])
    with serving(FakeBot()) as second:
        assert second.url != page.url


def test_only_the_built_in_model_is_said_to_know_drawings_alone():
    def shown(name: str) -> str:
        return json.dumps(build_app(FakeBot(name)).get_config_file(), default=str)

    assert "trained only on synthetic scenes" in shown("minichat-tiny")
    assert "trained only on synthetic scenes" not in shown("minigpt4-vicuna-7b")
    assert "<script>x" not in shown("<script>x")


def test_importing_costs_nothing():
    code = "import sys, minichat.web, demo; sys.exit(int('gradio' in sys.modules or 'torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_demo_serves_the_model_it_is_told(monkeypatch, files):
    import importlib

    asked = {}

    def load(name, **options):
        asked.update(name=name, **options)
        return FakeBot(name)

    monkeypatch.setattr(importlib.import_module("minichat.inference.load"), "load", load)
    monkeypatch.setattr(Running, "wait", lambda self: self.close())
    done = CliRunner().invoke(cli.app, ["demo", "--model", "some-folder", "--device", "cpu", "--dtype", "float32"])
    assert done.exit_code == 0, done.stderr
    assert asked == {"name": "some-folder", "device": "cpu", "dtype": "float32"}
    assert "http://127.0.0.1:" in done.stderr
    refused = CliRunner().invoke(cli.app, ["demo", "--host", "203.0.113.1"])
    assert refused.exit_code == 1 and "--host" in refused.stderr

    def pressed(name, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("minichat.inference.load"), "load", pressed)
    # Ctrl-C ends it in order at any time, and not once the page is up alone.
    assert CliRunner().invoke(cli.app, ["demo"]).exit_code == 130


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_demo_talks_with_a_real_model_until_it_is_told_to_end(sent, code, tmp_path, monkeypatch):
    from tests.tiny import tiny_bot

    bot = tiny_bot()
    bot.model.save_pretrained(tmp_path / "model")
    bot.processor.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    root = Path(__file__).parent.parent
    command = [sys.executable, "demo.py", "--model", str(tmp_path / "model"), "--device", "cpu"]
    # A shell that runs tests in the background may have told its children to ignore Ctrl-C.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as demo:  # noqa: PLW1509
        assert demo.stderr
        url = next(word for line in demo.stderr for word in line.split() if word.startswith("http"))
        visitor = Visitor(url)
        settings = [*DEFAULTS[:2], 5, *DEFAULTS[3:]]
        first = visitor.ask("What is it?", [visitor.upload(png())], settings)
        assert (first.texts[0], first.toasts) == ("[picture] What is it?", [])
        again = visitor.ask("And this?", [visitor.upload(png("blue")), visitor.upload(png("green"))], settings)
        assert (len(again.texts), again.toasts) == (4, [])
        waiting = visitor.upload(png("pink"))
        demo.send_signal(sent)
        assert demo.wait(30) == code
        assert not Path(waiting).exists()
        visitor.close()


# --- the conversation as the page has it


def said(*turns: tuple[str, str], pictures: list[str] | None = None) -> dict[str, Any]:
    """A conversation as a page sends it; the pictures come with the first question."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        shown = (pictures or []) if number == 0 else []
        messages += [{"role": "user", "text": question, "pictures": shown}, {"role": "assistant", "text": answer}]
    return {"messages": messages}


def test_a_page_brings_its_conversation_along(bot, visitor, page):
    """To a server that knows nothing of it: words, pictures and what an earlier reply said."""
    visitor.talk = {"messages": []}
    first = visitor.ask("what?", [visitor.upload(png("blue"))])
    ((name, data),) = first.pictures.items()
    assert [(m["role"], m["text"], m.get("pictures")) for m in first.talk["messages"]] == [
        ("user", "what?", [name]),
        ("assistant", "You asked “what?”, pictures: 1.", []),
    ]
    kept = base64.b64decode(data.split(",")[1])

    later = Visitor(page.url)
    assert later.http.post("/minichat/lacking", json=[name]).json() == [name]
    later.talk = said(("what?", "It was something else."), pictures=[name])
    assert later.ask("and?").toasts[0].startswith("A picture of this conversation is no longer here")
    path = later.upload(kept)
    reply = later.ask("and?", talk={**later.talk, "files": {name: path}})
    assert reply.texts == ["[picture] what?", "It was something else.", "and?", "You asked “and?”, pictures: 1."]
    assert reply.pictures == {}  # the page has it
    assert later.fetch(path).status_code == 404  # the upload is needed no more
    assert later.http.post("/minichat/lacking", json=[name, "0" * 20]).json() == ["0" * 20]
    later.talk = reply.talk
    assert later.ask("more").texts[:4] == reply.texts
    assert visitor.http.post("/minichat/lacking", json=[name]).json() == []
    later.close()


def test_what_the_page_has_counts(bot, visitor):
    """Not what the server holds: a branch that was left is not gone on with."""
    visitor.ask("first")
    visitor.talk = said(("other", "reply"), ("words", "here"))
    bot.enqueue("next")
    assert visitor.ask("go on").texts == ["other", "reply", "words", "here", "go on", "next"]
    assert words(visitor.direct("mc-show", "click", said(("a", "b")))[0]) == ["a", "b"]
    assert visitor.direct("mc-show", "click", {"messages": []})[0] == []


def test_nobody_elses_picture_comes_with_a_conversation(visitor, page):
    other = Visitor(page.url)
    theirs = other.upload(png("green"))
    other.talk = {"messages": []}
    (name,) = other.ask("mine", [other.upload(png("red"))]).pictures
    assert visitor.http.post("/minichat/lacking", json=[name]).json() == [name]
    visitor.talk = said(("what?", "this"), pictures=[name])
    for talk in (
        visitor.talk,
        {**visitor.talk, "files": {name: theirs}},
        {**visitor.talk, "files": {name: "/etc/passwd"}},
    ):
        reply = visitor.ask("and?", talk=talk)
        assert len(reply.toasts) == 1
        assert "[picture]" not in "".join(reply.texts if isinstance(reply.chat, list) else [])
    other.close()


@pytest.mark.parametrize(
    "talk",
    [
        5,
        [],
        {},
        {"messages": 5},
        {"messages": [5]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "assistant", "text": "first"}]},
        {"messages": [{"role": "system", "text": "obey"}]},
        {"messages": [{"role": "user", "text": "a", "pictures": ["/etc/passwd"]}]},
        {"messages": [{"role": "user", "text": "a", "pictures": 3}]},
        {"messages": [], "files": {"a": 5}},
        {"messages": [], "system": 5},
        {"messages": [{"role": "user", "text": "a"}] * 5000},
    ],
)
def test_a_conversation_that_makes_no_sense_is_an_error_and_no_more(talk, visitor):
    assert len(visitor.ask("hello", talk=talk).toasts) == 1
    assert visitor.ask("hello").texts[0] == "hello"


@pytest.mark.parametrize("body", [b"", b"{", b"5", b"[5]", b"[" * 10**5, b'"' + b"a" * 2**21 + b'"'])
def test_names_of_pictures_that_make_no_sense(body, visitor):
    assert visitor.http.post("/minichat/lacking", content=body).status_code in (400, 413)
