"""One step is one step, however it is divided; what is frozen is frozen; what is wrong stops the run by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minichat
from minichat.data import formats
from minichat.errors import DataError, ModelError, SettingsError
from minichat.model.loss import ProcessGroup
from minichat.train import run as train_run
from minichat.train import trainer
from minichat.train.checkpoint import seed_step
from minichat.train.data import read_data
from minichat.train.optimizer import lr_at
from minichat.train.run import Run
from minichat.train.stages.finetune import Finetune
from minichat.train.trainer import train
from tests.processes import ended, started
from tests.training import config_of, losses, make_desk, run, steps_of, write_talks

ROOT = Path(__file__).resolve().parent.parent
ALONE = ProcessGroup(0, 1)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def whole(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process with whole batches."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(desk, f"out={out}")
    return out


def same_curve(out: Path, whole: Path) -> None:
    ours, theirs = steps_of(out), steps_of(whole)
    assert [line["items"] for line in ours] == [line["items"] for line in theirs]
    for name in ("loss", "grad_norm"):
        curves = (torch.tensor([line[name] for line in lines]) for lines in (ours, theirs))
        torch.testing.assert_close(*curves, rtol=5e-4, atol=5e-4)  # rounding grows from step to step
    weights = [load_file(folder / "projection.safetensors")["weight"] for folder in (out, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-4)


# --- the step


def test_a_step_is_the_models_own_mean_over_all_supervised_tokens(desk: Path) -> None:
    """Loss and gradient of the loop's step against the model's forward on the same rows, padded and masked."""
    config = config_of(desk, "run.micro_batch_size=3")
    stage = Finetune(config, torch.device("cpu"))
    data = read_data(config, stage, ALONE, print)
    batches = next(data.loader.load())
    assert len(batches) == 2
    items = sum(stage.count(batch) for batch in batches)
    loss = sum((stage.loss(batch) / items for batch in batches), torch.zeros(()))
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in stage.model.projection.named_parameters()}
    stage.model.zero_grad()

    rendered = [
        stage.bot.processor.render(example.conversation()) for example in formats.read(str(desk / "talks.jsonl"))
    ]
    batch = stage.bot.processor.batch(
        [rendered[number] for number in data.loader.epoch(0).batches[0]], padding_side="right", labels=True
    )
    theirs = stage.model(**batch).loss
    theirs.backward()
    torch.testing.assert_close(loss, theirs, **CLOSE)
    for name, weight in stage.model.projection.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, **CLOSE)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_accumulated_gradients_give_the_same_curve(at_once: int, desk: Path, whole: Path, tmp_path: Path) -> None:
    run(desk, f"out={tmp_path / 'run'}", f"run.micro_batch_size={at_once}")
    same_curve(tmp_path / "run", whole)


def test_what_is_random_is_drawn_anew_in_each_step() -> None:
    """And in each run and process: a seed of its own, so that dropout does not leave out the same again and again."""
    drawn = set()
    for seed, step, rank in itertools.product((0, 1), range(20), range(3)):
        seed_step(seed, step, rank)
        drawn.add(torch.rand(8).sum().item())
    assert len(drawn) == 2 * 20 * 3


@pytest.mark.parametrize(("clip", "clipped"), [("1e-3", True), ("null", False)])
def test_the_optimizer_is_given_gradients_of_the_length_that_is_allowed(
    clip: str, clipped: bool, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, norms = torch.optim.AdamW.step, list[float]()

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(desk, f"out={tmp_path / 'run'}", f"optimizer.max_grad_norm={clip}", "run.epochs=1")
    told = [line["grad_norm"] for line in steps_of(tmp_path / "run")]
    assert min(told) > 2e-3
    assert norms == pytest.approx([1e-3] * 5 if clipped else told, rel=1e-2)


def in_processes(count: int, work: Callable[[], Any]) -> None:
    """Do `work` in processes that know of each other, as under `accelerate launch`; one that hangs is ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    together["ACCELERATE_USE_CPU"] = "true"
    processes = [started(work, {**together, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]
    assert [ended(process) for process in processes] == [0] * count


@pytest.mark.parametrize("settings", [["run.batch_size=5"], ["run.batch_size=4", "run.micro_batch_size=1"]])
def test_processes_share_a_batch(settings: list[str], desk: Path, tmp_path: Path) -> None:
    held_out = [f"data.validation={desk / 'held_out.jsonl'}"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(desk, f"out={alone}", *held_out, settings[0])
    in_processes(2, partial(run, desk, f"out={shared}", *held_out, *settings))
    same_curve(shared, alone)
    made = [json.loads((out / "minichat.json").read_text())["training"]["processes"] for out in (shared, alone)]
    assert made == [2, 1]
    validated = [json.loads(line) for out in (shared, alone) for line in (out / "metrics.jsonl").open()]
    ours, theirs = ([v["validation_loss"] for v in half if "validation_loss" in v] for half in halves(validated))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **CLOSE)


def halves(lines: list[Any]) -> tuple[list[Any], list[Any]]:
    return lines[: len(lines) // 2], lines[len(lines) // 2 :]


def launched(desk: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", *options]
    device = "cpu" if torch.accelerator.is_available() else "auto"  # where there is nothing else, nobody need say so
    run = ["-m", "minichat", "train", str(desk / "train.yaml"), f"model.device={device}", "--out", str(out)]
    command = [sys.executable, *launch, *run]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)


def test_accelerate_launch_gives_the_same_curve(desk: Path, whole: Path, tmp_path: Path) -> None:
    """Processes on the CPU are started by --multi_gpu: accelerate's own --cpu starts one."""
    done = launched(desk, tmp_path / "run", "--multi_gpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("The result is in") == 1
    assert json.loads((tmp_path / "run" / "minichat.json").read_text())["training"]["processes"] == 2
    same_curve(tmp_path / "run", whole)


@pytest.mark.long
def test_accelerate_launch_that_starts_one_process_is_told(desk: Path, whole: Path, tmp_path: Path) -> None:
    done = launched(desk, tmp_path / "run", "--cpu")
    assert "One process: accelerate's --cpu starts no more" in done.stderr
    same_curve(tmp_path / "run", whole)


def one_is_told_to_stop(desk: Path, out: Path) -> None:
    outcome = run(desk, f"out={out}", stop=3 if os.environ["RANK"] == "0" else None)
    assert (outcome.step, outcome.signal) == (3, signal.SIGTERM)


def test_a_process_that_is_told_to_stop_stops_all(desk: Path, tmp_path: Path) -> None:
    in_processes(2, partial(one_is_told_to_stop, desk, tmp_path / "run"))
    assert len(losses(tmp_path / "run")) == 3
    in_processes(2, partial(run, desk, f"out={tmp_path / 'run'}"))
    assert len(losses(tmp_path / "run")) == 20


# --- what trains


def hashes(module: torch.nn.Module) -> dict[str, str]:
    return {name: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for name, t in module.state_dict().items()}


def test_what_is_frozen_is_the_same_after_the_run(desk: Path, whole: Path) -> None:
    before, after = (hashes(minichat.load(folder, device="cpu").model) for folder in (desk / "model", whole))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"projection.weight", "projection.bias"}


def test_what_is_frozen_does_not_change_while_it_runs(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    stop = Finetune.__init__

    def spied(self: Finetune, *arguments: Any) -> None:
        stop(self, *arguments)
        found.append((self.model, hashes(self.model)))

    monkeypatch.setattr(Finetune, "__init__", spied)
    run(
        desk,
        f"out={tmp_path / 'run'}",
        "trainable=[bridge.query_tokens, projection]",
        "model.gradient_checkpointing=true",
    )
    ((model, before),) = found
    after = hashes(model)
    assert {name for name in before if before[name] != after[name]} == {
        "projection.weight", "projection.bias", "bridge.query_tokens",
    }  # fmt: skip


def test_other_parts_that_train_make_a_whole_model(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(desk, f"out={out}", "trainable=[projection, bridge, language_model.model.layers.1]", "run.epochs=1")
    before, after = (minichat.load(folder, device="cpu") for folder in (desk / "model", out))
    differ = {name for name, value in hashes(before.model).items() if value != hashes(after.model)[name]}
    assert {name.split(".")[0] for name in differ} == {"projection", "bridge", "language_model"}
    assert all("layers.1." in name for name in differ if name.startswith("language_model"))
    assert not any(name.startswith("vision_model") for name in differ)
    stored = load_file(desk / "model" / "model.safetensors").keys()
    assert load_file(out / "model.safetensors").keys() == stored
    trained = json.loads((out / "training.json").read_text())["training"]
    assert trained["steps"] == 5


def test_a_finished_projection_trains_on(desk: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(desk, f"out={out}", f"model.name={whole}", "run.epochs=1")
    assert losses(out)[0] < losses(whole)[0]
    facts = json.loads((out / "minichat.json").read_text())
    assert facts["base"] == json.loads((whole / "minichat.json").read_text())["base"]


@pytest.mark.parametrize(
    "setting", ["model.gradient_checkpointing=true", "data.feature_cache=FEATURES", "data.num_workers=2"]
)
def test_what_saves_memory_or_time_changes_no_loss(setting: str, desk: Path, whole: Path, tmp_path: Path) -> None:
    given = [f"out={tmp_path / 'run'}", setting.replace("FEATURES", str(tmp_path / "kept"))]
    run(desk, *given)
    same_curve(tmp_path / "run", whole)


def test_kept_features_need_no_picture(
    desk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = f"data.feature_cache={tmp_path / 'kept'}"
    run(desk, kept, f"out={tmp_path / 'first'}", "run.epochs=1")

    def closed(*arguments: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("minichat.model.MiniChatForConditionalGeneration.encode_features", closed)
        run(desk, kept, f"out={tmp_path / 'run'}")
    same_curve(tmp_path / "run", whole)


def test_in_bfloat16_the_projection_stays_exact(desk: Path, whole: Path, tmp_path: Path) -> None:
    run(desk, f"out={tmp_path / 'run'}", "model.dtype=bfloat16")
    assert load_file(tmp_path / "run" / "projection.safetensors")["weight"].dtype == torch.float32
    torch.testing.assert_close(torch.tensor(losses(tmp_path / "run")), torch.tensor(losses(whole)), rtol=0.03, atol=0)


def test_more_than_the_projection_trains_under_autocast(desk: Path, tmp_path: Path) -> None:
    settings = ["trainable=[projection, bridge, vision_model]", "model.vision_gradient_checkpointing=true"]
    run(desk, f"out={tmp_path / 'exact'}", *settings)
    run(desk, f"out={tmp_path / 'run'}", *settings, "model.dtype=bfloat16")
    ours, exact = (torch.tensor(losses(tmp_path / name)) for name in ("run", "exact"))
    torch.testing.assert_close(ours, exact, rtol=0.1, atol=0)
    assert not torch.equal(ours, exact)


def test_the_vision_encoder_has_a_precision_of_its_own(desk: Path, whole: Path, tmp_path: Path) -> None:
    run(desk, f"out={tmp_path / 'run'}", "model.vision_dtype=bfloat16")
    ours, exact = (torch.tensor(losses(out)) for out in (tmp_path / "run", whole))
    torch.testing.assert_close(ours, exact, rtol=0.03, atol=0)
    assert not torch.equal(ours, exact)


def test_the_rate_follows_the_schedule(whole: Path, desk: Path) -> None:
    config = config_of(desk).optimizer
    assert [line["lr"] for line in steps_of(whole)] == [lr_at(step, 20, config) for step in range(20)]


@pytest.mark.parametrize(("steps", "told"), [(4, True), (5, False)])
def test_a_run_that_ends_in_its_warm_up_is_told_so(steps: int, told: bool, desk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(config_of(desk, f"out={tmp_path / 'run'}", "run.epochs=null", f"run.max_steps={steps}"), say=said.append)
    assert any("ends before its warm-up does (optimizer.warmup_steps is 4)" in line for line in said) == told


@pytest.mark.parametrize(("native", "dtype", "told"), [(False, "bfloat16", True), (False, "float32", False),
                                                       (True, "bfloat16", False)])  # fmt: skip
def test_a_run_in_what_the_processor_does_not_compute_in_is_told_so(
    native: bool, dtype: str, told: bool, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: native)
    said: list[str] = []
    changed = [f"out={tmp_path / 'run'}", "run.epochs=null", "run.max_steps=1", f"model.dtype={dtype}"]
    train(config_of(desk, *changed), say=said.append)
    assert any("set model.dtype to float32" in line for line in said) == told


# --- what is wrong


def test_a_batch_without_a_picture_moves_the_projection_by_no_gradient(desk: Path, tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    lines = [json.loads(line) for line in (desk / "talks.jsonl").read_text().splitlines()]
    without = [line for line in lines if isinstance(line["messages"][0]["content"], list)][3::4]
    talks.write_text("".join(json.dumps(line) + "\n" for line in without))
    given = [f"data.train={talks}", f"out={tmp_path / 'run'}", "optimizer.weight_decay=0", "run.epochs=3"]
    run(desk, *given)
    assert all(line["grad_norm"] == 0 for line in steps_of(tmp_path / "run"))
    assert len(set(losses(tmp_path / "run"))) >= 1
    before, after = (minichat.load(folder, device="cpu").model for folder in (desk / "model", tmp_path / "run"))
    assert hashes(before) == hashes(after)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_by_file_and_line(
    where: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 goes wrong; it is found when the figures are read, at step 10; the checkpoints are from before."""
    real, calls = Finetune.loss, []

    def broken(self: Finetune, batch: Any) -> torch.Tensor:
        calls.append(1)
        loss = real(self, batch)
        if len(calls) == 2 + 6:  # after the trial's two
            return loss * float("nan") if where == "loss" else loss + self.model.projection.bias.sum() * float("inf")
        return loss

    monkeypatch.setattr(Finetune, "loss", broken)
    given = [f"out={tmp_path / 'run'}", "report.log_every=10", "run.save_every=4"]
    with pytest.raises(ModelError) as caught:
        run(desk, *given)
    config = config_of(desk)
    rows = read_data(config, Finetune(config, torch.device("cpu")), ALONE, print).loader
    assert "at step 6" in str(caught.value)
    if where == "loss":
        assert all(place in str(caught.value) for place in rows.where(5)[0])
        assert f"{desk / 'talks.jsonl'}:" in str(caught.value)
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004.safetensors"]
    monkeypatch.setattr(Finetune, "loss", real)
    assert run(desk, *given).signal is None


def test_a_validation_loss_that_is_no_number_is_named(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of the batch that it is from; the rate, where it is from all of them."""
    real, wrong = Finetune.loss, [False, False, False, True]  # of two batches, before the run and after three steps

    def broken(self: Finetune, batch: Any) -> torch.Tensor:
        return real(self, batch) * (float("nan") if not self.model.training and wrong.pop(0) else 1.0)

    monkeypatch.setattr(Finetune, "loss", broken)
    given = [f"data.validation={desk / 'held_out.jsonl'}", "run.validate_every=3"]
    with pytest.raises(ModelError) as caught:
        run(desk, *given, f"out={tmp_path / 'run'}")
    assert not list((tmp_path / "run").rglob("best*"))
    config = config_of(desk, *given)
    held_out = read_data(config, Finetune(config, torch.device("cpu")), ALONE, print).held_out
    first, second = (held_out.where(step)[0] for step in (0, 1))
    assert f"The validation loss is nan after step 3, from {', '.join(second)}: mend" in str(caught.value)
    assert not any(place in str(caught.value) for place in first)
    wrong += [False, False, True, True]
    with pytest.raises(ModelError, match=r"from all held-out records: .* Lower optimizer\.lr"):
        run(desk, *given, f"out={tmp_path / 'again'}")
    wrong += [True, True]
    with pytest.raises(ModelError, match=r"nan before the first step, from all held-out records: .* Begin with others"):
        run(desk, *given, f"out={tmp_path / 'never'}")


def test_a_record_without_a_reply_is_refused_by_file_and_line(desk: Path, tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    with pytest.raises(DataError, match=r"talks\.jsonl:1"):
        run(desk, f"data.train={talks}", f"out={tmp_path / 'run'}")


def test_an_empty_data_set_is_refused(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text("\n")
    with pytest.raises(DataError):
        run(desk, f"data.train={tmp_path / 'talks.jsonl'}", f"out={tmp_path / 'run'}")


def test_a_missing_picture_is_refused_by_file_and_line(desk: Path, tmp_path: Path) -> None:
    write_talks(tmp_path / "talks.jsonl", 6)
    (tmp_path / "pictures" / "1-0.png").unlink()
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"talks\.jsonl:2: the picture 'pictures/1-0.png' is missing") as caught:
            asked = [
                f"data.train={tmp_path / 'talks.jsonl'}",
                f"data.num_workers={workers}",
                "data.damaged_pictures=refuse",
            ]
            run(desk, *asked, f"out={tmp_path / 'run'}")
        assert "Traceback" not in str(caught.value)


def test_what_is_not_here_is_said(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"out={tmp_path / 'run'}"
    with pytest.raises(SettingsError, match=r"report.wandb is true, but wandb is not installed"):
        run(desk, out, "report.wandb=true")
    with pytest.raises(SettingsError, match=r"stage is 'dance'; it must be one of finetune"):
        run(desk, out, "stage=dance")
    with pytest.raises(SettingsError, match=r"this model has no part 'eyes'"):
        run(desk, out, "trainable=eyes")
    with pytest.raises(SettingsError, match="float16, which trains on CUDA alone"):
        run(desk, out, "model.dtype=float16")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match=r"model\.device is 'cuda', but here is 'cpu'"):
            run(desk, out, "model.device=cuda")


def test_what_does_not_fit_is_said(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Finetune, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Finetune, "loss", full)
    anew = r"; or begin anew, in another out, and set model.gradient_checkpointing to true, set model.quantize or"
    going_on = "lower run.micro_batch_size, and the same command goes on"
    for settings, advice in (
        ([], going_on + anew),
        (["run.micro_batch_size=1"], anew.removeprefix("; or ")),
        (
            ["model.gradient_checkpointing=true"],
            going_on + "; or begin anew, in another out, and set model.quantize or lower",
        ),
        (
            ["trainable=[language_model]", "run.batch_size=1"],
            "begin anew, .* and set model.gradient_checkpointing to true or lo",
        ),
        (
            ["trainable=[vision_model]"],
            "begin anew, .*set model.quantize, set model.vision_gradient_checkpointing to true or low",
        ),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(SettingsError, match=rf"rows of \d+ tokens do not fit into memory at once: .*{advice}"):
            run(desk, f"out={out}", *settings)


def test_memory_that_runs_out_later_is_said_and_less_at_once_goes_on(
    desk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Finetune.loss, []

    def full(self: Finetune, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2 + 7:  # after the trial's two
            raise torch.OutOfMemoryError
        return real(self, batch)

    given = [f"out={tmp_path / 'run'}", "run.save_every=5"]
    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "loss", full)
        with pytest.raises(SettingsError, match=r"Memory ran out at step 8: lower run\.micro_batch_size, and the sam"):
            run(desk, *given)
    assert run(desk, *given, "run.micro_batch_size=1").step == 20
    same_curve(tmp_path / "run", whole)


# --- validation


@pytest.mark.parametrize(("steps", "every"), [(4, 2), (5, 2), (2, 3)])
def test_the_time_that_is_told_is_that_of_steps_and_validations(
    steps: int, every: int, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by one whenever it is looked at: the way there takes one, there and back two."""
    told, looked = list[tuple[float, Run]](), 0
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=partial(next, itertools.count())))
    real, look = trainer.seconds_left, train_run.held_out_loss

    def trial(run: Run) -> float:
        told.append((real(run), run))
        return told[0][0]

    def counted(run: Run) -> float | None:
        nonlocal looked
        looked += 1
        return look(run)

    monkeypatch.setattr(trainer, "seconds_left", trial)
    for module in (trainer, train_run):
        monkeypatch.setattr(module, "held_out_loss", counted)
    settings = [f"out={tmp_path / 'run'}", f"data.validation={desk / 'held_out.jsonl'}", "run.epochs=null"]
    run(desk, *settings, f"run.max_steps={steps}", f"run.validate_every={every}")
    ((seconds, done),) = told
    (batch,) = next(iter(done.data.loader.load(done.data.loader.heaviest(0))))
    assert done.data.held_out is not None and done.data.tokens_of_a_step is not None
    held = int(done.data.held_out.rows.lengths.sum())
    assert seconds == pytest.approx(
        (2 * steps * done.data.tokens_of_a_step + looked * held) / int(batch["attention_mask"].sum())
    )


def test_the_best_weights_are_the_result(desk: Path, tmp_path: Path) -> None:
    """A rate so high that the loss rises: the run ends early, and the result is that of the best validation."""
    out = tmp_path / "run"
    given = ["optimizer.lr=3", "optimizer.min_lr=3", "run.validate_every=2", "run.patience=2", "run.epochs=40"]
    run(desk, f"out={out}", f"data.validation={desk / 'held_out.jsonl'}", *given)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    best = min(validated, key=lambda step: validated[step])
    assert list(validated) == list(range(2, best + 6, 2))
    kept = load_file(out / "checkpoints" / "best.safetensors")
    assert torch.equal(load_file(out / "projection.safetensors")["weight"], kept["projection.weight"])
    facts = json.loads((out / "minichat.json").read_text())["training"]
    assert (facts["steps"], facts["validation_loss"]) == (best, validated[best])
