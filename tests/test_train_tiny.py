"""The built-in model's trainer: labels are true, a stopped run goes on as if it had not stopped, the result loads."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import minichat
from minichat.errors import ModelError
from minichat.scenes.draw import draw
from minichat.scenes.world import COLOURS, SHAPES, SIZES, Background, Scene, Thing, random_scene
from minichat.train.tiny import __main__ as tiny
from minichat.train.tiny.drawn import Dialogues, Sights, normalize, train_tokenizer
from minichat.train.tiny.sight import CELLS, GRID_COLUMNS, IGNORE, NOTHING, labels
from minichat.train.tiny.steps import Stage, run

SHORT = Stage("see", samples=24, batch=4, warmup=2, save_every=1)


def test_labels_name_the_thing_under_each_patch_and_in_each_cell() -> None:
    thing = Thing("star", "red", "large", x=0.3, y=0.7, radius=0.15)
    truth = labels(Scene((thing,), Background("plain", ("blue",))), patches=12)
    inside = truth["patch_shape"] != NOTHING
    assert set(truth["patch_shape"][inside]) == {SHAPES.index("star")}
    assert set(truth["patch_colour"][inside]) == {COLOURS.index("red")}
    assert (truth["patch_colour"][~inside] == IGNORE).all()
    # 9 patches across hold the circle's area, and from each the way leads to its centre.
    assert abs(inside.mean() - np.pi * 0.15**2) < 0.02
    places = (np.arange(12) + 0.5) / 12
    x, y = np.tile(places, 12)[inside], np.repeat(places, 12)[inside]
    ends = truth["patch_way"][inside] + np.stack([x, y], -1)
    np.testing.assert_allclose(ends, [[0.3, 0.7]] * inside.sum(), atol=1e-6)
    (cell,) = np.flatnonzero(truth["cell_shape"] != NOTHING)
    assert cell == 4 * GRID_COLUMNS + 1  # the second of five columns, the fifth of six rows
    assert truth["count"] == 0 and truth["background"] == 0
    assert [c for c, on in zip(COLOURS, truth["background_colours"], strict=True) if on] == ["blue"]


def test_hardly_any_thing_is_lost_to_another_in_its_cell() -> None:
    scenes = [random_scene(random.Random(seed)) for seed in range(400)]
    named = sum(int((labels(scene, 12)["cell_shape"] != NOTHING).sum()) for scene in scenes)
    things = sum(len(scene.things) for scene in scenes)
    assert 0.98 * things <= named <= things


def test_pixels_are_those_of_the_processor() -> None:
    picture = draw(random_scene(random.Random(3)), tiny.SIDE)
    ours = normalize(torch.from_numpy(np.asarray(picture).copy())[None])
    torch.testing.assert_close(ours, minichat.images.to_pixels([picture], tiny.SIDE))


def test_labels_cover_every_size_colour_and_shape() -> None:
    seen: dict[str, set[int]] = {"shape": set(), "colour": set(), "size": set()}
    for seed in range(200):
        truth = labels(random_scene(random.Random(seed)), 12)
        for name, values in seen.items():
            values |= set(truth[f"cell_{name}"][truth["cell_shape"] != NOTHING])
    assert [len(seen[name]) for name in ("shape", "colour", "size")] == [len(SHAPES), len(COLOURS), len(SIZES)]
    assert len(labels(random_scene(random.Random(0)), 12)["cell_shape"]) == CELLS


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    def train(out: Path, steps: int, stop: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        out.mkdir(exist_ok=True)
        layers = torch.nn.ModuleDict({"layer": torch.nn.Linear(6, 6), "rest": torch.nn.Embedding(4, 6)})
        stage = Stage("toy", samples=4 * steps, batch=4, warmup=2, save_every=2)

        class Numbers(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
            def __init__(self, step: int) -> None:
                self.step = step

            def __iter__(self):
                while True:
                    if self.step == stop:
                        raise KeyboardInterrupt
                    yield torch.randn(4, 6, generator=torch.Generator().manual_seed(self.step))
                    self.step += 1

        def loss_of(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
            return (layers["layer"](batch) + layers["rest"].weight - 1).square().mean(), {}

        run(out, stage, layers, Numbers, loss_of, workers=0)
        return {name: value.clone() for name, value in layers.state_dict().items()}

    whole = train(tmp_path / "whole", 10)
    for stop in (1, 4, 7):  # before a checkpoint, at one, after one
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / f"stopped{stop}", 10, stop)
        resumed = train(tmp_path / f"stopped{stop}", 10)
        for name, value in whole.items():
            assert torch.equal(resumed[name], value), name


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    layers = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)})

    class Nothing(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):
            while True:
                yield torch.full((1, 2), float("nan"))

    def loss_of(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        return layers["layer"](batch).sum(), {}

    with pytest.raises(ModelError, match="loss is nan at step 0"):
        run(tmp_path, Stage("toy", 4, 1), layers, lambda step: Nothing(), loss_of, workers=0)


def test_resumed_data_are_the_data_that_would_have_come(tmp_path: Path) -> None:
    words = train_tokenizer(tmp_path, 0)
    stage = Stage("talk", samples=100, batch=2)
    for make in (lambda step: Sights(stage, 0, step), lambda step: Dialogues(stage, 0, step, words)):
        whole = iter(make(0))
        for _ in range(11):
            next(whole)
        for expected, resumed in ((next(whole), batch) for _, batch in zip(range(3), make(11), strict=False)):
            flat = torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(resumed)
            assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


def test_the_road_from_nothing_to_a_model_that_loads(tmp_path: Path) -> None:
    tiny.see(tmp_path, SHORT, seed=0)
    tiny.talk(tmp_path, Stage("talk", samples=8, batch=2, warmup=2, save_every=2), seed=0)
    bot = minichat.load(tiny.write(tmp_path))
    see, talk = (torch.load(tmp_path / name, weights_only=True) for name in ("see.pt", "talk.pt"))
    assert (see["step"], talk["step"]) == (6, 4)
    stored = bot.model.state_dict()
    for name, value in see["modules"].items():  # the eyes are those of the first stage: the second froze them
        if not name.startswith("heads."):
            assert torch.equal(stored[name], value.to(torch.bfloat16).float()), name
    assert torch.equal(stored["projection.weight"], talk["modules"]["projection.weight"])
    assert isinstance(bot.caption([draw(random_scene(random.Random(1)))], max_new_tokens=4)[0], str)
