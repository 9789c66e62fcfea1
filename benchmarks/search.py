"""How often and how fast `minichat search` finds the right picture: `python -m benchmarks.search`.

Held-out scenes, no two of which name the same things on the same background, are drawn into a folder, with some damaged
files among them. Their index is made; then captions of some of them are searched for, one after the other, by contrast
alone and with the best re-ranked, pictures by another drawing of their scene, and what people type: a part of what a
picture shows, where every picture that shows it is a right one. Answers are timed in the process that has the model
loaded, and once as a command of its own.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minichat.evaluate.tasks import Gallery
from minichat.search import DEFAULT, RERANK, Hit, Index, load_reader
from minichat.toy.captions import wanted
from minichat.toy.evaluate import DRAWINGS, Drawn
from minichat.toy.evaluate_captions import gallery_of_scenes

DAMAGED = 20


@dataclass(frozen=True)
class Answers:
    """The place of the first right picture, from 1 (None: not among the ten shown), and the seconds of each answer."""

    places: tuple[int | None, ...]
    seconds: tuple[float, ...]

    def row(self, name: str) -> str:
        first = sum(place == 1 for place in self.places) / len(self.places)
        shown = sum(place is not None for place in self.places) / len(self.places)
        median, worst = statistics.median(self.seconds), max(self.seconds)
        return f"| {name} | {first:.1%} | {shown:.1%} | {median:.3f} | {worst:.3f} |"


def draw(gallery: Gallery, folder: Path) -> list[Path]:
    """Each picture's file, and some that are cut off or no pictures at all."""
    paths = [folder / f"{number % 20:02}" / f"{number:05}.png" for number in range(len(gallery.pictures))]
    for path, picture in zip(paths, gallery.pictures, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.open().save(path)
    for number, path in enumerate(paths[:DAMAGED]):
        content = path.read_bytes()
        damaged = content[: len(content) // 2] if number % 2 else bytes(random.Random(number).randbytes(500))
        path.with_name(f"damaged {number}.png").write_bytes(damaged)
    return paths


@dataclass(frozen=True)
class Query:
    """What is looked for, words or a picture, and the files that show it."""

    said: Any
    right: frozenset[Path]


def ask(find: Callable[[Any], Sequence[Hit]], queries: Sequence[Query]) -> Answers:
    """Look for each, one after the other."""
    places: list[int | None] = []
    seconds = []
    for query in queries:
        start = time.perf_counter()
        found = [hit.path for hit in find(query.said)]
        seconds.append(time.perf_counter() - start)
        places.append(next((place for place, path in enumerate(found, start=1) if path in query.right), None))
    return Answers(tuple(places), tuple(seconds))


def parts(gallery: Gallery, paths: Sequence[Path], count: int, seed: int) -> dict[str, list[Query]]:
    """What one might type to find some of the scenes: so many relations, and as many things alone."""
    scenes = [shown.scene for shown in gallery.pictures if isinstance(shown, Drawn)]
    rng = random.Random(f"wanted {seed}")
    asked: dict[str, list[Query]] = {"how two things lie": [], "some of the things": []}
    while min(map(len, asked.values())) < count:
        said = wanted(rng.choice(scenes), rng)
        right = frozenset(path for path, scene in zip(paths, scenes, strict=True) if said.shown_in(scene))
        asked["some of the things" if said.direction is None else "how two things lie"].append(Query(said.text, right))
    return {name: queries[:count] for name, queries in asked.items()}


def again(scene: Drawn) -> Drawn:
    """The same scene, drawn larger and in other shades."""
    return Drawn(scene.scene, scene.seed + 1_000_003, DRAWINGS["400 pixels"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT, help="a known name, a folder or a hub id")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rerank", type=int, default=RERANK)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    options = parser.parse_args()
    gallery = gallery_of_scenes(options.pictures, options.seed)
    chosen = sorted(random.Random(options.seed).sample(range(options.pictures), options.queries))
    with tempfile.TemporaryDirectory() as temporary:
        folder, where = Path(temporary, "pictures"), Path(temporary, "index")
        paths = draw(gallery, folder)
        start = time.perf_counter()
        reader = load_reader(options.model, options.device, options.dtype)
        loading = time.perf_counter() - start
        start = time.perf_counter()
        index = Index.open(folder, reader, where=where)
        indexing = time.perf_counter() - start
        start = time.perf_counter()
        index = Index.open(folder, reader, where=where)
        opening = time.perf_counter() - start
        texts = [text for _, text in gallery.texts]
        asked = {"a caption": [Query(texts[number], frozenset({paths[number]})) for number in chosen]}
        asked |= parts(gallery, paths, options.queries, options.seed)
        rows = [
            ask(partial(index.find, rerank=rerank), queries).row(f"{name}, {way}")
            for way, rerank in (("by contrast", 0), (f"{options.rerank} re-ranked", options.rerank))
            for name, queries in asked.items()
        ]
        redrawn = [
            Query(again(shown).open(), frozenset({paths[number]}))
            for number in chosen
            if isinstance(shown := gallery.pictures[number], Drawn)
        ]
        rows.append(ask(index.find_image, redrawn).row("another drawing of the scene"))
        command = [sys.executable, "-m", "minichat", "search", texts[chosen[0]], str(folder), "--index", str(where)]
        command += ["--model", options.model, "--device", options.device, "--dtype", options.dtype]
        start = time.perf_counter()
        code = subprocess.run(command, check=False, capture_output=True).returncode
        whole = time.perf_counter() - start
        size = index.file.stat().st_size
    print(f"{len(index):,} pictures, {options.queries} queries, {len(index.skipped)} damaged files left out.\n")
    print("| query | found first | among ten | seconds, median | worst |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    print(
        f"\nIndexing took {indexing:.1f} s and the index {size / 2**20:.1f} MiB; to open it again took {opening:.2f} s."
    )
    print(f"As a command of its own an answer took {whole:.1f} s (exit code {code}), {loading:.1f} s of it to load.")


if __name__ == "__main__":
    main()
