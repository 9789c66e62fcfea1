"""Captions from pictures, end to end: `python -m benchmarks.captions --size medium --dtype bfloat16`.

A model with random weights describes pictures of noise in replies of unlike, fixed lengths. The ways take turns in one
run, on new pictures in each round, and the median of their rates counts:

- minichat: `bot.caption`, the engine;
- transformers: the same networks in static batches of its `generate`, each until its longest reply is done. Its best
  batch size of those tried counts;
- vllm, with `--vllm PYTHON` of an environment that has it and MiniChat (`make test-vllm` makes one): what
  `minichat caption --engine vllm` does, in a process of its own that waits for its turn.

Then, whether the first two write the same ids (asked of float32), and what a picture costs that was seen before. With
these two stands the processor's time for a caption, which tells the same on a machine that is busy otherwise.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import minichat
from benchmarks.random_model import SIZES, write_random_model
from minichat.captioning.vllm_engine import VllmBot
from minichat.inference.bot import MiniChat
from minichat.inference.sampling import GenerationSettings, Stops
from minichat.prompt.conversation import Conversation

Way = Callable[[list[Image.Image], list[int]], list[list[int]]]


def pictures_of(number: int, count: int) -> list[Image.Image]:
    """Those of a round."""
    draw = torch.Generator().manual_seed(number)
    return [Image.fromarray(torch.randint(256, (224, 224, 3), generator=draw).byte().numpy()) for _ in range(count)]


def lengths_of(count: int) -> list[int]:
    """Of the captions, in tokens: 8 to 60, about 28 in the mean."""
    chance = random.Random(1)
    return [min(60, max(8, round(chance.lognormvariate(3.2, 0.5)))) for _ in range(count)]


def engine(bot: MiniChat, rows: int) -> Way:
    def write(pictures: list[Image.Image], lengths: list[int]) -> list[list[int]]:
        chosen = [GenerationSettings(max_new_tokens=length) for length in lengths]
        asked = [([picture], bot.caption_prompt, each) for picture, each in zip(pictures, chosen, strict=True)]
        return [list(request.ids) for request in bot.engine.run(bot._asked(iter(asked), rows), rows)]

    return write


def static(bot: MiniChat, rows: int) -> Way:
    def write(pictures: list[Image.Image], lengths: list[int]) -> list[list[int]]:
        written: list[list[int]] = []
        for start in range(0, len(pictures), rows):
            part, longest = pictures[start : start + rows], max(lengths[start : start + rows])
            prompts = [
                bot.captioner.render(Conversation().user(bot.caption_prompt, [picture]), add_generation_prompt=True)
                for picture in part
            ]
            pixels = bot.processor.image_processor(part, return_tensors="pt")["pixel_values"]
            llm = bot.model.language_model
            with torch.inference_mode():
                embeds = bot.model.embed(torch.tensor([list(prompt.ids) for prompt in prompts]), pixels)
                ids = llm.generate(
                    inputs_embeds=embeds,
                    attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                    do_sample=False,
                )
            written += [row[:length].tolist() for row, length in zip(ids, lengths[start : start + rows], strict=True)]
        return written

    return write


class Vllm:
    """A process that waits for its turn: a line in, the number of a round; a line out, its seconds."""

    def __init__(self, python: str, folder: Path, dtype: str, count: int, rows: int, threads: int) -> None:
        command = [python, "-m", "benchmarks.captions", "--turns", str(folder), "--dtype", dtype]
        command += ["--captions", str(count), "--rows", str(rows), "--threads", str(threads)]
        surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_KVCACHE_SPACE": "2"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=surroundings, text=True, **pipes)  # type: ignore[call-overload]

    def seconds(self, number: int) -> float:
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError("vLLM's process has ended: see what it said above.")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def take_turns(folder: Path, dtype: str, count: int, rows: int) -> None:
    """What the process of `Vllm` does."""
    bot = VllmBot(folder, dtype, False, rows)
    chosen = [GenerationSettings(max_new_tokens=length) for length in lengths_of(count)]
    for line in sys.stdin:
        pictures = pictures_of(int(line), count)
        start = time.perf_counter()
        asked = [([picture], bot.caption_prompt, each) for picture, each in zip(pictures, chosen, strict=True)]
        for one in bot.captions(asked, count):  # all at one go
            if isinstance(one, Exception):
                raise one
        print(f"seconds {time.perf_counter() - start}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.random_model has written")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--static", type=int, nargs="+", default=[16], help="batch sizes of transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--turns", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count = options.captions
    if options.turns:
        take_turns(options.turns, options.dtype, count, options.rows)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or write_random_model(options.size, Path(scratch) / "model")
        bot = minichat.load(folder, device="cpu", dtype=options.dtype)
        bot.stops = Stops()
        bot.model.language_model.generation_config.eos_token_id = None
        ways = {"minichat": engine(bot, options.rows)}
        ways |= {f"transformers, batches of {rows}": static(bot, rows) for rows in options.static}
        vllm = None
        if options.vllm:
            vllm = Vllm(options.vllm, folder, options.dtype, count, options.rows, options.threads)
        compare(ways, vllm, lengths_of(count), options)
        if vllm is not None:
            vllm.close()


def compare(ways: dict[str, Way], vllm: Vllm | None, lengths: list[int], options: argparse.Namespace) -> None:
    """Print the rates, their ratios to MiniChat's, the share of equal captions, and what a known picture costs."""
    count, rates, known, alike = len(lengths), dict[str, list[float]](), list[float](), list[float]()
    costs = dict[str, list[float]]()
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, {options.dtype}, {count} captions")
    for number in range(options.rounds + 1):
        pictures, written = pictures_of(number, count), dict[str, list[list[int]]]()
        for name, write in ways.items():
            start, before = time.perf_counter(), time.process_time()
            written[name] = write(pictures, lengths)
            rates.setdefault(name, []).append(count / (time.perf_counter() - start))
            costs.setdefault(name, []).append((time.process_time() - before) / count)
        if vllm is not None:
            rates.setdefault("vllm", []).append(count / vllm.seconds(number))
        before = time.process_time()
        ways["minichat"](pictures, lengths)
        known.append((time.process_time() - before) / count / costs["minichat"][-1])
        ours, theirs = list(written.values())[:2]
        alike.append(sum(map(list.__eq__, ours, theirs)) / count)
    median = {name: statistics.median(each[1:]) for name, each in rates.items()}  # the first round warms up
    spent = {name: statistics.median(each[1:]) for name, each in costs.items()}
    for name, rate in median.items():
        told = f"{name}: {rate:.3f} captions/s, minichat {median['minichat'] / rate:.2f} times that"
        if name in spent:
            told += f"; CPU {spent[name]:.3f} s each, {spent[name] / spent['minichat']:.2f} times minichat's"
        print(told)
    print(
        f"equal captions: {statistics.mean(alike):.1%}; pictures seen before: {statistics.median(known[1:]):.2f} of it"
    )


if __name__ == "__main__":
    main()
