"""The documentation's figures: what they show is the model's own and what runs left, and each is there."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.figures import attention, losses, masks, stages, world
from benchmarks.figures.__main__ import FIGURES, main
from minichat.model import qformer_pretrain
from minichat.toy.captions import description
from minichat.toy.evaluate import held_out_scene
from tests.conftest import ROOT
from tests.tiny_stage1 import pairs, tiny_pretraining

DOCS = ROOT / "docs"
LINKS = {
    page.name: re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", page.read_text())
    for page in (DOCS / "ROAD.md", DOCS / "PRETRAINING.md")
}
n = masks.QUERIES


def blocks(name: str) -> dict[str, Tensor]:
    """The drawn mask's four parts, by who looks and who is looked at."""
    sees = masks.seen(masks.OBJECTIVES[name])
    assert sees.shape == (n + 1 + len(masks.TEXT),) * 2
    return {"qq": sees[:n, :n], "qt": sees[:n, n:], "tq": sees[n:, :n], "tt": sees[n:, n:]}


def test_contrast_keeps_queries_and_text_apart() -> None:
    parts = blocks("itc")
    assert parts["qq"].all() and parts["tt"].all()
    assert not parts["qt"].any() and not parts["tq"].any()


def test_matching_lets_everything_see_everything() -> None:
    assert all(part.all() for part in blocks("itm").values())


def test_generation_lets_text_see_queries_and_what_came_before() -> None:
    parts = blocks("itg")
    assert parts["qq"].all() and parts["tq"].all()
    assert not parts["qt"].any()
    assert torch.equal(parts["tt"], torch.ones_like(parts["tt"]).tril())


@pytest.mark.parametrize("name", masks.OBJECTIVES)
def test_each_objective_trains_with_the_mask_that_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[Callable[[int, Tensor], Tensor]] = set()

    def spied(mask: Callable[[int, Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
        def spy(queries: int, words: Tensor) -> Tensor:
            used.add(mask)
            return mask(queries, words)

        return spy

    drawn = {name: objective.mask for name, objective in masks.OBJECTIVES.items()}
    for mask in drawn.values():
        monkeypatch.setattr(qformer_pretrain, mask.__name__, spied(mask))
    model = tiny_pretraining(objectives=(name,))
    with torch.no_grad():
        model(**pairs(2), negatives=(torch.tensor([1, 0]), torch.tensor([1, 0])))
    assert used == {drawn[name]}


def test_every_figure_of_the_documentation_is_there() -> None:
    links = [link for found in LINKS.values() for link in found]
    assert links
    for link in links:
        file = DOCS / link
        assert file.is_file(), f"{link}: draw it with python -m benchmarks.figures {file.stem}"
        assert file.stem in FIGURES
        assert file.stat().st_size < 180_000
        with Image.open(file) as picture:
            assert picture.width >= 850
    assert {file.name for file in (DOCS / "figures").iterdir()} == {Path(link).name for link in links}


def run(road: Path, name: str, values: list[float], more: str = "") -> None:
    (road / name).mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": value, "lr": 0.1}) for step, value in enumerate(values, start=1)]
    (road / name / "metrics.jsonl").write_text("\n".join(lines) + "\n" + more)


def test_losses_are_drawn_from_what_runs_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "0b_language", [6.0, 3.0, 1.0, 0.5])
    run(tmp_path, "1_qformer", [9.0, 4.0], more='{"step": 3, "lo')
    shutil.copy(ROOT / "train_configs" / "tiny" / "1_qformer.yaml", tmp_path / "1_qformer" / "config.yaml")
    curves = losses.read(tmp_path)
    assert [(curve.name, curve.losses) for curve in curves] == [
        ("0b_language", (6.0, 3.0, 1.0, 0.5)),
        ("1_qformer", (9.0, 4.0)),
    ]
    capsys.readouterr()
    assert main(["losses", "--road", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "losses.png") as picture:
        assert picture.width == 1700
        assert len(picture.convert("RGB").getcolors(10**6)) > 5
    said = capsys.readouterr().out
    missing = set(losses.STAGES) - {"0b_language", "1_qformer"}
    assert all(f"{name} is left out" in said for name in missing)
    assert "1_qformer is left out" not in said


def test_what_is_not_there_is_said_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("losses", "patches", "attention"):
        assert main([name, "--road", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
        assert f"{name} is not drawn: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main(["mask"])
    assert "there is no figure 'mask'" in capsys.readouterr().err


def test_the_road_has_the_panels_that_the_configurations_have() -> None:
    files = sorted((ROOT / "train_configs" / "tiny").glob("*.yaml"))
    assert tuple(file.stem for file in files) == losses.STAGES
    assert [f"{stage.number}_{stage.name}" for stage in stages.stages()] == list(losses.STAGES)


def test_the_running_mean_is_one() -> None:
    values = tuple(np.random.default_rng(0).uniform(1, 9, 12).tolist())
    wanted = [np.mean(values[max(0, at - 3) : at + 4]) for at in range(12)]
    np.testing.assert_allclose(losses.smooth(values, 3), wanted)


def test_stages_show_what_the_configurations_train(tmp_path: Path) -> None:
    shown = {
        stage.number: {part for part, fate in stage.parts.items() if fate == stages.TRAINS} for stage in stages.stages()
    }
    assert shown == {
        "0a": {"vision_model"},
        "0b": {"language_model"},
        "0c": {"language_model"},
        "0d": {"language_model"},
        "0e": {"language_model"},
        "0f": {"language_model"},
        "0g": {"language_model"},
        "0h": {"language_model"},
        "0i": {"language_model"},
        "0j": {"language_model"},
        "0k": {"language_model"},
        "0l": {"language_model"},
        "0m": {"language_model"},
        "1": {"bridge"},
        "1b": {"bridge"},
        "2a": {"bridge", "projection"},
        "2b": {"bridge", "projection"},
        "3": {"projection"},
        "4": {"projection"},
    }
    text = (ROOT / "train_configs" / "tiny" / "3_alignment.yaml").read_text()
    changed = text.replace("trainable: [projection]", "trainable: [projection, vision_model.encoder]")
    assert changed != text
    (tmp_path / "3_alignment.yaml").write_text(changed)
    (stage,) = stages.stages(tmp_path)
    assert stage.parts == {"vision_model": stages.TRAINS, "bridge": stages.RESTS, "projection": stages.TRAINS,
                           "language_model": stages.RESTS}  # fmt: skip


def test_the_description_has_all_its_words() -> None:
    (axes,) = world.draw_description().axes
    told = Counter(re.sub(r"\s+", " ", text.get_text()) for text in axes.texts)
    assert not Counter(" ".join(bag) for bag in description(held_out_scene(world.SHOWN)[0])) - told


def test_a_query_looks_at_patches_as_the_model_says() -> None:
    """Shares of one; with keys of nothing each patch is as good as any other."""
    model = tiny_pretraining()
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    maps = attention.looks(model, pixels)
    assert maps.shape == (3, 2, 2)
    np.testing.assert_allclose(maps.sum((1, 2)), 1)
    assert maps.std() > 0.01
    for layer in model.bridge.qformer.encoder.layer:
        if layer.has_cross_attention:
            torch.nn.init.zeros_(layer.crossattention.attention.key.weight)
    np.testing.assert_allclose(attention.looks(model, pixels), 0.25)
