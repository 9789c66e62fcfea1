"""The chat page: its look, what is on it, which listener answers what, and serving it on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from minichat import fileio
from minichat.errors import MiniChatError
from minichat.web.guard import Guard, Waiting
from minichat.web.handlers import BUSY, EXAMPLES, IDLE, TEXT, Example, Handlers, data_url
from minichat.web.sessions import Field, Limits, Sessions, Uploads, panel

# --- The look of the page: Gradio's plain theme with the system's own fonts (nothing is fetched), and a little CSS.


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


CSS = """
footer { display: none !important; }
.gradio-container { padding: 0 !important; }
.gradio-container .main, .gradio-container .wrap { padding: 0 !important; }
main.contain { width: 100%; max-width: 1160px !important; margin: 0 auto !important;
  padding: 14px 20px 16px !important; }
#mc-title, #mc-about, #mc-scenes .block { border-width: 0 !important; background: none; padding: 0; overflow: visible; }
#mc-title .html-container, #mc-about .html-container, #mc-scenes .html-container { padding: 0; }

#mc-head { align-items: center; flex-wrap: nowrap; gap: 12px; }
#mc-title h1 { font-size: 1.25rem; line-height: 1.3; margin: 0; font-weight: 650; letter-spacing: -.01em; }
#mc-title p { margin: 0; color: var(--body-text-color-subdued); font-size: .875rem; }
#mc-title code { background: none; border: none; color: inherit; font-size: .95em; padding: 0; }
#mc-new { flex: 0 0 auto; min-width: 0; width: auto; padding: 7px 14px; border-radius: 10px; font-weight: 500;
  background: var(--block-background-fill); border: 1px solid var(--block-border-color); }
#mc-new:hover { border-color: var(--color-accent); }

#mc-body { gap: 16px; align-items: stretch; flex-wrap: nowrap; height: calc(100dvh - 100px); min-height: 420px; }
#mc-main { flex: 1 1 auto; min-width: 0 !important; gap: 12px; height: 100%; flex-wrap: nowrap; }
#mc-chat { flex: 1 1 0; min-height: 0; border-radius: 16px; }
#mc-side { flex: 0 0 300px !important; min-width: 0 !important; gap: 14px; height: 100%; overflow-y: auto;
  flex-wrap: nowrap; scrollbar-width: thin; }
#mc-side > * { flex: 0 0 auto !important; }

#mc-chat .message-content { white-space: pre-wrap; overflow-wrap: anywhere; }
#mc-chat .message-row { margin-block: 3px; }
#mc-chat .message { border-radius: 14px !important; border-width: 0; padding: 9px 14px; }
#mc-chat .message.bot { background: var(--mc-bot); }
#mc-chat .message.user { background: var(--mc-user); }
#mc-chat .message:has(.mc-picture) { background: none; padding: 0; }
#mc-chat .flex-wrap:has(.mc-picture) { border: none; background: none; box-shadow: none; }
#mc-chat .user-row .mc-picture { margin-left: auto; }
#mc-chat .edit-textarea { min-width: min(420px, 60vw); }
#mc-chat .top-panel { display: none; }  /* "New chat" does the same */
#mc-chat .message .prose { padding: 0; margin: 0; overflow: visible; }
.mc-picture { display: block; width: auto; min-width: 96px; max-width: min(100%, 300px); max-height: 184px; margin: 0;
  border-radius: 14px; }
#mc-chat .message-buttons .icon-button-wrapper { border: none; background: none; box-shadow: none; }
#mc-chat .message-buttons { opacity: .75; margin-block: 0 6px; }
#mc-chat .message-buttons:hover, #mc-chat .message-buttons:focus-within { opacity: 1; }
.mc-welcome { text-align: center; padding: 0 20px; }
.mc-welcome h2 { font-size: 1.15rem; font-weight: 600; margin: 0 0 6px; }
.mc-welcome p { color: var(--body-text-color-subdued); margin: 0 auto; max-width: 22rem; }
.form:has(#mc-box) { flex: 0 0 auto; border-radius: 16px; }
#mc-box .submit-button, #mc-box .stop-button { background: var(--primary-600); color: white; border-radius: 10px; }
#mc-box .submit-button:hover, #mc-box .stop-button:hover { filter: brightness(1.08); }

.mc-label { font-size: .8rem; font-weight: 600; color: var(--body-text-color-subdued); margin: 0; }
#mc-scenes { min-width: 0 !important; gap: 6px; }
#mc-grid { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
#mc-grid button { display: flex; flex-direction: column; justify-content: flex-start; align-items: stretch; gap: 6px;
  min-width: 0; padding: 5px 5px 8px; text-align: left; white-space: normal; font-size: .8rem; line-height: 1.25;
  font-weight: 450; background: var(--block-background-fill); border: 1px solid var(--block-border-color);
  border-radius: 13px; }
#mc-grid button:hover { border-color: var(--color-accent); }
#mc-grid button::before { content: ""; display: block; width: 100%; aspect-ratio: 7/6; border-radius: 9px;
  background-size: cover; background-position: center; }
#mc-about p { margin: 0; color: var(--body-text-color-subdued); font-size: .8rem; line-height: 1.45; }
#mc-about strong { color: var(--body-text-color); font-weight: 600; }
#mc-settings { border-radius: 13px; }
button:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }

.mc-thinking { display: inline-flex; gap: 5px; align-items: center; height: 1.4em; vertical-align: middle; }
.mc-thinking i { width: 7px; height: 7px; border-radius: 50%; background: var(--body-text-color-subdued);
  animation: mc-pulse 1.2s infinite ease-in-out; }
.mc-thinking i:nth-child(2) { animation-delay: .15s; }
.mc-thinking i:nth-child(3) { animation-delay: .3s; }
@keyframes mc-pulse { 0%, 70%, 100% { opacity: .25; } 35% { opacity: 1; } }
@media (prefers-reduced-motion: reduce) { .mc-thinking i { animation: none; opacity: .6; } }

:root { --mc-bot: var(--neutral-100); --mc-user: var(--primary-100); }
.dark { --mc-bot: var(--neutral-800); --mc-user: var(--primary-900); }

/* A phone: one column. The scenes become a strip between the chat and the box; the rest comes below. */
@media (max-width: 760px) {
  main.contain { padding: 10px 10px 14px !important; }
  #mc-title p, .mc-label, #mc-scenes .block { display: none; }
  #mc-body { flex-direction: column; gap: 8px; height: auto; min-height: 0; min-width: 0; max-width: 100%; }
  #mc-main, #mc-side { display: contents; }
  #mc-main > *, #mc-side > * { width: 100%; max-width: 100%; min-width: 0 !important; }
  #mc-chat { order: 1; flex: 0 0 auto; height: calc(100dvh - 232px); min-height: 260px; }
  #mc-scenes { order: 2; }
  .form:has(#mc-box) { order: 3; }
  #mc-about { order: 4; padding: 6px 4px 0 !important; }
  #mc-settings { order: 5; }
  #mc-grid { display: flex; flex-wrap: nowrap; overflow-x: auto; scrollbar-width: none; gap: 8px; }
  #mc-grid button { flex: 0 0 auto; width: 178px; flex-flow: row nowrap; align-items: center;
    padding: 5px 8px 5px 5px; }
  #mc-grid button::before { flex: 0 0 44px; width: 44px; height: 44px; aspect-ratio: 1; }
}
"""

# Gradio gives the message box a visible label or none; a screen reader needs one. And where a picture is pasted with a
# text, or a text is dropped, Gradio leaves the text out: it is put where the cursor is.
JS = """() => {
  const box = () => document.querySelector('#mc-box textarea');
  const insert = text => { box().focus(); document.execCommand('insertText', false, text); };
  box()?.setAttribute('aria-label', 'Your message');
  document.addEventListener('paste', event => {
    const text = event.clipboardData?.getData('text');
    if (text && event.target === box() && event.defaultPrevented) insert(text);
  });
  document.addEventListener('drop', event => {
    const text = event.dataTransfer?.getData('text');
    if (text && event.target.closest?.('#mc-box') && !event.dataTransfer.files.length) insert(text);
  });
}"""


def css(examples: tuple[Example, ...]) -> str:
    """The page's style sheet, the examples' pictures in it."""
    pictures = (
        f"#mc-scene-{index}::before {{ background-image: url({data_url(example.picture(), 256)}); }}"
        for index, example in enumerate(examples)
    )
    return CSS + "\n".join(pictures)


# --- The chat page: what is on it, and which listener answers what.


TINY = "minichat-tiny"

KNOWS = """<p><strong>What this model knows.</strong> It is small and was trained only on synthetic scenes: eight
shapes, eleven colours, small and large, how many, where, and the background. Photographs, faces and text mean nothing
to it; it should say so, and if it does not, its answer means nothing.</p>"""

WELCOME = """<div class="mc-welcome"><h2>Ask about a picture</h2>
<p>Add one with the clip, paste it, or drop it in the box below – or pick a scene.</p></div>"""


class Page(gr.Blocks):
    """The Blocks of the chat page, with what the server keeps for its visitors."""

    sessions: Sessions
    uploads: Uploads
    waiting: Waiting
    limits: Limits


def build_app(bot: Any, limits: Limits = Limits()) -> Page:  # noqa: B008 (frozen)
    """The chat page of a loaded model; `minichat.web.launch` serves it.

    Args:
        bot: a `MiniChat`, of which `name`, `context` and `chat()` are used.
        limits: what the page may cost its host.
    """
    # Gradio reads these when a Blocks is made: it is to send nothing home, and neither to keep records of past requests
    # nor to sum them up after every one.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    fields = panel(limits, bot.context)
    page = Page(
        title="MiniChat",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(300, int(limits.session_life) + 300),  # what Gradio itself may store; uploads are `Uploads`' own
    )
    page.sessions, page.limits = Sessions(bot.chat, limits), limits
    # Gradio serves and reads files below its own folder only.
    page.uploads = Uploads(Path(get_upload_folder()) / f"minichat-{secrets.token_hex(8)}", limits)
    page.waiting = Waiting(page)
    listeners = Handlers(page.sessions, page.uploads, page.waiting, fields, limits)
    with page:
        new = _head(bot.name)
        with gr.Row(elem_id="mc-body"):
            with gr.Column(elem_id="mc-main"):
                chat, box = _conversation()
            with gr.Column(elem_id="mc-side"):
                scenes = _scenes()
                if bot.name == TINY:
                    gr.HTML(KNOWS, elem_id="mc-about")
                controls = _panel(fields)
        _connect(page, listeners, new, chat, box, scenes, controls)
    page.queue(
        max_size=limits.queue, default_concurrency_limit=limits.concurrent, api_open=False, status_update_rate="auto"
    )
    return page


def _head(name: str) -> gr.Button:
    with gr.Row(elem_id="mc-head"):
        gr.HTML(
            f"<h1>MiniChat</h1><p>Talk about pictures with <code>{html.escape(name)}</code></p>",
            elem_id="mc-title",
        )
        return gr.Button("New chat", size="sm", variant="secondary", elem_id="mc-new")


def _conversation() -> tuple[gr.Chatbot, gr.MultimodalTextbox]:
    chat = gr.Chatbot(
        label="Conversation",
        show_label=False,
        elem_id="mc-chat",
        height=None,
        placeholder=WELCOME,
        editable="user",
        buttons=["copy"],
        # Text is shown as text: no Markdown, no HTML, no formulas. Pictures and words are bubbles of their own, which
        # also lets Gradio edit the words of a message that has pictures.
        render_markdown=False,
        sanitize_html=True,
        latex_delimiters=[],
        allow_tags=False,
        group_consecutive_messages=False,
        feedback_options=None,
        allow_file_downloads=False,
    )
    box = gr.MultimodalTextbox(
        label="Your message",
        show_label=False,
        placeholder="Ask about a picture…",
        elem_id="mc-box",
        file_types=["image", *fileio.SUFFIXES, TEXT],  # browsers do not know all of the endings for pictures
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=2**31 - 1,  # never a file; how long a message may be, the listener says
        max_lines=8,
        html_attributes=gr.InputHTMLAttributes(spellcheck=True),
        autofocus=False,
        **IDLE,
    )
    return chat, box


def _scenes() -> list[gr.Button]:
    with gr.Column(elem_id="mc-scenes"):
        gr.HTML('<p class="mc-label">Try a scene</p>', padding=False)
        with gr.Row(elem_id="mc-grid"):
            return [
                gr.Button(example.question, elem_id=f"mc-scene-{index}", size="sm")
                for index, example in enumerate(EXAMPLES)
            ]


def _panel(fields: tuple[Field, ...]) -> list[Any]:
    with gr.Accordion("Settings", open=False, elem_id="mc-settings"):
        return [
            gr.Textbox(label=field.label, info=field.info, placeholder="any", max_lines=1)
            if field.default is None
            else gr.Slider(
                field.low, field.high, value=field.default, step=field.step, label=field.label, info=field.info
            )
            for field in fields
        ]


def _connect(
    page: Page,
    listeners: Handlers,
    new: gr.Button,
    chat: gr.Chatbot,
    box: gr.MultimodalTextbox,
    scenes: list[gr.Button],
    controls: list[Any],
) -> None:
    """Every listener gets what the browser sent as it is (`preprocess=False`) and checks it itself, so that an error
    names the setting."""
    answer = {
        "outputs": [chat, box],
        "preprocess": False,
        "show_progress": "hidden",
        "concurrency_id": "answer",
        "api_visibility": "private",
    }
    direct = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    asking = [
        (box.submit, listeners.submit, [box, *controls]),
        *((scene.click, listeners.example(example), controls) for scene, example in zip(scenes, EXAMPLES, strict=True)),
        (chat.retry, listeners.retry, controls),
        (chat.edit, listeners.edit, controls),
    ]
    for event, listener, inputs in asking:
        # The browser itself shows the button to stop, since the message may have to wait for its turn.
        event(None, None, box, js=_buttons(BUSY), **direct)
        event(listener, inputs, **answer).failure(None, None, box, js=_buttons(IDLE), **direct)
    chat.undo(listeners.undo, None, [chat, box], **direct)
    box.stop(listeners.stop, None, box, **direct)
    for cleared in (chat.clear, new.click):
        cleared(listeners.clear, None, [chat, box], **direct)
    # Only where something waits for its end does Gradio's page hold a connection; it tells the guard that it is open.
    page.unload(lambda: None)


def _buttons(shown: dict[str, bool]) -> str:
    """JavaScript that shows the message box's buttons so."""
    return f"() => ({json.dumps({'__type__': 'update', **shown})})"


# --- Serving the chat page: on loopback, behind the guard, with nothing shared and nothing sent home.


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
        "css": css(EXAMPLES),
        "js": JS,
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
