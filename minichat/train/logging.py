"""What a run tells: metrics, line by line, the summary before it, and the page of replies after it."""

from __future__ import annotations

import base64
import errno
import hashlib
import html
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minichat.data.example import Example
from minichat.device.memory import gib
from minichat.device.placement import look
from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.fileio import disk_errors, replace_file
from minichat.model.loss import ProcessGroup
from minichat.prompt.conversation import Conversation, Message
from minichat.train.config import Config
from minichat.weights.checkpoint_io import KEY, of_facts

if TYPE_CHECKING:
    from PIL import Image

    from minichat.inference.bot import MiniChat


# --- The figures of a run: `metrics.jsonl`, a line for each step, and trackers beside it.
#
# Losses stay on the device until they are asked for: reading one makes the program wait for all that comes before it.


Line = dict[str, float]
Track = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Entry:
    """One step, not yet read from the device. `losses`: this process's share, part by part, each () or (terms,)."""

    step: int
    losses: list[Tensor]
    norm: Tensor
    lr: float
    items: int
    tokens: int
    seconds: float
    """From the end of the step before on; what the device has yet to do is added when it is read."""
    data_seconds: float
    """Of those, spent waiting for the batch."""


class MetricsLogger:
    """Writes what the steps gave, and finds the one whose loss is no number."""

    def __init__(
        self,
        path: Path,
        group: ProcessGroup,
        track: Track,
        *,
        terms: Sequence[str] = (),
        norms_may_overflow: bool = False,
    ) -> None:
        """What is logged.

        Args:
            path: `metrics.jsonl`.
            together: the processes that share a step.
            track: is given each line's figures and its step.
            terms: names of the losses of which a step's is the sum, where there are several.
            norms_may_overflow: with a gradient scaler they do now and then, and such a step is left out.
        """
        self._terms = tuple(terms)
        self._path = path
        self._group = group
        self._track = track
        self._overflow = norms_may_overflow
        self._waiting: list[Entry] = []
        self._recent: list[Line] = []
        self._digest = hashlib.sha256()  # of all lines, written or not
        #: Of the model, forward and backward; 0 where they are not known.
        self.flops_per_token = 0.0
        #: FLOP/s that one device could do, where that is known.
        self.peak_flops: float | None = None
        #: Lines that the disk did not take yet; a checkpoint holds them.
        self.unwritten: list[Line] = []

    def rewind(self, step: int, unwritten: Sequence[Line] = ()) -> list[int]:
        """Forget what was written after `step`: it will be done again.

        `unwritten`: what the checkpoint holds of lines that the disk did not take. Returns the numbers of lines that
        are none, and go too: a torn one, or damaged ones. Raises `SettingsError` where the disk does not take the rest.
        """
        if not self._group.first:
            return []
        found = _lines(self._path)
        kept = [raw for raw, line in found if line is not None and line["step"] <= step]
        content = b"".join(raw + b"\n" for raw in kept) + _spelled(unwritten)
        if self._path.exists() or content:
            with disk_errors(self._path.name, SettingsError):
                replace_file(self._path, content)
        self._digest = hashlib.sha256(content)
        return [number for number, (_, line) in enumerate(found, start=1) if line is None]

    def checksum(self) -> str:
        """SHA-256 of all lines so far."""
        return self._digest.hexdigest()

    def add(self, entry: Entry) -> None:
        self._waiting.append(entry)

    def flush(self, where: Callable[[int], list[list[str]]]) -> None:
        """Read the figures of the steps since the last time from the device, and write them.

        `where` gives the places of a step's rows. Raises `ModelError`, naming those, for a step whose loss or gradient
        is not finite.
        """
        entries, self._waiting = self._waiting, []
        if not entries:
            return
        none = torch.zeros(len(self._terms) or 1, device=entries[0].norm.device)
        local = [sum((part.view(-1) for part in e.losses), none) for e in entries]
        asked = time.monotonic()
        losses = self._group.add(torch.stack(local)).tolist()  # entries × terms
        norms = torch.stack([e.norm for e in entries]).tolist()
        waited = (time.monotonic() - asked) / len(entries)
        lines, wrong = list[Line](), None
        for entry, parts, norm in zip(entries, losses, norms, strict=True):
            loss = sum(parts)
            if not math.isfinite(loss) or not (math.isfinite(norm) or self._overflow):
                wrong = entry, loss
                break
            line = {"step": entry.step, "loss": loss}
            if self._terms:
                line |= zip(self._terms, parts, strict=True)
            line |= {"lr": entry.lr, "grad_norm": norm, "items": entry.items, "tokens": entry.tokens}
            lines.append(line | self._speed(entry, entry.seconds + waited))
        self.write(*lines)
        if wrong is not None:
            raise ModelError(self._culprit(*wrong, where))

    def _speed(self, entry: Entry, seconds: float) -> Line:
        """Times in seconds; of one device FLOP/s, and their share of its peak: model FLOPs utilisation.

        MFU is defined in PaLM (arXiv:2204.02311, appendix B). A token's FLOPs are counted in a trial step, so that
        frozen parts, adapters and kept features cost what they do. Padding is no token.
        """
        line = {"step_time": round(seconds, 6), "data_time": round(entry.data_seconds, 6)}
        if self.flops_per_token:
            speed = self.flops_per_token * entry.tokens / self._group.count / max(seconds, 1e-9)
            line["flops_per_second"] = float(f"{speed:.4g}")
            if self.peak_flops is not None:
                line["mfu"] = float(f"{speed / self.peak_flops:.4g}")
        return line

    def recent(self) -> list[Line]:
        """The steps' lines since this was last asked."""
        lines, self._recent = [line for line in self._recent if "loss" in line], []
        return lines

    def write(self, *lines: Line) -> None:
        """Append lines, and hand their figures to the trackers.

        Raises `SettingsError` where the disk does not take them; they are tried again with the next.
        """
        self._recent += lines
        if not self._group.first:
            return
        self.unwritten += lines
        self._digest.update(_spelled(lines))
        for line in lines:
            self._track({name: value for name, value in line.items() if name != "step"}, int(line["step"]))
        with disk_errors(self._path.name, SettingsError):
            self._append(_spelled(self.unwritten))
        self.unwritten = []

    def _append(self, content: bytes) -> None:
        """All of it or nothing."""
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

    def _culprit(self, entry: Entry, loss: float, where: Callable[[int], list[list[str]]]) -> str:
        # There may be fewer parts than there are of other steps, where records of a stream could not be read.
        places = [
            place
            for some, part in zip(where(entry.step - 1), entry.losses, strict=False)
            if not math.isfinite(part.sum().item())
            for place in some
        ]
        named = self._group.listed(places)
        what = f"The loss is {loss}" if not math.isfinite(loss) else "The gradient is not finite"
        from_there = f", from {named}" if named else ""
        return (
            f"{what} at step {entry.step}{from_there}: the checkpoints are from before it, and "
            "would come to it again. Mend these records or lower optimizer.lr, and begin anew in another out."
        )


def read_metrics(path: Path) -> list[Line]:
    """The lines of a `metrics.jsonl`, without those that are damaged; none where there is no such file."""
    return [line for _, line in _lines(path) if line is not None]


def _lines(path: Path) -> list[tuple[bytes, Line | None]]:
    """Each line as it is, and what it says, or None where it is not what a step wrote."""
    if not path.exists():
        return []
    return [(raw, _parsed(raw)) for raw in path.read_bytes().splitlines()]


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    known = isinstance(line, dict) and all(type(value) in (int, float) for value in line.values())
    whole = known and "step" in line and ("validation_loss" in line or {"loss", "items", "tokens"} <= line.keys())
    return line if whole else None


def _spelled(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


# --- What is said before a run: what trains, on what, for how long.


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def parts(model: nn.Module) -> list[tuple[str, str]]:
    """What trains and what is frozen, with its parameters and precision."""
    trains, frozen = [], []
    for name, part in model.named_children():
        weights = list(part.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        if trained:
            trains.append(_line(name, trained, whole=len(trained) == len(weights)))
        if len(trained) < len(weights):
            frozen.append(_line(name, [w for w in weights if not w.requires_grad], whole=not trained))
    return [("trains", "; ".join(trains)), ("frozen", "; ".join(frozen) or "nothing")]


def _line(name: str, weights: Sequence[nn.Parameter], whole: bool) -> str:
    types = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    # bitsandbytes packs two parameters of 4 bits into a number.
    count = sum(weight.numel() * (2 if type(weight).__name__ == "Params4bit" else 1) for weight in weights)
    return f"{name}{'' if whole else ' in part'} {count:,} ({', '.join(types)})"


def samples(
    facts: Mapping[str, Any], held_out: Mapping[str, Any] | None, padding: float | None
) -> list[tuple[str, str]]:
    """The data set, as its loader knows it."""
    if facts["samples"] is None:
        rows = [("samples", "a stream")]
    else:
        share = facts["supervised_tokens"] / max(1, facts["tokens"])
        rows = [
            ("samples", f"{facts['samples']:,} with {facts['pictures']:,} pictures"),
            ("supervised", f"{facts['supervised_tokens']:,} of {facts['tokens']:,} tokens ({share:.0%})"),
            ("cut", f"{facts['samples_cut']:,} samples are over the length limit: what is beyond it is left out"),
        ]
    if padding is not None:
        rows.append(("padding", f"{padding:.1%} of the positions that are computed"))
    if held_out:
        rows.append(("validation", f"{held_out['samples']:,} samples, {held_out['supervised_tokens']:,} tokens"))
    return rows


def portions(config: Config, steps: int, of_an_epoch: int | None, processes: int, at_once: int) -> tuple[str, str]:
    """The steps, and how one is divided."""
    epochs = ""
    if of_an_epoch is not None:
        passes = f"{steps / of_an_epoch:,.1f}".removesuffix(".0")
        epochs = f" ({passes} epoch{'s' * (passes != '1')} of {of_an_epoch:,})"
    batch = config.run.batch_size
    divided = f"batch {batch} = {processes} process{'es' if processes > 1 else ''}, {at_once} rows at once on each"
    return "steps", f"{steps:,}{epochs}; {divided}"


def memory(expected: int | None, device: torch.device) -> list[tuple[str, str]]:
    """What is expected to be needed, and what is free."""
    if expected is None:
        return []
    name = device.type if device.type == "cpu" else str(device)
    free = look(device).device(name).available
    return [("memory", f"{gib(expected)} expected on {name}, where {gib(free)} are free")]


def duration(seconds: float) -> str:
    """In words, to two places."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def speed(lines: Sequence[Line]) -> str:
    """Of some steps: tokens in a second, a step's time and the share of it that waited for data, and FLOP/s."""
    seconds = max(1e-9, sum(line["step_time"] for line in lines))
    said = [
        f"{sum(line['tokens'] for line in lines) / seconds:,.0f} tokens/s",
        f"{seconds / len(lines):.3g} s/step ({sum(line['data_time'] for line in lines) / seconds:.0%} data)",
    ]
    for name, unit, shown in (("mfu", 1.0, "MFU {:.1%}"), ("flops_per_second", 1e9, "{:,.0f} GFLOP/s")):
        if all(name in line for line in lines):
            mean = sum(line[name] * line["step_time"] for line in lines) / seconds
            return "  ".join([*said, shown.format(mean / unit)])
    return "  ".join(said)


def memory_used(device: torch.device) -> int:
    """The most bytes held at any time so far: on the accelerator, or by this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# --- Replies to validation samples before and after a run, and the page that shows them side by side.


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
    with disk_errors(path.name, SettingsError):
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
