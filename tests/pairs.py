"""Pictures with a caption each, parts to begin a Q-Former with, and a configuration that pre-trains it in a moment."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minichat.prompt.tokenizer import write_vocabulary
from minichat.train.config import Config, read_config
from minichat.train.trainer import Outcome, train
from minichat.train.yaml_config import write_yaml
from tests.tiny import noise_picture, tiny_bot
from tests.training import at_step

COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("circle", "square", "star")


def caption(number: int) -> str:
    more = " on a very large dark green field" * (number % 3 == 0)
    return f"A {COLOURS[number % 4]} {SHAPES[number % 3]}{more}."


def write_pairs(file: Path, count: int, first: int = 0, captions: int = 1) -> None:
    """A CSV of paths and texts; each picture has so many rows."""
    (file.parent / "pictures").mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(["path", "text"])
        for number in range(first, first + count):
            name = f"pictures/{number}.png"
            noise_picture(number).save(file.parent / name)
            table.writerows([name, caption(number + 5 * other)] for other in range(captions))


def make_desk(folder: Path, count: int = 17) -> Path:
    """A random model whose eyes are lent, a vocabulary, pairs, and `train.yaml`; no dropout, so that laws hold."""
    bot = tiny_bot()
    bot.model.save_pretrained(folder / "model")
    bot.processor.save_pretrained(folder / "model")
    write_pairs(folder / "pairs.csv", count, captions=2)
    write_pairs(folder / "held_out.csv", 5, first=100)
    write_vocabulary(folder / "words", [caption(number) for number in range(12)], 100)
    new = {"vision": str(folder / "model"), "tokenizer": str(folder / "words"), "layers": 2, "width": 16, "heads": 2}
    content: dict[str, Any] = {
        "stage": "qformer",
        "out": str(folder / "run"),
        "model": {"device": "cpu"},
        "qformer": {"new": {**new, "num_queries": 3, "embed_dim": 8, "dropout": 0}},
        "data": {"train": str(folder / "pairs.csv"), "validation": str(folder / "held_out.csv"), "max_length": 16},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "run": {"epochs": 1, "batch_size": 8, "validate_every": 2},
        "report": {"log_every": 1, "samples": 0, "tensorboard": False},
    }
    (folder / "train.yaml").write_text(write_yaml(content))
    return folder


def config_of(desk: Path, *overrides: str) -> Config:
    return read_config(desk / "train.yaml", overrides)


def run(desk: Path, *overrides: str, stop: int | None = None, say: Callable[[str], None] | None = None) -> Outcome:
    """A run; SIGTERM comes when step `stop` is done."""
    import signal

    return train(config_of(desk, *overrides), say=say or at_step(stop, signal.SIGTERM))
