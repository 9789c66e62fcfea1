"""`minichat evaluate` with the built-in model: it sees; with its vision broken it does not, and the report says so."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.evaluate.metrics import is_blind
from minichat.evaluate.run import Plan, evaluate


def run(*arguments: object):
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def bot() -> minichat.MiniChat:
    return minichat.load("minichat-tiny", device="cpu")


def test_a_model_whose_vision_is_broken_falls_to_the_blank_level(bot, monkeypatch):
    """All pictures look the same to it: it guesses as with a blank one, and the report names the task."""
    plan = Plan(("questions", "hallucination"), count=10, seed=5, redrawn=0)
    whole = evaluate(bot, plan)
    assert whole.blind == []
    encode = bot.model.encode_patches
    monkeypatch.setattr(bot.model, "encode_patches", lambda pixels: torch.zeros_like(encode(pixels)))
    broken = evaluate(bot, plan)
    assert [line.task for line in broken.blind] == ["questions", "hallucination"]
    for seen, unseen in zip(whole.lines, broken.lines, strict=True):
        if seen.name in ("overall", "adversarial: accuracy"):
            assert not is_blind(seen)
            assert seen.seen.value > unseen.seen.value + 0.3
            assert unseen.seen.value == unseen.blank.value  # the same replies, to a picture and to none
    assert "make no difference to questions" in broken.to_markdown()


def test_the_command_writes_a_folder_and_prints_its_table(bot, tmp_path, monkeypatch):
    monkeypatch.setattr("minichat.cli.train.load_bot", lambda *arguments: bot)
    out = tmp_path / "run"
    result = run("questions", "--count", 3, "--seed", 2, "--redrawn", 1, "--out", out, "--batch-size", 8, "--no-blank")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (out / "results.md").read_text()
    content = json.loads((out / "results.json").read_text())
    assert content["data"]["seed"] == 2 and content["data"]["count"] == 3
    assert content["settings"]["batch_size"] == 8
    assert set(content["model"]["weights"]) == {"model.safetensors"}
    assert all("blank" not in figure for figure in content["figures"])
    assert sorted(path.name for path in out.iterdir()) == [
        "questions.png", "replies.jsonl", "results.json", "results.md",
    ]  # fmt: skip
    again = run("questions", "--count", 3, "--seed", 2, "--redrawn", 1, "--batch-size", 3, "--no-blank")
    assert again.stdout == result.stdout
    compared = run("--compare", out, out, "--out", tmp_path / "both")
    assert compared.exit_code == 0
    assert "+0.0 points |" in compared.stdout
    assert (tmp_path / "both" / "compare.md").read_text() == compared.stdout


def test_a_users_file(bot, tmp_path, monkeypatch):
    from minichat.toy import dataset

    monkeypatch.setattr("minichat.cli.train.load_bot", lambda *arguments: bot)
    folder = dataset.write(tmp_path / "scenes", 4, seed=9)
    result = run("questions", "--data", folder / "questions.jsonl", "--count", 12, "--out", tmp_path / "own")
    assert result.exit_code == 0, result.stderr
    data = json.loads((tmp_path / "own" / "results.json").read_text())["data"]
    assert data["files"] == {"questions.jsonl": hashlib.sha256((folder / "questions.jsonl").read_bytes()).hexdigest()}
    assert data["seed"] is None
    (line,) = (row for row in result.stdout.splitlines() if row.startswith("| the answer is in the reply"))
    assert float(line.split("|")[2].strip().rstrip("%")) > 50
    captions = run(
        "captions", "--data", folder / "captions.csv", "--count", 2, "--no-blank", "--prompt", "What is this?"
    )
    assert captions.exit_code == 0, captions.stderr
    assert "| BLEU-4 |" in captions.stdout and "On captions.csv" in captions.stdout


def test_pictures_whose_names_are_no_unicode(bot, tmp_path, monkeypatch):
    monkeypatch.setattr("minichat.cli.train.load_bot", lambda *arguments: bot)
    folder = tmp_path / os.fsdecode(b"odd\xff")
    folder.mkdir()
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / os.fsdecode(b"noise\xff.png"))
    result = run("outside", "--data", folder, "--no-blank", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "\nOn odd\\udcff; minichat" in result.stdout
    lines = (tmp_path / "run" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["picture"] for line in lines} == {"noise\udcff.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name a task"),
        (("questions", "--compare", "a", "b"), 2, "name a task"),
        (("all", "--data", "x.jsonl"), 2, "--data is for one task"),
        (("questions", "--prompt", "Look. {question}"), 2, "--prompt is for captions and questions of your own"),
        (("dialogue", "--data", "x.jsonl", "--prompt", "Look."), 2, "--prompt is for captions and questions"),
        (("captions", "--images", "shots"), 2, "--images is for --data"),
        (("outside", "--data", "shots", "--images", "shots"), 2, "--images is for --data that names pictures"),
        (("questions", "--data", "x.jsonl", "--seed", "1"), 2, "--seed is of the held-out scenes"),
        (("questions", "--data", "x.jsonl", "--redrawn", "5"), 2, "--redrawn is for questions on scenes"),
        (("captions", "--redrawn", "5"), 2, "--redrawn is for questions on scenes"),
        (("questions", "--rerank", "5"), 2, "--rerank is for retrieval"),
        (("magic",), 2, "magic"),
        (("questions", "--count", "0"), 1, "minichat: count is 0"),
        (("questions", "--data", "gone.jsonl"), 1, "minichat: 'gone.jsonl' was not found"),
        (("stories", "--data", "gone.jsonl"), 1, "minichat: stories are measured on scenes alone"),
        (("--compare", "a", "b"), 1, "minichat: 'a' holds no results.json"),
        (("--compare", "a", "b", "--out", "c"), 1, "minichat: 'a' holds no results.json"),
        (("--compare", "a", "b", "--count", "5"), 2, "--count is for a task"),
        (("--compare", "a", "b", "--no-blank"), 2, "--blank/--no-blank is for a task"),
        (("--compare", "a", "b", "--dtype", "auto"), 2, "--dtype is for a task"),
        (("questions", "--batch-size", "0"), 1, "minichat: batch_size is 0"),
        (("retrieval", "--batch-size", "0"), 1, "minichat: batch_size is 0"),
    ],
)
def test_what_is_asked_wrongly(bot, monkeypatch, tmp_path, arguments, code, message):
    monkeypatch.setattr("minichat.cli.train.load_bot", lambda *arguments: bot)
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_way_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("minichat.cli.train.load_bot", refuse)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")
    result = run("questions", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "'run' exists already" in result.stderr


@pytest.mark.long
def test_every_task_sees_on_100_scenes(bot):
    found = evaluate(bot, Plan(count=100, redrawn=10))
    assert found.blind == []
    assert len(found.tasks) == 7
