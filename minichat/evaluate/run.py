"""Put a model through the tasks: what is asked, what came of it, the report, and two reports side by side."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from minichat.errors import DataError, SettingsError
from minichat.evaluate.metrics import Figure, Line, Outcome, Results, is_blind, lines, readable
from minichat.evaluate.replies import Exam, Teller, check_batch_size, fingerprint
from minichat.evaluate.tasks import (
    PAIRS,
    REDRAWN,
    RERANKED,
    Finder,
    Gallery,
    OwnCaptions,
    OwnDialogues,
    OwnQuestions,
    Polls,
)
from minichat.fileio import json_line, new_folder, open_file, write_json
from minichat.prompt.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minichat.evaluate.datasets import Files
    from minichat.inference.bot import MiniChat


# --- Figures as pictures, drawn without a display.


_SEEN, _BLANK, _OTHER = "#2f6fb0", "#222222", "#d07a2d"


def plot(path: Path, title: str, lines: Sequence[Line]) -> None:
    """One bar for each share or rate, with its 95 % interval; a mark where the blank picture stands."""
    rows = [line for line in lines if line.seen.kind != "score" and line.seen.value is not None]
    figure, axes = _axes(len(rows), title)
    for place, line in enumerate(rows):
        _bar(axes, place, line.seen, 0.7, _SEEN)
        if line.blank is not None and line.blank.value is not None:
            axes.plot([100 * line.blank.value] * 2, [place - 0.42, place + 0.42], color=_BLANK, linewidth=3)
    axes.plot([], [], color=_BLANK, linewidth=3, label="blank picture")
    _finish(figure, axes, [line.name for line in rows], path)


def plot_two(path: Path, title: str, names: tuple[str, str], rows: Sequence[tuple[str, Figure, Figure]]) -> None:
    """Two runs' bars beside each other."""
    drawn = [row for row in rows if all(f.kind != "score" and f.value is not None for f in row[1:])]
    figure, axes = _axes(1.6 * len(drawn), title)
    for place, (_, first, second) in enumerate(drawn):
        _bar(axes, place - 0.2, first, 0.38, _SEEN)
        _bar(axes, place + 0.2, second, 0.38, _OTHER)
    for name, colour in zip(names, (_SEEN, _OTHER), strict=True):
        axes.barh([], [], color=colour, label=name)
    _finish(figure, axes, [name for name, _, _ in drawn], path)


def _axes(rows: float, title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    figure = Sheet(figsize=(8, 1.2 + 0.28 * max(rows, 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _bar(axes: Any, place: float, figure: Figure, height: float, colour: str) -> None:
    value = 100 * (figure.value or 0.0)
    axes.barh([place], [value], height=height, color=colour)
    if interval := figure.interval():
        reach = [[max(0.0, value - 100 * interval[0])], [max(0.0, 100 * interval[1] - value)]]
        axes.errorbar([value], [place], xerr=reach, color="black", linewidth=1, capsize=2)


def _finish(figure: Any, axes: Any, names: Sequence[str], path: Path) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("per cent")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower right", fontsize="small", ncols=2)
    figure.savefig(path, dpi=120, metadata={"Software": None})


# --- A report: all figures of a run with what they were measured on and with, as JSON, Markdown and plots.


FORMAT = "minichat-evaluation"
RESULTS, TABLE, REPLIES = "results.json", "results.md", "replies.jsonl"


@dataclass
class Report:
    """What a run found.

    `files`: the hashes of a user's; `asked`: a hash of each task's questions; `blind`: headlines that pictures did not
    change.
    """

    model: str
    weights: dict[str, str]
    versions: dict[str, str]
    source: str
    seed: int | None
    count: int | None
    settings: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    blind: list[Line] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    results: list[Results] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(line.task for line in self.lines))

    def to_json(self) -> dict[str, Any]:
        """All but the records."""
        return {
            "format": FORMAT,
            "model": {"name": self.model, "weights": self.weights},
            "versions": self.versions,
            "data": {
                "source": self.source,
                "files": self.files,
                "seed": self.seed,
                "count": self.count,
                "asked": self.asked,
            },
            "settings": self.settings,
            "figures": [
                {"task": line.task, "name": line.name, **_figure(line.seen)}
                | ({"blank": _figure(line.blank)} if line.blank is not None else {})
                for line in self.lines
            ],
            "blind": [f"{line.task}: {line.name}" for line in self.blind],
            "seconds": self.seconds,
        }

    def to_markdown(self) -> str:
        """A table for each task, each figure beside the blank picture's."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        parts = [
            f"# {self.model or 'a model'}",
            f"On {self.source}{seed}; minichat {self.versions['minichat']}. Replies are greedy.",
        ]
        parts += [warning(line) for line in self.blind]
        for task in self.tasks:
            rows = [line for line in self.lines if line.task == task]
            parts += [f"## {task}", "\n".join(table(rows))]
        return readable("\n\n".join(parts) + "\n")

    def write(self, out: Path) -> None:
        """Write all to a new folder, whole or not at all. Raises `DataError` where it is there already."""
        with new_folder(out, DataError) as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write `results.json`, `results.md`, `replies.jsonl` and a plot for each task to a folder.

        Beside them go the replies in the forms of official programs (`minichat.evaluate.metrics`).
        """
        write_json(folder / RESULTS, self.to_json())
        (folder / TABLE).write_text(self.to_markdown(), encoding="utf-8")
        with open(folder / REPLIES, "w", encoding="utf-8") as file:
            for record in self.records:
                file.write(json_line(record) + "\n")
        for found in self.results:
            (folder / found.name(self.model)).write_text(found.text(), encoding="utf-8")
        for task in self.tasks:
            plot(folder / f"{task}.png", task, [line for line in self.lines if line.task == task])


def warning(line: Line) -> str:
    """That the pictures made no difference."""
    blank = shown(line.blank) if line.blank is not None else "–"
    return (
        f"**The pictures make no difference to {line.task}** ({line.name}: {shown(line.seen)}, and {blank} of a blank "
        "picture): what is shown does not reach the model's words."
    )


def table(rows: Iterable[Line]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| | figure | 95 % interval | blank picture | of |"
    yield "|---|---:|---:|---:|---:|"
    for line in rows:
        interval = line.seen.interval()
        reach = f"{interval[0]:.1%} – {interval[1]:.1%}" if interval else ""
        blank = shown(line.blank) if line.blank is not None else ""
        yield f"| {line.name} | {shown(line.seen)} | {reach} | {blank} | {line.seen.count:,} |"


def shown(figure: Figure) -> str:
    """A share or a rate in per cent, a score as it is, a dash where there was nothing to measure."""
    if figure.value is None:
        return "–"
    return f"{figure.value:.2f}" if figure.kind == "score" else f"{figure.value:.1%}"


def _figure(figure: Figure) -> dict[str, Any]:
    interval = figure.interval()
    found: dict[str, Any] = {"value": figure.value, "kind": figure.kind, "count": figure.count}
    return found | ({"interval": list(interval)} if interval else {})


# --- Two runs side by side.


@dataclass(frozen=True)
class Run:
    """What an earlier run wrote."""

    name: str
    model: str
    asked: dict[str, str]
    figures: dict[tuple[str, str], Figure]  # by task and name


@dataclass(frozen=True)
class Comparison:
    """The figures that two runs have in common."""

    first: Run
    second: Run

    @property
    def rows(self) -> list[tuple[str, str, Figure, Figure]]:
        """Task, name, and the two figures."""
        second = self.second.figures
        return [(*key, figure, second[key]) for key, figure in self.first.figures.items() if key in second]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, *_ in self.rows))

    def to_markdown(self) -> str:
        """A table for each task. A star marks a difference whose 95 % intervals do not touch."""
        first, second = _names(self)
        parts = [f"# {first} and {second}"]
        for task in self.tasks:
            parts.append(f"## {task}")
            if self.first.asked.get(task) != self.second.asked.get(task):
                parts.append("The two were asked different questions.")
            rows = [f"| | {first} | {second} | difference |", "|---|---:|---:|---:|"]
            for _, name, a, b in (row for row in self.rows if row[0] == task):
                rows.append(f"| {name} | {shown(a)} | {shown(b)} | {_difference(a, b)} |")
            parts.append("\n".join(rows))
        return "\n\n".join(parts) + "\n"

    def write(self, out: Path) -> None:
        """Write `compare.md` and a plot for each task to a new folder. Raises `DataError` where it is there already."""
        with new_folder(out, DataError) as folder:
            (folder / "compare.md").write_text(self.to_markdown(), encoding="utf-8")
            for task in self.tasks:
                rows = [(name, a, b) for where, name, a, b in self.rows if where == task]
                plot_two(folder / f"{task}.png", task, _names(self), rows)


def compare(first: Path, second: Path) -> Comparison:
    """Read two folders that runs wrote. Raises `DataError` for one that is no such folder, or where nothing is common
    to both."""
    comparison = Comparison(_read(first), _read(second))
    if not comparison.rows:
        raise DataError(f"{first.name!r} and {second.name!r} have no figure in common: compare runs of the same task.")
    return comparison


def _read(folder: Path) -> Run:
    path = folder / RESULTS if folder.is_dir() else folder
    try:
        with open_file(path) as file:
            content: Any = json.loads(file.read().decode("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError
        figures = {(f["task"], f["name"]): Figure(f["value"], f["count"], f["kind"]) for f in content["figures"]}
        return Run(folder.name, content["model"]["name"], content["data"]["asked"], figures)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{folder.name!r} holds no {RESULTS} of a run: name the folder that --out made.") from None


def _names(comparison: Comparison) -> tuple[str, str]:
    """The models' names; the folders', where the models have the same."""
    first, second = comparison.first, comparison.second
    names = (first.model, second.model) if first.model != second.model else (first.name, second.name)
    return readable(names[0]), readable(names[1])


def _difference(a: Figure, b: Figure) -> str:
    if a.value is None or b.value is None:
        return "–"
    step = b.value - a.value
    text = f"{step:+.2f}" if a.kind == "score" else f"{100 * step:+.1f} points"
    one, other = a.interval(), b.interval()
    apart = one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])
    return text + (" *" if apart else "")


# --- Put a model through the tasks: what is asked, what came of it, and what it was measured with.


CHAT_TASKS = ("questions", "captions", "hallucination", "dialogue", "pairs", "stories", "outside")
TASKS = (*CHAT_TASKS, "wordings", "retrieval")
SCENES = 2000
WORDED = 500  # in people's words, unless another number is asked for: each is asked about in many ways
BLANK_SCENES = 500  # of them are asked about with blank pictures, too: what is guessed takes no more to tell
MOST = 1_000_000  # scenes; more is a slip of the keyboard

#: Where each task on held-out scenes is; it is imported when it is asked for.
OF_SCENES = {
    "questions": "minichat.toy.evaluate:SceneQuestions",
    "captions": "minichat.toy.evaluate_captions:SceneCaptions",
    "hallucination": "minichat.toy.evaluate_captions:polls_about_scenes",
    "dialogue": "minichat.toy.evaluate:SceneDialogues",
    "pairs": "minichat.toy.evaluate:ScenePairs",
    "stories": "minichat.toy.evaluate_captions:SceneStories",
    "outside": "minichat.toy.off_distribution:SceneOutside",
    "wordings": "minichat.toy.evaluate_captions:SceneWordings",
}
OF_PICTURES = "minichat.toy.off_distribution:OwnOutside"  # a user's pictures, none of which is of the synthetic world
GALLERY = "minichat.toy.evaluate_captions:gallery_of_scenes"  # held-out scenes to retrieve

Progress = Callable[[str, int], None]  # the task, and how many questions of it are answered


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Raises `SettingsError`, which names the field, for a task or a number that cannot be.
    """

    tasks: tuple[str, ...] = CHAT_TASKS
    count: int | None = None  # scenes (default 2,000; 1,000 to retrieve), or records of a file (default all)
    seed: int = 0  # of the held-out scenes
    batch_size: int = 32
    blank: bool = True  # ask everything of a blank picture, too
    prompt: str | None = None  # of a user's captions and questions
    candidates: tuple[str, ...] = ()  # of a user's questions: the answers of which the likeliest is taken
    reranked: int = RERANKED  # how many candidates a search matches
    redrawn: int = REDRAWN  # how many of the scenes are drawn by another program, too, and asked about

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise SettingsError(f"There is no task {task!r}: there are {', '.join(TASKS)}.")
        if self.count is not None and not 1 <= self.count <= MOST:
            raise SettingsError(f"count is {self.count}; it must be from 1 to {MOST:,}.")
        check_batch_size(self.batch_size)
        for name, value in (("reranked", self.reranked), ("redrawn", self.redrawn)):
            if value < 0:
                raise SettingsError(f"{name} is {value}; it must be 0 or more.")

    def scenes(self, task: str, most: int = MOST) -> Exam:
        """The exam of a chat's task on held-out scenes, `most` of them at most."""
        count = min(self.count or SCENES, most)
        if task == "wordings":
            count = min(count, self.count or WORDED)
        more = (self.redrawn,) if task == "questions" else ()
        exam: Exam = resolve_name(OF_SCENES[task])(count, self.seed, *more)
        return exam

    def own(self, task: str, files: Files, caption: str = Template.caption) -> Exam:
        """The exam of a chat's task on a user's files. `caption`: what asks for one where the plan does not say.

        Raises `DataError`, and `SettingsError` for stories, and for a prompt that leaves out the questions.
        """
        if task == "captions":
            return OwnCaptions(files.captions(), caption if self.prompt is None else self.prompt)
        if task in ("questions", "pairs"):
            if self.prompt and "{question}" not in self.prompt:
                raise SettingsError(f"prompt is {self.prompt!r}: say where in it the {{question}} is to stand.")
            return OwnQuestions(files.questions(), self.prompt, self.candidates)
        if task == "hallucination":
            return Polls(files.polls())
        if task == "dialogue":
            return OwnDialogues(files.dialogues())
        if task == "outside":
            outside: Exam = resolve_name(OF_PICTURES)(files.pictures())
            return outside
        raise SettingsError(f"{task} are measured on scenes alone: leave out --data.")


def evaluate(
    bot: MiniChat,
    plan: Plan = Plan(),
    files: Files | None = None,
    *,
    source: str | None = None,
    progress: Progress = lambda task, answered: None,
) -> Report:
    """Put a bot through the tasks of a plan, on held-out scenes or on a user's files.

    Args:
        source: what the bot was loaded from, for the hashes of its weights; default: its name.

    Raises SettingsError for a task that a chat has not, DataError for files that cannot be used, ImageError for a
    picture that cannot be opened.
    """
    if "retrieval" in plan.tasks:
        raise SettingsError("To retrieve takes a Q-Former as stage 1 leaves it, not a chat model.")
    own = (
        {} if files is None else {task: plan.own(task, files, bot.caption_prompt) for task in plan.tasks}
    )  # all is read before it is asked
    report = _report(bot.name, source or bot.name, bot.model, plan, files)
    for task in plan.tasks:
        exam = own.get(task) or plan.scenes(task)
        blank = own.get(task) or plan.scenes(task, BLANK_SCENES)

        def take(blind: bool, task: str = task, exam: Exam = exam, blank: Exam = blank) -> Outcome:
            def told(answered: int) -> None:
                progress(task, answered)

            teller = Teller(bot, batch_size=plan.batch_size, blind=blind, progress=told)
            return (blank if blind else exam).take(teller)

        _take(report, task, fingerprint(exam), take, plan.blank)
    return report


def search(finder: Finder, source: str, plan: Plan, files: Files | None = None) -> Report:
    """Put a model that can retrieve, loaded from `source`, through retrieval: on scenes or on a user's captions."""
    if files is None:
        gallery: Gallery = resolve_name(GALLERY)(plan.count or PAIRS, plan.seed, plan.reranked)
    else:
        from minichat.evaluate.datasets import as_gallery

        gallery = as_gallery(files.captions(), plan.reranked)
    report = _report(Path(source).name, source, finder.reader.model, plan, files)
    _take(report, "retrieval", fingerprint(gallery), lambda blind: gallery.search(finder, blind), plan.blank)
    return report


def _take(report: Report, task: str, asked: str, take: Callable[[bool], Outcome], blank: bool) -> None:
    start = time.monotonic()
    seen = take(False)
    blind = take(True) if blank else None
    found = lines(task, seen.figures, blind.figures if blind else None)
    report.lines += found
    report.records += [{"task": task, **record} for record in seen.records]
    report.results += seen.results
    report.asked[task] = asked
    report.seconds[task] = round(time.monotonic() - start, 1)
    report.blind += [line for line in found if line.name == seen.headline and is_blind(line)]


def _report(name: str, loaded: str, model: PreTrainedModel, plan: Plan, files: Files | None) -> Report:
    source = "held-out scenes" if files is None else ", ".join(path.name for path in files.data)
    return Report(
        model=name,
        weights=weights_of(loaded),
        versions=versions(),
        source=source,
        files={} if files is None else {path.name: _digest(path) for path in files.data if path.is_file()},
        seed=plan.seed if files is None else None,
        count=plan.count,
        settings={
            "batch_size": plan.batch_size,
            "prompt": plan.prompt,
            "reranked": plan.reranked,
            "redrawn": plan.redrawn,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        },
    )


def versions() -> dict[str, str]:
    """Of all that a figure may hang on."""
    from minichat import __version__

    names = ("torch", "transformers", "tokenizers", "sentencepiece", "numpy", "pillow", "torchmetrics")
    return {"minichat": __version__, "python": platform.python_version()} | {n: metadata.version(n) for n in names}


def weights_of(name: str) -> dict[str, str]:
    """The SHA-256 of each file of weights that the model of this name has; nothing for one that was made in memory."""
    from minichat.errors import ModelError
    from minichat.weights.hub import is_projection
    from minichat.weights.projection import TENSORS, read_projection
    from minichat.weights.registry import find

    try:
        folder = find(name)
    except ModelError:
        return {}
    if is_projection(folder):
        base = read_projection(folder).base_folder()
        return {TENSORS: _digest(folder / TENSORS)} | {f"{base.name}/{k}": v for k, v in _digests(base).items()}
    return _digests(folder)


def _digests(folder: Path) -> dict[str, str]:
    from minichat.weights.hub import weight_files

    beside = [path.name for path in folder.glob("stage1.safetensors")]
    return {file: _digest(folder / file) for file in [*weight_files(folder), *beside] if (folder / file).is_file()}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
