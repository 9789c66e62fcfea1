"""The programs of examples/: the reply is the one that a chat gives, and what was trained can be loaded."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch

import minichat
from minichat.toy.world import draw, random_scene

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("limit", [200, 3])
def test_generate_gives_the_ids_and_the_text_of_a_greedy_chat(
    limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "What is in the picture?"
    draw(random_scene(random.Random(5)), 200).save(tmp_path / "scene.png")
    ids = example("generate").main([str(tmp_path / "scene.png"), question, "--max-new-tokens", str(limit)])
    chat = minichat.load("minichat-tiny").chat(max_new_tokens=limit)
    reply = chat.ask(question, images=[tmp_path / "scene.png"])
    assert list(chat.conversation.turns[-1].ids or ()) == ids
    assert capsys.readouterr().out.strip() == reply
    assert len(ids) <= limit


def test_train_lowers_the_loss_and_saves_a_projection_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "projection"
    losses = example("train").main([str(out), "--scenes", "4", "--batch-size", "4", "--steps", "6"])
    assert losses[-1] < losses[0]
    base, trained = minichat.load("minichat-tiny").model, minichat.load(out).model
    changed = {
        name for name, weight in trained.state_dict().items() if not torch.equal(weight, base.state_dict()[name])
    }
    assert changed == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("name", ["generate", "train"])
def test_an_example_fits_a_page(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60
