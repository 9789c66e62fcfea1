"""Replies to validation samples before and after a run, and the page that shows them side by side."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.data.example import Example
from minichat.disk import replace_file, told
from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.prompt.conversation import Conversation, Message
from minichat.weights.checksum import KEY, of_facts

if TYPE_CHECKING:
    from PIL import Image

    from minichat.chat import MiniChat

_SIDE = 192  # of a thumbnail, in pixels


def ask(bot: MiniChat, examples: Iterable[Example], max_new_tokens: int) -> list[str]:
    """What the model says to the first question of each; greedy. What goes wrong is said in a reply's place."""
    replies = []
    for example in examples:
        try:
            system, question = _opening(example.conversation())
            chat = bot.chat(conversation=Conversation(system), max_new_tokens=max_new_tokens)
            replies.append(chat.ask(question.text, list(question.pictures)))
        except MiniChatError as error:
            replies.append(f"({error})")
    return replies


def _opening(conversation: Conversation) -> tuple[tuple[Message, ...], Message]:
    system = () if conversation.system is None else (conversation.system,)
    return system, conversation.turns[0]


def keep(path: Path, replies: Sequence[str]) -> None:
    """Put replies away until the run's end. Raises `SettingsError` where the disk does not take them."""
    content = {"replies": list(replies), KEY: of_facts({"replies": list(replies)})}
    with told(path.name, SettingsError):
        replace_file(path, json.dumps(content, indent=1).encode())


def kept(path: Path) -> list[str] | None:
    """The replies that were put away; None where there are none. Raises `ModelError` where the file is damaged."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes().decode())
        if isinstance(content, dict):
            replies, sound = content["replies"], content[KEY] == of_facts({"replies": content["replies"]})
        else:  # as versions before had it
            replies, sound = content, True
        if sound and isinstance(replies, list) and all(isinstance(reply, str) for reply in replies):
            return replies
    except (OSError, ValueError, KeyError, RecursionError):
        pass
    raise ModelError(f"{path.name} is damaged: it is not what was written before training.")


def page(
    out: Path,
    examples: Sequence[Example],
    before: Sequence[str],
    after: Sequence[str],
    facts: Sequence[tuple[str, str]],
    curve: Path,
) -> None:
    """Write a page that holds all it shows: the curve, pictures, questions, replies wanted, before and after."""
    rows = "".join(_row(*row) for row in zip(examples, before, after, strict=True))
    said = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts)
    replace_file(out, _PAGE.format(rows=rows, facts=said, curve=_address(curve.read_bytes(), "png")).encode())


def _row(example: Example, before: str, after: str) -> str:
    conversation = example.conversation()
    _, question = _opening(conversation)
    wanted = conversation.turns[1].text if len(conversation.turns) > 1 else ""
    shown = "".join(f'<img src="{_thumbnail(picture)}" alt="">' for picture in question.pictures)
    asked = html.escape(question.text) or "<i>the picture alone</i>"
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in (wanted, before, after))
    return f"<tr><td>{shown}<p>{asked}</p><small>{html.escape(str(example.where))}</small></td>{cells}</tr>\n"


def _thumbnail(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    return _address(written.getvalue(), "jpeg")


def _address(picture: bytes, form: str) -> str:
    return f"data:image/{form};base64," + base64.b64encode(picture).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Before and after</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1b1b1b }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border: 1px solid #ccc; padding: .6rem; text-align: left; vertical-align: top }}
table.replies td {{ width: 25%; white-space: pre-wrap }}
table.facts {{ width: auto; margin-bottom: 1rem }}
img.curve {{ max-width: 100% }}
td img {{ max-width: 192px; display: block; margin-bottom: .4rem }}
small {{ color: #666 }}
</style></head><body>
<h1>Before and after</h1>
<table class="facts">{facts}</table>
<img class="curve" src="{curve}" alt="loss over the steps">
<h2>Validation samples</h2>
<table class="replies"><tr><th>asked</th><th>wanted</th><th>before</th><th>after</th></tr>
{rows}</table>
</body></html>
"""


def curve(out: Path, metrics: Sequence[dict[str, Any]], terms: Sequence[str] = ()) -> None:
    """Draw the losses over the steps as a PNG: training, each step and smoothed, its terms, and validation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [line for line in metrics if "loss" in line]
    if steps:
        numbers = [line["step"] for line in steps]
        axes.plot(numbers, [line["loss"] for line in steps], color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(numbers, _smoothed(steps), color="tab:blue", label="training")
        for name in terms:
            axes.plot(numbers, _smoothed(steps, name), linewidth=0.9, label=name)
    validated = [line for line in metrics if "validation_loss" in line]
    if validated:
        points = [line["step"] for line in validated], [line["validation_loss"] for line in validated]
        axes.plot(*points, "o-", color="tab:orange", label="validation", markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if metrics:
        axes.legend()
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    replace_file(out, written.getvalue())


def _smoothed(steps: Sequence[dict[str, Any]], name: str = "loss") -> list[float]:
    """Each step's loss of that name with a twentieth of the run before it: batches of like length differ much."""
    window = max(1, len(steps) // 20)
    losses = list(accumulate((line[name] * line["items"] for line in steps), initial=0.0))
    items = list(accumulate((line["items"] for line in steps), initial=0))
    ends = [(max(0, end - window), end) for end in range(1, len(steps) + 1)]
    return [(losses[end] - losses[start]) / (items[end] - items[start]) for start, end in ends]
