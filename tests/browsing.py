"""What the browser tests share: waiting, and watching for what must not happen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.screenshot import DESKTOP, PHONE, find_browser, open_page
from minichat.web import Running
from tests.fake_bot import FakeBot

SIZES = {"desktop": DESKTOP, "phone": PHONE}
NO_BROWSER = "no Chromium is installed (Debian: apt-get install chromium)"


def in_a_browser(timeout: int = 1200) -> list[pytest.MarkDecorator]:
    """The marks of a file of such tests; `timeout` in seconds."""
    skipped = pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
    return [pytest.mark.browser, pytest.mark.timeout(timeout), skipped]


@contextlib.contextmanager
def opened(browser: Any, running: Running, size: str) -> Iterator[Any]:
    """A page in a context of its own, in which nothing happens that must not."""
    page = open_page(browser, running.url, SIZES[size])
    seen = watch(page)
    yield page
    assert seen == NOTHING
    page.context.close()


def scripted(running: Running) -> FakeBot:
    """The bot of a page, with nothing to say yet."""
    bot: FakeBot = running.page.sessions.new_chat.__self__
    bot.script.clear()
    bot.settings.clear()
    return bot


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def watch(page: Any) -> dict[str, list[str]]:
    """What must not happen while a page is used: errors, dialogs, and requests to anywhere else."""
    seen: dict[str, list[str]] = {"errors": [], "dialogs": [], "elsewhere": []}
    host = page.url.split("/")[2]

    def dialog(shown: Any) -> None:
        seen["dialogs"].append(shown.message)
        shown.dismiss()

    def request(sent: Any) -> None:
        if not sent.url.startswith(("data:", "blob:")) and sent.url.split("/")[2] != host:
            seen["elsewhere"].append(sent.url)

    page.on("pageerror", lambda error: seen["errors"].append(str(error)))
    page.on("console", lambda line: seen["errors"].append(line.text) if line.type == "error" else None)
    page.on("dialog", dialog)
    page.on("request", request)
    return seen


NOTHING: dict[str, list[str]] = {"errors": [], "dialogs": [], "elsewhere": []}


def pictures_shown(page: Any, count: int) -> None:
    """Wait until the chat shows so many pictures."""
    page.wait_for_function("count => document.querySelectorAll('#mc-chat img.mc-picture').length == count", arg=count)
