"""Every YAML of train_configs/ runs, as its first lines say, with small stand-ins for the models and the data sets."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.toy import train_lm
from minichat.train.config import read_config
from minichat.train.logging import read_metrics
from tests.test_train_data import write_tar
from tests.tiny import SENTENCES, noise_picture, tiny_bot

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "train_configs"
KINDS = {"vicuna": ("vicuna-v0", "qformer"), "llama2": ("llama2", "patch_merge")}
SMALL = ["model.device=cpu", "data.num_workers=0", "report.tensorboard=false"]


def invoke(command: str, *more: str) -> Any:
    """A command as a YAML spells it; what comes before `minichat` starts processes, which is tested elsewhere."""
    words = shlex.split(command)
    done = CliRunner().invoke(cli.app, [*words[words.index("minichat") + 1 :], *more])
    assert done.exit_code == 0, done.stderr
    return done


def commands(name: str) -> list[str]:
    head = (CONFIGS / f"{name}.yaml").read_text().split("\n#\n")[0]
    return [line.removeprefix("# ") for line in head.splitlines()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the project's, in which runs leave nothing behind."""
    for name in ("train_configs", "prompts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("llm", KINDS)
def test_the_published_stages_one_after_the_other(llm: str, desk: Path) -> None:
    template, kind = KINDS[llm]
    first, second = (f"minigpt4_{llm}_stage{number}" for number in (1, 2))
    base = yaml.safe_load((CONFIGS / f"{first}.yaml").read_text())["model"]["name"]
    bot = tiny_bot(template, kind)
    bot.model.save_pretrained(base)
    bot.processor.save_pretrained(base)
    for folder, numbers in (("laion_dataset", range(10)), ("cc_sbu_dataset", range(100, 107))):
        os.mkdir(folder)
        write_tar(Path(folder) / "00000.tar", numbers)
    sources = [f"data.train.{n}.source={name}/00000.tar" for n, name in enumerate(("laion_dataset", "cc_sbu_dataset"))]
    invoke(commands(first)[-1], *SMALL, *sources, "run.max_steps=3", "run.batch_size=4")

    write_align(Path("cc_sbu_align"))
    done = invoke(commands(second)[-1], *SMALL, "run.max_steps=3")
    assert "samples     6 with 6 pictures" in done.stderr
    for name in (first, second):
        out = Path("runs") / name
        assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3]
        assert isinstance(minichat.load(out, device="cpu").chat(max_new_tokens=3).ask("Hi", noise_picture()), str)
    facts = json.loads((Path("runs") / second / "minichat.json").read_text())
    assert facts["template"] == template
    assert facts["base"]["path"].endswith(base)


def write_align(folder: Path) -> None:
    (folder / "image").mkdir(parents=True)
    notes = []
    for number in range(6):
        noise_picture(number).save(folder / "image" / f"{number}.jpg")
        notes.append({"image_id": str(number), "caption": SENTENCES[number % 4]})
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": notes}))


def test_the_built_in_model(desk: Path) -> None:
    """As it stands, on fewer scenes."""
    scenes, split, train = commands("tiny_finetune")
    invoke(scenes, "--count", "12")
    invoke(split)
    settings = ["run.epochs=1", "run.batch_size=2", "report.samples=1", "report.max_new_tokens=12"]
    invoke(train, "model.device=cpu", *settings)
    out = Path("runs/tiny_finetune")
    assert (out / "report.html").read_text().count("<tr><td>") == 1
    assert minichat.load(out, device="cpu").chat(max_new_tokens=4).ask("Hello.")


def test_language_in_peoples_words(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run by its curriculum, in which each stage is reached."""
    monkeypatch.setattr(train_lm, "_SPOKEN_LINES", 6_000)
    sizes = ["language.width=24", "language.intermediate_size=48", "language.layers=1", "language.heads=2"]
    until = [f"data.train.0.options.stages.{number}.until={2 * number + 2}" for number in range(2)]
    settings = ["run.max_steps=3", "run.batch_size=2", "report.log_every=1", "model.dtype=float32"]
    invoke(commands("tiny_language")[-1], "model.device=cpu", *sizes, *until, *settings)
    assert [line["step"] for line in read_metrics(Path("runs/tiny_language/metrics.jsonl"))] == [1, 2, 3]
    assert "shape" in (Path("runs/tiny_language") / "tokenizer.model").read_bytes().decode("utf-8", "ignore")


def test_captions_of_the_web_are_changed_as_the_originals_do() -> None:
    for name in ("minigpt4_vicuna_stage1", "minigpt4_llama2_stage1", "blip2_stage1", "blip2_stage2"):
        sources = read_config(CONFIGS / f"{name}.yaml").data.train
        assert [source.options for source in sources] == [{"captions": "blip"}] * len(sources), name


def test_every_config_is_tested_here() -> None:
    tested = {f"minigpt4_{llm}_stage{number}" for llm in KINDS for number in (1, 2)} | {
        "tiny_finetune",
        "tiny_language",
    }
    elsewhere = {
        *("qformer_stage1", "qformer_stage2", "blip2_stage1", "blip2_stage2"),  # test_train_own_pairs.py
        *("llava_projection", "llava_lora"),  # test_new_vision.py
    }
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == tested | elsewhere
