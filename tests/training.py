"""A model, a data set and a configuration for training runs that last a moment."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minichat.train.config import Config, read_config
from minichat.train.logging import read_metrics
from minichat.train.trainer import Outcome, train
from minichat.train.yaml_config import write_yaml
from tests.tiny import SENTENCES, noise_picture, tiny_bot


def make_desk(folder: Path, samples: int = 18, **bot: Any) -> Path:
    """A folder with a random model, a data set of pictures and conversations, and `train.yaml`."""
    made = tiny_bot(**bot)
    made.model.save_pretrained(folder / "model")
    made.processor.save_pretrained(folder / "model")
    write_talks(folder / "talks.jsonl", samples)
    write_talks(folder / "held_out.jsonl", 5, first=100)
    content = {
        "out": str(folder / "run"),
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "data": {"train": str(folder / "talks.jsonl")},
        "optimizer": {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 4, "warmup_lr": 1e-4},
        "run": {"epochs": 4, "batch_size": 4},
        "report": {"log_every": 1, "samples": 0, "tensorboard": False, "max_new_tokens": 8},
    }
    (folder / "train.yaml").write_text(write_yaml(content))
    return folder


def write_talks(file: Path, samples: int, first: int = 0) -> None:
    """Conversations of unlike lengths, with no, one or two pictures and one or two turns."""
    (file.parent / "pictures").mkdir(exist_ok=True)
    lines = []
    for number in range(first, first + samples):
        names = [f"pictures/{number}-{index}.png" for index in range((1, 1, 2, 0)[number % 4])]
        for index, name in enumerate(names):
            noise_picture(2 * number + index).save(file.parent / name)
        shown = [{"type": "image", "image": name} for name in names]
        said = [{"role": "user", "content": [*shown, {"type": "text", "text": SENTENCES[number % 3]}]}]
        said.append({"role": "assistant", "content": SENTENCES[(number + 1) % 4][: 12 + number % 7]})
        if number % 3 == 0:
            said += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": SENTENCES[number % 4]}]
        lines.append(json.dumps({"messages": said}))
    file.write_text("\n".join(lines) + "\n")


def write_tar(file: Path, numbers: Iterable[int], broken: Container[int] = (), wordless: Container[int] = ()) -> None:
    """Captioned pictures; of the `broken` the picture is none, and the `wordless` have no caption."""
    with tarfile.open(file, "w") as tar:
        for number in numbers:
            written = io.BytesIO()
            noise_picture(number).save(written, "PNG")
            picture = b"no picture" if number in broken else written.getvalue()
            members = [(f"{number:05}.png", picture), (f"{number:05}.txt", SENTENCES[number % 4][:20].encode())]
            for name, content in members[: 1 if number in wordless else 2]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def config_of(desk: Path, *overrides: str) -> Config:
    return read_config(desk / "train.yaml", overrides)


def run(desk: Path, *overrides: str, stop: int | None = None, number: int = signal.SIGTERM) -> Outcome:
    """A run; the signal `number` comes when step `stop` is done."""
    return train(config_of(desk, *overrides), say=at_step(stop, number))


def said_by(desk: Path, *overrides: str) -> str:
    """What a run says, from beginning to end."""
    said: list[str] = []
    train(config_of(desk, *overrides), say=said.append)
    return "\n".join(said)


def at_step(stop: int | None, number: int) -> Callable[[str], None]:
    def say(text: str) -> None:
        if stop is not None and text.startswith(f"step {stop}/"):
            os.kill(os.getpid(), number)

    return say


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out / "metrics.jsonl") if "loss" in line]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in steps_of(out)]


def checkpoints(out: Path) -> dict[int, dict[str, Tensor]]:
    """Step → tensors of each checkpoint that is there."""
    files = sorted((out / "checkpoints").glob("step-*.safetensors"))
    return {int(file.stem.removeprefix("step-")): load_file(file) for file in files}


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Equal to the bit, names and all."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def turn_a_bit(file: Path) -> None:
    """As a disk does: of the last byte, which in a safetensors file is a tensor's."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
