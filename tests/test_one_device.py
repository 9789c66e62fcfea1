"""What a GPU is asked to do: nothing of two devices at once, and no value is waited for but those that must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minichat.inference.engine import Engine
from minichat.model.loss import ProcessGroup
from minichat.train.config import STAGES, read_config
from minichat.train.data import read_data
from minichat.train.stages import stage_of
from minichat.train.stages.finetune import Finetune, Prefix
from tests.one_device import META, OneDevice, answered, to_meta
from tests.test_engine import prompts_of, request_of
from tests.tiny import tiny_bot

ROAD = Path(__file__).parent.parent / "train_configs" / "tiny"
SMALL_LLM = ("language.width=24", "language.intermediate_size=48", "language.layers=1", "language.heads=2")
CONFIGURATIONS = {
    "vision": ("0a_vision", "vision.width=24", "vision.layers=1", "vision.heads=2"),
    "language": ("0b_language", *SMALL_LLM),
    # Matching (itm) draws its negatives on the host, so that all processes draw the same.
    "qformer": ("1b_search", "model.name=minichat-tiny-stage1", "qformer.objectives=[itc, itg]"),
    "word_alignment": ("2a_word_alignment", "model.name=minichat-tiny"),
    "finetune": ("4_finetune", "model.name=minichat-tiny"),
}


def test_the_guard_sees_what_cuda_would_refuse() -> None:
    there, here = torch.zeros(2, device=META), torch.zeros(2)
    with OneDevice():
        there + there, here + here, there + torch.tensor(1.0), there.copy_(here), here.to(META)
        for wrong in (lambda: there + here, lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="cpu and meta"):
                wrong()


def test_a_step_of_the_engine_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all rows together, whether prompts are read or replies are written, and all is where the model is."""
    bot = tiny_bot()
    prompts = prompts_of(bot)
    to_meta(bot.model, monkeypatch)
    asked = answered(monkeypatch, lambda ids: [5] * len(ids))
    engine = Engine(bot.model, kept_bytes=2**20)
    requests = []
    for prompt in prompts:
        features = None if prompt.features is None else prompt.features.to(META)
        requests.append(request_of(bot, replace(prompt, features=features), repetition_penalty=1.2))
        engine.submit(requests[-1])
    steps = 0
    with OneDevice():
        while not all(each.over for each in requests):
            engine.step()
            steps += 1
            assert len(asked) <= steps
    assert [each.error for each in requests] == [None] * len(requests)
    assert [len(each.ids) for each in requests] == [8] * len(requests)


def test_each_stage_is_tried() -> None:
    assert CONFIGURATIONS.keys() == STAGES.keys()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_training_step_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A stage's loss and its gradient: the batch and the network are on the device, the rest on the host."""
    file, *settings = CONFIGURATIONS[name]
    always = (f"out={tmp_path}", "model.device=cpu", "model.dtype=float32", "run.batch_size=4", "run.max_steps=2")
    config = read_config(ROAD / f"{file}.yaml", [*always, *settings])
    stage = stage_of(name)(config, torch.device("cpu"))
    (batch,) = next(iter(read_data(config, stage, ProcessGroup(0, 1), print).loader.load()))
    to_meta(stage.model, monkeypatch)
    for key, value in vars(stage).items():
        if isinstance(value, Tensor):
            setattr(stage, key, value.to(META))
    with OneDevice():
        if isinstance(stage, Finetune):  # what it computes when it begins
            stage.prefix = Prefix(stage.model, stage.bot.processor)
        stage.loss({key: value.to(META) for key, value in batch.items()}).sum().backward()
    assert any(weight.grad is not None for weight in stage.model.parameters())
