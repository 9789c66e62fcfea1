"""A run that was stopped and went on is the run that was never stopped, to the bit."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from minichat.errors import DataError, SettingsError
from minichat.fileio import locked
from minichat.train.checkpoint import METRICS, Checkpoints
from minichat.train.logging import read_metrics
from minichat.train.trainer import train
from tests.processes import ended, started
from tests.training import (
    checkpoints,
    config_of,
    losses,
    make_desk,
    run,
    same,
    steps_of,
    write_talks,
)

WAYS = list(itertools.product((0, 2), (1, 4)))  # loader workers, accumulation
STEPS = 20
STOPS = random.Random(0).sample(range(1, STEPS + 1), 5)
SOME = [(stop, *WAYS[(number + more) % len(WAYS)]) for number, stop in enumerate(STOPS) for more in (0, 1)]
ALL = [(stop, *way) for stop in range(1, STEPS + 1) for way in WAYS]

Kept = dict[int, dict[str, Tensor]]
Whole = Callable[..., tuple[list[float], Kept]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A process that is killed has one, and this one must compute alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def whole(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The uninterrupted run with these settings: its losses, and what each step's checkpoint would hold."""
    runs: dict[tuple[str, ...], tuple[list[float], Kept]] = {}

    def of(*settings: str) -> tuple[list[float], Kept]:
        if settings not in runs:
            kept: Kept = {}

            def save(self: Any, step: int, tensors: dict[str, Tensor], facts: Any) -> None:
                kept[step] = {name: tensor.detach().clone() for name, tensor in tensors.items()}

            out = tmp_path_factory.mktemp("whole") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Checkpoints, "save", save)
                run(desk, f"out={out}", "run.save_every=1", *settings)
            runs[settings] = losses(out), kept
        return runs[settings]

    return of


def parts(count: int) -> str:
    return f"run.micro_batch_size={4 // count}"


def stop_and_go_on(desk: Path, out: Path, whole: Whole, stop: int, *settings: str, workers: int = 0) -> None:
    of_whole, kept = whole(*settings)
    given = [f"out={out}", f"data.num_workers={workers}", *settings]
    outcome = run(desk, *given, stop=stop)
    assert (outcome.step, outcome.signal) == (stop, signal.SIGTERM)
    assert not (out / "minichat.json").exists()
    assert same(checkpoints(out)[stop], kept[stop])
    outcome = run(desk, *given)
    assert (outcome.step, outcome.signal) == (STEPS, None)
    assert losses(out) == of_whole
    assert [line["step"] for line in steps_of(out)] == list(range(1, STEPS + 1))
    assert same(checkpoints(out)[STEPS], kept[STEPS])
    result = load_file(out / "projection.safetensors")
    assert torch.equal(result["weight"], kept[STEPS]["projection.weight"])


def test_a_run_that_was_written_in_old_names_goes_on(desk: Path, whole: Whole, tmp_path: Path) -> None:
    """As versions before named the settings, in the configuration and in the checkpoints."""
    of_whole, kept = whole()
    out = tmp_path / "run"
    run(desk, f"out={out}", stop=8)
    store = Checkpoints(out / "checkpoints")
    saved = store.last()
    assert saved is not None
    old = in_old_names(saved.facts["config"])
    facts = {**saved.facts, "config": old, "standing": saved.facts["state"]}
    del facts["state"]
    store.save(saved.step, saved.tensors, facts)
    text = yaml.safe_dump(old).encode()
    config = f"# sha256 of what follows: {hashlib.sha256(text).hexdigest()}\n".encode() + text
    (out / "config.yaml").write_bytes(config)
    with pytest.raises(SettingsError, match=r"holds a run with optimizer\.lr 0\.01, but 0\.02 is asked for"):
        run(desk, f"out={out}", "optimizer.lr=0.02")
    (out / "config.yaml").write_bytes(config.replace(b"rate", b"rata"))  # damaged: the checkpoint tells it
    said: list[str] = []
    train(config_of(desk, f"out={out}"), say=said.append)
    assert not any(" is now " in line for line in said)  # nobody can mend what a run wrote
    assert losses(out) == of_whole
    assert same(checkpoints(out)[STEPS], kept[STEPS])


def in_old_names(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it was written before."""
    old = {name: dict(part) if isinstance(part, dict) else part for name, part in config.items()}
    old["stage"], old["pretraining"] = "replies", old.pop("qformer")
    del old["optimizer"]["lr_by_part"]
    for section, names in OLD_NAMES.items():
        for new, name in names.items():
            old[section][name] = old[section].pop(new)
    for kind in ("train", "validation"):
        old["data"][kind] = [{**source, "form": source["format"]} for source in old["data"][kind]]
        for source in old["data"][kind]:
            del source["format"]
    return old


OLD_NAMES = {
    "model": {
        "gradient_checkpointing": "checkpoint_llm",
        "vision_gradient_checkpointing": "vision_checkpoint",
        "vision_drop_path_rate": "vision_drop_path",
    },
    "data": {
        "streaming": "stream",
        "max_length": "max_tokens",
        "max_reply_length": "max_reply_tokens",
        "feature_cache": "features",
        "num_workers": "workers",
    },
    "optimizer": {
        "name": "matrices",
        "lr": "rate",
        "min_lr": "floor",
        "warmup_lr": "warmup_rate",
        "max_grad_norm": "clip",
    },
    "run": {"max_steps": "steps", "micro_batch_size": "device_batch_size"},
    "report": {"samples": "pictures"},
}


@pytest.mark.parametrize(("stop", "workers", "count"), SOME)
def test_stopped_and_resumed(stop: int, workers: int, count: int, desk: Path, whole: Whole, tmp_path: Path) -> None:
    stop_and_go_on(desk, tmp_path / "run", whole, stop, parts(count), workers=workers)


@pytest.mark.long
@pytest.mark.parametrize(("stop", "workers", "count"), [one for one in ALL if one not in SOME])
def test_stopped_and_resumed_at_every_step(
    stop: int, workers: int, count: int, desk: Path, whole: Whole, tmp_path: Path
) -> None:
    stop_and_go_on(desk, tmp_path / "run", whole, stop, parts(count), workers=workers)


def test_a_checkpoint_holds_the_optimizer_and_nothing_that_is_frozen(whole: Whole) -> None:
    (_, kept) = whole(parts(1))
    names = {"projection.weight", "projection.bias"}
    state = {f"optimizer.{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in names}
    assert kept[STEPS].keys() == names | state
    assert kept[STEPS]["optimizer.step.projection.weight"] == STEPS


def test_what_is_random_goes_on_too(desk: Path, whole: Whole, tmp_path: Path) -> None:
    """Drop path in the vision encoder, dropout in the Q-Former."""
    settings = ["trainable=[projection, bridge, vision_model]", "model.vision_drop_path_rate=0.3", parts(4)]
    stop_and_go_on_whole_model(desk, tmp_path / "run", whole, 7, *settings)


def stop_and_go_on_whole_model(desk: Path, out: Path, whole: Whole, stop: int, *settings: str) -> None:
    of_whole, kept = whole(*settings)
    assert run(desk, f"out={out}", *settings, stop=stop).step == stop
    assert run(desk, f"out={out}", *settings).step == STEPS
    assert losses(out) == of_whole
    assert same(checkpoints(out)[STEPS], kept[STEPS])


@pytest.mark.parametrize("killed", [4, 11, 19])
def test_killed_and_resumed(killed: int, desk: Path, whole: Whole, tmp_path: Path) -> None:
    """SIGKILL leaves the last checkpoint; what came after it is done again, and is written once."""
    of_whole, kept = whole(parts(1))
    given = [f"out={tmp_path / 'run'}", "run.save_every=3", parts(1)]
    process = started(partial(run, desk, *given, stop=killed, number=signal.SIGKILL))
    assert ended(process) == -signal.SIGKILL
    assert [*checkpoints(tmp_path / "run")] == list(range(3, killed + 1, 3))[-2:]
    assert len(losses(tmp_path / "run")) == killed
    run(desk, *given)
    assert losses(tmp_path / "run") == of_whole
    assert same(checkpoints(tmp_path / "run")[STEPS], kept[STEPS])


def test_ctrl_c_stops_after_the_step_and_a_second_at_once(desk: Path, tmp_path: Path) -> None:
    outcome = run(desk, f"out={tmp_path / 'run'}", stop=5, number=signal.SIGINT)
    assert (outcome.step, outcome.signal) == (5, signal.SIGINT)

    from minichat.train.data_loader import Interruption

    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_is_stopped_before_its_first_save_is_saved(desk: Path, whole: Whole, tmp_path: Path) -> None:
    _, kept = whole(parts(1))
    outcome = run(desk, f"out={tmp_path / 'run'}", "run.save_every=500", parts(1), stop=1)
    assert outcome.step == 1
    ((step, saved),) = checkpoints(tmp_path / "run").items()
    assert step == 1
    assert same(saved, kept[1])


def test_validation_goes_on_with_its_best(desk: Path, tmp_path: Path) -> None:
    held_out = [f"data.validation={desk / 'held_out.jsonl'}", "run.validate_every=3", "run.patience=100"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(desk, f"out={whole}", *held_out)
    run(desk, f"out={resumed}", *held_out, stop=8)
    run(desk, f"out={resumed}", *held_out)
    timed = ("step_time", "data_time", "flops_per_second", "mfu")  # which no two runs have in common
    told = [
        [{name: value for name, value in line.items() if name not in timed} for line in read_metrics(out / METRICS)]
        for out in (whole, resumed)
    ]
    assert told[0] == told[1]
    for name in ("projection.safetensors", "checkpoints/best.safetensors"):
        assert same(load_file(whole / name), load_file(resumed / name))


# --- what is refused


def test_a_run_that_could_not_begin_is_in_nobodys_way(desk: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    with pytest.raises(DataError, match=r"gone\.jsonl' was not found"):
        run(desk, out, f"data.train={tmp_path / 'gone.jsonl'}")
    assert run(desk, out).step == STEPS


def test_another_configuration_is_refused_by_the_key_that_differs(desk: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    run(desk, out, stop=2)
    with pytest.raises(SettingsError, match=r"'run' holds a run with optimizer.lr 0.01, but 0.02 is asked for"):
        run(desk, out, "optimizer.lr=0.02")
    with pytest.raises(SettingsError, match=r"holds a run with trainable \[\], but \['bridge'\]"):
        run(desk, out, "trainable=bridge")
    with pytest.raises(SettingsError, match=r"data.train"):
        run(desk, out, f"data.train={desk / 'held_out.jsonl'}")
    # No result depends on these.
    assert run(desk, out, "data.num_workers=2", "run.save_every=7", "report.log_every=3", parts(4)).step == STEPS


@pytest.mark.parametrize(("part", "what"), [("train", "The data set has"), ("validation", "The held-out data have")])
def test_data_that_changed_are_refused(part: str, what: str, desk: Path, tmp_path: Path) -> None:
    """Of other held-out data the losses would be compared with the best so far."""
    talks = tmp_path / "talks.jsonl"
    write_talks(talks, 8)
    given = [f"out={tmp_path / 'run'}", f"data.{part}={talks}"]
    run(desk, *given, stop=2)
    talks.write_text(talks.read_text().replace("red", "blue"))
    with pytest.raises(SettingsError, match=f"{what} changed since the run in 'run' began"):
        run(desk, *given)


def test_frozen_weights_that_changed_are_refused(desk: Path, tmp_path: Path) -> None:
    base = shutil.copytree(desk / "model", tmp_path / "base")
    given = [f"out={tmp_path / 'run'}", f"model.name={base}"]
    run(desk, *given, stop=2)
    (file,) = base.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("vision_model."))
    save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(SettingsError, match="The frozen weights have changed since the run in 'run' began"):
        run(desk, *given)
    save_file(tensors, file, metadata={"format": "pt"})
    assert run(desk, *given).signal is None


def test_another_precision_is_told(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on where `auto` means something else, as on another machine."""
    given = [f"out={tmp_path / 'run'}"]
    run(desk, *given, stop=2)
    for place in ("minichat.train.run", "minichat.train.setup", "minichat.train.trainer"):
        monkeypatch.setattr(f"{place}.precision", lambda name, device: torch.bfloat16)
    said: list[str] = []
    assert train(config_of(desk, *given), say=said.append).signal is None
    assert "The run began in float32 on cpu and goes on in bfloat16 on cpu: its figures may differ." in said


def test_a_folder_with_other_files_is_refused(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(SettingsError, match="holds files, but no run"):
        run(desk, f"out={tmp_path}")
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["letter.txt"]


def test_a_folder_that_another_run_is_at_work_in_is_refused(desk: Path, tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"), pytest.raises(SettingsError, match="Another run is at work"):
        run(desk, f"out={tmp_path}")


def test_a_finished_run_is_left_as_it_is(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(desk, f"out={out}", "run.epochs=1")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    outcome = run(desk, f"out={out}", "run.epochs=1")
    assert outcome.signal is None
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before


def test_resume_begins_nothing(desk: Path, tmp_path: Path) -> None:
    from minichat.train.trainer import train
    from tests.training import config_of

    with pytest.raises(SettingsError, match="There is no run in 'run' to resume"):
        train(config_of(desk, f"out={tmp_path / 'run'}"), resume=True)
    assert not (tmp_path / "run").exists()
