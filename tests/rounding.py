"""The tests that compute, under other roundings: `make test-rounding`.

A processor's instructions, its number of threads and the libraries' choice of kernels decide in which order a sum is
added up, and so the last bits of all that is computed. Each run changes one of them, or the seeds that tests draw their
random models from, and must pass as the plain run does. What this processor does not have is named and left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 5

# Their verdicts hang on what a network computes; all others read, write, parse or draw.
COMPUTING = (
    "test_auto", "test_builtin", "test_chat", "test_encoder_decoder", "test_evaluate_model", "test_evaluate_replies",
    "test_evaluate_retrieval", "test_generation", "test_model*", "test_onerow", "test_pretraining*", "test_processing",
    "test_quantize", "test_reference", "test_prompt_reference", "test_search", "test_stage1_files", "test_train_*",
    "test_weights_convert", "test_weights_export", "test_load", "test_caption", "test_data_features",
)  # fmt: skip
# Nothing of what these do hangs on a number that was computed, and they take minutes.
LEFT_OUT = ("test_train_config.py", "test_train_report.py")


@dataclass(frozen=True)
class Variant:
    """One run: what is different in its environment, and why it cannot be had here (empty: it can)."""

    name: str
    changed: dict[str, str] = field(default_factory=dict)
    missing: str = ""


def variants() -> list[Variant]:
    """Every run of the whole, one variable changed at a time."""
    best = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    rows = [Variant("as it is")]
    rows += [Variant(f"OMP_NUM_THREADS={n}", {"OMP_NUM_THREADS": str(n)}) for n in (1, 2)]
    for level in ("default", "avx2", "avx512"):
        # PyTorch takes the name of what the processor lacks without a check, and may then run instructions it has not.
        lacks = level != "default" and (not x86 or (level == "avx512" and best != "AVX512"))
        rows.append(
            Variant(f"ATEN_CPU_CAPABILITY={level}", {"ATEN_CPU_CAPABILITY": level}, "not in this processor" * lacks)
        )
    rows.append(Variant("DNNL_MAX_CPU_ISA=AVX2", {"DNNL_MAX_CPU_ISA": "AVX2"}, "" if x86 else "not in this processor"))
    rows += [Variant(f"seeds + {n}", {"MINICHAT_TEST_SEED": str(n)}) for n in range(1, SEEDS)]  # "as it is" adds 0
    return rows


def files() -> list[str]:
    """The test files that compute, as paths from the project's folder."""
    found = {path for name in COMPUTING for path in (ROOT / "tests").glob(f"{name}.py")}
    return [str(path.relative_to(ROOT)) for path in sorted(found) if path.name not in LEFT_OUT]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="the runs whose names hold TEXT")
    parser.add_argument("pytest", nargs="*", help="test files or options in place of all that compute")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", flush=True)
    failed = 0
    for variant in variants():
        if options.only not in variant.name:
            continue
        if variant.missing:
            print(f"{variant.name:32} left out: {variant.missing}", flush=True)
            continue
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", *(options.pytest or files())]
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | variant.changed, check=False, capture_output=True, text=True
        )
        last = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:] or ["no output"]
        print(f"{variant.name:32} {last[0].strip('= ')} ({time.monotonic() - started:.0f} s)", flush=True)
        if done.returncode:
            failed += 1
            print(done.stdout, flush=True)
    print(f"{failed} runs failed" if failed else "all runs passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
