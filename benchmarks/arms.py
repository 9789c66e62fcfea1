"""The arms of a comparison: what is trained, made and measured for each, and where its figures are.

An arm is a row of `minichat` commands, each of which makes one folder. What is made already is not made again, and a
training that was cut off goes on.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minichat.errors import DataError, SettingsError
from minichat.evaluate.metrics import Figure, share
from minichat.evaluate.run import REPLIES, RESULTS
from minichat.fileio import write_json
from minichat.toy.evaluate import held_out_scene
from minichat.train.config import read_config

CONFIGS = Path("train_configs/tiny")
SAVE_EVERY = 100  # steps: what a run that is cut off loses at most
PLAN = "plan.json"
MADE = ("config.json", "minichat.json", RESULTS)  # what a model's, a projection's and a report's folder hold last

Runner = Callable[[Sequence[str]], int]  # the words of a command after `minichat` → its exit code


@dataclass(frozen=True)
class Command:
    """The words of a command after `minichat`, and the folder that it makes."""

    words: tuple[str, ...]
    out: Path

    @property
    def done(self) -> bool:
        return any((self.out / name).is_file() for name in MADE)

    def __str__(self) -> str:
        return shlex.join(("minichat", *self.words))


def training(config: str, out: Path, steps: int, *settings: str) -> Command:
    """A stage of the road with other settings: of `steps` steps, and what its schedule counts in steps or examples (the
    warm-up, the easy beginning) in proportion."""
    file = CONFIGS / f"{config}.yaml"
    there = read_config(file)
    of = steps / (there.run.max_steps or steps)
    scaled = [f"optimizer.warmup_steps={round(of * there.optimizer.warmup_steps)}"]
    for number, source in enumerate(there.data.train):
        if easy := source.options.get("easy"):
            scaled.append(f"data.train.{number}.options.easy={round(of * easy)}")
    own = (f"out={out}", f"run.max_steps={steps}", f"run.save_every={SAVE_EVERY}", *scaled)
    return Command(("train", str(file), *own, *settings), out)


def before_the_llm(qformer: Path, road: Path, out: Path, *options: str) -> Command:
    """Put a vision side before the road's LLM, with a random projection, always the same."""
    llm = ("--llm", str(road / "0m_language"), "--template", "minigpt-v2", "--tidy", "--merge")
    return Command(("convert", "--blip2", str(qformer), *options, *llm, "--out", str(out)), out)


def anew(road: Path, out: Path) -> tuple[Command, Command]:
    """The road's Q-Former as both stages of BLIP-2 left it, with a random projection."""
    whole = out / "exported"
    export = Command(("export", str(road / "2b_generative"), "--format", "blip2", "--out", str(whole)), whole)
    return export, before_the_llm(whole, road, out / "begin")


def exam(task: str, model: Path, count: int, *options: str) -> Command:
    """A report on `count` held-out scenes, beside the model."""
    out = report(task, model)
    words = ("evaluate", task, "--model", str(model), "--count", str(count), *options, "--out", str(out))
    return Command(words, out)


def report(task: str, model: Path) -> Path:
    return model.parent / task


class Reading(Protocol):
    """Where a figure is to be read once an arm is measured."""

    def read(self) -> Figure:
        """Raises `DataError` for a report that is damaged."""
        ...


@dataclass(frozen=True)
class Reported:
    """A figure of a report, by its task and name; `blank`: what the same questions gave with blank pictures.

    A report leaves out figures for which nothing was there to be measured.
    """

    report: Path
    task: str
    name: str
    blank: bool = False

    def read(self) -> Figure:
        for found in _json(self.report / RESULTS)["figures"]:
            if (found["task"], found["name"]) == (self.task, self.name):
                found = found["blank"] if self.blank else found
                return Figure(found["value"], found["count"], found["kind"])
        return Figure(None, 0)


@dataclass(frozen=True)
class Counted:
    """The share of a report's replies of which something is so: of `task`, and of one `style` where it has several."""

    report: Path
    task: str
    style: str | None
    so: Callable[[dict[str, Any]], bool]

    def read(self) -> Figure:
        lines = (self.report / REPLIES).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return share(self.so(r) for r in records if r["task"] == self.task and r.get("style") == self.style)


def fails(record: dict[str, Any]) -> bool:
    """Whether a caption or a story is empty, does not end, or says a sentence twice."""
    return bool(record["fails"])


def names_nothing(record: dict[str, Any]) -> bool:
    """Whether a caption or a story of a held-out scene (of seed 0) names no object that is there."""
    scene, _ = held_out_scene(record["picture"])
    return bool(record["missed"] == len(scene.things))


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, and where the figure of each column is. In a plot it stands at `x`, on the line of
    `series`."""

    name: str
    figures: dict[str, Reading]
    x: float | None = None
    series: str = ""


@dataclass(frozen=True)
class Arm:
    name: str
    commands: tuple[Command, ...]

    @property
    def done(self) -> bool:
        return all(command.done for command in self.commands)


@dataclass(frozen=True)
class Comparison:
    """`plotted`: the columns that the plot shows; `axis`: what the rows' `x` is."""

    name: str
    title: str
    arms: Sequence[Arm]
    rows: Sequence[Row]
    plotted: tuple[str, ...]
    axis: str = ""


def run_minichat(words: Sequence[str]) -> int:
    """A command in this process: to begin one takes longer than many of them. Its table goes to stderr."""
    import typer

    from minichat.cli import app

    with contextlib.redirect_stdout(sys.stderr):
        try:
            return app(list(words), prog_name="minichat", standalone_mode=False) or 0
        except typer.Abort:
            return 128 + signal.SIGINT


def carry_out(arms: Sequence[Arm], run: Runner = run_minichat, say: Callable[[str], None] = lambda text: None) -> None:
    """Make what is not made yet. Raises `SystemExit`, with its code, after a command that failed or was stopped."""
    for arm in arms:
        if arm.done:
            say(f"{arm.name}: is here already.")
            continue
        for command in arm.commands:
            if command.done:
                continue
            say(f"{arm.name}: {command}")
            if code := run(command.words):
                raise SystemExit(code)


def keep_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write down what a comparison's folder is made with. Raises `SettingsError` where it was made with something else:
    arms that are not alike must not come into one table."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).is_file():
        for key, before in _json(out / PLAN).items():
            if plan.get(key) != before:
                raise SettingsError(
                    f"{out.name!r} holds arms with {key} {before!r}, but {plan.get(key)!r} is asked for: give another "
                    "--out, or remove the folder."
                )
    write_json(out / PLAN, plan)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{str(path)!r} cannot be read: remove its folder, and the command makes it again.") from None
