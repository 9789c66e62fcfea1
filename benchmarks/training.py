"""Samples a second of this trainer, and of a plain loop as MiniGPT-4's, in one run: `python -m benchmarks.training`.

Random weights in real sizes: EVA-CLIP's ViT-g, BLIP-2's Q-Former and a LLaMA of 1.1 billion parameters, in bfloat16 on
the CPU; the projection, in float32, trains. The plain loop does what the original's training loop does: it encodes
every picture, takes samples in random order, pads to the longest, passes the whole prompt through the LLM, and computes
all logits in float32. The same samples are learned by all loops, in turns, and their losses are compared.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_model import SIZES, write_random_model
from minichat.data import formats
from minichat.data.dataset import Collator, Row, Rows, padding, plan
from minichat.model.loss import ProcessGroup
from minichat.prompt.render import IGNORED
from minichat.train.config import Config, DataConfig, ModelConfig, OptimizerConfig, Source
from minichat.train.optimizer import make_optimizer, trained
from minichat.train.stages.finetune import Finetune

WORDS = ("red", "blue", "green", "small", "large", "circle", "square", "boat", "star", "the", "a", "of", "and", "left")
ASKED = (  # MiniGPT-4's second stage, prompts/alignment.txt
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
SHORTEST, LONGEST = 20, 160  # tokens of a reply


def write_samples(folder: Path, count: int, encode: Callable[[str], list[int]], side: int) -> Path:
    """Pictures, each with one question and a reply of 20 to 160 tokens, evenly spread."""
    draw = random.Random(0)
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number in range(count):
        name = f"pictures/{number}.jpg"
        Image.effect_noise((side * 3 // 2, side), 80).convert("RGB").save(folder / name)
        wanted, reply = draw.randint(SHORTEST, LONGEST), draw.choice(WORDS)
        while len(encode(reply)) < wanted:
            reply += " " + draw.choice(WORDS)
        asked = [{"type": "image", "image": name}, {"type": "text", "text": draw.choice(ASKED)}]
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"messages": said}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "samples.jsonl"


@dataclass
class Loop:
    """One way to train on the same samples."""

    name: str
    batches: list[list[Row]]
    step: Callable[[list[Row]], float]  # does one, and returns the sum of its tokens' losses
    seconds: list[list[float]] = field(default_factory=list)  # of each batch, time after time
    busy: list[list[float]] = field(default_factory=list)  # of the processors, likewise
    loss: float = 0.0  # the mean over all tokens, before anything was learned
    flops: int = 0  # of all batches
    memory: int = 0  # bytes, at most

    @property
    def time(self) -> float:
        """Seconds of all batches, each at its best."""
        return sum(min(times) for times in self.seconds)

    @property
    def work(self) -> float:
        """Processor seconds of all batches, each at its best: what other programs do hardly changes them."""
        return sum(min(times) for times in self.busy)


def plain_step(stage: Finetune, collate: Collator, optimizer: torch.optim.Optimizer) -> Callable[[list[Row]], float]:
    """Everything, for every sample, each time; attention as transformers has it."""
    llm = stage.model.language_model
    ours = llm.config._attn_implementation

    def step(rows: list[Row]) -> float:
        llm.set_attn_implementation("sdpa")
        batch = collate(rows)
        labels = batch.pop("labels")
        logits = stage.model(**batch, use_cache=False).logits.float()  # (B, T, V)
        wanted = labels[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted, ignore_index=IGNORED)
        summed = _learn(stage, optimizer, loss) * int(wanted.ne(IGNORED).sum())
        llm.set_attn_implementation(ours)
        return summed

    return step


def our_step(stage: Finetune, collate: Any, optimizer: torch.optim.Optimizer) -> Callable[[list[Row]], float]:
    """What the trainer's loop does in a step."""

    def step(rows: list[Row]) -> float:
        batch = collate(rows)
        count = stage.count(batch)
        return _learn(stage, optimizer, stage.loss(batch) / count) * count

    return step


def _learn(stage: Finetune, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    loss.backward()
    weights = trained(stage.model).values()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def spread(rows: Rows, size: int, count: int) -> list[list[Row]]:
    """So many of an epoch's batches: as many short ones as long ones."""
    batches = sorted(plan(rows.lengths, batch_size=size, seed=0, epoch=0), key=lambda b: int(rows.lengths[b].sum()))
    chosen = [batches[int((number + 0.5) * len(batches) / count)] for number in range(count)]
    return [[rows[i] for i in batch] for batch in chosen]


def shuffled(batches: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The same rows, in batches as they come."""
    rows = [row for batch in batches for row in batch]
    random.Random(1).shuffle(rows)
    size = len(batches[0])
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def measure(loops: Sequence[Loop], repeats: int, restore: Callable[[], None]) -> None:
    """Run the loops in turns, batch by batch, so that what else the machine does befalls all of them."""
    tokens = sum(int((row.labels != IGNORED).sum()) for batch in loops[0].batches for row in batch)
    for loop in loops:
        loop.seconds, loop.busy = [[] for _ in loop.batches], [[] for _ in loop.batches]
    for repeat in range(repeats):
        for number in range(len(loops[0].batches)):
            for loop in loops:
                restore()  # the losses are those of the same weights
                reset_peak()
                began, busy = time.perf_counter(), time.process_time()
                loss = loop.step(loop.batches[number])
                loop.seconds[number].append(time.perf_counter() - began)
                loop.busy[number].append(time.process_time() - busy)
                loop.memory = max(loop.memory, peak())
                if repeat == 0:
                    loop.loss += loss / tokens
                say(f"{loop.name}: batch {number + 1}, {loop.seconds[number][-1]:.1f} s")
    for loop in loops:
        with FlopCounterMode(display=False) as counter:
            loop.step(loop.batches[0])
        loop.flops = counter.get_total_flops()


def matmul_peak(stage: Finetune, rows: int) -> float:
    """FLOP a processor second of the LLM's own largest matrix and so many rows, at best."""
    weight = max(stage.model.language_model.model.layers[0].mlp.parameters(), key=lambda w: w.numel()).detach()
    best = math.inf  # processor seconds
    inputs = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    for _ in range(20):
        began = time.process_time()
        torch.nn.functional.linear(inputs, weight)
        best = min(best, time.process_time() - began)
    return 2 * rows * weight.numel() / best


def llm_alone(stage: Finetune, loop: Loop, collate: Any, repeats: int) -> float:
    """Processor seconds that the LLM's layers take by themselves, forward and back, on the same embeddings."""
    total = 0.0
    for rows in loop.batches:
        batch = collate(rows)
        passed = batch["attention_mask"].shape[1] - batch["input_ids"].shape[1] - 1
        with torch.no_grad():
            embeds = stage.model.splice(batch["input_ids"], batch["image_features"])
        times = []
        for _ in range(repeats):
            inputs = embeds.clone().requires_grad_()
            cache = stage.prefix.cache(len(rows), passed)
            began = time.process_time()
            hidden = stage.model.language_model.model(inputs_embeds=inputs, past_key_values=cache, use_cache=False)[0]
            hidden.backward(torch.ones_like(hidden))
            times.append(time.process_time() - began)
        total += min(times)
    return total


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of memory that the process held at most since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--template", default="vicuna-v0-train", help="how prompts are spelled; none: as in chat")
    parser.add_argument("--batch", type=int, default=12, help="samples of a step")
    parser.add_argument("--batches", type=int, default=4, help="how many steps are measured, by their lengths")
    parser.add_argument("--samples", type=int, default=1200, help="of the data set that they are taken from")
    parser.add_argument("--repeats", type=int, default=2, help="each batch counts at its best")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, help="processors; all of them if not given")
    parser.add_argument("--folder", type=Path, help="keep the random model and the samples here")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, arguments.folder or Path(temporary))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    model = folder / arguments.size
    if not model.exists():
        write_random_model(arguments.size, model)
    template = None if arguments.template == "none" else arguments.template
    data = DataConfig((Source("samples.jsonl"),), template=template)
    settings = ModelConfig(str(model), device="cpu", dtype=arguments.dtype)
    stage = Finetune(Config(model=settings, data=data), torch.device("cpu"))
    stage.model.train()
    source = folder / f"samples-{arguments.samples}" / "samples.jsonl"
    if not source.exists():
        write_samples(source.parent, arguments.samples, stage.bot.processor.content_tokenizer.encode, 224)
    rows = Rows(stage.render(example) for example in formats.read(source))
    ours = spread(rows, arguments.batch, arguments.batches)
    theirs = shuffled(ours)
    some = [row for batch in ours for row in batch]

    optimizer = make_optimizer(trained(stage.model), OptimizerConfig())
    start = {name: weight.detach().clone() for name, weight in trained(stage.model).items()}

    def restore() -> None:
        with torch.no_grad():
            for name, weight in trained(stage.model).items():
                weight.copy_(start[name])

    seeing = stage.collate
    began = time.perf_counter()
    pictures = [(row.where, picture) for row in some for picture in row.pictures]
    with tempfile.TemporaryDirectory() as features:
        stage.see(pictures, features, 0, ProcessGroup(0, 1), lambda where, picture, reason: None)
        encoding = (time.perf_counter() - began) / len(pictures)
        loops = [
            Loop("plain", theirs, plain_step(stage, Collator(stage._processor), optimizer)),
            Loop("features computed each time", ours, our_step(stage, seeing, optimizer)),
            Loop("features kept", ours, our_step(stage, stage.collate, optimizer)),
        ]
        measure(loops, arguments.repeats, restore)
        restore()
        alone = llm_alone(stage, loops[-1], stage.collate, arguments.repeats)
    report(arguments, stage, rows, loops, encoding, alone)


def report(
    arguments: argparse.Namespace, stage: Finetune, rows: Rows, loops: Sequence[Loop], encoding: float, alone: float
) -> None:
    sizes = {name: sum(w.numel() for w in part.parameters()) / 1e6 for name, part in stage.model.named_children()}
    named = ", ".join(f"{name} {size:,.0f} M" for name, size in sizes.items())
    peak_rate = matmul_peak(stage, 1792)
    plain, kept = loops[0], loops[-1]
    count = sum(len(batch) for batch in kept.batches)
    print(f"\n{named}; {arguments.dtype}, {torch.get_num_threads()} threads; {count} samples by {arguments.batch}\n")
    print("| | samples/s | of the plain loop's | processor s/step | of the plain loop's | loss | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for loop in loops:
        print(
            f"| {loop.name} | {count / loop.time:.3f} | {plain.time / loop.time:.2f} × | "
            f"{loop.work / len(loop.batches):.2f} | {plain.work / loop.work:.2f} × | {loop.loss:.5f} | "
            f"{loop.memory / 2**30:.2f} GiB |"
        )
    wasted = [padding([len(r.ids) for batch in loop.batches for r in batch], _numbered(loop.batches)) for loop in loops]
    whole = padding(rows.lengths, plan(rows.lengths, batch_size=arguments.batch, seed=0, epoch=0))
    print(f"\nPadding: {wasted[0]:.1%} of the plain loop's, {wasted[-1]:.1%} of ours ({whole:.1%} in a whole epoch).")
    print(f"Keeping features costs {encoding:.2f} s a picture, once.")
    print("FLOP of all steps: " + ", ".join(f"{loop.name} {_flops_of(loop) / 1e12:.1f} T" for loop in loops) + ".")
    print(f"LLM's layers alone, forward and back: {alone / kept.work:.0%} of the processor time with features kept.")
    rate = _flops_of(kept) / kept.work
    print(
        f"That loop does {rate / 1e9:.0f} GFLOP in a processor second; one large matrix product alone "
        f"{peak_rate / 1e9:.0f} ({rate / peak_rate:.0%})."
    )


def _numbered(batches: Sequence[Sequence[Row]]) -> list[list[int]]:
    numbers = iter(range(sum(map(len, batches))))
    return [[next(numbers) for _ in batch] for batch in batches]


def _flops_of(loop: Loop) -> float:
    """Of all batches, from those of the first, by their positions."""
    positions = [len(batch) * max(len(row.ids) for row in batch) for batch in loop.batches]
    return loop.flops * float(np.sum(positions)) / positions[0]


if __name__ == "__main__":
    main()
