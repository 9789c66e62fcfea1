"""How long a command takes to start: `python -m benchmarks.startup`.

Each is run in a new interpreter; the figures are medians. Seconds of the processor are told beside those on the clock,
since on a busy machine the clock tells how busy it is. `minichat caption` is measured against `import torch,
transformers`, which only prepares to import what is asked for, and against the class of transformers that any network
needs first.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image

BARE, FIRST = "import torch, transformers", "import torch, transformers; transformers.PreTrainedModel"


def measured(words: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.new("RGB", (96, 96), "blue").save(picture)
        runs = {
            "python -c pass": ["-c", "pass"],
            "minichat --help": ["-m", "minichat", "--help"],
            BARE: ["-c", BARE],
            FIRST: ["-c", FIRST],
            "minichat caption PICTURE": ["-m", "minichat", "caption", "--device", "cpu", str(picture)],
        }
        for words in runs.values():
            measured(words)  # what the disk has not read yet, and what Python has not compiled
        found = {name: [measured(words) for _ in range(repeats)] for name, words in runs.items()}
    clock, used = ({name: median(one[way] for one in some) for name, some in found.items()} for way in (0, 1))
    print(f"| | seconds | of the processor | × bare | × first class |\n{'|---' * 5}|")
    for name in runs:
        ratios = [f"{used[name] / used[base]:.2f}" for base in (BARE, FIRST)]
        print(f"| `{name}` | {clock[name]:.2f} | {used[name]:.2f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
