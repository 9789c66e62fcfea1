"""A run that begins with another's weights: a stopped one's, a finished one's, a model's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.train.run import Run
from tests.training import checkpoints, config_of, make_desk, run, said_by, turn_a_bit, write_talks

SHORT = "run.epochs=1"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def stopped(desk: Path) -> Path:
    run(desk, f"out={desk / 'stopped'}", SHORT, "run.save_every=2", stop=3)
    return desk / "stopped"


@pytest.fixture(scope="module")
def finished(desk: Path) -> Path:
    run(desk, f"out={desk / 'finished'}", SHORT, f"data.validation={desk / 'held_out.jsonl'}", "run.validate_every=2")
    return desk / "finished"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that runs begin with."""
    found: list[dict[str, Tensor]] = []

    def introduced(run: Run) -> None:
        found.append({name: weight.detach().clone() for name, weight in run.weights.items()})

    monkeypatch.setattr("minichat.train.trainer.summarize", introduced)
    return found


def equal(weights: dict[str, Tensor], stored: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, stored[name]) for name, weight in weights.items())


def test_data_that_were_mended_go_on_with_a_stopped_runs_weights(
    desk: Path, tmp_path: Path, begun: list[dict[str, Tensor]]
) -> None:
    """What the refusal names is what works."""
    write_talks(tmp_path / "talks.jsonl", 10)
    given = [f"data.train={tmp_path / 'talks.jsonl'}", SHORT]
    run(desk, f"out={tmp_path / 'run'}", *given, stop=2)
    whole = (tmp_path / "talks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "talks.jsonl").write_text("".join(whole[:-2]))
    with pytest.raises(SettingsError, match=f"give another out and --initialize-from {tmp_path / 'run'}"):
        run(desk, f"out={tmp_path / 'run'}", *given)
    begun.clear()
    told = said_by(desk, f"out={tmp_path / 'next'}", f"initialize_from={tmp_path / 'run'}", *given)
    assert "The weights are those of the run 'run' after step 2." in told
    assert equal(begun[0], checkpoints(tmp_path / "run")[2])


def test_a_finished_runs_are_its_results(
    desk: Path, finished: Path, tmp_path: Path, begun: list[dict[str, Tensor]]
) -> None:
    run(desk, f"out={tmp_path / 'run'}", SHORT, f"initialize_from={finished}")
    result = load_file(finished / "projection.safetensors")
    assert equal(begun[0], {f"projection.{name}": tensor for name, tensor in result.items()})


@pytest.mark.parametrize("kind", ["result", "model"])
def test_a_models(kind: str, desk: Path, finished: Path, tmp_path: Path, begun: list[dict[str, Tensor]]) -> None:
    """Also of a result that came without its checkpoints."""
    source = tmp_path / "copied"
    if kind == "result":
        source.mkdir()
        for name in ("projection.safetensors", "minichat.json"):
            (source / name).write_bytes((finished / name).read_bytes())
        expected = {f"projection.{n}": t for n, t in load_file(source / "projection.safetensors").items()}
    else:
        source = desk / "model"
        expected = load_file(source / "model.safetensors")
    run(desk, f"out={tmp_path / 'run'}", SHORT, f"initialize_from={source}")
    assert equal(begun[0], expected)


def test_parts_that_it_lacks_begin_as_the_model_has_them(desk: Path, stopped: Path, tmp_path: Path) -> None:
    told = said_by(
        desk,
        f"out={tmp_path / 'run'}",
        SHORT,
        f"initialize_from={stopped}",
        "trainable=[projection, bridge.query_tokens]",
    )
    assert "after step 3; bridge.query_tokens begin as they are without it." in told


def test_a_run_that_goes_on_asks_for_its_beginning_no_more(desk: Path, stopped: Path, tmp_path: Path) -> None:
    source = shutil.copytree(stopped, tmp_path / "source")
    given = [f"out={tmp_path / 'run'}", SHORT, f"initialize_from={source}"]
    run(desk, *given, stop=2)
    shutil.rmtree(source)
    assert run(desk, *given).step == 5
    assert config_of(desk, *given).initialize_from == str(source)


def test_what_cannot_be_begun_with_is_said(desk: Path, stopped: Path, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    run(desk, f"out={whole}", SHORT, "trainable=[projection, bridge.query_tokens]", stop=1)
    for source, error, told in (
        (
            whole,
            SettingsError,
            r"'whole' after step 1 trained bridge\.query_tokens, which this run does not train: name",
        ),
        (other, ModelError, r"other"),
    ):
        with pytest.raises(error, match=told):
            run(desk, f"out={tmp_path / 'run'}", SHORT, f"initialize_from={source}")
    for file in (whole / "checkpoints").iterdir():
        turn_a_bit(file)
    with pytest.raises(MiniChatError, match=r"The run in 'whole' has no checkpoint that can be read"):
        run(desk, f"out={tmp_path / 'run'}", SHORT, f"initialize_from={whole}")


def test_the_option_of_the_command_line(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from minichat.cli import app

    asked = []
    monkeypatch.setattr("minichat.train.trainer.train", lambda config, **options: asked.append(config) or _Outcome())
    CliRunner().invoke(app, ["train", str(desk / "train.yaml"), "--initialize-from", "runs/a, b: c", "--out", "next"])
    assert (asked[0].initialize_from, asked[0].out) == ("runs/a, b: c", "next")


class _Outcome:
    signal = None
