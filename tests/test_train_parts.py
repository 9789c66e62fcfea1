"""Training before an encoder–decoder: what is before a reply goes to the encoder, the reply to the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import minichat
from minichat.data import formats
from minichat.data.dataset import Renderer, Row
from minichat.data.example import Where
from minichat.prompt.render import IGNORED
from minichat.train.stages.finetune import Finetune, LastReply, parted
from tests.test_encoder_decoder import convert_t5
from tests.training import config_of, losses, make_desk, run

HERE = Where("talks.jsonl", 1)


def row_of(parts: list[tuple[int, bool]]) -> Row:
    """Runs of ids, learned or not."""
    learn = np.repeat([wanted for _, wanted in parts], [count for count, _ in parts])
    ids = np.arange(10, 10 + len(learn), dtype=np.int32)
    return Row(ids, np.where(learn, ids, np.int32(IGNORED)), (), HERE)


@given(st.lists(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=4), min_size=1, max_size=4))
def test_nothing_is_lost(talks: list[list[tuple[int, bool]]]) -> None:
    """Prompt and reply are the row, cut before the last ids that are learned; nothing else is learned."""
    rows = [row_of([*parts, (2, True)]) for parts in talks]
    last = [LastReply(lambda _, row=row: row)(None) for row in rows]
    prompts, replies = parted(last)
    for row, kept, prompt, reply in zip(rows, last, prompts, replies.tolist(), strict=True):
        reply = [number for number in reply if number != IGNORED]
        assert prompt.ids.tolist() + reply == row.ids.tolist()
        assert len(reply) >= 2
        assert not prompt.supervised
        assert kept.labels[len(prompt.ids) :].tolist() == reply
        assert not len(prompt.ids) or row.labels[len(prompt.ids) - 1] == IGNORED


def test_a_row_that_learns_nothing() -> None:
    prompts, replies = parted([row_of([(3, True)]).masked()])
    assert len(prompts[0].ids) == 3
    assert replies.tolist() == [[IGNORED]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As for other runs, with a T5 in the place of the LLM."""
    folder = make_desk(tmp_path_factory.mktemp("desk"))
    convert_t5(folder / "made", merge=True).rename(folder / "t5")
    return folder


def test_a_step_is_the_models_own_loss(desk: Path) -> None:
    """The stage's sum over its tokens is the mean of the model's `forward`, row by row by itself."""
    stage = Finetune(config_of(desk, f"model.name={desk / 't5'}"), torch.device("cpu"))
    examples = list(formats.read(str(desk / "talks.jsonl")))[:6]
    rows = [stage.render(example) for example in examples]
    batch = stage.collate(rows)
    assert stage.count(batch) == sum(row.supervised for row in rows)
    stage.model.eval()
    with torch.no_grad():
        total = float(stage.loss(batch))
        alone = 0.0
        for row in rows:
            one = stage.collate([row])
            names = ("input_ids", "attention_mask", "labels", "pixel_values")
            given = {name: one[name] for name in names if name in one}
            alone += float(stage.model(**given).loss) * row.supervised
    assert total == pytest.approx(alone, rel=1e-5)
    plain = Renderer(stage.bot.processor)
    turns = [plain(example) for example in examples]
    assert any(row.supervised > kept.supervised for row, kept in zip(turns, rows, strict=True))


@pytest.mark.parametrize("cached", [False, True])
def test_a_run(desk: Path, tmp_path: Path, cached: bool) -> None:
    """It trains the projection alone, and the result talks."""
    out = tmp_path / "run"
    more = [f"data.feature_cache={tmp_path / 'features'}"] if cached else []
    run(desk, f"out={out}", f"model.name={desk / 't5'}", "run.epochs=3", *more)
    assert all(np.isfinite(losses(out)))
    assert set(load_file(out / "projection.safetensors")) == {"weight", "bias"}
    bot = minichat.load(out, device="cpu")
    assert not torch.equal(bot.model.projection.weight, minichat.load(desk / "t5").model.projection.weight)
    assert isinstance(bot.chat(max_new_tokens=4).ask("What is it?", [next((desk / "pictures").iterdir())]), str)
