"""Files of a run's folder that were damaged on the disk, and a disk that takes no more: said, and the run is kept."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minichat
from minichat.errors import DataError, MiniChatError, ModelError, SettingsError
from minichat.model.loss import ProcessGroup
from minichat.train import logging
from minichat.train.logging import MetricsLogger, read_metrics
from minichat.train.stages.finetune import Finetune, ReplyCollator
from minichat.train.trainer import train
from minichat.train.yaml_config import read_yaml
from tests.training import checkpoints, config_of, losses, make_desk, run, said_by, same, steps_of, turn_a_bit

SHORT = ("run.epochs=1", "run.save_every=2")  # five steps


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def whole(desk: Path) -> Path:
    run(desk, f"out={desk / 'whole'}", *SHORT)
    return desk / "whole"


@pytest.fixture
def stopped(desk: Path, tmp_path: Path) -> Path:
    """A run after three steps; its checkpoints are of steps 2 and 3."""
    run(desk, f"out={tmp_path / 'run'}", *SHORT, stop=3)
    return tmp_path / "run"


def as_whole(out: Path, whole: Path) -> bool:
    return losses(out) == losses(whole) and same(checkpoints(out)[5], checkpoints(whole)[5])


# --- damaged


def test_a_checkpoint_whose_bit_turned_gives_way_and_the_run_is_the_same(
    desk: Path, whole: Path, stopped: Path
) -> None:
    turn_a_bit(stopped / "checkpoints" / "step-00000003.safetensors")
    told = said_by(desk, f"out={stopped}", *SHORT)
    assert "The checkpoint step-00000003.safetensors is damaged (what it holds does not match its checksum)." in told
    assert "step-00000002.safetensors, is taken instead" in told
    assert "Going on after step 2." in told
    assert as_whole(stopped, whole)


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: content.replace(b"0.01", b"0.02"),
               lambda content: b"", lambda content: content + b"\xff", lambda content: b"[" * 5000]
)  # fmt: skip
def test_a_damaged_configuration_is_told_by_the_checkpoint(
    damage: Callable[[bytes], bytes], desk: Path, stopped: Path
) -> None:
    config = stopped / "config.yaml"
    before = config.read_bytes()
    config.write_bytes(damage(before))
    told = said_by(desk, f"out={stopped}", *SHORT)
    assert "config.yaml in 'run' is damaged (" in told
    assert "it is written anew, as the checkpoint of step 3 has it." in told
    assert config.read_bytes() == before


def test_a_damaged_configuration_that_nothing_tells(desk: Path, stopped: Path) -> None:
    (stopped / "config.yaml").write_text("run: {epochs: 1")
    for file in (stopped / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(SettingsError, match=r"config\.yaml in 'run' is damaged .*no checkpoint tells.*begin anew"):
        run(desk, f"out={stopped}", *SHORT)


@pytest.mark.parametrize(
    ("damage", "line"),
    [(lambda content: content[:-20], 3), (lambda content: content.replace(b'"loss"', b'"lo\xff\xfe"', 1), 1),
     (lambda content: b"[1, 2]\n" + content, 1), (lambda content: content.replace(b"{", b"[" * 5000, 1), 1)],
)  # fmt: skip
def test_lines_of_metrics_that_are_none_are_named(
    damage: Callable[[bytes], bytes], line: int, desk: Path, stopped: Path
) -> None:
    metrics = stopped / "metrics.jsonl"
    metrics.write_bytes(damage(metrics.read_bytes()))
    assert f"metrics.jsonl: what is in line {line} is no step's" in said_by(desk, f"out={stopped}", *SHORT)
    assert (stopped / "minichat.json").exists()
    assert all("loss" in line for line in read_metrics(metrics))


def test_a_figure_of_metrics_that_changed_is_said(desk: Path, stopped: Path) -> None:
    metrics = stopped / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 2, "loss": ', '"step": 2, "loss": 1'))
    assert "metrics.jsonl is not as it was written up to step 3" in said_by(desk, f"out={stopped}", *SHORT)


def test_replies_from_before_that_are_damaged_are_said_to_be(desk: Path, tmp_path: Path) -> None:
    given = [f"out={tmp_path / 'run'}", *SHORT, "report.samples=2", f"data.validation={desk / 'held_out.jsonl'}"]
    run(desk, *given, stop=3)
    before = tmp_path / "run" / "before.json"
    before.write_bytes(before.read_bytes()[:-9])
    assert "before.json is damaged" in said_by(desk, *given)
    assert "(not kept)" in (tmp_path / "run" / "report.html").read_text()


def test_replies_that_were_put_away_are_read_as_they_were(tmp_path: Path) -> None:
    file, replies = tmp_path / "before.json", ["größer", "大", "\ud800"]
    assert logging.kept(file) is None
    logging.keep(file, replies)
    assert logging.kept(file) == replies
    content = file.read_bytes()
    for damaged in (content.replace(b"er", b"ar", 1), b'{"replies": [1]}', b"{}", b"\xff", b"[" * 5000):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"before\.json is damaged"):
            logging.kept(file)
    file.write_text('["an earlier version\'s"]')
    assert logging.kept(file) == ["an earlier version's"]


@pytest.mark.parametrize("name", ["projection.safetensors", "minichat.json"])
def test_a_result_whose_bit_turned_is_named_and_made_anew(name: str, desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(desk, f"out={out}", *SHORT)
    file = out / name
    before = file.read_bytes()
    held = {key: tensor.clone() for key, tensor in load_file(out / "projection.safetensors").items()}  # not mapped
    if name == "minichat.json":
        file.write_bytes(before.replace(b'"steps": 5', b'"steps": 7'))
    else:
        turn_a_bit(file)
    with pytest.raises(ModelError, match=rf"{name} in 'run' is damaged: what it holds does not match its checksum"):
        minichat.load(out, device="cpu")
    assert "It is made anew of the checkpoints." in said_by(desk, f"out={out}", *SHORT)
    minichat.load(out, device="cpu")
    again = load_file(out / "projection.safetensors")  # a file's header has no order
    assert all(torch.equal(again[key], held[key]) for key in held)


def test_the_base_of_a_result_may_be_corrected_by_hand(desk: Path, tmp_path: Path) -> None:
    run(desk, f"out={tmp_path / 'run'}", *SHORT)
    facts = json.loads((tmp_path / "run" / "minichat.json").read_text())
    (tmp_path / "base").symlink_to(desk / "model")
    (tmp_path / "run" / "minichat.json").write_text(json.dumps({**facts, "base": {"path": str(tmp_path / "base")}}))
    minichat.load(tmp_path / "run", device="cpu")


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000 + "a", "a: " + "9" * 5000])
def test_yaml_that_cannot_be_read_is_a_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^deep\.yaml"):
        read_yaml(text, "deep.yaml")


# --- stopped by an error


def broken_at(number: int, real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """What raises an error when it is called for the `number`-th time."""
    calls = []

    def call(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise error
        return real(*arguments)

    return call


@pytest.mark.parametrize(
    ("owner", "name", "number", "error"),
    [(ReplyCollator, "__call__", 1 + 3, DataError("talks.jsonl:7: the picture 'a.png' is damaged.")),
     (Finetune, "loss", 2 + 3, torch.OutOfMemoryError()), (Finetune, "loss", 2 + 3, ZeroDivisionError("a defect"))],
)  # fmt: skip
def test_a_run_that_must_end_is_saved_first_and_goes_on(
    owner: Any, name: str, number: int, error: BaseException,
    desk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At the third step, after what the trial before the run reads and computes."""
    given, said = [f"out={tmp_path / 'run'}", "run.epochs=1", "run.save_every=500"], list[str]()
    with monkeypatch.context() as patch, pytest.raises((MiniChatError, ZeroDivisionError)):
        patch.setattr(owner, name, broken_at(number, getattr(owner, name), error))
        train(config_of(desk, *given), say=said.append)
    assert "Saved after step 2: the same command goes on from there." in said
    assert [*checkpoints(tmp_path / "run")] == [2]
    run(desk, *given)
    assert as_whole(tmp_path / "run", whole)


def test_weights_that_the_optimizer_was_at_are_not_saved(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", broken_at(3, torch.optim.AdamW.step, torch.OutOfMemoryError()))
    with pytest.raises(SettingsError, match="Memory ran out at step 3"):
        run(desk, f"out={tmp_path / 'run'}", *SHORT)
    assert [*checkpoints(tmp_path / "run")] == [2]


# --- a disk that takes no more


def full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_figures_that_the_disk_does_not_take_are_in_the_checkpoint(
    desk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"out={tmp_path / 'run'}", "run.epochs=1", "run.save_every=500"]
    with monkeypatch.context() as patch:
        real, calls = MetricsLogger._append, []

        def append(self: MetricsLogger, content: bytes) -> None:
            calls.append(1)
            real(self, content) if len(calls) < 3 else full()

        patch.setattr(MetricsLogger, "_append", append)
        with pytest.raises(
            SettingsError, match=r"metrics\.jsonl cannot be written \(No space left on device\): make room"
        ):
            run(desk, *given)
    assert [*checkpoints(tmp_path / "run")] == [3]
    assert len(losses(tmp_path / "run")) == 2
    run(desk, *given)
    assert as_whole(tmp_path / "run", whole)
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no such device")
def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    metrics_logger = MetricsLogger(tmp_path / "metrics.jsonl", ProcessGroup(0, 1), lambda figures, step: None)
    metrics_logger.write({"step": 1, "validation_loss": 1.0})
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SettingsError, match="No space left"):
        metrics_logger.write({"step": 2, "validation_loss": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
    metrics_logger.write({"step": 3, "validation_loss": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("place", "told"),
    [("minichat.train.logging.curve", "curve.png"), ("minichat.train.logging.page", "report.html"),
     ("minichat.weights.projection.unpack", "The result")],
)  # fmt: skip
def test_an_end_that_the_disk_does_not_take_comes_when_there_is_room(
    place: str, told: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"out={tmp_path / 'run'}", *SHORT, "report.samples=1", f"data.validation={desk / 'held_out.jsonl'}"]
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(SettingsError, match=rf"{told} cannot be written \(No space left on device\)"):
            run(desk, *given)
    assert f"The result is in {tmp_path / 'run'}." in said_by(desk, *given)
    assert (tmp_path / "run" / "report.html").exists()


def test_curves_of_trackers_that_the_disk_does_not_take_end_there(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.log", full)
    told = said_by(desk, f"out={tmp_path / 'run'}", *SHORT, "report.tensorboard=true")
    assert told.count("The trackers' curves end here (No space left on device); metrics.jsonl goes on.") == 1
    assert len(losses(tmp_path / "run")) == 5


def test_a_run_that_cannot_begin_for_want_of_room_is_a_sentence(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minichat.train.checkpoint.replace_file", full)
    with pytest.raises(SettingsError, match=r"config\.yaml cannot be written \(No space left on device\)"):
        run(desk, f"out={tmp_path / 'run'}", *SHORT)
