"""Serving the chat page: on loopback, behind the guard, with nothing shared and nothing sent home."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from minichat.errors import MiniChatError
from minichat.web.app import Page
from minichat.web.examples import EXAMPLES
from minichat.web.guard import Guard
from minichat.web.look import css, script, theme

PORT = 7860
SWEEP = 5.0  # seconds between two looks for chats and uploads whose time is over


@dataclass(frozen=True)
class Running:
    """A page that is being served."""

    url: str
    page: Page

    def close(self) -> None:
        """Stop serving, end every chat, and delete what visitors left on disk."""
        for key in self.page.sessions.open_keys():
            self.page.sessions.close(key)
        self.page.desk.close()
        self.page.close(verbose=False)
        self.page.uploads.close()

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            while True:
                time.sleep(3600)
        finally:
            self.close()


def launch(page: Page, host: str = "127.0.0.1", port: int | None = None) -> Running:
    """Serve the page and return at once; `wait()` on the result serves until Ctrl-C.

    Args:
        page: what `build_app` returned.
        host: the address to listen on. The default is reachable from this machine alone.
        port: None takes 7860, or the next free one.

    Raises:
        MiniChatError: when the port is taken, or the address is not this machine's.
    """
    chosen = _free_port(host, port)
    page.uploads.start()
    _, url, _ = page.launch(
        server_name=host,
        server_port=chosen,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        num_workers=0,
        state_session_capacity=2 * page.limits.sessions,
        **_options(page),
    )
    return _running(page, url.rstrip("/"))


def mount(page: Page, app: FastAPI) -> Running:
    """Put the page at `/` of an application, behind its other routes; `close()` on the result belongs to its end."""
    page.uploads.start()
    page.state_session_capacity = 2 * page.limits.sessions
    gr.mount_gradio_app(app, page, "/", **_options(page))
    mounted: Any = app.routes[-1]
    page.app = page.server_app = mounted.app
    return _running(page, "")


def _running(page: Page, url: str) -> Running:
    # Gradio keeps every session's copy of the page's values, the chat among them, long after it was closed.
    kept: dict[str, Any] = page.app.state_holder.session_data
    page.sessions.on_close.append(lambda key: kept.pop(key, None))
    return Running(url, page)


def _options(page: Page) -> dict[str, Any]:
    """How the page is served, wherever it is."""
    limits = page.limits
    door = Middleware(
        Guard,
        sessions=page.sessions,
        uploads=page.uploads,
        waiting=page.waiting,
        inputs={number: len(listener.inputs) for number, listener in page.fns.items() if listener.fn is not None},
        limits=limits,
        desk=page.desk,
    )
    return {
        "show_error": False,
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [],
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "max_file_size": limits.upload_bytes,
        "app_kwargs": {
            "middleware": [door],
            "lifespan": _sweeping(page),
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
        "theme": theme(),
        # In the head, not as `css`: Gradio would lead each rule by a class of its own, save those for narrow screens,
        # which would then lose against the others.
        "head": f"<style>{css(EXAMPLES)}</style>",
        "js": script(),
    }


def _sweeping(page: Page) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP)
                page.sessions.sweep()
                page.uploads.sweep()

        task = asyncio.create_task(sweep())
        yield
        task.cancel()

    return lifespan


def _free_port(host: str, port: int | None) -> int:
    """The port asked for, or the first free one from 7860 on."""
    reason = ""
    for candidate in [port] if port is not None else range(PORT, PORT + 100):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return int(probe.getsockname()[1])
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
    where = f"port {port}" if port is not None else f"any port from {PORT} to {PORT + 99}"
    raise MiniChatError(f"Cannot listen on {host}, {where} ({reason}): choose another with --port or --host.")
