"""Take the README's pictures of the chat page: `python -m benchmarks.screenshot` writes docs/demo.png.

It serves the page, talks to the model in a headless Chromium as a person would, and photographs what there is to see.
Needs Playwright's Python package and a Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FilePayload, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
)
DESKTOP = (1280, 900)
PHONE = (390, 844)
EXAMPLES, QUESTIONS = (3, 1), ("And the circle?", "Describe the picture in detail.")  # what the picture shows
PATIENCE = 180_000.0  # milliseconds; a busy machine takes its time


def find_browser() -> str | None:
    """The path of an installed Chromium, if there is one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium. Raises RuntimeError where none is installed."""
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        raise RuntimeError(f"No browser is installed: one of {', '.join(BROWSERS)} is needed.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Page:
    """The chat page, ready to be used, in a browser profile of its own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#mc-box textarea")
    return page


def replies(page: Page) -> list[str]:
    """The model's messages, as a person sees them."""
    return [text.strip() for text in page.locator("#mc-chat [data-testid=bot]").all_inner_texts()]


def wait_for_reply(page: Page) -> str:
    """The newest reply, once it is complete: one may then send, and retry."""
    page.locator("#mc-box .submit-button").wait_for()
    page.locator("#mc-chat button[aria-label=Retry]:enabled").wait_for()
    return replies(page)[-1]


def ask(page: Page, text: str, pictures: Sequence[FilePayload] = ()) -> None:
    """Write a message, attach pictures (Playwright's file payloads), and send it."""
    if pictures:
        page.set_input_files("#mc-box input[type=file]", list(pictures))
        page.locator("#mc-box .thumbnail-item").nth(len(pictures) - 1).wait_for()
    page.fill("#mc-box textarea", text)
    page.press("#mc-box textarea", "Enter")
    page.wait_for_function("text => document.querySelector('#mc-chat').innerText.includes(text)", arg=text)


def click_example(page: Page, number: int) -> None:
    """Click a scene, and wait until it is in a chat of its own."""
    page.click(f"#mc-scene-{number}")
    question = page.inner_text(f"#mc-scene-{number}").strip()
    page.wait_for_function("text => document.querySelector('#mc-chat').innerText.trim().startsWith(text)", arg=question)


def picture_file(picture: Any, name: str = "scene.png") -> FilePayload:
    """A PIL picture as a file that a browser can upload."""
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def photograph(url: str, out: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
    """Have two short conversations on the page at `url` and save a picture of the second."""
    with open_browser() as browser:
        page = open_page(browser, url, size, dark=dark)
        for example in EXAMPLES:
            click_example(page, example)
            wait_for_reply(page)
        for question in QUESTIONS:
            ask(page, question)
            wait_for_reply(page)
        page.click("#mc-chat button[aria-label=Retry]")
        page.get_by_text("2/2").wait_for()
        wait_for_reply(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)  # the chat scrolls down softly
        page.screenshot(path=str(out))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Photograph the chat page.")
    parser.add_argument("--model", default="minichat-tiny", help="name, folder or hub id (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "demo.png")
    parser.add_argument("--phone", action="store_true", help="at the size of a phone")
    parser.add_argument("--dark", action="store_true", help="in dark mode")
    options = parser.parse_args(arguments)

    import minichat
    from minichat import web

    running = web.launch(web.build_app(minichat.load(options.model)))
    try:
        photograph(running.url, options.out, PHONE if options.phone else DESKTOP, dark=options.dark)
    finally:
        running.close()
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
