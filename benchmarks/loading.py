"""Memory and time to load a model on the processor: `python -m benchmarks.loading`.

Each load is in a process of its own, which has loaded and used the built-in model before, so that libraries are not
counted. Memory is what the process holds and what it maps from files, together, looked up in /proc every two
milliseconds; its peak is compared with the size of the weights as they were loaded. Linux only. The weights come from
the system's cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

FORMS: tuple[dict[str, str], ...] = (
    {"dtype": "bfloat16"},
    {"dtype": "float32"},
    {"dtype": "bfloat16", "quantize": "8bit"},
    {"dtype": "bfloat16", "quantize": "4bit"},
)


@dataclass(frozen=True)
class Loaded:
    """One load: bytes, and seconds."""

    weights: int
    peak: int  # beyond what the process had before
    seconds: float


def measure(folder: Path, options: dict[str, str]) -> Loaded:
    """`minichat.load(folder, **options)` in a process of its own. Raises `RuntimeError` where it fails."""
    command = [sys.executable, "-m", "benchmarks.loading", "--here", str(folder), json.dumps(options)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise RuntimeError(f"The process that was to load a model failed: {done.stderr[-2000:]}")
    return Loaded(**json.loads(done.stdout))


def load_here(folder: str, options: dict[str, str]) -> Loaded:
    """The same in this process."""
    import minichat

    small = minichat.load("minichat-tiny", device="cpu", **options)  # type: ignore[arg-type]
    small.chat().ask("Hello", max_new_tokens=2)
    seen, done = [_held()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_held())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    bot = minichat.load(folder, device="cpu", **options)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    weights = sum(tensor.nbytes for tensor in bot.model.state_dict().values())
    return Loaded(weights, max(seen) - seen[0], seconds)


def _held() -> int:
    """Bytes of this process in memory: its own, and mapped from files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem")) * 1024


def main() -> None:
    from benchmarks.random_model import SIZES, write_random_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        folder, options = arguments.here
        print(json.dumps(vars(load_here(folder, json.loads(options)))))
        return
    with tempfile.TemporaryDirectory() as work:
        made = write_random_model(arguments.size, Path(work) / "model")
        print("| loaded as | weights | peak memory | peak / weights | seconds |\n|---|---|---|---|---|")
        for form in FORMS:
            found = measure(made, form)
            print(
                f"| {', '.join(form.values())} | {found.weights / 1e9:.2f} GB | {found.peak / 1e9:.2f} GB | "
                f"{found.peak / found.weights:.2f} | {found.seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
