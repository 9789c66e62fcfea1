"""The chat page in a real headless browser, with the built-in model where it is there, else with a bot of a script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import minichat
from minichat.toy.world import COLOURS, SHAPES, Background, Scene, Thing, draw
from minichat.web import Limits, Running, build_app, launch
from minichat.web.app import EXAMPLES
from minichat.web.sessions import panel
from tests.fake_bot import FakeBot
from tests.web_visitor import Visitor

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from benchmarks.screenshot import (
    PHONE,
    ask,
    click_example,
    open_page,
    picture_file,
    replies,
    wait_for_reply,
)
from tests.browsing import NOTHING, in_a_browser, pictures_shown, until, watch

pytestmark = in_a_browser()

TINY = Path(minichat.__file__).parent / "assets" / "minichat-tiny" / "config.json"
HEART = draw(Scene((Thing("heart", "red", "large", 0.5, 0.5, 0.2),), Background("plain", ("white",))), 256)
MARKUP = "<img src=x onerror=alert(1)> <script>alert(2)</script> <b>bold</b> & a < b"


class Unhurried:
    """A bot that takes its time over each piece of a reply, so that there is something to stop."""

    def __init__(self, bot: Any, pause: float) -> None:
        self._bot = bot
        self.name, self.context, self.pause = bot.name, bot.context, pause
        self.finished = 0

    def chat(self, **options: Any) -> Any:
        session = self._bot.chat(**options)
        stream = session.stream

        def slowly(*question: Any, **settings: Any) -> Iterator[str]:
            for piece in stream(*question, **settings):
                time.sleep(self.pause)
                yield piece
            self.finished += 1

        session.stream = slowly
        return session


@pytest.fixture(scope="module")
def bot() -> Any:
    if TINY.exists():
        return Unhurried(minichat.load("minichat-tiny"), 0.1)
    fake = FakeBot("minichat-tiny", pause=0.1)
    fake.enqueue("It is red.", "It is a large heart in the centre.", " ".join(f"word{n}" for n in range(500)))
    return fake


@pytest.fixture(scope="module")
def served(bot: Any) -> Iterator[Running]:
    running = launch(build_app(bot))
    yield running
    running.close()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Running]:
    running = launch(build_app(FakeBot("fake", pause=0.05)))
    yield running
    running.close()


@pytest.fixture(scope="module")
def fake(scripted: Running) -> tuple[FakeBot, str]:
    return scripted.page.sessions.new_chat.__self__, scripted.url


def test_where_the_model_looked(served, browser):
    """The built-in model, asked for the colour of one of two things: most of the weight lies on that one."""
    page = open_page(browser, served.url)
    seen = watch(page)
    click_example(page, 1)
    assert "yellow" in wait_for_reply(page).lower()
    page.get_by_role("button", name="Where it looked").click()
    dialog = page.get_by_role("dialog", name="Where it looked")
    dialog.get_by_role("button", name="yellow").click()
    page.get_by_text("Checked on drawn scenes").wait_for()
    over = page.locator(".mc-seen canvas").evaluate(
        """e => [e.width, ...[...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]
            .filter((_, at) => at % 4 == 3)]"""
    )
    side, cells = over[0], over[1:]
    clearest = cells.index(min(cells))
    star = EXAMPLES[1].scene.things[0]
    assert star.shape == "star"
    assert abs((clearest % side + 0.5) / side - star.x) < star.radius
    assert abs((clearest // side + 0.5) / side - star.y) < star.radius
    page.keyboard.press("Escape")
    assert seen == NOTHING
    page.context.close()


def test_a_person_talks_about_a_picture(served, browser):
    """Upload a drawn scene, ask two questions, see streamed and sensible replies, stop one, undo, click an example."""
    page = open_page(browser, served.url)
    seen = watch(page)
    page.get_by_text("trained only on synthetic scenes").wait_for()
    page.evaluate(
        """() => { window.lengths = []; new MutationObserver(() => {
            const all = document.querySelectorAll('#mc-chat [data-testid=bot]');
            if (all.length) window.lengths.push(all[all.length - 1].innerText.length);
        }).observe(document.querySelector('#mc-chat'), {subtree: true, childList: true, characterData: true}); }"""
    )

    ask(page, "What colour is the heart?", [picture_file(HEART)])
    assert "red" in wait_for_reply(page).lower()
    pictures_shown(page, 1)
    ask(page, "Describe the picture.")
    second = wait_for_reply(page).lower()
    assert any(word in second for word in (*SHAPES, *COLOURS))
    assert len(set(page.evaluate("window.lengths"))) >= 4  # it grew before one's eyes

    ask(page, "Describe the picture in detail.")
    page.locator("#mc-chat [data-testid=bot] .message-content").nth(2).wait_for()
    page.locator("#mc-box .stop-button").click()
    stopped = wait_for_reply(page)
    assert stopped
    page.wait_for_timeout(500)
    assert replies(page)[-1] == stopped

    page.locator("#mc-chat button[aria-label=Undo]").click()
    page.wait_for_function("() => document.querySelectorAll('#mc-chat [data-testid=bot]').length == 2")

    click_example(page, 1)
    wait_for_reply(page)
    page.click("#mc-new")
    page.get_by_text("Ask about a picture", exact=True).wait_for()
    assert replies(page) == []
    assert seen == NOTHING
    page.context.close()


def test_words_are_shown_as_words(fake, browser):
    bot, url = fake
    page = open_page(browser, url)
    seen = watch(page)
    bot.enqueue(MARKUP)
    ask(page, MARKUP)
    assert wait_for_reply(page) == MARKUP
    assert page.locator("#mc-chat [data-testid=user]").inner_text().strip() == MARKUP
    assert page.locator("#mc-chat .message-content :is(img, script, b)").count() == 0
    assert seen == NOTHING
    page.context.close()


def test_pictures_come_by_paste_and_by_drag_several_in_a_turn(fake, browser):
    _, url = fake
    page = open_page(browser, url)
    for kind, target in (("paste", "#mc-box textarea"), ("drop", "#mc-box .full-container")):
        page.evaluate(
            """async ([kind, target, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], kind + '.png', {type: 'image/png'}));
                const options = {bubbles: true, cancelable: true};
                const event = kind == 'paste' ? new ClipboardEvent('paste', {...options, clipboardData: data})
                                              : new DragEvent('drop', {...options, dataTransfer: data});
                document.querySelector(target).dispatchEvent(event);
            }""",
            [kind, target, list(picture_file(HEART)["buffer"])],
        )
        page.locator("#mc-box .thumbnail-item").nth(0 if kind == "paste" else 1).wait_for()
    ask(page, "Both?")
    assert "pictures: 2" in wait_for_reply(page)
    pictures_shown(page, 2)
    page.context.close()


def paste(page: Any, text: str) -> None:
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.focus("#mc-box textarea")
    page.keyboard.press("Control+V")


def test_a_long_text_is_pasted_as_text(fake, browser):
    bot, url = fake
    bot.enqueue("Long.")
    page = open_page(browser, url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = "Zeile\t<b> ü😀\n" * 308  # 4,004 characters
    paste(page, text.replace("\n", "\r\n"))
    paste(page, text + "the end")
    page.wait_for_function("() => document.querySelector('#mc-box textarea').value.endsWith('the end')")
    assert page.input_value("#mc-box textarea") == text + text + "the end"
    assert page.locator("#mc-box .thumbnail-item").count() == 0
    page.press("#mc-box textarea", "Enter")
    page.locator("#mc-chat [data-testid=user] .message-content").wait_for()
    wait_for_reply(page)
    shown = page.locator("#mc-chat [data-testid=user] .message-content").evaluate("e => e.textContent")
    assert shown.strip() == text + text + "the end"
    page.context.close()


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_text_beside_a_picture_or_dropped_is_not_lost(how, fake, browser):
    _, url = fake
    page = open_page(browser, url)
    page.fill("#mc-box textarea", "What")
    page.evaluate(
        """([how, bytes]) => {
            const data = new DataTransfer();
            if (how == 'paste') data.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
            data.setData('text/plain', ' is it?');
            const options = {bubbles: true, cancelable: true};
            const event = how == 'paste' ? new ClipboardEvent('paste', {...options, clipboardData: data})
                                         : new DragEvent('drop', {...options, dataTransfer: data});
            document.querySelector('#mc-box textarea').focus();
            document.querySelector('#mc-box textarea').dispatchEvent(event);
        }""",
        [how, list(picture_file(HEART)["buffer"])],
    )
    page.wait_for_function("() => document.querySelector('#mc-box textarea').value == 'What is it?'")
    if how == "paste":
        page.locator("#mc-box .thumbnail-item").wait_for()
    page.press("#mc-box textarea", "Enter")
    page.get_by_text(f"You asked “What is it?”, pictures: {int(how == 'paste')}.").wait_for()
    page.context.close()


def test_edit_and_retry(fake, browser):
    bot, url = fake
    page = open_page(browser, url)
    bot.settings.clear()
    bot.enqueue("one", "two", "three")
    ask(page, "first", [picture_file(HEART)])
    wait_for_reply(page)
    page.locator("#mc-chat button[aria-label=Retry]").click()
    page.get_by_text("two", exact=True).wait_for()
    page.locator("#mc-chat button[aria-label=Edit]").click()
    page.fill("#mc-chat textarea", "second")
    page.locator("#mc-chat button[aria-label=Submit]").click()
    page.get_by_text("three", exact=True).wait_for()
    pictures_shown(page, 1)
    assert page.locator("#mc-chat [data-testid=user]").last.inner_text().strip() == "second"
    assert bot.settings[::2] == [{field.name: field.default for field in panel(Limits())}] * 2  # as the page shows them
    page.context.close()


def test_an_error_is_shown_and_what_was_written_comes_back(fake, browser):
    bot, url = fake
    page = open_page(browser, url)
    bot.enqueue(RuntimeError("/srv/secret"), "better")
    page.fill("#mc-box textarea", "a question")
    page.press("#mc-box textarea", "Enter")
    page.get_by_text("Something went wrong").first.wait_for()
    page.wait_for_function("() => document.querySelector('#mc-box textarea').value == 'a question'")
    assert "secret" not in page.content()
    page.press("#mc-box textarea", "Enter")
    assert wait_for_reply(page) == "better"
    page.context.close()


def test_too_many_pictures_are_refused_in_a_sentence(fake, browser):
    _, url = fake
    page = open_page(browser, url)
    page.set_input_files("#mc-box input[type=file]", [picture_file(HEART, f"{n}.png") for n in range(9)])
    page.get_by_text("Upload at most 6 pictures of 20 MB at a time.").first.wait_for()
    assert "detail" not in page.locator(".mc-notice").last.inner_text()
    ask(page, "Still there?")
    wait_for_reply(page)
    page.context.close()


def test_what_waits_for_its_turn_can_be_stopped(fake, browser):
    bot, url = fake
    others = [Visitor(url) for _ in range(Limits().concurrent)]
    bot.enqueue(*[" ".join(["word"] * 3000)] * len(others))
    page = open_page(browser, url)
    for other in others:
        other.send("go on").raise_for_status()
    until(lambda: bot.running == len(others))
    page.fill("#mc-box textarea", "I wait")
    page.press("#mc-box textarea", "Enter")
    page.locator("#mc-box .stop-button").click()
    page.locator("#mc-box .submit-button").wait_for()
    page.wait_for_function("() => document.querySelector('#mc-box textarea').value == 'I wait'")  # to be sent, or not
    for other in others:
        other.direct("mc-box", "stop")
        other.close()
    until(lambda: bot.running == 0)
    page.press("#mc-box textarea", "Enter")
    page.get_by_text("You asked “I wait”, pictures: 0.").wait_for()
    assert replies(page) == ["You asked “I wait”, pictures: 0."]
    page.context.close()


def test_a_refused_message_leaves_the_box_as_it_was(fake, browser):
    _, url = fake
    page = open_page(browser, url)
    ask(page, "hello")
    wait_for_reply(page)
    page.context.clear_cookies()
    page.fill("#mc-box textarea", "and now?")
    page.press("#mc-box textarea", "Enter")
    page.get_by_text("Open the page first, with cookies allowed.").first.wait_for()
    page.locator("#mc-box .submit-button").wait_for()
    assert page.input_value("#mc-box textarea") == "and now?"
    page.context.close()


def test_closing_a_tab_keeps_the_picture_of_a_hidden_one(scripted, browser, monkeypatch):
    monkeypatch.setattr("minichat.web.sessions.UPLOAD_GRACE", 0.0)
    uploads = scripted.page.uploads
    until(lambda: not uploads._pages)  # those of other tests
    hidden = open_page(browser, scripted.url)
    hidden.set_input_files("#mc-box input[type=file]", [picture_file(HEART)])
    hidden.locator("#mc-box .thumbnail-item").wait_for()
    front = hidden.context.new_page()
    front.goto(scripted.url)
    front.wait_for_selector("#mc-box textarea")
    front.bring_to_front()
    until(lambda: list(uploads._pages.values()) == [2])
    front.close()
    until(lambda: list(uploads._pages.values()) == [1])
    uploads.sweep()
    hidden.bring_to_front()
    ask(hidden, "Is it there?")
    assert "pictures: 1" in wait_for_reply(hidden)
    hidden.set_input_files("#mc-box input[type=file]", [picture_file(HEART)])
    hidden.locator("#mc-box .thumbnail-item").wait_for()
    assert len(uploads) == 1
    hidden.context.close()
    until(lambda: not uploads._pages)
    uploads.sweep()
    assert len(uploads) == 0


def test_closing_the_tab_ends_the_reply(fake, browser):
    bot, url = fake
    page = open_page(browser, url)
    bot.enqueue(" ".join(["word"] * 3000))
    ask(page, "go on")
    page.locator("#mc-chat [data-testid=bot] .message-content").wait_for()
    page.context.close()
    until(lambda: bot.running == 0)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_everything_has_a_name(dark, fake, browser):
    _, url = fake
    page = open_page(browser, url, PHONE, dark=dark)
    click_example(page, 0)
    wait_for_reply(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    box = page.locator("#mc-box").bounding_box()
    assert box["y"] + box["height"] <= PHONE[1]  # the box is in view without scrolling
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, textarea, input, img')]
            .filter(e => e.checkVisibility() && !e.innerText?.trim() && !e.labels?.length)
            .filter(e => !e.getAttribute('aria-label') && !e.getAttribute('alt') && !e.title)
            .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert page.evaluate("document.body.classList.contains('dark')") == dark
    page.context.close()


def test_the_readmes_picture_can_be_taken(fake, tmp_path):
    import subprocess
    import sys

    _, url = fake
    # In a process of its own: Playwright allows one browser driver per thread.
    code = "import sys, pathlib, benchmarks.screenshot as s; s.photograph(sys.argv[1], pathlib.Path(sys.argv[2]))"
    out = tmp_path / "demo.png"
    subprocess.run([sys.executable, "-c", code, url, str(out)], check=True, cwd=Path(__file__).parent.parent)
    from PIL import Image

    with Image.open(out) as taken:
        assert taken.size == (1280, 900)
        assert len(taken.convert("RGB").getcolors(2**24)) > 1000
