"""A run that ended above where it began says so, with both numbers and what to change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from minichat.train.config import OptimizerConfig
from minichat.train.run import TrainingState
from minichat.train.stages.finetune import Finetune
from minichat.train.trainer import verdict
from tests.training import make_desk, said_by, same

RATE = OptimizerConfig(lr=0.5, warmup_steps=3)


def lines(*losses: float) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]


def state(began: float | None, best: float, last: float) -> TrainingState:
    return TrainingState(step=30, began=began, best=best, best_step=10, last=last)


@pytest.mark.parametrize(
    ("losses", "told"),
    [((2.0, 3.0, 3.0), "was 2 before the first step and 3 at best, after step 10"),
     ((2.0, 1.5, 7.0), "diverged after step 10: .* was 2 before .* 1.5 at best, and is 7 at the end"),
     ((2.0, 1.5, 1.9), None), ((2.0, 2.0, 2.0), None)],
)  # fmt: skip
def test_of_held_out_losses(losses: tuple[float, float, float], told: str | None) -> None:
    """They count, and not the training losses."""
    said = verdict(state(*losses), lines(*([1.0] * 20 + [9.0] * 20)), RATE)
    if told is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(told, said)
        assert "Lower optimizer.lr (0.5), or lengthen its warm-up (optimizer.warmup_steps is 3)" in said


def test_of_training_losses() -> None:
    alone = TrainingState(step=40)
    assert verdict(alone, lines(*[2.0] * 20, *[9.0] * 20), RATE).startswith(
        "Training made it worse, unless its data became harder: the loss was 2 at first and is 9 at the end."
    )
    assert verdict(alone, lines(*[2.0, 9.0] * 10, *[2.1] * 20), RATE) is None
    assert verdict(alone, lines(2.0), RATE) is None
    assert verdict(alone, [], RATE) is None


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


def test_a_run_that_diverges_says_so_and_its_result_is_the_best(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = [f"data.validation={desk / 'held_out.jsonl'}", "run.validate_every=4", "run.epochs=2"]
    real = Finetune.loss

    def each_time(factor: float) -> Any:
        """Each batch of a validation has so many times the loss of the one before, whatever is learnt."""
        looks: list[int] = []

        def loss(self: Finetune, batch: Any) -> Any:
            looks.extend([] if self.model.training else [1])
            return real(self, batch) * (1 if self.model.training else factor ** len(looks))

        return loss

    monkeypatch.setattr(Finetune, "loss", each_time(0.5))
    told = said_by(desk, f"out={tmp_path / 'well'}", *held_out)
    assert f"The result is in {tmp_path / 'well'}." in told
    assert "worse" not in told

    monkeypatch.setattr(Finetune, "loss", each_time(2))
    out = tmp_path / "fast"
    told = said_by(desk, f"out={out}", *held_out)
    assert "The result is in" not in told
    assert "Training made it worse: the validation loss was" in told
    assert f"The weights of step 4 are in {out} all the same." in told
    facts = json.loads((out / "minichat.json").read_text())["training"]
    assert facts["steps"] == 4
    assert facts["validation_loss_before"] < facts["validation_loss"]
    result, best = (load_file(out / name) for name in ("projection.safetensors", "checkpoints/best.safetensors"))
    assert same(result, {name.removeprefix("projection."): tensor for name, tensor in best.items()})
