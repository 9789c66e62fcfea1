"""`minichat caption` of many pictures: `python -m benchmarks.caption_scale --count 10000`.

The command itself runs with minichat-tiny on drawn scenes, on `OMP_NUM_THREADS` threads (1 by default), while its
memory, its processor's time and its output are looked at every few milliseconds. Three parts, each of which may be
chosen by name:

- level: memory and rate in each tenth of the pictures, and whether the rows are in the order of the pictures;
- photos: the peak of memory with JPEGs of 12 megapixels among the pictures and without, in turns;
- workers: pictures per second of two processes beside those of one, in turns. The processor's time for a picture, that
  of all processes, tells the same on a machine that is busy otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy
import psutil
from PIL import Image

from minichat.toy.world import draw, random_scene

EVERY = 0.02  # seconds
MIB = 2**20
FEW = 128  # pictures: a window for each of two workers
ORIENTATION = 0x0112  # EXIF's tag
PARTS = ("level", "photos", "workers")


@dataclass(frozen=True)
class Look:
    """At one moment: seconds since the start, the processor's seconds, rows that are written, resident bytes."""

    when: float
    spent: float
    rows: int
    resident: int


def scene(path: str) -> None:
    number = int(Path(path).stem)
    draw(random_scene(random.Random(number)), seed=number).save(path)


def scenes(folder: Path, count: int) -> Path:
    """A folder of so many pictures, of which no two are alike."""
    folder.mkdir()
    with ProcessPoolExecutor() as pool:
        list(pool.map(scene, [str(folder / f"{number:06}.png") for number in range(count)], chunksize=100))
    return folder


def photo(path: Path, number: int) -> None:
    """A JPEG of 12 megapixels, as a phone's: smooth, with some noise, and every other one has to be turned."""
    chance = numpy.random.default_rng(number)
    smooth = Image.fromarray(chance.integers(0, 256, (30, 40, 3), dtype=numpy.uint8)).resize((4000, 3000))
    noise = chance.integers(-6, 7, (3000, 4000, 1), dtype=numpy.int16)
    pixels = numpy.clip(numpy.asarray(smooth, dtype=numpy.int16) + noise, 0, 255).astype(numpy.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = (1, 6)[number // 10 % 2]
    Image.fromarray(pixels).save(path, quality=90, exif=exif)


def look(program: psutil.Process, out: Path, began: float, seen: int, place: int) -> tuple[Look, int]:
    """What there is to see of a running command; `seen` rows end at byte `place` of its output."""
    with out.open("rb") if out.exists() else open(os.devnull, "rb") as file:
        file.seek(place)
        new = file.read()
    spent, resident = 0.0, 0
    for each in (program, *program.children(recursive=True)):
        try:
            times = each.cpu_times()
            spent += times.user + times.system
            resident += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return Look(time.perf_counter() - began, spent, seen + new.count(b"\n"), resident), place + len(new)


def captioned(folder: Path, out: Path, *options: str) -> list[Look]:
    """What was seen of a command while it wrote the captions of a folder. Raises `RuntimeError` where it fails."""
    command = [sys.executable, "-m", "minichat", "caption", str(folder), "--out", str(out), *options]
    surroundings = {"OMP_NUM_THREADS": "1", **os.environ}
    began, looks, place = time.perf_counter(), list[Look](), 0
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, env=surroundings, stdout=said, stderr=said) as started:
            program = psutil.Process(started.pid)
            while started.poll() is None:
                try:
                    one, place = look(program, out, began, looks[-1].rows if looks else 0, place)
                    looks.append(one)
                except psutil.NoSuchProcess:
                    break
                time.sleep(EVERY)
        if started.returncode:
            said.seek(0)
            raise RuntimeError(f"minichat caption failed: {said.read()[-2000:].decode(errors='replace')}")
    return looks


def written(looks: list[Look]) -> list[Look]:
    """Those from the first row on to the last."""
    last = max(each.rows for each in looks)
    first = next(number for number, each in enumerate(looks) if each.rows)
    return looks[first : next(number for number, each in enumerate(looks) if each.rows == last) + 1]


def rates(looks: list[Look]) -> tuple[float, float]:
    """Pictures per second, and the processor's seconds for one."""
    first, last = looks[0], looks[-1]
    count = last.rows - first.rows
    return count / (last.when - first.when), (last.spent - first.spent) / count


def level(folder: Path, desk: Path, options: list[str]) -> None:
    looks = written(captioned(folder, desk / "level.jsonl", *options))
    rows = [json.loads(line) for line in (desk / "level.jsonl").read_text().splitlines()]
    names = [Path(row["image"]).name for row in rows]
    print(
        f"{len(rows):,} rows, in the order of the pictures: {names == sorted(each.name for each in folder.iterdir())}"
    )
    print("| pictures | pictures/s | CPU ms/picture | RSS at most, MiB |\n|---|---|---|---|")
    total, tenths = looks[-1].rows, list[float]()
    edges = [next(i for i, each in enumerate(looks) if each.rows >= total * tenth // 10) for tenth in range(11)]
    for start, end in pairwise(edges):
        rate, spent = rates(looks[start : end + 1])
        tenths.append(spent)
        peak = max(each.resident for each in looks[start : end + 1]) / MIB
        print(f"| {looks[end].rows:,} | {rate:.1f} | {1000 * spent:.1f} | {peak:.0f} |")
    print(f"the last tenth: {tenths[0] / tenths[-1]:.3f} of the first one's pictures per second of processor time")


def photos(folder: Path, desk: Path, options: list[str], turns: int, large: int) -> None:
    plain, mixed = desk / "plain", desk / "mixed"
    plain.mkdir()
    mixed.mkdir()
    few = sorted(folder.iterdir())[: 10 * large]
    for number, path in enumerate(few):
        os.link(path, plain / path.name)
        os.link(path, mixed / path.name)
        if number % 10 == 5:
            photo(mixed / f"{path.stem}.jpg", number)
    print(f"{len(few)} pictures, and the same with {large} JPEGs of 12 megapixels among them")
    peaks: dict[str, list[float]] = {"without": [], "with": []}
    for turn in range(turns):
        for name, source in (("without", plain), ("with", mixed)):
            looks = captioned(source, desk / f"{name}{turn}.jsonl", *options)
            peaks[name].append(max(each.resident for each in looks) / MIB)
            rate, spent = rates(written(looks))
            said = f"{name}: {peaks[name][-1]:.0f} MiB at most, {rate:.1f} pictures/s, CPU {1000 * spent:.1f} ms each"
            print(said, flush=True)
    found = {name: statistics.median(each) for name, each in peaks.items()}
    print(f"the peak with them: {found['with'] / found['without']:.2f} of that without")


def workers(folder: Path, desk: Path, options: list[str], turns: int, count: int) -> None:
    """What `count` pictures cost more than `FEW` do: so neither loading nor the first and last windows count."""
    few, many = desk / "few", desk / "many"
    for source, size in ((few, FEW), (many, FEW + count)):
        source.mkdir()
        for path in sorted(folder.iterdir())[:size]:
            os.link(path, source / path.name)
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for turn in range(turns):
        for number in found:
            by = ["--workers", str(number), *options]
            when, spent = list[float](), list[float]()
            for source in (few, many):
                looks = captioned(source, desk / f"{source.name}{number}.{turn}.jsonl", *by)
                when.append(looks[-1].when)
                spent.append(max(one.spent for one in looks))  # workers that have ended are not seen any more
            found[number].append((count / (when[1] - when[0]), (spent[1] - spent[0]) / count))
            rate, each = found[number][-1]
            print(f"{number} workers: {rate:.2f} pictures/s, CPU {1000 * each:.1f} ms each", flush=True)
    (rate, cost), (other, dear) = ([statistics.median(x) for x in zip(*each, strict=True)] for each in found.values())
    print(f"two workers: {other / rate:.2f} times the pictures/s, {dear / cost:.2f} times the processor's time each")
    same = len({(desk / f"many{number}.0.jsonl").read_bytes() for number in found}) == 1
    print(f"the same rows: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--count", type=int, default=10_000, help="pictures of the first part")
    parser.add_argument("--large", type=int, default=40, help="photographs of the second part")
    parser.add_argument("--some", type=int, default=600, help="pictures of the third part")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--options", default="--max-new-tokens 40", help="of minichat caption")
    chosen = parser.parse_args()
    options = chosen.options.split()
    with tempfile.TemporaryDirectory() as place:
        desk = Path(place)
        count = max(chosen.count if "level" in chosen.parts else 0, 10 * chosen.large, FEW + chosen.some)
        folder = scenes(desk / "scenes", count)
        if "level" in chosen.parts:
            level(folder, desk, options)
        if "photos" in chosen.parts:
            photos(folder, desk, options, chosen.turns, chosen.large)
        if "workers" in chosen.parts:
            workers(folder, desk, options, chosen.turns, chosen.some)


if __name__ == "__main__":
    main()
