"""A real LLM with new eyes, the whole way (`make test-real`): SmolLM2-135M-Instruct and the built-in ViT and Q-Former.

What it is taught, and asked about held-out scenes, is what the one thing in a picture is: its colour and its shape. So
small a frozen LLM says that where it reads the words; it does not answer "What colour is the object?" from them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from minichat.toy.world import Style, draw, random_scene
from minichat.train.config import read_config
from minichat.train.trainer import train
from minichat.train.yaml_config import write_yaml
from tests.conftest import REAL_HOME
from tests.training import losses

pytestmark = pytest.mark.real

LLM = "smollm2-135m-instruct"
QUESTION = "What is in the picture?"
HELD_OUT, STEPS = 40, 40
TURNS = (
    QUESTION,
    "What color is it?",
    "Are you sure?",
    "Thank you.",
    "What is 1 + 1?",
    "Why?",
    "Say hello.",
    "So?",
    "And?",
)
READINGS = {"easy": 100_000, "stages": [{"kinds": {"readings": 12, "outside": 1}}]}


def lessons(folder: Path, count: int, word: str) -> list[tuple[Path, str, str]]:
    """Scenes of one thing each, and what is said of them, as a data set: pictures with their colour and shape."""
    (folder / "pictures").mkdir(parents=True)
    records, facts = [], []
    for number in range(count):
        scene = random_scene(random.Random(f"{word} {number}"), things=1)
        thing, place = scene.things[0], folder / "pictures" / f"{number}.png"
        draw(scene, 96, seed=number, style=Style()).save(place)
        said = f"A{'n' * (thing.colour[0] in 'aeiou')} {thing.colour} {thing.shape}."
        shown = [{"type": "image", "image": f"pictures/{number}.png"}, {"type": "text", "text": QUESTION}]
        records.append({"messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": said}]})
        facts.append((place, thing.colour, thing.shape))
    (folder / "talks.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return facts


def learn(out: Path, model: Path, steps: int, lr: float, **more: Any) -> Path:
    """A run of the projection alone, where `more` does not say otherwise."""
    content = {
        "out": str(out),
        "trainable": ["projection"],
        "model": {"name": str(model), "device": "cpu", "dtype": "bfloat16"},
        "optimizer": {"lr": lr, "min_lr": lr / 5, "warmup_steps": 3, "weight_decay": 0, "beta2": 0.98},
        "run": {"max_steps": steps, "epochs": None, "batch_size": 12, "save_every": 1000},
        "report": {"samples": 0, "tensorboard": False, "log_every": 10},
    }
    file = out.with_suffix(".yaml")
    file.write_text(write_yaml(content | more))
    train(read_config(file), say=print)
    return out


def points(folder: Path, facts: list[tuple[Path, str, str]]) -> float:
    """By how many points the colours and shapes that are named right are more than with a blank picture."""
    bot = minichat.load(folder, device="cpu", dtype="bfloat16")
    asked = {"prompt": QUESTION, "max_new_tokens": 12, "batch_size": 20}
    seen = bot.caption([str(place) for place, *_ in facts], **asked)
    (blank,) = bot.caption([Image.new("RGB", (96, 96), "white")], **asked)

    def right(replies: list[str]) -> float:
        named = [re.findall(r"[a-z]+", reply.lower()) for reply in replies]
        return sum((c in n) + (s in n) for n, (_, c, s) in zip(named, facts, strict=True)) / (2 * len(facts))

    with_eyes, without = right([*seen]), right([blank] * len(facts))
    print(f"{folder.name}: {with_eyes:.1%} right, {without:.1%} with a blank picture; {seen[:3]}, {blank!r}")
    return 100 * (with_eyes - without)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINICHAT_HOME", str(REAL_HOME))
        folder = tmp_path_factory.mktemp("real")
        lessons(folder / "taught", 400, "taught")
        yield folder


@pytest.fixture(scope="module")
def held_out(desk: Path) -> list[tuple[Path, str, str]]:
    return lessons(desk / "held-out", HELD_OUT, "held out")


def join(out: Path, vision: str) -> Path:
    done = CliRunner().invoke(cli.app, ["new", "--vision", vision, "--llm", LLM, "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    return out


def taught(desk: Path) -> dict[str, Any]:
    return {"train": str(desk / "taught" / "talks.jsonl"), "feature_cache": str(desk / "features")}


@pytest.fixture(scope="module")
def projected(desk: Path) -> Path:
    """The projection alone: first it learns the LLM's words for what is in each place, then to let the LLM name it."""
    joined = join(desk / "joined", "minichat-tiny")
    words = {"source": "curriculum", "format": "synthetic", "options": READINGS}
    aligned = learn(
        desk / "aligned", joined, 150, 3e-3, stage="word_alignment", data={"streaming": True, "train": [words]}
    )
    return learn(desk / "projected", aligned, STEPS, 1e-3, data=taught(desk))


@pytest.fixture(scope="module")
def adapted(desk: Path, projected: Path) -> Path:
    return learn(desk / "adapted", projected, STEPS, 1e-3, data=taught(desk), lora={"rank": 16, "alpha": 32})


def test_the_projection_alone_lets_it_see(projected: Path, held_out: list[tuple[Path, str, str]]) -> None:
    assert points(projected, held_out) >= 20


def test_with_lora_it_sees_more(adapted: Path, held_out: list[tuple[Path, str, str]]) -> None:
    assert points(adapted, held_out) >= 40


def test_it_goes_the_whole_way(
    desk: Path, projected: Path, adapted: Path, held_out: list[tuple[Path, str, str]]
) -> None:
    """Ten turns with a cache are those without; captions; exported and read again it says the same."""
    first, second = (load_file(run / "projection.safetensors") for run in (projected, adapted))
    assert not torch.equal(first["weight"], second["weight"])
    bot = minichat.load(adapted, device="cpu", dtype="float32")
    chat, picture = bot.chat(max_new_tokens=10), str(held_out[0][0])
    for turn in range(10):
        chat.ask(TURNS[turn % len(TURNS)], [picture] if turn in (0, 9) else None)
    assert replies_anew(bot, chat.conversation) == chat.conversation.messages[-1].ids
    captions = bot.caption([str(place) for place, *_ in held_out[:4]], QUESTION, max_new_tokens=10)
    done = CliRunner().invoke(cli.app, ["export", str(adapted), "--format", "minichat", "--out", str(desk / "whole")])
    assert done.exit_code == 0, done.stderr
    again = minichat.load(desk / "whole", device="cpu", dtype="float32")
    assert again.caption([str(place) for place, *_ in held_out[:4]], QUESTION, max_new_tokens=10) == captions


def replies_anew(bot: MiniChat, conversation: Conversation) -> Any:
    """The ids of the last reply, when all before is read at once."""
    fresh = bot.chat(conversation=Conversation(conversation.messages[:-1]), max_new_tokens=10)
    fresh.regenerate()
    return fresh.conversation.messages[-1].ids


def test_with_random_eyes_the_loss_falls(desk: Path) -> None:
    """A SigLIP 2 that has learnt nothing: what is said is learnt, and of the pictures what a random network tells."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=8, num_patches=36)).save_pretrained(desk / "siglip2")
    out = learn(
        desk / "random",
        join(desk / "joined2", str(desk / "siglip2")),
        16,
        1e-3,
        data=taught(desk) | {"feature_cache": None},
    )
    found = losses(out)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
