"""A report: all figures of a run with what they were measured on and with, as JSON, Markdown and plots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minichat.disk import json_line, new_folder, write_json
from minichat.errors import DataError
from minichat.evaluate.figures import Figure, Line
from minichat.evaluate.results import Results

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

        Beside them go the replies in the forms of official programs (`minichat.evaluate.results`).
        """
        from minichat.evaluate.plots import plot

        write_json(folder / RESULTS, self.to_json())
        (folder / TABLE).write_text(self.to_markdown(), encoding="utf-8")
        with open(folder / REPLIES, "w", encoding="utf-8") as file:
            for record in self.records:
                file.write(json_line(record) + "\n")
        for found in self.results:
            (folder / found.name(self.model)).write_text(found.text(), encoding="utf-8")
        for task in self.tasks:
            plot(folder / f"{task}.png", task, [line for line in self.lines if line.task == task])


def readable(text: str) -> str:
    """`text` with what is no character escaped: a file's name may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


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
