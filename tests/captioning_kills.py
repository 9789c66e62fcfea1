"""A captioning run that is killed at random moments and begun again, without PyTorch: a program for tests.

    python -m tests.captioning_kills FOLDER FORMAT KILLS SEED

Prints JSON: how many runs came to their end, how often the output was then that of a run that nobody stopped, and how
many captions were made beside those that were needed, for each kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from minichat.captioning import Asked, Run, Shape, open_output, sources_for

PICTURES, BATCH = 120, 4


class Bot:
    """Says which red a picture is, and notes each caption in a file."""

    caption_prompt = "Which red?"

    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def caption(self, pictures, prompt=None, **settings):
        os.write(self._log, b"." * len(pictures))
        time.sleep(0.0005)
        return [f"red {picture.getpixel((0, 0))[0]},\n“{prompt}”" for picture in pictures]


def caption(photos: Path, out: Path | None, form: str, log: Path) -> None:
    chosen = open_output(
        out, form, (str(photos),), stream=sys.stdout.buffer, prompts=("What?",), shape=Shape(), shard_size=16
    )
    asked = Asked(("What?",), {}, "keep" if chosen.output.beside else "overwrite")
    with Run(chosen.output, asked, chosen.journal) as run:
        run.plan(sources_for((str(photos),), chosen, asked), lambda skipped: None)
        for _ in run.results(Bot(log), BATCH):
            pass


def state(folder: Path) -> dict[str, str]:
    """What a person finds: all files that are not hidden, by their content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".png", ".log"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith(".")
    }


def begin(folder: Path) -> Path:
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(PICTURES):
        path = photos / f"{number:03}.png"
        if number % 20 == 7:
            path.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
        else:
            Image.new("RGB", (3, 3), (number, number // 2, 0)).save(path)
    return photos


def main(folder: Path, form: str, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    beside = form in ("txt", "caption")
    photos = begin(folder / "whole")
    out = None if beside else folder / "whole" / f"out.{form}"
    start = time.monotonic()
    caption(photos, out, form, folder / "whole.log")
    seconds = time.monotonic() - start
    expected = state(folder / "whole")
    needed = (folder / "whole.log").stat().st_size
    ended = same = killed = 0
    more: list[float] = []
    while killed < kills:
        name = f"run{ended}"
        log = folder / f"{name}.log"
        photos = begin(folder / name)
        out = None if beside else folder / name / f"out.{form}"
        of_this = 0
        while True:
            child = os.fork()
            if child == 0:
                try:
                    caption(photos, out, form, log)
                    os._exit(0)
                except BaseException as error:
                    os.write(2, repr(error).encode())
                    os._exit(9)
            if killed < kills:
                time.sleep(rng.uniform(0, seconds * 0.7))
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 9:
                raise SystemExit("a run failed")
            killed += code == -signal.SIGKILL
            of_this += code == -signal.SIGKILL
            if code == 0:
                break
        ended += 1
        same += state(folder / name) == expected
        more.append((log.stat().st_size - needed) / max(of_this, 1))
    print(json.dumps({"files": len(expected), "killed": killed, "ended": ended, "same": same, "more": max(more)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
