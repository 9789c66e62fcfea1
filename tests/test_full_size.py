"""The measurements that print a table run, and what they compare agrees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


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
