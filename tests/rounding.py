"""The tests that compute, under other roundings: `make test-rounding`.

A processor's instructions, its number of threads and the libraries' choice of kernels decide in which order a sum is
added up, and so the last bits of all that is computed. Each run changes one of them, or the seeds that tests draw their
random models from, and must pass as the plain run does. What this processor does not have, or takes by itself, is named
and left out.
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
LEVELS = ("DEFAULT", "AVX2", "AVX512")  # of PyTorch's kernels on x86, each with the instructions of those before it

# Their verdicts hang on what a network computes; all others read, write, parse, draw, serve, or start programs.
COMPUTING = (
    "test_builtin", "test_chat", "test_encoder_decoder", "test_engine", "test_evaluate_model", "test_evaluate_replies",
    "test_evaluate_retrieval", "test_generation", "test_model*", "test_onerow", "test_own_llm", "test_pretraining*",
    "test_processing", "test_quantize", "test_reference", "test_prompt_reference", "test_search", "test_stage1_files",
    "test_train_*", "test_transformers", "test_weights_adapted", "test_weights_convert", "test_weights_export",
    "test_data_features",
)  # fmt: skip
# Of these the files, settings and sentences.
LEFT_OUT = (
    "test_model_auto", "test_model_configuration", "test_train_checkpoint", "test_train_config", "test_train_kept",
    "test_train_report", "test_train_shipped",
)  # fmt: skip

# Threads that wait for each other sleep meanwhile: where all cores are busy they would else wait by computing nothing,
# and take many times as long.
PLAIN = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MINICHAT_TEST_SEED": "0"}


@dataclass(frozen=True)
class Variant:
    """One run: what is different in its environment, and why it is left out here (empty: it is not)."""

    name: str
    changed: dict[str, str] = field(default_factory=dict)
    left_out: str = ""


def variants() -> list[Variant]:
    """Every run of the whole, one variable changed at a time."""
    best = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    own, lacks = "what this processor takes by itself", "not in this processor"
    rows = [Variant("as it is: OMP_NUM_THREADS=1")]
    rows.append(Variant("OMP_NUM_THREADS=2", {"OMP_NUM_THREADS": "2"}))
    for level in LEVELS:
        # PyTorch takes the name of what the processor lacks without a check, and may then run instructions it has not.
        has = level == "DEFAULT" or (x86 and level in LEVELS[: LEVELS.index(best) + 1])
        name = level.lower()
        why = own if level == best else "" if has else lacks
        # oneDNN is told, too: PyTorch 2.13's fused attention asks it whether to pack bfloat16 for instructions that
        # the lower kernels lack, and fails where the processor has them (findings/).
        changed = {"ATEN_CPU_CAPABILITY": name, "DNNL_MAX_CPU_ISA": "AVX2"}
        rows.append(Variant(f"ATEN_CPU_CAPABILITY={name}", changed, why))
    why = lacks if not x86 else "" if best == "AVX512" else own
    rows.append(Variant("DNNL_MAX_CPU_ISA=AVX2", {"DNNL_MAX_CPU_ISA": "AVX2"}, why))
    rows += [Variant(f"seeds + {n}", {"MINICHAT_TEST_SEED": str(n)}) for n in range(1, SEEDS)]  # the first adds 0
    return rows


def files() -> list[str]:
    """The test files that compute, as paths from the project's folder."""
    found = {path for name in COMPUTING for path in (ROOT / "tests").glob(f"{name}.py")}
    return [str(path.relative_to(ROOT)) for path in sorted(found) if path.stem not in LEFT_OUT]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="the runs whose names hold TEXT")
    parser.add_argument("pytest", nargs="*", help="test files or options in place of all that compute")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-n", "2", "--dist", "loadfile"]
    chosen = [variant for variant in variants() if options.only in variant.name]
    results = []
    for number, variant in enumerate(chosen, 1):
        print(f"\n=== {number} of {len(chosen)}: {variant.name}", flush=True)
        if variant.left_out:
            results.append(f"left out: {variant.left_out}")
        else:
            started = time.monotonic()
            changed = os.environ | PLAIN | variant.changed
            done = subprocess.run([*command, *(options.pytest or files())], cwd=ROOT, env=changed, check=False)
            verdict = "FAILED" if done.returncode else "passed"
            results.append(f"{verdict} ({time.monotonic() - started:.0f} s)")
        print(f"=== {variant.name}: {results[-1]}", flush=True)
    print()
    for variant, result in zip(chosen, results, strict=True):
        print(f"{variant.name:32} {result}")
    return 1 if any(result.startswith("FAILED") for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
