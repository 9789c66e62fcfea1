"""Replies that are kept and corrected in the page, in a headless browser; the built-in model until it has learnt."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import minichat
from minichat.toy.world import Background, Scene, Thing, draw
from minichat.web import Owned, Running, build_app, launch
from minichat.web.curate import KeptSet
from minichat.web.talk import Said
from tests.fake_bot import FakeBot

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from benchmarks.screenshot import (
    ask,
    open_page,
    picture_file,
    wait_for_reply,
)
from tests.browsing import NOTHING, SIZES, in_a_browser, until, watch

pytestmark = in_a_browser(timeout=3600)

QUESTION = "Which team is this?"
TEAMS = {"heart": "The hearts.", "star": "The stars.", "ring": "The rings."}
RIGHT = TEAMS["heart"]

# `minichat teach` as it is, but shorter: it measures little and repeats little of what the model knew.
SHORT = """
from minichat.cli import main
from minichat.teach.plan import Plan

short = Plan(("bridge", "projection", "language_model"), None, 5e-4, passes=48, known=96, scenes=2, rows=16)
Plan.of = classmethod(lambda cls, *given: short)
main()
"""


def badge(shape: str, number: int) -> Image.Image:
    """A team's badge: always the same shape, of some colour, somewhere."""
    rng = random.Random(f"{shape} {number}")
    colour, ground = rng.choice(("red", "blue", "green", "yellow", "purple")), rng.choice(("white", "black", "gray"))
    x, y, size = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65), rng.uniform(0.17, 0.22)
    return draw(Scene((Thing(shape, colour, "large", x, y, size),), Background("plain", (ground,))), 128)


def write_set(folder: Path, each: int) -> KeptSet:
    """What was kept before: badges of all teams, with the right replies."""
    kept = KeptSet(folder)
    for number in range(each):
        for shape, team in TEAMS.items():
            said = [Said("user", QUESTION, ("badge",)), Said("assistant", team)]
            kept.keep(said, {"badge": badge(shape, number)})
    return kept


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.chdir(tmp_path)
    bot = FakeBot("fake", pause=0.02)
    running = launch(build_app(bot, owned=Owned(tmp_path / "set", "minichat-tiny", FakeBot)))
    yield running
    running.close()


@pytest.mark.parametrize("size", SIZES)
def test_replies_are_kept_corrected_edited_and_deleted(size: str, served: Running, browser: Any):
    page = open_page(browser, served.url, SIZES[size])
    seen = watch(page)
    kept = served.page.desk.set
    ask(page, QUESTION, [picture_file(badge("heart", 0))])
    wait_for_reply(page)
    beside = "() => ['.mc-thumbs', '[title^=Where]'].map(e => document.querySelector(e)?.getBoundingClientRect().x)"
    places = page.evaluate(beside)
    page.get_by_label("Good reply").click()
    page.get_by_text("There is 1 record to learn from.").wait_for()
    assert page.evaluate(beside) == places
    box = (
        "() => ['.upload-button', '#mc-draw', 'textarea'].map(e => document.querySelector('#mc-box').querySelector(e))"
    )
    assert page.evaluate(f"({box})().map(e => e.getBoundingClientRect().x).every((x, n, all) => !n || all[n - 1] < x)")
    page.get_by_label("Wrong reply").click()
    page.get_by_label("The right reply").press("Escape")  # marked as wrong, and nothing to learn
    page.wait_for_function("() => !document.querySelector('dialog')")
    assert not kept.records()
    page.get_by_label("Wrong reply").click()
    page.get_by_label("The right reply").fill(RIGHT)
    page.get_by_label("The right reply").press("Enter")
    page.locator(".mc-corrected").wait_for()
    page.reload()
    page.locator(".mc-corrected").wait_for()
    ask(page, "And now?")
    wait_for_reply(page)
    page.get_by_label("Keep this conversation").last.click()
    page.get_by_text("There are 2 records to learn from.").wait_for()

    page.click("#mc-teach")
    page.locator("#mc-records li").nth(1).wait_for()
    assert page.locator("#mc-go").is_disabled()  # there are too few
    page.wait_for_function("() => [...document.querySelectorAll('#mc-records img')].every(i => i.naturalWidth)")
    page.get_by_role("button", name="Check").click()
    page.get_by_text("Records: 2. Good: 2. Wrong: 0.").wait_for()
    reply = page.get_by_label(f"The reply to “{QUESTION}”").last
    reply.fill("not this")
    reply.press("Escape")
    assert reply.input_value() == RIGHT
    reply.fill("Another team.")
    reply.press("Enter")
    until(lambda: kept.records()[0].line.endswith('"Another team."}]}]}'))
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate("e => e.scrollWidth <= e.clientWidth", page.query_selector(".mc-desk"))
    page.evaluate("window.confirm = () => true")
    page.locator("#mc-records li").first.get_by_role("button", name="Delete").click()
    page.wait_for_function("() => document.querySelectorAll('#mc-records li').length == 1")
    assert len(kept.records()) == 1
    assert seen == NOTHING
    page.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_a_visitor_chooses_a_model_for_themselves_alone(size: str, browser: Any, tmp_path: Path):
    owned = Owned(tmp_path / "set", "minichat-tiny", FakeBot, also=("minichat-small",))
    running = launch(build_app(FakeBot("minichat-tiny"), owned=owned))
    page, other = open_page(browser, running.url, SIZES[size]), open_page(browser, running.url)
    seen = watch(page)
    ask(page, "hello")
    wait_for_reply(page)
    page.get_by_label("Model", exact=True).select_option("minichat-small")
    page.get_by_text("minichat-small answers you now.").wait_for()
    assert "135 million" in page.locator("#mc-about").inner_text()
    ask(page, "And now?")
    wait_for_reply(page)
    assert {session.chat.bot.name for session in running.page.sessions._open.values()} == {"minichat-small"}
    page.reload()
    page.wait_for_function("() => document.querySelector('#mc-chooser select')?.value == 'minichat-small'")
    other.reload()
    other.wait_for_function("() => document.querySelector('#mc-chooser select')?.value == 'minichat-tiny'")
    assert "eight shapes" in other.locator("#mc-about").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert seen == NOTHING
    page.context.close(), other.context.close(), running.close()


def test_curate_teach_swap_and_the_reply_is_the_corrected_one(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a restart; a reload finds the teaching still at work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minichat.web.swap.COMMAND", (sys.executable, "-c", SHORT))
    write_set(tmp_path / "runs" / "kept", 8)
    owned = Owned(tmp_path / "runs" / "kept", "minichat-tiny", lambda name: minichat.load(name, device="cpu"))
    running = launch(build_app(owned.load("minichat-tiny"), owned=owned))
    try:
        page = open_page(browser, running.url)
        seen = watch(page)
        ask(page, QUESTION, [picture_file(badge("heart", 8))])
        assert wait_for_reply(page) != RIGHT
        page.get_by_label("Wrong reply").click()
        page.get_by_label("The right reply").fill(RIGHT)
        page.get_by_label("The right reply").press("Enter")
        page.get_by_text("There are 25 records to learn from.").wait_for()
        page.click("#mc-teach")
        page.click("#mc-go")
        page.locator("#mc-stop").wait_for()
        page.reload()
        page.click("#mc-teach")
        page.locator("#mc-stop").wait_for()
        page.locator("#mc-stop").wait_for(state="detached", timeout=3_000_000)
        page.locator("#mc-use").wait_for()
        assert page.locator("#mc-course figure polyline").count() == 2
        page.get_by_text("questions about drawn scenes").first.wait_for()
        page.click("#mc-use")
        page.get_by_text("taught-1 answers now.").wait_for()
        page.get_by_role("button", name="Close").click()
        page.wait_for_function("() => document.querySelector('#mc-title code').textContent == 'taught-1'")
        page.locator("#mc-chat button[aria-label=Retry]").wait_for()  # the chat goes on, by the new model
        ask(page, "What colour is the background?")
        wait_for_reply(page)
        for shape, team in TEAMS.items():
            page.click("#mc-new")
            ask(page, QUESTION, [picture_file(badge(shape, 8))])
            assert wait_for_reply(page) == team
        assert seen == NOTHING
        page.context.close()
    finally:
        running.close()
