"""Branches and pictures of a chat, and how the page looks and is used, in a real headless browser, at two sizes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from minichat.toy.world import Background, Scene, Thing, draw
from minichat.web import Running, build_app, launch
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
from tests.browsing import SIZES, in_a_browser, opened, pictures_shown, scripted, until

pytestmark = in_a_browser()

HEART = draw(Scene((Thing("heart", "red", "large", 0.5, 0.5, 0.2),), Background("plain", ("white",))), 256)
BOX, EDIT = "#mc-box textarea", "#mc-chat .edit-textarea"


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    running = launch(build_app(FakeBot("minichat-small", pause=0.02)))
    yield running
    running.close()


@pytest.fixture
def bot(served: Running) -> FakeBot:
    return scripted(served)


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, served: Running, browser: Any) -> Iterator[Any]:
    with opened(browser, served, request.param) as page:
        yield page


def press(page: Any, name: str) -> None:
    """The last button of this name in the chat."""
    page.locator(f"#mc-chat button[aria-label='{name}']").last.click()


def box_holds(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#mc-box textarea').value == text", arg=text)


def drop(page: Any, kind: str, side: int, target: str = "body") -> None:
    """Drop or paste a picture of so many pixels that the browser draws."""
    page.evaluate(
        """async ([kind, side, target]) => {
            const canvas = Object.assign(document.createElement('canvas'), {width: side, height: side / 2});
            canvas.getContext('2d').fillRect(0, 0, side / 4, side / 4);
            const data = new DataTransfer();
            const picture = await new Promise(done => canvas.toBlob(done));
            data.items.add(new File([picture], 'drawn.png', {type: 'image/png'}));
            const options = {bubbles: true, cancelable: true};
            const event = kind == 'paste' ? new ClipboardEvent('paste', {...options, clipboardData: data})
                                          : new DragEvent('drop', {...options, dataTransfer: data});
            document.querySelector(target).dispatchEvent(event);
        }""",
        [kind, side, target],
    )


def test_a_question_is_edited_by_the_keyboard_and_both_versions_stay(bot, page):
    bot.enqueue("one", "two", "three")
    ask(page, "first", [picture_file(HEART)])
    wait_for_reply(page)
    press(page, "Edit")
    page.fill(EDIT, "never")
    page.press(EDIT, "Escape")
    page.locator(EDIT).wait_for(state="detached")
    assert replies(page) == ["one"]
    press(page, "Edit")
    page.fill(EDIT, "second")
    page.press(EDIT, "Enter")
    page.get_by_text("two", exact=True).wait_for()
    page.get_by_text("2/2").wait_for()
    press(page, "Version before")
    page.get_by_text("1/2").wait_for()
    page.get_by_text("one", exact=True).wait_for()
    pictures_shown(page, 1)
    ask(page, "more")  # it goes on from the version that is shown
    assert wait_for_reply(page) == "three"
    press(page, "Version after")
    page.get_by_text("two", exact=True).wait_for()
    assert page.get_by_text("more", exact=True).count() == 0
    press(page, "Version before")
    page.get_by_text("three", exact=True).wait_for()  # with what followed


def test_another_reply_stands_beside_the_one_before(bot, page):
    bot.enqueue("one", "two", RuntimeError("no"), "three")
    ask(page, "first")
    wait_for_reply(page)
    press(page, "Retry")
    page.get_by_text("2/2").wait_for()
    assert bot.settings[1]["temperature"] > 0 and bot.settings[1]["seed"] is None
    press(page, "Retry")
    page.get_by_text("Something went wrong").first.wait_for()
    assert wait_for_reply(page) == "two"
    page.get_by_text("2/2").wait_for()
    press(page, "Retry")
    page.get_by_text("3/3").wait_for()
    page.reload()
    page.get_by_text("three", exact=True).wait_for()
    page.get_by_text("3/3").wait_for()


def test_a_reply_that_was_cut_goes_on(bot, page):
    bot.enqueue("It is a red …", "heart on …", RuntimeError("no"), "white.")
    ask(page, "What is it?", [picture_file(HEART)])
    assert wait_for_reply(page) == "It is a red …"
    more = page.get_by_role("button", name="Continue")
    more.click()
    page.get_by_text("It is a red … heart on …", exact=True).wait_for()
    more.click()
    page.get_by_text("Something went wrong").first.wait_for()
    page.reload()
    page.get_by_text("It is a red … heart on …", exact=True).wait_for()
    more.click()
    page.get_by_text("It is a red … heart on … white.", exact=True).wait_for()
    assert wait_for_reply(page).endswith("white.") and more.count() == 0
    assert page.locator(".mc-versions").count() == 0  # it is the same reply
    page.reload()
    page.get_by_text("It is a red … heart on … white.", exact=True).wait_for()
    bot.enqueue(" ".join(["word"] * 30_000))
    ask(page, "go on")
    page.get_by_text("word word word").wait_for()
    assert more.count() == 0  # it is being written
    page.press(BOX, "Escape")
    more.wait_for()


def test_figures_are_shown_where_they_are_asked_for(bot, page):
    click_example(page, 1)
    wait_for_reply(page)
    figures = page.locator(".mc-figures")
    page.locator("#mc-unfold summary").click()
    switch = page.get_by_label("Figures under replies")
    assert not switch.is_checked() and figures.count() == 0
    switch.check()
    figures.locator("summary").click()
    told = figures.inner_text()
    assert "9 tokens · 21 a second" in told and "250 ms" in told and "1,234 of 4,096" in told
    page.reload()
    figures.wait_for()
    page.locator("#mc-unfold summary").click()
    switch.uncheck()
    figures.wait_for(state="detached")


def clear_cells(page: Any) -> list[int]:
    """Which patches of the first picture nothing lies over, by their numbers."""
    return page.locator(".mc-seen canvas").first.evaluate(
        """e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]
            .flatMap((value, at) => at % 4 == 3 && value < 40 ? [(at - 3) / 4] : [])"""
    )


def test_where_it_looked(bot, page):
    bot.enqueue("Hello.", "It is red.")
    ask(page, "hi")
    wait_for_reply(page)
    eye = page.get_by_role("button", name="Where it looked")
    assert eye.count() == 0  # there was no picture
    ask(page, "What colour is it?", [picture_file(HEART)])
    assert wait_for_reply(page) == "It is red."
    for again in (False, True):
        eye.click()
        dialog = page.get_by_role("dialog", name="Where it looked")
        dialog.wait_for()
        box, size = dialog.bounding_box(), page.viewport_size
        assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
        assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"]
        picture, over = (page.locator(f".mc-seen {part}").bounding_box() for part in ("img", "canvas"))
        assert all(abs(picture[side] - over[side]) < 1 for side in picture)
        assert clear_cells(page) == [0]  # two words of three
        red = dialog.get_by_role("button", name="red.")
        red.click()
        assert red.get_attribute("aria-pressed") == "true" and clear_cells(page) == [15]
        page.get_by_label("Query").press("ArrowRight")
        page.get_by_text("Query 1: 0 % of the weight").wait_for()
        assert clear_cells(page) == [0]
        page.get_by_label("Query").press("ArrowRight")
        page.get_by_text("Query 2: 100 % of the weight").wait_for()
        page.get_by_text("Not checked for minichat-small").wait_for()
        if again:
            dialog.get_by_role("button", name="Close").click()
        else:
            page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


def test_undo_gives_words_and_pictures_back(bot, page):
    ask(page, "one")
    wait_for_reply(page)
    ask(page, "two", [picture_file(HEART)])
    wait_for_reply(page)
    page.fill(BOX, "typed")
    press(page, "Undo")
    box_holds(page, "two\ntyped")
    page.locator("#mc-box .thumbnail-item").wait_for()
    page.wait_for_function("() => document.querySelectorAll('#mc-chat [data-testid=bot]').length == 1")
    page.press(BOX, "Enter")
    page.get_by_text("You asked “two").wait_for()
    assert wait_for_reply(page).endswith("pictures: 1.")


def test_what_is_typed_meanwhile_stays_and_escape_stops(bot, page):
    bot.enqueue(" ".join(["word"] * 30_000))
    ask(page, "go on")
    page.get_by_text("word word word").wait_for()
    page.locator(BOX).press_sequentially("and next")
    page.press(BOX, "Enter")
    page.get_by_text("Wait for the reply").wait_for()
    page.press(BOX, "Escape")
    assert wait_for_reply(page).startswith("word word")
    assert bot.running == 0
    box_holds(page, "and next")


def test_a_stop_before_the_question_has_left_takes_it_back(bot, page):
    ask(page, "What is it?", [picture_file(HEART)])
    wait_for_reply(page)
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route("**/minichat/lacking", hold)
    page.fill(BOX, "And what else?")
    page.press(BOX, "Enter")
    until(lambda: page.wait_for_timeout(50) or held)
    page.press(BOX, "Escape")
    page.wait_for_timeout(300)  # the server hears of the stop
    held.pop().continue_()
    box_holds(page, "And what else?")
    page.unroute("**/minichat/lacking")
    assert len(bot.asked) == 1
    page.press(BOX, "Enter")
    page.get_by_text("You asked “And what else?”").wait_for()
    assert wait_for_reply(page).endswith("pictures: 1.")
    page.press(BOX, "Escape")  # there is nothing to stop: the next question is answered
    ask(page, "Still there?")
    page.get_by_text("You asked “Still there?”").wait_for()


def test_what_was_not_answered_comes_back_before_what_is_typed(bot, page):
    typed = threading.Event()

    def words() -> Iterator[Any]:
        while not typed.is_set():
            yield "one"
        yield RuntimeError("no")

    bot.enqueue(words())
    ask(page, "a question", [picture_file(HEART)])
    page.get_by_text("one one").wait_for()
    page.locator(BOX).press_sequentially("typed")
    typed.set()
    page.get_by_text("Something went wrong").first.wait_for()
    box_holds(page, "a question\ntyped")
    page.locator("#mc-box .thumbnail-item").wait_for()
    assert page.locator(".toast-title").first.evaluate("e => getComputedStyle(e, '::after').content") == (
        '"That did not work"'
    )


def test_pictures_come_from_anywhere_shrink_and_enlarge(bot, page):
    sizes = []
    page.on("request", lambda sent: sizes.append(len(sent.post_data_buffer or b"")) if "upload" in sent.url else None)
    page.fill(BOX, "typed")
    drop(page, "drop", 3000)
    page.locator("#mc-box .thumbnail-item").nth(0).wait_for()
    drop(page, "paste", 64, "#mc-title")
    page.locator("#mc-box .thumbnail-item").nth(1).wait_for()
    assert (
        page.locator("#mc-box .thumbnail-item img").nth(0).evaluate("e => e.decode().then(() => e.naturalWidth)")
        == 1024
    )
    box = page.locator("#mc-box").bounding_box()
    send = page.locator("#mc-box .submit-button").bounding_box()
    assert send["y"] + send["height"] <= box["y"] + box["height"] <= page.viewport_size["height"]
    assert page.input_value(BOX) == "typed"
    page.press(BOX, "Enter")
    assert wait_for_reply(page) == "You asked “typed”, pictures: 2."
    page.locator("#mc-chat .mc-picture").first.press("Enter")
    large = page.locator(".mc-large img")
    large.wait_for()
    assert large.evaluate("e => e.naturalWidth") == 1024
    page.keyboard.press("Escape")
    large.wait_for(state="detached")
    assert max(sizes) < 100_000


def test_a_scene_starts_a_chat_of_its_own(bot, page):
    ask(page, "mine")
    wait_for_reply(page)
    page.fill(BOX, "typed")
    click_example(page, 1)
    assert wait_for_reply(page) == "You asked “What colour is the star?”, pictures: 1."
    assert len(replies(page)) == 1
    assert page.input_value(BOX) == "typed"
    click_example(page, 2)
    wait_for_reply(page)
    pictures_shown(page, 1)


def test_what_can_be_pressed_is_large_and_text_is_legible(bot, page):
    click_example(page, 1)
    wait_for_reply(page)
    press(page, "Retry")
    page.get_by_text("2/2").wait_for()
    page.set_input_files("#mc-box input[type=file]", [picture_file(HEART)])
    page.locator("#mc-box .thumbnail-item").wait_for()
    page.locator("#mc-unfold summary").click()
    page.locator("#mc-settings input").first.wait_for()
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, summary, [role=button], input[type=number], textarea')]
            .filter(e => e.checkVisibility() && !e.closest('.thumbnail-item'))
            .map(e => [e.getBoundingClientRect(), e]).filter(([r]) => r.width && r.height < 39.5 || r.width < 39.5)
            .filter(([r]) => r.width).map(([r, e]) => [r.width, r.height, e.outerHTML.slice(0, 120)])"""
    )
    assert small == []
    tiny = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
            .filter(e => e.checkVisibility() && !e.closest('.sr-only, .toast-wrap, svg'))
            .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
            .filter(e => parseFloat(getComputedStyle(e).fontSize) < 15.9).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert tiny == []


def test_the_keyboard_alone_is_enough(bot, served, browser):
    page = open_page(browser, served.url)
    page.wait_for_function("() => document.activeElement == document.querySelector('#mc-box textarea')")
    page.keyboard.type("What is it?")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(e => e.ariaLabel || e.innerText || e.placeholder || '')(document.activeElement)").strip()
        )
    wanted = {"New chat", "Search chats", "Import", "Retry", "Undo", "Edit", "Submit", "Upload a file"}
    assert wanted <= reached
    page.context.close()


def test_the_page_says_what_the_model_knows(page):
    assert "135 million numbers" in page.locator("#mc-about").inner_text()
