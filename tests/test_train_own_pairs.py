"""A user's own pictures and texts: the example of docs/PRETRAINING.md, command by command, with small files in place of
the published ones; from stage 1 to a model that writes captions."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForPreTraining
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.train.logging import read_metrics
from minichat.weights.qformer import read_stage1
from tests.conftest import ROOT
from tests.pairs import write_pairs
from tests.test_stage1_files import publish_as_named
from tests.test_train_data import write_tar
from tests.tiny import noise_picture, tiny_bot, tokenizer_model
from tests.tiny_stage1 import WORDS

PAGE = (ROOT / "docs" / "PRETRAINING.md").read_text().partition("## Your own pictures and texts")[2]
EXAMPLE, FROM_BERT, SMALL, SMALL_STAGE2 = re.findall(r"```bash\n(.*?)\n```", PAGE, re.DOTALL)
FEW = ["model.device=cpu", "report.tensorboard=false", "run.epochs=null", "run.max_steps=2", "run.batch_size=4"]
OF_STAGE = {"qformer_stage1": ["data.max_length=16"], "qformer_stage2": ["run.micro_batch_size=2"]}


def invoke(command: str) -> Any:
    """A line of the page; a run is shortened to two small steps."""
    words = shlex.split(command)[1:]
    if words[0] == "train":
        words += [*FEW, *OF_STAGE[Path(words[1]).stem]]
    if words[0] == "evaluate":
        words += ["--device", "cpu"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the page's files are, small."""
    publish_as_named(tmp_path, monkeypatch)
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    BertForPreTraining(BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=16)).save_pretrained(
        "bert-base-uncased"
    )
    tiny_bot().model.language_model.save_pretrained("vicuna-7b")
    Path("vicuna-7b/tokenizer.model").write_bytes(tokenizer_model())
    (tmp_path / "train_configs").symlink_to(ROOT / "train_configs")
    write_pairs(tmp_path / "pairs.csv", 12, captions=2)
    return tmp_path


def test_from_the_published_checkpoint_to_captions(desk: Path) -> None:
    convert, split, first, retrieve, before, second, captions = EXAMPLE.splitlines()
    invoke(convert)
    invoke(split)
    invoke(first)
    runs = Path("runs/qformer")
    start, learned = read_stage1(str(runs / "blip2")).model, read_stage1(str(runs / "stage1")).model
    assert torch.equal(start.vision_model.embeddings.class_embedding, learned.vision_model.embeddings.class_embedding)
    assert not torch.equal(start.bridge.query_tokens, learned.bridge.query_tokens)
    assert "R@1" in invoke(retrieve).stdout
    invoke(before)
    stage2 = minichat.load(runs / "begin", device="cpu").model
    assert torch.equal(stage2.bridge.query_tokens, learned.bridge.query_tokens)
    invoke(second)
    for stage in ("stage1", "stage2"):
        assert [line["step"] for line in read_metrics(runs / stage / "metrics.jsonl") if "loss" in line] == [1, 2]
    table = invoke(captions).stdout
    assert all(name in table for name in ("BLEU-4", "ROUGE-L", "CIDEr-D"))
    bot = minichat.load(runs / "stage2", device="cpu")
    trained = bot.model
    assert not torch.equal(trained.bridge.query_tokens, learned.bridge.query_tokens)
    assert torch.equal(trained.vision_model.embeddings.class_embedding, start.vision_model.embeddings.class_embedding)
    assert isinstance(bot.chat(max_new_tokens=3).ask("What is it?", noise_picture()), str)


def test_from_bert(desk: Path) -> None:
    invoke(EXAMPLE.splitlines()[1])
    invoke(FROM_BERT)
    facts = json.loads(Path("runs/qformer/from-bert/training.json").read_text())["training"]
    assert facts["config"]["qformer"]["new"]["bert"] == "bert-base-uncased"
    assert facts["steps"] == 2


def test_the_paper_s_two_stages(desk: Path) -> None:
    """BLIP-2 at its full size, on a small tar."""
    Path("captioned").mkdir()
    write_tar(Path("captioned/00000.tar"), range(10))
    few = ["data.train=captioned/00000.tar", "run.max_steps=2", "run.batch_size=4", "data.num_workers=0"]
    small = ["model.device=cpu", "report.tensorboard=false", *few]
    for name in ("blip2_stage1", "blip2_stage2"):
        head = (ROOT / "train_configs" / f"{name}.yaml").read_text().split("\n#\n")[0]
        *before, train = [line.removeprefix("# ") for line in head.splitlines()]
        for command in before:
            invoke(command)
        words = shlex.split(train)
        shortened = [*small, "data.max_length=16"] if name == "blip2_stage1" else small
        done = CliRunner().invoke(cli.app, [*words[words.index("minichat") + 1 :], *shortened])
        assert done.exit_code == 0, done.stderr
    bot = minichat.load("runs/blip2_stage2", device="cpu")
    assert isinstance(bot.caption([noise_picture()], max_new_tokens=3)[0], str)


def test_from_nothing_with_the_eyes_of_the_built_in_model(desk: Path) -> None:
    invoke(EXAMPLE.splitlines()[1])
    for command in SMALL.splitlines():
        invoke(command)
    made = read_stage1("runs/qformer/small")
    assert made.model.config.bridge_config.qformer.hidden_size == 192
    eyes = minichat.load("minichat-tiny", device="cpu").model.vision_model.state_dict()
    held = made.model.vision_model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in eyes.items())
    *before, captions = SMALL_STAGE2.splitlines()
    for command in before:
        invoke(command)
    assert "CIDEr-D" in invoke(captions).stdout


def test_the_page_and_the_configurations_say_the_same() -> None:
    heads = [
        line.removeprefix("# ")
        for name in OF_STAGE
        for line in (ROOT / "train_configs" / f"{name}.yaml").read_text().split("\n#\n")[0].splitlines()
    ]
    assert heads == [line for line in EXAMPLE.splitlines() if not line.startswith("minichat evaluate")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokenizer", "bert-base-uncased"], "keeps a stage 1 of --qformer"),
        (
            ["--tokenizer", "bert-base-uncased", "--qformer", "blip2_pretrained.pth", "--llm", "x"],
            "takes no other part",
        ),
        (["--vit", "eva_vit_g.pth", "--llm", "x"], "The LLM 'x' is not there"),
    ],
)
def test_a_conversion_of_too_much_or_too_little(desk: Path, more: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["convert", "--out", "made", *more])
    assert done.exit_code != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not Path("made").exists()
