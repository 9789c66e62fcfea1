"""What a run says and leaves behind: table, progress, metrics, curve, page, and a folder that opens."""

from __future__ import annotations

import html
import json
import math
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.errors import ModelError, SettingsError
from minichat.model.loss import ProcessGroup
from minichat.train import logging
from minichat.train.config import ModelConfig, read_config
from minichat.train.logging import Entry, MetricsLogger, read_metrics
from minichat.train.setup import save_memory
from minichat.train.trainer import flops_of, train
from minichat.train.yaml_config import plain
from tests.tiny import noise_picture, tiny_bot
from tests.training import config_of, make_desk, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def finished(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run with everything on, and what it said."""
    out, said = tmp_path_factory.mktemp("finished") / "run", list[str]()
    settings = [f"data.validation={desk / 'held_out.jsonl'}", "report.samples=3", "report.tensorboard=true"]
    train(config_of(desk, f"out={out}", *settings, "report.log_every=5"), say=said.append)
    return out, said


# --- what is said


def test_the_table_tells_what_is_about_to_happen(finished: tuple[Path, list[str]]) -> None:
    table = dict(re.findall(r"^  (\w+) +(.+)$", finished[1][0], re.M))
    assert re.fullmatch(r"projection 1,000 \(float32\)", table["trains"])
    assert table["frozen"].count("(float32)") == 3
    assert table["samples"] == "18 with 18 pictures"
    assert re.fullmatch(r"\d+ of [\d,]+ tokens \(\d+%\)", table["supervised"])
    assert table["cut"].startswith("0 samples")
    assert table["validation"].startswith("5 samples")
    assert table["steps"] == "20 (4 epochs of 5); batch 4 = 1 process, 4 rows at once on each"
    assert re.match(r"[\d.]+ GiB expected on cpu, where [\d.]+ GiB are free", table["memory"])
    assert re.fullmatch(r"Training takes about \d+ s, from a trial\.", finished[1][1])


def test_progress_has_its_figures(finished: tuple[Path, list[str]]) -> None:
    lines = [line for line in finished[1] if line.startswith("step 5/") and "validation" not in line]
    assert re.fullmatch(_PROGRESS, lines[0]), lines


_PROGRESS = (
    r"step 5/20  loss \d+\.\d{4}  lr \S+  [\d,]+ tokens/s  \S+ s/step \(\d+% data\)  [\d,]+ GFLOP/s  "
    r"[\d.]+ GiB  \d+ s left"
)
_FIGURES = {
    "step", "loss", "lr", "grad_norm", "items", "tokens", "step_time", "data_time", "flops_per_second",
}  # fmt: skip


def test_all_steps_are_in_the_metrics(finished: tuple[Path, list[str]]) -> None:
    lines = read_metrics(finished[0] / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert all(line.keys() == _FIGURES for line in steps)
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "3 s"), (89, "89 s"), (600, "10 min"), (5399, "90 min"), (7200, "2.0 h"), (10**6, "277.8 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert logging.duration(seconds) == said


def test_parts_in_which_something_trains() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(3, 1)})
    model["a"].bias.requires_grad_(False)
    model["b"].requires_grad_(False)
    rows = dict(logging.parts(model))
    assert rows["trains"] == "a in part 6 (float32)"
    assert rows["frozen"] == "a in part 3 (float32); b 4 (float32)"


# --- metrics


def entry(step: int, *losses: float, norm: float = 1.0) -> Entry:
    return Entry(step, [torch.tensor(loss) for loss in losses], torch.tensor(norm), 1e-3, 7, 9, 0.5, 0.125)


def metrics_logger(path: Path, **options: Any) -> tuple[MetricsLogger, list[Any]]:
    tracked: list[Any] = []
    return MetricsLogger(
        path, ProcessGroup(0, 1), lambda figures, step: tracked.append((step, dict(figures))), **options
    ), tracked


def where(step: int) -> list[list[str]]:
    return [[f"a.jsonl:{10 * step + part}"] for part in range(2)]


def test_a_loss_of_several_terms_tells_each(tmp_path: Path) -> None:
    kept, _ = metrics_logger(tmp_path / "metrics.jsonl", terms=("itc", "itm"))
    halves = [torch.tensor([0.5, 0.25]), torch.tensor([1.0, 0.5])]
    kept.add(Entry(1, halves, torch.tensor(1.0), 1e-3, 7, 9, 0.5, 0.125))
    kept.flush(where)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (line["loss"], line["itc"], line["itm"]) == (2.25, 1.5, 0.75)
    kept.add(Entry(2, [torch.tensor([0.5, math.nan])], torch.tensor(1.0), 1e-3, 7, 9, 0.5, 0.125))
    with pytest.raises(ModelError, match=r"The loss is nan at step 2, from a\.jsonl:10"):
        kept.flush(where)


def test_a_steps_loss_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    kept, tracked = metrics_logger(tmp_path / "metrics.jsonl")
    kept.add(entry(1, 0.5, 0.25))
    kept.add(entry(2))
    kept.flush(where)
    assert [line["loss"] for line in kept.recent()] == [0.75, 0.0]
    kept.flush(where)
    assert kept.recent() == []
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line.pop("step_time") == pytest.approx(0.5, abs=0.4)  # and what it took to read it
    assert line == {
        "step": 1, "loss": 0.75, "lr": 1e-3, "grad_norm": 1.0, "items": 7, "tokens": 9, "data_time": 0.125,
    }  # fmt: skip
    assert [(step, figures["loss"]) for step, figures in tracked] == [(1, 0.75), (2, 0.0)]


def test_of_flops_the_share_of_the_peak_is_told(tmp_path: Path) -> None:
    kept, _ = metrics_logger(tmp_path / "metrics.jsonl")
    kept.flops_per_token, kept.peak_flops = 6e9, 1e12
    kept.add(entry(1, 1.0))
    kept.flush(where)
    (line,) = kept.recent()
    assert line["flops_per_second"] == pytest.approx(6e9 * 9 / line["step_time"], rel=1e-3)
    assert line["mfu"] == pytest.approx(line["flops_per_second"] / 1e12, rel=1e-2)
    assert re.fullmatch(r"\d+ tokens/s  0\.\d+ s/step \(\d+% data\)  MFU \d+\.\d%", logging.speed([line]))
    del line["mfu"]
    assert logging.speed([line]).endswith(f"  {line['flops_per_second'] / 1e9:.0f} GFLOP/s")


def test_flops_are_those_of_the_formula() -> None:
    """PaLM's, appendix B: of a weight two there and, where it trains, two back; of attention four there, eight back."""
    width, rows, length = 8, 3, 16
    layer = torch.nn.Linear(width, width, bias=False)
    tokens = torch.randn(rows, length, width)

    def attended() -> torch.Tensor:
        heads = layer(tokens).view(rows, 1, length, width)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).sum()

    product, attention = 2 * rows * length * width**2, 4 * rows * length**2 * width
    back = lambda loss: loss.backward()  # noqa: E731
    assert flops_of(layer, attended, back) == 2 * product + 3 * attention
    layer.requires_grad_(False)
    assert flops_of(layer, attended, back) == product + attention


def test_what_is_done_again_to_save_memory_is_no_work_of_the_models() -> None:
    model = tiny_bot().model.train()
    ids = torch.randint(5, 90, (2, 12))

    def loss() -> torch.Tensor:
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        return model.language_model(inputs_embeds=embeds, use_cache=False).logits.sum()

    counted = []
    for checkpointed in (False, True):
        save_memory(model, ModelConfig(gradient_checkpointing=checkpointed))
        counted.append(flops_of(model, loss, lambda loss: loss.backward()))
    assert counted[0] == counted[1] > 0


def test_it_is_rewound_to_a_step_and_loses_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept, _ = metrics_logger(path)
    for step in (1, 2, 3, 4):
        kept.add(entry(step, 1.0))
    kept.flush(where)
    kept.write({"step": 2, "validation_loss": 0.5})
    path.write_text(path.read_text() + '{"step": 3, "lo')
    kept.rewind(2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_named(bad: float, tmp_path: Path) -> None:
    kept, _ = metrics_logger(tmp_path / "metrics.jsonl")
    kept.add(entry(1, 0.5, 0.5))
    kept.add(entry(2, 0.5, bad))
    with pytest.raises(ModelError, match=rf"The loss is {bad} at step 2, from a\.jsonl:11: .*Mend these records"):
        kept.flush(where)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_gradient_may_overflow_only_under_a_scaler(tmp_path: Path) -> None:
    kept, _ = metrics_logger(tmp_path / "a.jsonl")
    kept.add(entry(1, 0.5, norm=float("inf")))
    with pytest.raises(ModelError, match="The gradient is not finite at step 1"):
        kept.flush(where)
    kept, _ = metrics_logger(tmp_path / "b.jsonl", norms_may_overflow=True)
    kept.add(entry(1, 0.5, norm=float("inf")))
    kept.flush(where)
    assert len(kept.recent()) == 1


def test_curves_for_tensorboard(finished: tuple[Path, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in (finished[0] / "curves").rglob("events.*")}
    curves = EventAccumulator(str(folder)).Reload()
    lines = [line for line in read_metrics(finished[0] / "metrics.jsonl") if "loss" in line]
    found = [(event.step, event.value) for event in curves.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert len(curves.Scalars("validation_loss")) == 4


def test_wandb_is_given_the_curves_if_asked(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate speaks to W&B; a stand-in for it sees what arrives."""
    import importlib.util

    import accelerate.tracking
    import accelerate.utils

    logged: list[Any] = []

    class Tracker(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False

        def __init__(self, run_name: str, **options: Any) -> None:
            super().__init__()
            logged.append((run_name, options))

        tracker = None

        def start(self) -> None: ...
        def store_init_configuration(self, values: dict[str, Any]) -> None: ...
        def finish(self) -> None: ...

        def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
            logged.append((step, values))

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types if name == "wandb" else real(name))
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [accelerate.utils.LoggerType.WANDB])
    run(desk, f"out={tmp_path / 'run'}", "report.wandb=true", "report.project=mine", "run.epochs=1")
    assert logged[0] == ("mine", {"dir": str(tmp_path / "run")})
    assert [step for step, _ in logged[1:]] == [1, 2, 3, 4, 5]


# --- what is left behind


def test_the_folder_is_a_model(finished: tuple[Path, list[str]], desk: Path) -> None:
    out, _ = finished
    base, trained = (minichat.load(folder, device="cpu").model.state_dict() for folder in (desk / "model", out))
    best = load_file(out / "checkpoints" / "best.safetensors")
    for name in base:
        wanted = best[name] if name.startswith("projection.") else base[name]
        assert torch.equal(trained[name], wanted), name


def test_it_says_how_it_was_made(finished: tuple[Path, list[str]], desk: Path) -> None:
    out, _ = finished
    facts = json.loads((out / "minichat.json").read_text())
    made = facts["training"]
    assert read_config(out / "config.yaml") == read_config(
        desk / "train.yaml",
        [f"out={out}", f"data.validation={desk / 'held_out.jsonl'}", "report.samples=3", "report.tensorboard=true",
         "report.log_every=5"],
    )  # fmt: skip
    assert made["config"] == plain(read_config(out / "config.yaml"))
    assert made["versions"].keys() == {"minichat", "torch", "transformers", "accelerate"}
    assert len(made["data"]["fingerprint"]) == 64
    assert made["data"]["samples"] == 18
    lines = read_metrics(out / "metrics.jsonl")
    validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert (validated[made["steps"]], min(validated.values())) == (made["validation_loss"],) * 2
    assert made["loss"] == [line["loss"] for line in lines if "loss" in line][-1]


def test_the_curve_is_a_picture(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    with Image.open(finished[0] / "curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    logging.curve(tmp_path / "empty.png", [])
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_the_page_shows_replies_before_and_after(finished: tuple[Path, list[str]], desk: Path) -> None:
    out, _ = finished
    page = (out / "report.html").read_text()
    before, after = (minichat.load(folder, device="cpu").chat(max_new_tokens=8) for folder in (desk / "model", out))
    first = json.loads((desk / "held_out.jsonl").read_text().splitlines()[0])["messages"]
    question, wanted = first[0]["content"][-1]["text"], first[1]["content"]
    pictures = [desk / part["image"] for part in first[0]["content"] if part["type"] == "image"]
    for text in (question, wanted, before.ask(question, pictures), after.ask(question, pictures)):
        assert html.escape(text) in page
    assert page.count("<tr><td>") == 3
    assert "data:image/jpeg;base64," in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # it holds all that it shows


def test_the_page_trusts_no_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    noise_picture().save(tmp_path / "a.png")
    shown = StoredPicture("a.png", tmp_path / "a.png")
    example = Example((Turn("user", (shown, evil)), Turn("assistant", (evil,))), Where(f"{evil}.jsonl", 1))
    logging.curve(tmp_path / "curve.png", [])
    logging.page(tmp_path / "page.html", [example], [evil], [evil], [(evil, evil)], tmp_path / "curve.png")
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_a_sample_that_cannot_be_answered_says_why(desk: Path) -> None:
    bot = minichat.load(desk / "model", device="cpu")
    gone = StoredPicture("gone.png", desk / "gone.png")
    example = Example((Turn("user", (gone, "What?")), Turn("assistant", ("A star.",))), Where("a.jsonl", 4))
    assert logging.ask(bot, [example], 4) == [
        "(a.jsonl:4: the picture 'gone.png' is missing: put it there, or correct its path.)"
    ]


def test_without_pictures_there_is_no_page(desk: Path, tmp_path: Path) -> None:
    run(desk, f"out={tmp_path}", "run.epochs=1")
    assert {file.name for file in tmp_path.iterdir() if not file.name.startswith(".")} == {
        "checkpoints", "config.yaml", "curve.png", "metrics.jsonl", "minichat.json", "projection.safetensors",
    }  # fmt: skip


# --- the command


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments)])


def test_the_command_trains(desk: Path, tmp_path: Path) -> None:
    done = command(desk / "train.yaml", "run.epochs=1", "--out", tmp_path / "run")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "step 5/5  loss" in done.stderr
    assert "The result is in" in done.stderr
    again = command(desk / "train.yaml", "run.epochs=1", "--out", tmp_path / "run", "--resume")
    assert (again.exit_code, "is finished" in again.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.yaml"], 1, "There is no configuration"),
        (["TRAIN", "optimizer.mn_lr=1"], 1, "did you mean optimizer.min_lr?"),
        (["TRAIN", "--resume", "--out", "OUT"], 1, "There is no run in 'run' to resume"),
        (["TRAIN", "--nonsense"], 2, "No such option"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_line(
    arguments: list[str], code: int, said: str, desk: Path, tmp_path: Path
) -> None:
    places = {"TRAIN": str(desk / "train.yaml"), "OUT": str(tmp_path / "run")}
    done = command(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == code
    assert done.stdout == ""
    assert said in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_is_told_by_the_exit_code(number: int, code: int, desk: Path, tmp_path: Path) -> None:
    """The real program, with loader workers."""
    out = tmp_path / "run"
    arguments = ["train", str(desk / "train.yaml"), "run.epochs=1000", "data.num_workers=2", f"out={out}"]
    program = subprocess.Popen(
        [sys.executable, "-m", "minichat", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with program:
        next(line for line in program.stderr or () if line.startswith("step 3/"))
        os.killpg(program.pid, number)  # as a terminal and most schedulers do: to the workers, too
        _, rest = program.communicate()
    assert program.returncode == code
    assert "the same command goes on from there" in rest
    assert "Traceback" not in rest
    (kept,) = (out / "checkpoints").iterdir()
    assert int(kept.stem.removeprefix("step-")) >= 3


def test_help_costs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['minichat', 'train', '--help']\n"
        "from minichat import cli\n"
        "try: cli.main()\n"
        "except SystemExit: print([n for n in ('torch', 'yaml', 'accelerate', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_setting_that_is_no_path_is_refused(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"The folder 'run' cannot be written \(Not a directory\)"):
        run(desk, f"out={tmp_path / 'file' / 'run'}")
