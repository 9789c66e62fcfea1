"""Serving the chat page: on loopback, behind the guard, nothing shared and nothing sent home; and how it looks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from minichat.errors import MiniChatError
from minichat.web.app import EXAMPLES, Example, Page
from minichat.web.guard import Guard
from minichat.web.talk import data_url

PORT = 7860
SWITCH = 0.0005  # seconds; the model's thread waits for the server's as long at each operation where both have work
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
    sys.setswitchinterval(min(SWITCH, sys.getswitchinterval()))
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
        captions=page.captions,
        # Gradio makes a session's copy of all settings of all components when it first asks for it, which takes longer
        # than all else that it does for a question.
        prepare=lambda key: page.app.state_holder[key],
        look_ahead=page.look_ahead,
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
        "head": f"<style>{css(EXAMPLES)}</style><script>{_static('settings.js')}</script>",
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


# --- The look of the page: Gradio's plain theme with the system's own fonts, a style sheet, and the page's own script.


FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Calm greys and one blue-green, in light and in dark."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONT,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        slider_color="*primary_500",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="*primary_950",
        border_color_accent_subdued="*primary_100",
        border_color_accent_subdued_dark="*primary_900",
    )


STATIC = Path(__file__).parent / "static"
SCRIPTS = ("chats.js", "box.js", "messages.js", "list.js", "draw.js", "batch.js", "curate.js", "page.js")


def script() -> str:
    """The page's own JavaScript, as Gradio runs it when the page is there."""
    return "() => {\n" + "\n".join(map(_static, SCRIPTS)) + "\n}"


def css(examples: tuple[Example, ...]) -> str:
    """The page's style sheet, the examples' pictures in it."""
    pictures = (
        f"#mc-scene-{index}::before {{ background-image: url({data_url(example.picture(), 256)}); }}"
        for index, example in enumerate(examples)
    )
    return _static("page.css") + "\n".join(pictures)


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
