"""Two runs side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minichat.disk import new_folder, open_file
from minichat.errors import DataError
from minichat.evaluate.figures import Figure
from minichat.evaluate.report import FORMAT, RESULTS, readable, shown


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
        from minichat.evaluate.plots import plot_two

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
