"""Captions by workers of a Ray cluster beside those by one process: `python -m benchmarks.caption_engines`.

The same pictures of synthetic scenes, in turns, with minichat-tiny in float32: workers of `OMP_NUM_THREADS` threads,
and a process of as many as they have together. Loading is not counted, nor the first window. Beside pictures a second
stands the processor's time for a picture, everything that Ray has running included, which tells the same on a machine
that is busy otherwise. The last line compares the captions.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from minichat.captioning import Asked, Run, Shape, open_output, sources_for
from minichat.captioning.cluster import Workers
from minichat.inference.load import load
from minichat.toy.world import draw, random_scene

BATCH = 8
WINDOW = 8 * BATCH


def seconds() -> float:
    """The processor's time that this process and all that it has started have taken."""
    here = psutil.Process()
    times = [each.cpu_times() for each in (here, *here.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def captioned(bot: Any, folder: Path, out: Path) -> tuple[float, float]:
    """Pictures in a second, and the processor's seconds for one."""
    chosen = open_output(out, None, (str(folder),), stream=sys.stdout.buffer, prompts=(None,), shape=Shape())
    asked = Asked(settings={"max_new_tokens": 40})
    counted, began, spent = 0, 0.0, 0.0
    with Run(chosen.output, asked, chosen.journal) as run:
        run.plan(sources_for((str(folder),), chosen, asked), lambda skipped: None)
        for number, _ in enumerate(run.results(bot, BATCH)):
            if number + 1 == WINDOW:
                began, spent = time.perf_counter(), seconds()
            counted = number + 1 - WINDOW
    return counted / (time.perf_counter() - began), (seconds() - spent) / counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="pictures")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the workers
    make = partial(load, "minichat-tiny", device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as desk:
        folder = Path(desk) / "photos"
        folder.mkdir()
        for number in range(arguments.count):
            draw(random_scene(random.Random(number))).save(folder / f"{number:06}.png")
        torch.set_num_threads(arguments.workers * threads)
        local = make()
        with Workers(make, arguments.workers, gpus=False) as workers:
            found: dict[str, list[tuple[float, float]]] = {"local": [], "ray": []}
            print("| engine | pictures | pictures/s | CPU ms/picture |\n|---|---|---|---|")
            for turn in range(arguments.turns):
                for name, bot in (("local", local), ("ray", workers)):
                    found[name].append(captioned(bot, folder, Path(desk) / f"{name}{turn}.jsonl"))
                    rate, spent = found[name][-1]
                    print(f"| {name} | {arguments.count} | {rate:.2f} | {1000 * spent:.1f} |", flush=True)
        rates = {name: statistics.median(each[0] for each in some) for name, some in found.items()}
        costs = {name: statistics.median(each[1] for each in some) for name, some in found.items()}
        rate, cost = rates["ray"] / rates["local"], costs["ray"] / costs["local"]
        print(f"Ray: {rate:.2f} times the pictures/s, {cost:.2f} times the processor's time for each")
        print(f"workers: {arguments.workers}, threads of each: {threads}")
        texts = [(Path(desk) / f"{name}0.jsonl").read_text().splitlines() for name in found]
        same = sum(one == other for one, other in zip(*texts, strict=True))
        print(f"rows that are the same: {same} of {arguments.count}")


if __name__ == "__main__":
    main()
