"""The measurements that print a table run, and what they compare agrees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu


@pytest.mark.long
def test_minichat_and_plain_transformers_write_the_same() -> None:
    """In float32, from the same weights, for the same prompt and picture."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--size", "small", "--dtype", "float32"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([*command, "--tokens", "12", "--repeats", "1"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| each further token |" in done.stdout
    assert "The first 12 of 12 ids are the same" in done.stdout
    assert "differ by 0.00%" in done.stdout


def checked(out: Path, *only: str, device: str = "cpu") -> dict[str, Any]:
    """The GPU kit's report on the built-in model."""
    status = gpu.main(["--device", device, "--model", "minichat-tiny", "--out", str(out), "--only", *only])
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert status == int(report["counts"]["failed"] > 0)
    assert (out / "report.md").read_text().count("\n| ") == 1 + len(report["rows"])
    return report


def needs_a_gpu(row: dict[str, Any]) -> bool:
    named = ("cuda", "CUDA", "NCCL", "processor", "context")
    return any(word in row["what"] for word in named)


def test_the_gpu_kit_on_a_processor(tmp_path: Path) -> None:
    """What makes sense there is passed; what needs a GPU is named, and not passed."""
    report = checked(tmp_path / "report", "precisions", "quantized", "maps", "engine")
    statuses = {(row["check"], row["what"]): row["status"] for row in report["rows"] if not needs_a_gpu(row)}
    assert set(statuses.values()) == {"passed"}, report
    assert {what for _, what in statuses} >= {"float16", "bfloat16", "8bit", "4bit", "auto", "together as alone"}
    assert {row["status"] for row in report["rows"] if needs_a_gpu(row)} == {"not run"}


@pytest.mark.long
def test_the_gpu_kit_measures_and_trains_on_a_processor(tmp_path: Path) -> None:
    report = checked(tmp_path / "report", "memory", "speed", "training")
    assert {row["status"] for row in report["rows"] if not needs_a_gpu(row)} == {"passed", "measured"}
    assert {row["status"] for row in report["rows"] if needs_a_gpu(row)} == {"not run"}


def test_the_gpu_kit_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result and an error are rows that failed, and the other checks are done."""
    kit = gpu.Kit(Path("minichat-tiny"), "cpu")
    right = torch.ones(2, 3)
    monkeypatch.setattr(gpu, "logits", lambda bot: right)

    def wrong(kit: gpu.Kit) -> Iterator[gpu.Row]:
        yield kit.near("wrong", "a little", right * 1.001, 0.01)
        yield kit.near("wrong", "much", right * 1.1, 0.01)

    def broken(kit: gpu.Kit) -> Iterator[gpu.Row]:
        yield gpu.Row("broken", "begun", "measured", "")
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "CHECKS", {"broken": broken, "wrong": wrong})
    rows = [*gpu.run(kit, ["broken", "wrong"])]
    assert [row.status for row in rows] == ["measured", "failed", "passed", "failed"]
    assert "no kernel image" in rows[1].seen
    gpu.write(rows, {}, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "report.json").read_text())["counts"]["failed"] == 2
