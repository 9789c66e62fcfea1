"""What the browser tests share: waiting, and watching for what must not happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


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
