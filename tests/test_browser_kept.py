"""Chats that the browser keeps, in a real headless one: nothing that a person wrote is lost."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minichat.data import formats
from minichat.toy.world import Background, Scene, Thing, draw
from minichat.web import Limits, Running, build_app, launch
from tests.fake_bot import FakeBot

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from benchmarks.screenshot import (
    ask,
    click_example,
    open_page,
    picture_file,
    replies,
    wait_for_reply,
)
from tests.browsing import NOTHING, SIZES, in_a_browser, pictures_shown, watch

pytestmark = in_a_browser()

HEART = draw(Scene((Thing("heart", "red", "large", 0.5, 0.5, 0.2),), Background("plain", ("white",))), 256)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    running = launch(build_app(FakeBot("fake", pause=0.02)))
    yield running
    running.close()


def bot_of(running: Running) -> FakeBot:
    return running.page.sessions.new_chat.__self__  # type: ignore[no-any-return]


def titles(page: Any) -> list[str]:
    return page.locator("#mc-list .mc-open span").all_inner_texts()


def listed(page: Any) -> None:
    """Show the list of chats, which a narrow screen hides."""
    if page.locator("#mc-listing").is_visible() and not page.locator("#mc-chats").is_visible():
        page.click("#mc-listing")
    page.locator("#mc-chats").wait_for()


def shown(page: Any, count: int) -> None:
    """Wait until so many replies are shown, and the page is ready."""
    page.wait_for_function(
        "count => document.querySelectorAll('#mc-chat [data-testid=bot]').length == count", arg=count
    )


def choose(page: Any, number: int, choice: str) -> None:
    """Something of a chat's menu."""
    page.locator("#mc-list .mc-menu summary").nth(number).click()
    page.locator("#mc-list .mc-menu[open]").get_by_text(choice).click()


@pytest.mark.parametrize("size", SIZES)
def test_chats_come_back(size, served, browser):
    """After a reload, from the list, by a word in them; with pictures, under their titles; and go on as they were."""
    page = open_page(browser, served.url, SIZES[size])
    seen = watch(page)
    ask(page, "What is on my first picture?", [picture_file(HEART)])
    wait_for_reply(page)
    page.click("#mc-new")
    shown(page, 0)
    click_example(page, 1)
    wait_for_reply(page)
    page.reload()
    shown(page, 1)
    pictures_shown(page, 1)
    assert replies(page) == ["You asked “What colour is the star?”, pictures: 1."]
    listed(page)
    assert titles(page) == ["What colour is the star?", "What is on my first picture?"]
    page.fill("#mc-chats input[type=search]", "FIRST picture")
    page.wait_for_function("() => document.querySelectorAll('#mc-list .mc-open').length == 1")
    page.click("#mc-list .mc-open")
    page.get_by_text("You asked “What is on my first picture?”, pictures: 1.").wait_for()
    pictures_shown(page, 1)
    ask(page, "And what else?")
    assert wait_for_reply(page) == "You asked “And what else?”, pictures: 1."
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert seen == NOTHING
    page.context.close()


def test_a_reload_in_mid_reply_shows_what_came(served, browser, monkeypatch):
    monkeypatch.setattr("minichat.web.handlers.KEEP", 0.05)
    page = open_page(browser, served.url)
    bot_of(served).enqueue(" ".join(f"word{n}" for n in range(5000)))
    ask(page, "go on")
    page.get_by_text("word20 ").wait_for()
    page.reload()
    shown(page, 1)
    assert replies(page)[0].startswith("word0 word1 word2")
    ask(page, "and then?")
    assert wait_for_reply(page) == "You asked “and then?”, pictures: 0."
    page.context.close()


def test_what_was_typed_and_not_sent_and_the_settings_stay(served, browser):
    page = open_page(browser, served.url)
    page.fill("#mc-box textarea", "not sent yet")
    page.click("#mc-unfold summary")
    page.locator("#mc-settings input[type=number]").first.fill("0.7")
    page.wait_for_function("() => JSON.parse(localStorage.getItem('minichat.settings') ?? '[]')[0] == 0.7")
    page.reload()
    page.wait_for_function("() => document.querySelector('#mc-box textarea')?.value == 'not sent yet'")
    page.click("#mc-unfold summary")
    page.wait_for_function("() => document.querySelector('#mc-settings input[type=number]')?.value == '0.7'")
    page.press("#mc-box textarea", "Enter")
    wait_for_reply(page)
    assert bot_of(served).settings[-1]["temperature"] == 0.7
    page.reload()
    shown(page, 1)
    assert page.input_value("#mc-box textarea") == ""
    page.context.close()


def test_a_setting_that_is_typed_at_once_stays_and_so_do_those_that_were_kept(served, browser):
    """Also where a page with longer replies kept more than this one allows. What is asked at once is answered."""
    page = open_page(browser, served.url)
    seen = watch(page)
    page.evaluate("() => localStorage.setItem('minichat.settings', '[0.1, 0.5, 5000, 1.2, \"7\"]')")
    page.add_init_script(
        """const typing = setInterval(() => {
            const fold = document.querySelector('#mc-unfold summary');
            const field = document.querySelector('#mc-settings input[type=number]');
            if (!field?.checkVisibility()) return fold?.parentElement.open === false && fold.click();
            clearInterval(typing);
            field.select();
            document.execCommand('insertText', false, '0.2');
        }, 1);"""
    )
    page.reload()
    ask(page, "hi")
    wait_for_reply(page)
    expected = {"temperature": 0.2, "top_p": 0.5, "max_new_tokens": Limits().new_tokens, "repetition_penalty": 1.2}
    assert bot_of(served).settings[-1] == {**expected, "seed": 7}
    assert page.eval_on_selector_all("#mc-settings input[type=number]", "all => all.map(e => Number(e.value))") == list(
        expected.values()
    )
    assert seen == NOTHING
    page.context.close()


def test_titles_are_changed_and_chats_deleted(served, browser):
    page = open_page(browser, served.url)
    for question in ("one", "two"):
        ask(page, question)
        wait_for_reply(page)
        page.click("#mc-new")
        shown(page, 0)
    page.on("dialog", lambda dialog: dialog.accept("A name of mine" if dialog.type == "prompt" else None))
    choose(page, 1, "Rename")
    page.get_by_text("A name of mine").wait_for()
    choose(page, 0, "Delete")
    page.wait_for_function("() => document.querySelectorAll('#mc-list .mc-open').length == 1")
    page.reload()
    page.get_by_text("A name of mine").wait_for()
    assert titles(page) == ["A name of mine"]
    page.context.close()


def saved(page: Any, number: int, choice: str, to: Path) -> Path:
    with page.expect_download() as download:
        choose(page, number, choice)
    path = to / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_chats_go_out_and_come_in(served, browser, tmp_path):
    """What goes out to train with is a data set; what goes out whole comes in whole, in another browser."""
    page = open_page(browser, served.url)
    ask(page, "What is <b>this</b>?", [picture_file(HEART)])
    wait_for_reply(page)
    ask(page, "And?")
    wait_for_reply(page)
    read = saved(page, 0, "Export to read", tmp_path).read_text()
    assert read.startswith("# What is <b>this</b>?\n\n**You**\n\n![a picture](data:image/png;base64,")
    assert "**MiniChat**\n\nYou asked “And?”, pictures: 1." in read
    (example,) = formats.examples(saved(page, 0, "Export to train", tmp_path))
    assert [turn.text for turn in example.turns[::2]] == ["What is <b>this</b>?", "And?"]
    assert example.pictures[0].open().size == (256, 256)
    whole = saved(page, 0, "Export whole", tmp_path)
    assert json.loads(whole.read_text())["minichat"] == 1
    page.context.close()

    other = open_page(browser, served.url)
    other.set_input_files("#mc-chats input[type=file]", [whole, next(tmp_path.glob("*.jsonl"))])
    other.get_by_text("2 chats are here now.").wait_for()
    for number in range(2):
        other.locator("#mc-list .mc-open").nth(number).click()
        shown(other, 2)
        pictures_shown(other, 1)
    broken = tmp_path / "broken.json"
    circle = {here: {"role": "user", "text": "round", "parent": there} for here, there in ("ab", "ba")}
    for nodes, told in (({"a": 5}, "A message is damaged"), (circle, "Its messages go round in a circle")):
        broken.write_text(json.dumps({"minichat": 1, "chats": [{"nodes": nodes}]}))
        other.set_input_files("#mc-chats input[type=file]", [broken])
        other.get_by_text(f"That file cannot be read: {told}").wait_for()
    assert len(titles(other)) == 2
    other.context.close()


def test_two_tabs_add_to_one_chat(served, browser):
    """What each of them wrote is kept: of branches, both."""
    page = open_page(browser, served.url)
    ask(page, "common")
    wait_for_reply(page)
    second = page.context.new_page()
    second.goto(served.url)
    second.locator("#mc-list .mc-open").click()
    shown(second, 1)
    for tab, words in ((page, "from the first"), (second, "from the second")):
        ask(tab, words)
        wait_for_reply(tab)
    third = page.context.new_page()
    third.goto(served.url)
    third.locator("#mc-list .mc-open").wait_for()
    for words in ("from the first", "from the second"):
        third.fill("#mc-chats input[type=search]", words)
        third.wait_for_function("() => document.querySelectorAll('#mc-list .mc-open').length == 1")
    page.context.close()


def test_a_full_storage_costs_no_words(served, browser):
    """Where nothing can be kept, it is told, and the chat goes on; what is in the box stays there."""
    page = open_page(browser, served.url)
    page.evaluate(
        """() => { IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"""
    )
    ask(page, "hello", [picture_file(HEART)])
    page.get_by_text("The browser's storage is full").wait_for()
    assert wait_for_reply(page) == "You asked “hello”, pictures: 1."
    ask(page, "still there?")
    assert wait_for_reply(page) == "You asked “still there?”, pictures: 1."
    page.context.close()


SERVER = """
import sys
from minichat.web import build_app, launch
from tests.fake_bot import FakeBot
running = launch(build_app(FakeBot("fake", pause=0.02)), port=int(sys.argv[1]))
print(running.url, flush=True)
running.wait()
"""


@contextlib.contextmanager
def server(port: int) -> Iterator[subprocess.Popen[str]]:
    """The page in a process of its own, which is killed at the end."""
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("http")
            yield process
        finally:
            process.kill()


def test_a_server_that_was_killed_and_comes_back_loses_nothing(browser):
    """The page finds it again; the chat goes on, with what was being typed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with server(port):
        page = open_page(browser, url)
        ask(page, "before", [picture_file(HEART)])
        wait_for_reply(page)
        page.fill("#mc-box textarea", " ".join(["word"] * 5000) + " end")
        page.press("#mc-box textarea", "Enter")
        page.get_by_text("You asked “word word").wait_for()
        page.fill("#mc-box textarea", "being typed")
        page.evaluate("window.before = true")
    with server(port):
        page.wait_for_function("() => !window.before")
        page.wait_for_function("() => document.querySelector('#mc-box textarea')?.value == 'being typed'")
        page.get_by_text("You asked “before”, pictures: 1.").wait_for()
        pictures_shown(page, 1)
        page.get_by_text("word end").wait_for()  # what was asked, though it was not answered
        page.press("#mc-box textarea", "Enter")
        page.get_by_text("You asked “being typed”, pictures: 1.").wait_for()
        page.context.close()
