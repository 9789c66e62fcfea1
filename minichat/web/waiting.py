"""Gradio's queue, as far as the page looks into it: whose messages are in it, and taking out those that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.server_messages import ProcessCompletedMessage


class Waiting:
    """The messages of a page that wait for an answer or are being answered. Only for the server's event loop."""

    def __init__(self, page: gr.Blocks) -> None:
        self._page = page

    def count(self, counted: Callable[[Any], bool]) -> int:
        """How many messages came with a (Starlette) request that counts."""
        return sum(counted(event.request) for event in self._page._queue.event_ids_to_events.values())

    async def withdraw(self, key: str) -> None:
        """Take out what this session has waiting: its page is told that it is done, and that nothing changes."""
        queue = self._page._queue
        for event in [event for event in queue.event_ids_to_events.values() if event.session_hash == key]:
            if event in queue.event_queue_per_concurrency_id[event.concurrency_id].queue:
                await queue.remove_from_queue(event._id)
                if event._id not in queue.event_ids_to_events:
                    unchanged = {"data": [gr.skip() for _ in event.fn.outputs], "is_generating": False}
                    queue.send_message(event, ProcessCompletedMessage(output=unchanged, success=True))
