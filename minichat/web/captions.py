"""Captions for a visitor's pictures: what `minichat caption` does, for a page that sends a few at a time.

The page uploads some, asks for their captions, and reads a line of JSON for each as it comes:

    {"place": 0, "caption": "…"}    also "cut": true at the limit of tokens, and "boxes" where the caption names any
    {"place": 1, "error": "…"}      this picture has none
    {"error": "…"}                  none of those that are left has one

So the server holds no more than a few pictures of a folder of any size, and nothing once the page is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from minichat.captioning.captioner import Captioner, Job, Outcome
from minichat.device.memory import out_of_memory
from minichat.errors import MiniChatError, PromptError
from minichat.fileio import json_line
from minichat.prompt import boxes
from minichat.web.guard import Refusal, whole
from minichat.web.handlers import LOST, NO_MEMORY
from minichat.web.sessions import Field, Limits, Sessions, Uploads, read

log = logging.getLogger(__name__)

_OF_ONE = 2  # requests of one visitor at a time: while one is answered, the next is on its way


class Captions:
    """Answers requests {"files": [path], "prompt": text or null, "settings": values of the panel, or null}."""

    def __init__(self, sessions: Sessions, uploads: Uploads, fields: Sequence[Field], limits: Limits) -> None:
        self._sessions, self._uploads, self._fields, self._limits = sessions, uploads, fields, limits
        self._asking: Counter[str] = Counter()  # requests by visitor
        self._turn = asyncio.Semaphore(max(1, limits.concurrent // 2))  # chats go on meanwhile

    async def __call__(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        body = await whole(receive, 2**16 + 7 * self._limits.characters)
        try:
            files, prompt, settings = self._read(json.loads(body))
        except (ValueError, RecursionError):
            raise Refusal(400, "The request is no valid JSON.") from None
        except MiniChatError as error:
            raise Refusal(400, str(error)) from None
        if self._asking[visitor] >= _OF_ONE:
            raise Refusal(429, "Captions of yours are being written already: wait for them, or stop them.")
        if self._asking.total() >= self._limits.queue:
            raise Refusal(429, "The server is busy with the captions of others: try again in a minute.")
        self._asking[visitor] += 1
        try:
            async with self._turn:
                lines = _in_threads(self._lines(files, visitor, prompt, settings))
                answer = StreamingResponse(lines, media_type="application/x-ndjson")
                try:
                    await answer(scope, receive, send)
                finally:
                    await lines.aclose()  # type: ignore[attr-defined]
        finally:
            self._asking[visitor] -= 1
            self._asking += Counter()  # forgets what is at 0

    def _read(self, asked: Any) -> tuple[list[str], str | None, dict[str, Any]]:
        asked = asked if isinstance(asked, dict) else {}
        files, prompt, values = asked.get("files"), asked.get("prompt"), asked.get("settings")
        most = self._limits.pictures_per_message
        if not isinstance(files, list) or not 0 < len(files) <= most or not all(isinstance(f, str) for f in files):
            raise PromptError(f"files must be a list of 1 to {most} uploaded files.")
        if prompt is not None and (not isinstance(prompt, str) or len(prompt) > self._limits.characters):
            raise PromptError(f"The prompt must be a text of at most {self._limits.characters} characters.")
        if values is None:
            values = [field.default for field in self._fields]
        if not isinstance(values, list) or len(values) != len(self._fields):
            raise PromptError(f"settings must be a list of {len(self._fields)} values.")
        return files, prompt, read(self._fields, values)

    def _lines(self, files: list[str], visitor: str, prompt: str | None, settings: dict[str, Any]) -> Iterator[str]:
        jobs: dict[int, Job] = {}
        for place, path in enumerate(files):
            try:
                jobs[place] = Job(self._uploads.open(path, visitor), prompt)
            except MiniChatError as error:
                yield json_line({"place": place, "error": str(error)})
            self._uploads.release(path, visitor)
        try:
            captioner = Captioner(self._sessions.bot_of(visitor), self._limits.pictures_per_message, settings)
            for place, one in zip(jobs, captioner.outcomes(jobs.values()), strict=True):
                yield json_line({"place": place, **_told(one)})
        except MiniChatError as error:
            yield json_line({"error": str(error)})
        except Exception as error:
            log.exception("captions failed")
            yield json_line({"error": NO_MEMORY if out_of_memory(error) else LOST})


def _told(one: Outcome) -> dict[str, Any]:
    if one.caption is None:
        return {"error": one.error}
    found = [box.as_dict() for box in boxes.parse(one.caption)]
    return {"caption": one.caption, **({"cut": True} if one.cut else {}), **({"boxes": found} if found else {})}


async def _in_threads(lines: Iterator[str]) -> AsyncIterator[str]:
    """The lines, each made in a thread. Where the page leaves, what is being written for it ends with its next line."""
    try:
        while (line := await run_in_threadpool(next, lines, None)) is not None:
            yield line + "\n"
    finally:
        lines.close()  # type: ignore[attr-defined]
