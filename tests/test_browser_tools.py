"""Captions of many pictures, boxes, presets, and drawing in the page, in a headless browser, at two sizes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minichat.web import Running, build_app, launch
from tests.fake_bot import FakeBot

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from benchmarks.screenshot import (
    ask,
    open_page,
    picture_file,
    replies,
    wait_for_reply,
)
from tests.browsing import SIZES, in_a_browser, opened, scripted, until

pytestmark = in_a_browser()

BOX = "#mc-box textarea"


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    running = launch(build_app(FakeBot("fake", pause=0.02)))
    yield running
    running.close()


@pytest.fixture
def bot(served: Running) -> FakeBot:
    bot = scripted(served)
    bot.pause = 0.02
    return bot


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, served: Running, browser: Any) -> Iterator[Any]:
    with opened(browser, served, request.param) as page:
        yield page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def coloured(width: int) -> Image.Image:
    return Image.new("RGB", (width, 40), "teal")


def saved(page: Any, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_captions_of_many_pictures(bot: FakeBot, page: Any):
    files = [picture_file(coloured(40 + n), f"{n}.png") for n in range(8)]
    files[1]["buffer"] = b"no picture"
    page.get_by_role("button", name="Captions", exact=True).click()
    panel = page.get_by_role("dialog", name="Captions")
    start = panel.get_by_role("button", name="Start")
    assert start.is_disabled()
    panel.locator("input[type=file]").first.set_input_files(
        [*files, {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"}]
    )
    page.get_by_text("1 of 9 files are no pictures.").wait_for()
    asks = panel.get_by_label("What to ask of each picture")
    assert asks.input_value() == bot.caption_prompt
    panel.get_by_label("Questions to choose from").select_option("What colours are there?")
    bot.enqueue('Red, "blue",\nand …')
    start.click()
    panel.get_by_text("7 of 8 pictures have a caption; 1 failed.").wait_for()
    failed = panel.locator("td[data-failed]").inner_text()
    assert "1.png" in panel.locator("tr", has=page.locator("td[data-failed]")).inner_text() and failed

    told = list(csv.reader(io.StringIO(saved(page, "Save as CSV"))))
    assert told[0] == ["image", "caption", "finish", "error"]
    assert told[1] == ["0.png", 'Red, "blue",\nand …', "length", ""]
    assert told[2] == ["1.png", "", "", failed]
    assert told[8] == ["7.png", "What colours are there? 47 wide.", "", ""]
    lines = [json.loads(line) for line in saved(page, "Save as JSON lines").splitlines()]
    assert lines[:2] == [
        {"image": "0.png", "caption": told[1][1], "finish": "length"},
        {"image": "1.png", "error": failed},
    ]
    assert len(lines) == 8

    panel.get_by_role("button", name="Close").click()  # the table stays as long as the page
    page.get_by_role("button", name="Captions", exact=True).click()
    panel.get_by_role("button", name="Try again").wait_for()
    panel.get_by_role("button", name="Clear").click()
    assert panel.locator("tbody tr").count() == 0


def test_captions_are_stopped_and_go_on(bot: FakeBot, page: Any, served: Running):
    bot.pause = 0.3
    page.get_by_role("button", name="Captions", exact=True).click()
    panel = page.get_by_role("dialog", name="Captions")
    pictures = [picture_file(coloured(40 + n), f"{n}.png") for n in range(20)]
    panel.locator("input[type=file]").first.set_input_files(pictures)
    panel.get_by_role("button", name="Start").click()
    panel.get_by_text("6 of 20 pictures have a caption.").wait_for()
    panel.get_by_role("button", name="Stop").click()
    more = panel.get_by_role("button", name="Go on")
    more.wait_for()
    until(lambda: not served.page.captions._asking)
    asked = len(bot.settings)
    assert asked < 4
    page.wait_for_timeout(500)
    assert len(bot.settings) == asked
    bot.pause = 0.0
    bot.enqueue(RuntimeError("/srv/secret"))
    more.click()
    panel.get_by_text("20 of 20 pictures have a caption.").wait_for()
    assert "secret" not in page.content()


GROUNDED = "<p>A yellow star</p> {<10><20><40><60>}, <p>circles</p> {<50><50><70><90>}<delim>{<80><0><99><30>}."
WIDE = "() => document.querySelector('.mc-large .mc-boxed')?.style.getPropertyValue('--ratio') == 2"  # it has its size


def pixels(page: Any, selector: str) -> list[float]:
    """Left, top, right and bottom of a thing, in hundredths of the picture that it lies on."""
    found: list[float] = page.locator(selector).evaluate(
        """e => { const [box, all] = [e, e.parentElement.querySelector('img')].map(one => one.getBoundingClientRect());
            return [box.left - all.left, box.top - all.top, box.right - all.left, box.bottom - all.top]
                .map((side, at) => 100 * side / (at % 2 ? all.height : all.width)); }"""
    )
    return found


def test_boxes_are_drawn_and_pointed_at(bot: FakeBot, page: Any):
    bot.enqueue(GROUNDED)
    ask(page, "[grounding] What is where?", [picture_file(coloured(80))])
    assert wait_for_reply(page).startswith("A yellow star [1], circles [2][3].")
    for attempt in range(2):
        drawn = page.locator("#mc-chat .mc-where")
        assert drawn.count() == 3
        assert pixels(page, "#mc-chat .mc-where >> nth=0") == pytest.approx([10, 20, 40, 60], abs=1)
        if attempt == 0:
            page.reload()
            drawn.first.wait_for()
    page.get_by_role("button", name="Copy with its boxes").wait_for()

    page.locator("#mc-chat .mc-boxed .mc-picture").click()
    view = page.locator(".mc-large .mc-boxed")
    view.locator(".mc-where").nth(2).wait_for()
    page.wait_for_function("() => document.querySelector('.mc-large img').complete")
    page.wait_for_function(WIDE)
    box = view.bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    page.mouse.move(*at(0.7, 0.8))
    page.mouse.down()
    page.mouse.move(*at(0.3, 0.4))
    assert pixels(page, ".mc-mark") == pytest.approx([30, 40, 70, 80], abs=1)
    page.mouse.up()
    page.wait_for_function("() => !document.querySelector('dialog')")
    assert page.input_value(BOX) == "[identify] {<30><40><70><80>}"
    bot.enqueue("A circle.")
    page.press(BOX, "Enter")
    page.get_by_text("A circle.", exact=True).wait_for()
    assert wait_for_reply(page) == "A circle."

    page.fill(BOX, "Is it red?")
    page.locator("#mc-chat .mc-picture").first.click()
    page.wait_for_function(WIDE)
    page.mouse.click(*at(0.02, 0.5))
    page.wait_for_function("() => !document.querySelector('dialog')")
    assert page.input_value(BOX) == "Is it red? {<0><42><10><58>}"


def test_a_model_without_boxes_is_not_pointed_at(bot: FakeBot, served: Running, browser: Any):
    bot.names_boxes = False
    page = open_page(browser, served.url)
    bot.enqueue("no picture: {<1><2><3><4>}")
    ask(page, "hi")
    assert wait_for_reply(page) == "no picture: {<1><2><3><4>}"
    ask(page, "this?", [picture_file(coloured(80))])
    wait_for_reply(page)
    page.locator("#mc-chat .mc-picture").click()
    page.locator(".mc-large .mc-boxed").click()
    page.wait_for_function("() => !document.querySelector('dialog')")
    assert page.input_value(BOX) == "" and len(replies(page)) == 2
    page.context.close()
    bot.names_boxes = True


def controls(page: Any) -> list[str]:
    values: list[str] = page.eval_on_selector_all("#mc-settings input[type=number]", "all => all.map(e => e.value)")
    return values


def test_presets_and_the_system_text_are_kept(bot: FakeBot, page: Any):
    page.locator("#mc-unfold summary").click()
    text = page.get_by_label("System text")
    text.fill("Answer like a pirate.")
    page.get_by_role("button", name="Lively").click()
    page.wait_for_function("() => document.querySelector('#mc-settings input[type=number]').value == '0.9'")
    lively = controls(page)
    page.wait_for_function("() => localStorage.getItem('minichat.settings')?.startsWith('[0.9,0.95,')")
    page.reload()
    page.locator("#mc-unfold summary").click()
    text.wait_for()
    assert text.input_value() == "Answer like a pirate." and controls(page) == lively
    ask(page, "hi")
    wait_for_reply(page)
    assert (bot.settings[-1]["temperature"], bot.settings[-1]["top_p"]) == (0.9, 0.95)
    assert bot.asked.system.text == "Answer like a pirate."
    page.get_by_role("button", name="Faithful").click()
    page.wait_for_function("() => document.querySelector('#mc-settings input[type=number]').value == '0'")
    text.fill("")
    ask(page, "And now?")
    wait_for_reply(page)
    assert bot.settings[-1]["temperature"] == 0 and bot.asked.system is None and len(bot.asked.turns) == 3


def test_a_drawing_and_a_photo_go_to_the_chat(bot: FakeBot, page: Any, served: Running):
    page.evaluate(
        """() => Object.defineProperty(navigator.mediaDevices, 'getUserMedia', {value: async () => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 48});
            const pen = Object.assign(canvas.getContext('2d'), {fillStyle: 'rgb(0,200,0)'});
            setInterval(() => pen.fillRect(0, 0, 64, 48), 30);
            return canvas.captureStream(); }})"""
    )
    page.get_by_role("button", name="Draw, or take a photo").click()
    panel = page.get_by_role("dialog", name="Draw")
    panel.get_by_role("button", name="blue").click()
    panel.get_by_role("button", name="Background").click()
    panel.get_by_role("button", name="yellow").click()
    panel.get_by_role("button", name="square").click()
    sheet = panel.locator("canvas[tabindex]")
    box = sheet.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.up()
    panel.get_by_role("button", name="ring").click()
    sheet.press("Enter")
    panel.get_by_role("button", name="Undo").click()
    panel.get_by_role("button", name="Add to the question").click()
    page.locator("#mc-box .thumbnail-item").wait_for()
    page.get_by_role("button", name="Draw, or take a photo").click()
    panel.get_by_role("button", name="Camera").click()
    panel.get_by_role("button", name="Take the photo").click()
    panel.get_by_role("button", name="Camera").wait_for()
    panel.get_by_role("button", name="Add to the question").click()
    page.locator("#mc-box .thumbnail-item").nth(1).wait_for()
    bot.enqueue("Two.")
    page.fill(BOX, "Both?")
    page.press(BOX, "Enter")
    assert wait_for_reply(page) == "Two."
    drawing, photo = (picture.convert("RGB") for picture in bot.asked.pictures)
    seen = [drawing.getpixel((at, at)) for at in (128, 256, 500)]
    assert seen[0][:2] > (200, 180) and seen[0][2] < 120
    assert seen[1] == seen[2] and seen[2][2] > 150 > seen[2][0]
    assert photo.getpixel((256, 256))[1] > 150 > photo.getpixel((256, 256))[0]
