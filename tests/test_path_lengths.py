"""How many files of the package a reader passes through: those in which a function runs, counted by a profiler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minichat import cli
from minichat.train.yaml_config import write_yaml
from tests.published_files import arguments, publish
from tests.tiny import noise_picture


def files_of(*words: str, typed: str = "") -> list[str]:
    """The files in which a function of ours runs for `minichat WORDS …`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.files_run", *words], input=typed, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    noise_picture(0, size=(96, 96)).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_chatting(picture: str) -> None:
    assert len(files_of("chat", "--device", "cpu", picture, typed="What is this?\n")) <= 26


def test_captioning(picture: str) -> None:
    assert len(files_of("caption", "--device", "cpu", picture)) <= 31


@pytest.mark.long
def test_training_on_jsonl(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    assert CliRunner().invoke(cli.app, ["data", "scenes", "--count", "4", "--out", str(scenes)]).exit_code == 0
    content = {
        "out": str(tmp_path / "run"),
        "model": {"name": "minichat-tiny", "device": "cpu"},
        "data": {"train": str(scenes / "conversations.jsonl")},
        "run": {"max_steps": 2, "batch_size": 2},
        "report": {"samples": 0, "tensorboard": False},
    }
    (tmp_path / "train.yaml").write_text(write_yaml(content))
    assert len(files_of("train", str(tmp_path / "train.yaml"))) <= 45


@pytest.mark.long
def test_converting(tmp_path: Path) -> None:
    publish(tmp_path / "files", "qformer")
    given = {name: value for name, value in arguments(tmp_path / "files").items() if value is not None}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert len(files_of("convert", *words, "--out", str(tmp_path / "model"))) <= 18
