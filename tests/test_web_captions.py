"""Captions of a visitor's pictures over HTTP: the engine's own, one line for each, and within their bounds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from minichat.images import load
from minichat.prompt.boxes import parse
from minichat.web import Limits, Running, build_app, launch
from minichat.web.guard import CAPTIONS
from tests.browsing import until
from tests.fake_bot import FakeBot
from tests.tiny import tiny_bot
from tests.web_visitor import DEFAULTS, Visitor, png


@contextmanager
def serving(bot: Any, folder: Path, limits: Limits | None = None) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        running = launch(build_app(bot, limits or Limits()))
        try:
            yield running
        finally:
            running.close()


def captions(visitor: Visitor, files: list[str], **more: Any) -> httpx.Response:
    return visitor.http.post(CAPTIONS, json={"files": files, **more})


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    answer.raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]


def test_they_are_the_bots_own_and_a_broken_picture_costs_no_other_its_caption(tmp_path: Path):
    bot = tiny_bot()
    pictures = [png("red"), b"nothing", png("blue", 40)]
    with serving(bot, tmp_path) as running:
        visitor = Visitor(running.url)
        most = [*DEFAULTS[:2], 7, *DEFAULTS[3:]]
        found = lines(captions(visitor, [visitor.upload(one) for one in pictures], prompt="What?", settings=most))
        by_place = {line["place"]: line for line in found}
        wanted = bot.caption([load(pictures[0]), load(pictures[2])], prompt="What?", max_new_tokens=7)
        assert [by_place[place]["caption"] for place in (0, 2)] == wanted
        assert "picture that can be opened" in by_place[1]["error"] and len(found) == 3
        usual = lines(captions(visitor, [visitor.upload(pictures[0])]))
        assert usual[0]["caption"] == bot.caption([load(pictures[0])])[0]
        assert len(running.page.uploads) == 0  # they are not kept
        visitor.close()


def test_what_it_says_and_whose_pictures(tmp_path: Path):
    bot = FakeBot()
    with serving(bot, tmp_path) as running:
        visitor, other = Visitor(running.url), Visitor(running.url)
        box = "<p>a star</p> {<1><2><30><40>}"
        bot.enqueue(box, "It is …")
        found = lines(captions(visitor, [visitor.upload(png()), visitor.upload(png())]))
        assert found == [
            {"place": 0, "caption": box, "boxes": [parse(box)[0].as_dict()]},
            {"place": 1, "caption": "It is …", "cut": True},
        ]
        mine = visitor.upload(png())
        (refused,) = lines(captions(other, [mine]))
        assert "no longer here" in refused["error"]
        bot.enqueue(RuntimeError("/srv/secret"))
        (failed,) = lines(captions(visitor, [mine]))
        assert "RuntimeError" in failed["error"] and "secret" not in failed["error"]
        wrong: list[Any] = [5, {}, {"files": []}, {"files": ["a"] * 7}, {"files": [3]}, {"files": ["a"], "prompt": 3}]
        for body in [*wrong, {"files": ["a"], "settings": [9]}, {"files": ["a"], "settings": [9.0, *DEFAULTS[1:]]}]:
            assert visitor.http.post(CAPTIONS, json=body).status_code == 400
        assert httpx.post(running.url + CAPTIONS, json={"files": ["a"]}, trust_env=False).status_code == 404
        visitor.close()
        other.close()


def test_a_visitor_has_a_share_and_one_who_leaves_is_not_answered_on(tmp_path: Path):
    bot = FakeBot(pause=0.2)
    with serving(bot, tmp_path, Limits(pictures_per_message=1, concurrent=1, queue=3)) as running:
        visitor, other = Visitor(running.url), Visitor(running.url)
        asking = running.page.captions._asking
        bot.pause = 3.0
        threads = [
            threading.Thread(target=captions, args=(one, [one.upload(png())])) for one in (visitor, visitor, other)
        ]
        for thread in threads:
            thread.start()
        until(lambda: asking.total() == 3)
        assert captions(visitor, ["a"]).json()["detail"].startswith("Captions of yours")
        assert captions(other, ["a"]).json()["detail"].startswith("The server is busy")
        bot.pause = 0.0
        for thread in threads:
            thread.join()
        until(lambda: not asking)
        bot.pause = 1.0
        with (
            pytest.raises(httpx.ReadTimeout),
            visitor.http.stream("POST", CAPTIONS, json={"files": [visitor.upload(png())]}, timeout=0.3) as answer,
        ):
            answer.read()
        until(lambda: not asking)
        visitor.close()
        other.close()
