"""The chat page: what is on it, and which listener answers what."""

from __future__ import annotations

import html
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from minichat import images
from minichat.errors import SettingsError
from minichat.toy.world import COLOURS, POLYGONS, RGB, RING_HOLE, Background, Scene, Thing, draw
from minichat.web.captions import Captions
from minichat.web.curate import Desk
from minichat.web.guard import Waiting
from minichat.web.handlers import BUSY, IDLE, TEXT, Handlers
from minichat.web.sessions import Field, Limits, Sessions, Uploads, panel
from minichat.web.swap import Owned

# By the names of the built-in models.
KNOWS = {
    "minichat-tiny": """<p><strong>What this model knows.</strong> It is small and was trained only on synthetic scenes:
eight shapes, eleven colours, small and large, how many, where, and the background. Photographs, faces and text mean
nothing to it; it should say so, and if it does not, its answer means nothing.</p>""",
    "minichat-small": """<p><strong>What this model knows.</strong> A small chat model of 135 million numbers, which has
seen drawn scenes only: eight shapes, eleven colours, how many and where. Of those it is right about six times in ten;
photographs, faces and text mean nothing to it. Its facts about the world are those of so small a model: check
them.</p>""",
}

# Whether they were taught boxes, which their templates do not tell.
BOXES = {"minichat-tiny": False, "minichat-small": False}

# Settings at one click; what they leave out stays as it is.
PRESETS = {
    "Faithful": {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0},
    "Lively": {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.05},
}
DIRECT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # of a listener that waits for nobody

LOOK = (
    0.005  # seconds between two looks of Gradio for a question; its own are so many that an idle page warms a machine
)

WELCOME = """<div class="mc-welcome"><h2>Ask about a picture</h2>
<p>Add one with the clip, paste it, or drop it in the box below – or pick a scene.</p></div>"""


class Page(gr.Blocks):
    """The Blocks of the chat page, with what the server keeps for its visitors."""

    sessions: Sessions
    uploads: Uploads
    waiting: Waiting
    limits: Limits
    desk: Desk
    captions: Captions
    look_ahead: Callable[[str, str], None]


def build_app(bot: Any, limits: Limits = Limits(), owned: Owned | None = None) -> Page:  # noqa: B008 (frozen)
    """The chat page of a loaded model; `minichat.web.launch` serves it.

    Args:
        bot: a `MiniChat`, of which `name`, `context`, `chat()` and `look_ahead()` are used.
        limits: what the page may cost its host.
        owned: the set of kept replies, and how other models are loaded; None: nobody teaches on this page.
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
    page.sessions, page.limits = Sessions(bot.chat, limits, name=bot.name), limits
    for other in () if owned is None else map(owned.load, owned.also):
        if other.name in (bot.name, *page.sessions.also):
            raise SettingsError(f"Two models are called {other.name}: a visitor could not tell them apart. Rename one.")
        page.sessions.also[other.name] = other.chat
    # Gradio serves and reads files below its own folder only.
    page.uploads = Uploads(Path(get_upload_folder()) / f"minichat-{secrets.token_hex(8)}", limits)
    page.waiting = Waiting(page)
    page.desk = Desk(owned, bot, page.sessions, page.uploads, limits, KNOWS, BOXES)
    page.captions = Captions(page.sessions, page.uploads, fields, limits)
    listeners = Handlers(page.sessions, page.uploads, page.waiting, fields, limits)
    page.look_ahead = listeners.look_ahead
    with page:
        new = _head(bot.name)
        with gr.Row(elem_id="mc-body"):
            gr.HTML('<nav id="mc-chats" aria-label="Chats"></nav>', elem_id="mc-chatbar", padding=False)
            with gr.Column(elem_id="mc-main"):
                chat, box = _conversation()
            with gr.Column(elem_id="mc-side"):
                scenes = _scenes()
                gr.HTML("<label hidden>Model<select></select></label>", elem_id="mc-chooser", padding=False)
                gr.HTML(KNOWS.get(bot.name, ""), elem_id="mc-about")
                controls = _panel(fields)
        _connect(page, listeners, new, chat, box, scenes, controls)
    page.queue(
        max_size=limits.queue, default_concurrency_limit=limits.concurrent, api_open=False, status_update_rate="auto"
    )
    page._queue.sleep_when_free = LOOK
    return page


def _head(name: str) -> gr.Button:
    with gr.Row(elem_id="mc-head"):
        gr.HTML('<button type="button" id="mc-listing" aria-expanded="false">Chats</button>', elem_id="mc-lister")
        gr.HTML(
            f"<h1>MiniChat</h1><p>Talk about pictures with <code>{html.escape(name)}</code></p>",
            elem_id="mc-title",
        )
        gr.HTML(
            '<button type="button" id="mc-batch">Captions</button>'
            '<button type="button" id="mc-teach" hidden>Teach</button>',
            elem_id="mc-tools",
        )
        gr.HTML(
            f'<i id="mc-world" data-world="{html.escape(_world())}"></i>',
            elem_id="mc-hidden",
        )
        return gr.Button("New chat", size="sm", variant="secondary", elem_id="mc-new")


def _world() -> str:
    """What can be drawn, as JSON: the shapes and colours of the built-in model's world."""
    polygons = {name: [[round(x, 3), round(y, 3)] for x, y in corners] for name, corners in POLYGONS.items()}
    colours = {name: f"rgb{RGB[name]}" for name in COLOURS}
    return json.dumps({"polygons": polygons, "colours": colours, "hole": RING_HOLE}, separators=(",", ":"))


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
        file_types=["image", *images.SUFFIXES, TEXT],  # browsers do not know all of the endings for pictures
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
    # Not an accordion: Gradio makes what is in one when it is first opened, and the script would find nothing to fill.
    with gr.Column(elem_id="mc-settings"):
        gr.HTML("<details><summary>Settings</summary></details>", elem_id="mc-unfold", padding=False)
        # Of the page alone: no request has it.
        gr.HTML(
            '<label><input type="checkbox"> Figures under replies: tokens, speed, context</label>',
            elem_id="mc-switch",
            padding=False,
        )
        gr.HTML(
            "<label>System text<textarea rows=1 placeholder='none'></textarea>"
            "<span>What the model is told before the chat.</span></label>",
            elem_id="mc-system",
            padding=False,
        )
        with gr.Row(elem_id="mc-presets"):
            buttons = {name: gr.Button(name, size="sm") for name in PRESETS}
        controls = [
            gr.Textbox(placeholder="any", max_lines=1, **_named(field))
            if field.default is None
            else gr.Slider(field.low, field.high, value=field.default, step=field.step, **_named(field))
            for field in fields
        ]
    for name, button in buttons.items():
        chosen = [control for control, field in zip(controls, fields, strict=True) if field.name in PRESETS[name]]
        values = [PRESETS[name][field.name] for field in fields if field.name in PRESETS[name]]
        button.click(None, None, chosen, js=f"() => {json.dumps(values)}", **DIRECT)
    return controls


def _named(field: Field) -> dict[str, Any]:
    return {"label": field.label, "info": field.info, "elem_classes": "mc-setting"}


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
    names the setting. The page's script puts the conversation in front, and keeps what comes back of it (`talk`)."""
    talk, looked = (
        gr.HTML(html_template="", js_on_load=f"watch('value', () => window.minichat.{to}(props.value));", elem_id=name)
        for name, to in (("mc-talk", "keep"), ("mc-looked", "looked"))
    )
    hidden = ("show", "put", "settle", "on", "look")
    show, put, settle, on, look = (gr.Button(name, visible="hidden", elem_id=f"mc-{name}") for name in hidden)
    shown = [chat, box, talk]
    answer = {
        "outputs": [chat, talk],
        "preprocess": False,
        "postprocess": False,
        "show_progress": "hidden",
        "concurrency_id": "answer",
        "api_visibility": "private",
    }
    # The browser itself shows the button to stop, since the message may have to wait for its turn.
    begun = [
        (box.submit(None, box, box, js=_script("sending"), **DIRECT).then, listeners.submit, [box, *controls], "ask"),
        *(
            (
                scene.click(None, None, box, js=_script("leave"), **DIRECT).then,
                listeners.example(e.question, e.picture),
                controls,
                "example",
            )
            for scene, e in zip(scenes, EXAMPLES, strict=True)
        ),
        (chat.retry(None, None, box, js=_buttons(BUSY), **DIRECT).then, listeners.retry, controls, "again"),
        (on.click(None, None, box, js=_buttons(BUSY), **DIRECT).then, listeners.go_on, controls, "on"),
    ]
    chat.edit(None, None, box, js=_buttons(BUSY), **DIRECT)
    for event, listener, inputs, script in [*begun, (chat.edit, listeners.edit, controls, "edited")]:
        done = event(listener, [talk, *inputs], js=_script(script), **answer)
        for over in (done.then, done.failure):  # what is refused at the door has no `then`
            over(None, box, box, js=_script("settled"), **DIRECT)
    look.click(listeners.look, [talk, looked], js=_script("looking"), **(answer | {"outputs": looked}))
    settle.click(None, box, box, js=_script("settled"), **DIRECT)
    put.click(None, box, box, js=_script("received"), **DIRECT)
    told = {"preprocess": False, **DIRECT}
    chat.undo(listeners.show, talk, shown, js=_script("undo"), **told)
    show.click(listeners.show, talk, shown, js=_script("show"), **told)
    box.stop(listeners.stop, None, box, **DIRECT)
    for cleared in (chat.clear, new.click):
        cleared(listeners.clear, None, shown, js=_script("fresh"), **DIRECT)
    for control in controls:
        control.change(None, controls, None, js=_script("keepSettings"), **DIRECT)
    # Only where something waits for its end does Gradio's page hold a connection; it tells the guard that it is open.
    page.unload(lambda: None)


def _script(name: str) -> str:
    """JavaScript that calls a function of the page's own script, when that is there."""
    ready = "while (!window.minichat) await new Promise(done => setTimeout(done, 20));"
    return f"async (...values) => {{ {ready} return window.minichat.{name}(...values); }}"


def _buttons(shown: dict[str, bool]) -> str:
    """JavaScript that shows the message box's buttons so."""
    return f"() => ({json.dumps({'__type__': 'update', **shown})})"


# --- Synthetic scenes with a question each, one click away on the page.


SIDE = 256  # pixels


@dataclass(frozen=True)
class Example:
    """A scene, what the page suggests to ask about it, and a word that a right reply holds (None: many are right)."""

    scene: Scene
    question: str
    answer: str | None

    def picture(self) -> Image.Image:
        """The scene, drawn. Always the same picture."""
        return draw(self.scene, SIDE)


def _plain(colour: str) -> Background:
    return Background("plain", (colour,))


EXAMPLES = (
    Example(
        Scene((Thing("heart", "red", "large", 0.5, 0.5, 0.2),), _plain("white")),
        "What is in the picture?",
        "heart",
    ),
    Example(
        Scene(
            (
                Thing("star", "yellow", "large", 0.27, 0.3, 0.17, 12),
                Thing("circle", "orange", "large", 0.7, 0.66, 0.18),
            ),
            _plain("blue"),
        ),
        "What colour is the star?",
        "yellow",
    ),
    Example(
        Scene(
            (
                Thing("circle", "red", "large", 0.24, 0.28, 0.16),
                Thing("circle", "red", "small", 0.27, 0.72, 0.095),
                Thing("circle", "red", "large", 0.76, 0.72, 0.17),
                Thing("square", "black", "small", 0.76, 0.28, 0.095, 8),
            ),
            Background("gradient", ("white", "gray")),
        ),
        "How many circles are there?",
        "three",
    ),
    Example(
        Scene(
            (
                Thing("triangle", "green", "large", 0.27, 0.5, 0.19, 5),
                Thing("ring", "purple", "large", 0.74, 0.5, 0.18),
            ),
            _plain("pink"),
        ),
        "What is to the right of the triangle?",
        "ring",
    ),
    Example(
        Scene(
            (
                Thing("diamond", "blue", "large", 0.5, 0.27, 0.18),
                Thing("cross", "orange", "large", 0.5, 0.74, 0.17, 10),
            ),
            Background("noisy", ("green",)),
        ),
        "What colour is the background?",
        "green",
    ),
    Example(
        Scene(
            (
                Thing("star", "pink", "large", 0.24, 0.26, 0.16, 20),
                Thing("heart", "purple", "small", 0.73, 0.24, 0.1),
                Thing("square", "white", "large", 0.68, 0.7, 0.17, -10),
                Thing("ring", "yellow", "small", 0.25, 0.76, 0.1),
            ),
            Background("gradient", ("black", "blue")),
        ),
        "Describe the picture in detail.",
        None,
    ),
)
