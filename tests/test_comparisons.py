"""The papers' comparisons: arms differ in what is compared alone, what is done is not done again, and the table holds
what the reports say. Nothing is trained here."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluate_tellers import Oracle

from benchmarks.arms import Comparison, carry_out, training
from benchmarks.comparison_table import columns, measured
from benchmarks.comparisons import COMPARISONS, PORTIONS, SHARES, compare, examples, main
from minichat.errors import SettingsError
from minichat.evaluate.metrics import Outcome, lines
from minichat.evaluate.run import REPLIES, RESULTS, Plan, Report
from minichat.fileio import write_json
from minichat.toy.captions import story
from minichat.toy.evaluate_captions import gallery_of_scenes
from minichat.train.config import Config, read_config
from minichat.train.yaml_config import plain

STEPS, COUNT = 40, 6
TRAINED = [name for name, (_, steps, _) in COMPARISONS.items() if steps]


@pytest.fixture
def road(tmp_path: Path) -> Path:
    (tmp_path / "road").mkdir()
    return tmp_path / "road"


def made(name: str, road: Path, steps: int = STEPS) -> Comparison:
    return COMPARISONS[name][0](road, road.parent / "out" / name, steps, COUNT)


def trainings(comparison: Comparison) -> list[Config]:
    """The last training of each arm, as the trainer would read it."""
    found = []
    for arm in comparison.arms:
        words = [command.words for command in arm.commands if command.words[0] == "train"][-1]
        found.append(read_config(words[1], words[2:]))
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: found for part, item in inner for key, found in flat(item, f"{name}.{part}").items()}
    return {name.removeprefix("."): value}


def differing(configs: Sequence[Config]) -> set[str]:
    held = [flat(plain(config)) for config in configs]
    return {key for some in held for key in some if any(other.get(key) != some[key] for other in held)} - {"out"}


# --- what is run


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("objectives", {"qformer.objectives.1", "qformer.objectives.2"}),
        ("qformer", {"model.name"}),
        ("data", {f"data.train.{number}.options.examples" for number in (0, 1)}),
    ],
)
def test_arms_differ_in_what_is_compared_alone(name: str, compared: set[str], road: Path) -> None:
    assert differing(trainings(made(name, road))) == compared


def test_at_each_number_of_steps_two_beginnings_are_compared(road: Path) -> None:
    configs = trainings(made("stage1", road))
    steps = [STEPS // part for part in PORTIONS]
    assert [config.run.max_steps for config in configs] == steps * 2
    for number in range(len(PORTIONS)):
        assert differing([configs[number], configs[number + len(PORTIONS)]]) == {"model.name"}


@pytest.mark.parametrize("name", COMPARISONS)
def test_all_arms_are_asked_the_same(name: str, road: Path) -> None:
    asked = []
    for arm in made(name, road).arms:
        words = [command.words for command in arm.commands if command.words[0] == "evaluate"]
        asked.append([[w for w in some if not w.startswith(str(road.parent))] for some in words])
    without = [[[w for w in some if w not in ("--rerank", "0")] for some in arm] for arm in asked]
    assert all(arm == without[0] for arm in without)
    assert name == "objectives" or asked == without or all(arm == asked[0] for arm in asked)


def test_no_two_commands_make_one_folder(road: Path) -> None:
    for name in COMPARISONS:
        words: dict[Path, tuple[str, ...]] = {}
        for arm in made(name, road).arms:
            for command in arm.commands:
                assert words.setdefault(command.out, command.words) == command.words
                assert any(str(command.out) in word for word in command.words)


def test_a_shorter_run_is_shorter_in_all_that_is_counted(tmp_path: Path) -> None:
    there = read_config("train_configs/tiny/0b_language.yaml")
    whole = there.run.max_steps or 0

    def asked(steps: int) -> Config:
        words = training("0b_language", tmp_path, steps).words
        return read_config(words[1], words[2:])

    assert differing([there, asked(whole)]) <= {"run.save_every"}
    half = asked(whole // 2)
    assert half.optimizer.warmup_steps * 2 == there.optimizer.warmup_steps
    for source, shorter in zip(there.data.train, half.data.train, strict=True):
        assert shorter.options["easy"] * 2 == source.options["easy"] > 0


def test_shares_of_the_examples(road: Path) -> None:
    assert [examples(4800, share) for share in SHARES] == [480, 1440, 2400, 4800]
    assert examples(5, 10) == 1
    found = trainings(made("data", road))
    assert [config.data.train[0].options["examples"] for config in found] == [64, 192, 320, 640]  # of 40 × 16


# --- what is done, and what came of it


class Known:
    """A finder to whom each picture's text is the nearest."""

    def compare(self, pictures: Sequence[object], texts: Sequence[str]) -> Known:
        self.size = len(texts)
        return self

    def similarity(self) -> torch.Tensor:
        return torch.eye(self.size)

    def match(self, pictures: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        same = (pictures == texts).float()
        return torch.stack([-same, same], dim=1)


def taken(task: str, silent: bool) -> Outcome:
    """What comes of replies that are true, or empty."""
    if task == "retrieval":
        return gallery_of_scenes(COUNT).search(Known())
    exam: Any = Plan((task,), redrawn=0, count=COUNT).scenes(task)
    if task == "questions":
        truth = {(asked.scene, asked.question.text): asked.question.reply for asked in exam.asked}
    elif task == "captions":
        truth = {(want.scene, want.request): want.references[0] for want in exam.wanted}
    else:
        truth = {(scene, request): story(scene, random.Random(0)) for scene, request in exam.wanted}
    return exam.take(Oracle(lambda ask: "" if silent else truth[ask.pictures[0].scene, ask.text]))


class Runner:
    """Does at once what `minichat` would, for models whose folder's name or place is `silent` badly, for others well.

    `stop`: so many commands are done; the next is stopped by SIGTERM.
    """

    def __init__(self, silent: str = "?", stop: int | None = None) -> None:
        self.ran: list[tuple[str, ...]] = []
        self._silent, self._stop = silent, stop

    def __call__(self, words: Sequence[str]) -> int:
        self.ran.append(tuple(words))
        if self._stop is not None and len(self.ran) > self._stop:
            return 143
        if words[0] == "train":
            out = Path(read_config(words[1], words[2:]).out)
        else:
            out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True)
        if words[0] != "evaluate":
            write_json(out / "config.json", {})
            return 0
        task, model = words[1], words[words.index("--model") + 1]
        seen = taken(task, self._silent in model)
        blank = None if "--no-blank" in words else taken(task, True).figures
        report = Report("model", {}, {}, "scenes", 0, COUNT, {}, lines=lines(task, seen.figures, blank))
        write_json(out / RESULTS, report.to_json())
        records = (json.dumps({"task": task, **record}) + "\n" for record in seen.records)
        (out / REPLIES).write_text("".join(records))
        return 0


def again(name: str, road: Path, run: Runner, **options: Any) -> str:
    steps = STEPS if name in TRAINED else None
    return compare(name, road, road.parent / "out", **{"steps": steps, "count": COUNT, **options}, run=run)


@pytest.mark.parametrize("name", COMPARISONS)
def test_each_figure_is_one_that_an_evaluation_gives(name: str, road: Path) -> None:
    comparison = made(name, road)
    carry_out(comparison.arms, Runner())
    found = measured(comparison)
    assert all(figure.value is not None and figure.count for _, figures in found for figure in figures.values())
    assert set(comparison.plotted) <= set(columns(found))


def test_the_table_says_what_the_reports_say(road: Path) -> None:
    shown = again("finetuning", road, Runner(silent="3_alignment"))
    rows = {row.split(" | ")[0].strip("| "): row for row in shown.splitlines() if row.startswith("| ")}
    for what in ("short captions", "detailed captions", "stories"):
        assert rows[f"{what}, before"] == f"| {what}, before | 100.0 % | 100.0 % | 100.0 % | 0.0 % |"
        assert rows[f"{what}, after"] == f"| {what}, after | 0.0 % | 0.0 % | 0.0 % | 0.0 % |"
    out = road.parent / "out"
    assert (out / "finetuning.md").read_text() == shown
    assert (out / "finetuning.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((out / "finetuning.json").read_text())["rows"][0]["figures"]
    low, high = figures["fail"].pop("interval")
    assert figures["fail"] == {"value": 1.0, "count": COUNT}
    assert 0.5 < low < high == pytest.approx(1)


def test_each_way_of_retrieval_is_a_row_and_what_was_not_learnt_is_none(road: Path) -> None:
    shown = again("objectives", road, Runner())
    rows = [row.split(" | ")[0].removeprefix("| ") for row in shown.splitlines() if row.startswith("| ")][1:]
    assert [row.partition("; ")[2] for row in rows] == ["by contrast", "re-ranked"] * 2 + ["by contrast"]
    assert not any("matching; re-ranked" in row for row in rows if row.startswith("without matching"))


def test_what_is_finished_is_not_done_again(road: Path) -> None:
    first, second, third = Runner(), Runner(), Runner()
    shown = again("qformer", road, first)
    assert len(first.ran) == len(set(first.ran)) == 3 * 3 + 1
    assert again("qformer", road, second) == shown
    assert second.ran == []
    lost = road.parent / "out" / "qformer" / "none" / "questions"
    (lost / RESULTS).unlink()
    (lost / REPLIES).unlink()
    lost.rmdir()
    again("qformer", road, third)
    assert [words[:2] for words in third.ran] == [("evaluate", "questions")]


def test_what_was_cut_off_goes_on(road: Path) -> None:
    stopped, next_time = Runner(stop=1), Runner()
    with pytest.raises(SystemExit) as caught:
        again("data", road, stopped)
    assert caught.value.code == 143
    assert not list((road.parent / "out").glob("data.*"))
    again("data", road, next_time)
    assert next_time.ran[0] == stopped.ran[-1]  # the same command, which is how a training goes on
    assert stopped.ran[0] not in next_time.ran


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2 * STEPS}, "with steps 40, but 80 is asked for"),
        ({"count": 7}, "with count 6, but 7 is asked for"),
        ({"steps": 0}, "--steps is 0"),
        ({"count": 0}, "--count is 0"),
    ],
)
def test_arms_that_are_not_alike_do_not_come_into_one_table(options: dict[str, int], message: str, road: Path) -> None:
    again("qformer", road, Runner())
    run = Runner()
    with pytest.raises(SettingsError, match=message):
        again("qformer", road, run, **options)
    assert run.ran == []


def test_what_is_asked_wrongly_is_told(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="trains nothing"):
        compare("finetuning", road, road.parent / "out", steps=5, run=Runner())
    with pytest.raises(SystemExit, match="There is no road"):
        main(["data", "--road", str(road / "none"), "--out", str(road.parent / "out")])
    assert capsys.readouterr().out == ""
