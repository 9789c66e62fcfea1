"""What a GPU does that processors cannot show, in one report: `python -m benchmarks.gpu --out report`.

A model with random weights is held against itself in float32: half precisions, 8 and 4 bits, an LLM over several
devices, replies written together and alone, training on one device and on two. Estimates of memory stand beside peaks,
and tokens/s beside the memory's bandwidth. The report is `report.md` to read and `report.json` with all figures.

Every check is "passed", "failed", "measured" (a figure that nothing is asked of) or "not run", which says why. With
`--device cpu` those run that make sense on a processor. The exit status is 1 where one failed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import minichat
from benchmarks.engine import NO_STOPS, prompts
from benchmarks.full_size import Ours, bandwidth, prompt, read_for_a_token, seconds_of
from benchmarks.memory import FORMS, fill, measure
from benchmarks.random_model import SIZES, write_random_model
from benchmarks.training import write_samples
from minichat.device.memory import MIB, estimate, free_memory
from minichat.device.placement import QUANTIZED, half, look
from minichat.errors import SettingsError, sentence
from minichat.fileio import new_folder
from minichat.inference.bot import MiniChat
from minichat.inference.doctor import read_config
from minichat.inference.engine import Engine
from minichat.inference.request import Request
from minichat.inference.sampling import GenerationSettings
from minichat.train.checkpoint import METRICS
from minichat.train.logging import read_metrics
from minichat.train.yaml_config import write_yaml

NO_CUDA = "no CUDA device"
STATUSES = ("passed", "failed", "measured", "not run")
#: How far the logits may be from float32's on the same device, as a share of their norm; a kernel that is wrong gives 1
#: or more. A processor and the random model "small" gave 0.0014, 0.011, 0.041 and 0.40 for the last four.
NEAR = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05, "8bit": 0.15, "4bit": 0.7}
NEAR_LOSS = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.03}
LACKS, EXCEEDS = 1.15, 1.25  # a peak may be so many estimates: beyond, `load` tries what cannot be; an estimate, peaks
CONTEXT, TOKENS = 512, 32  # of which memory is measured; of a reply
STEPS = 4  # of training


@dataclass(frozen=True)
class Row:
    """What came of one check."""

    check: str
    what: str
    status: str
    seen: str  # in words
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kit:
    """What is checked: a model on a device."""

    model: Path
    device: str  # "cuda" or "cpu"
    bits: tuple[str, ...] = QUANTIZED  # forms that bitsandbytes makes

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def half(self) -> str:
        """The half precision that the device computes in."""
        return str(half(torch.device(self.device))).removeprefix("torch.")

    def load(self, dtype: str = "float32", **more: Any) -> MiniChat:
        return minichat.load(self.model, device=self.device, dtype=dtype, **more)

    @cached_property
    def right(self) -> Tensor:
        """The logits in float32."""
        return logits(self.load())

    def near(self, check: str, what: str, found: Tensor, limit: float, **figures: float) -> Row:
        """Whether logits are those of float32, save for `limit`."""
        apart = float((found - self.right).norm() / self.right.norm())
        seen = f"logits differ by {apart:.3%} of their norm; {limit:.1%} is allowed"
        return _judged(check, what, apart <= limit, seen, {"apart": apart, "limit": limit, **figures})


def _judged(check: str, what: str, passed: bool, seen: str, figures: dict[str, float]) -> Row:
    return Row(check, what, "passed" if passed else "failed", seen, figures)


def logits(bot: MiniChat) -> Tensor:
    """After each token of a question with a picture (T, V), in float32 on the host."""
    batch = prompt(bot)
    with torch.inference_mode():
        features = bot.model.encode_features(batch["pixel_values"].to(bot.model.device))
        embeds = bot.model.embed(batch["input_ids"].to(bot.device), image_features=features)
        return bot.model(inputs_embeds=embeds).logits[0].float().cpu()


# --- The checks. Each yields its rows; what goes wrong in one is a row that failed, and ends no other.


def precisions(kit: Kit) -> Iterator[Row]:
    """float32 on a GPU is that of the processor, and the half precisions are near it."""
    if kit.cuda:
        yield kit.near("precisions", "float32, processor", logits(Kit(kit.model, "cpu").load()), NEAR["float32"])
    else:
        yield Row("precisions", "float32 as on a processor", "not run", NO_CUDA)
    for dtype in ("float16", "bfloat16"):
        yield kit.near("precisions", dtype, logits(kit.load(dtype)), NEAR[dtype])


def quantized(kit: Kit) -> Iterator[Row]:
    """In 8 and 4 bits an LLM is near float32, and smaller than in 16."""
    whole = read_for_a_token(kit.load(kit.half))
    for form in kit.bits:
        bot = kit.load(kit.half, quantize=form)
        share = read_for_a_token(bot) / whole
        row = kit.near("quantized", form, logits(bot), NEAR[form], share=share)
        seen = f"{row.seen}; the LLM has {share:.0%} of the bytes that it has in 16 bits"
        yield _judged(row.check, form, row.status == "passed" and share < 1, seen, row.figures)


def maps(kit: Kit) -> Iterator[Row]:
    """An LLM that is spread over devices says the same: in halves, over two GPUs or a GPU and the processor."""
    yield kit.near("maps", "auto", logits(kit.load(device_map="auto")), NEAR["float32"])
    config = read_config(str(kit.model)).text_config
    count, rest = config.num_hidden_layers, "cuda:0" if kit.cuda else "cpu"
    for other in ("cpu", "cuda:1"):
        if other == "cuda:1" and (not kit.cuda or torch.cuda.device_count() < 2):
            yield Row("maps", f"halves on {rest} and cuda:1", "not run", "one CUDA device" if kit.cuda else NO_CUDA)
            continue
        layers = {f"model.layers.{i}": rest if i < count // 2 else other for i in range(count)}
        whole = {"model.embed_tokens": rest, "model.norm": other, "lm_head": other}
        places = {f"language_model.{part}": where for part, where in (layers | whole).items()}
        bot = kit.load(device_map={"vision_model": rest, **places})
        yield kit.near("maps", f"halves on {rest} and {other}", logits(bot), NEAR["float32"])


def engine(kit: Kit) -> Iterator[Row]:
    """Replies that are written together, with a cache, are those that are written alone."""
    bot = kit.load()
    asked = prompts(bot, 4, words=True)

    def replies(rows: int) -> list[list[int]]:
        chosen, tokenizer = GenerationSettings(max_new_tokens=TOKENS), bot.processor.content_tokenizer
        requests = (Request(each, chosen, tokenizer, NO_STOPS) for each in asked)
        return [request.ids for request in Engine(bot.model, rows=rows, kept_bytes=0).run(requests)]

    together, alone = replies(len(asked)), replies(1)
    same = sum(one == other != [] for one, other in zip(together, alone, strict=True))  # none where one failed
    seen = f"{same} of {len(asked)} replies have the same ids"
    yield _judged("engine", "together as alone", same == len(asked), seen, {"same": same, "of": len(asked)})
    yield Row("engine", "CUDA graphs, torch.compile", "not run", "MiniChat uses neither")


def memory(kit: Kit) -> Iterator[Row]:
    """The estimates of memory are near the peaks."""
    if not kit.cuda and not sys.platform.startswith("linux"):
        yield Row("memory", "estimates", "not run", "a process's peak is measured on Linux alone")
        return
    config = read_config(str(kit.model))
    for dtype, quantize in [form for form in FORMS if form[1] in (None, *kit.bits)]:
        needs = estimate(config, dtype=dtype, quantize=quantize, context=CONTEXT, device=kit.device)
        if kit.cuda:
            wanted, peak = needs.model, _peak(kit, dtype, quantize)  # the context is apart, below
        else:
            wanted, peak = needs.total, measure(kit.model, dtype, quantize, CONTEXT).total
        seen = f"estimate {wanted / MIB:,.0f} MiB, peak {peak / MIB:,.0f} MiB: {wanted / peak:.2f}"
        right = peak <= LACKS * wanted and wanted <= EXCEEDS * peak
        yield _judged("memory", quantize or dtype, right, seen, {"estimate": wanted, "peak": peak})
    if not kit.cuda:
        yield Row("memory", "context", "not run", NO_CUDA)
        return
    free, total = torch.cuda.mem_get_info()
    context, guess = total - free - torch.cuda.memory_reserved(), estimate(config, device="cuda").base
    seen = f"{context / MIB:,.0f} MiB beside tensors, other programs' included; {guess / MIB:,.0f} estimated"
    yield Row("memory", "context", "measured", seen, {"context": context, "estimate": guess})


def _peak(kit: Kit, dtype: str, quantize: str | None) -> int:
    """The most that PyTorch reserves of a GPU while a model is loaded and replies, in bytes."""
    gc.collect()
    free_memory()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    fill(kit.load(dtype, quantize=quantize), CONTEXT)
    return torch.cuda.max_memory_reserved() - before


def speed(kit: Kit) -> Iterator[Row]:
    """Tokens/s, beside what the memory's bandwidth allows: each token reads the LLM's weights once."""
    most = bandwidth(kit.device)
    yield Row("speed", "memory", "measured", f"is read at {most / 1e9:,.1f} GB/s", {"bandwidth": most})
    for dtype, quantize in (("float32", None), (kit.half, None), *((kit.half, form) for form in kit.bits)):
        ours = Ours(kit.model, dtype, quantize, kit.device)
        ours.write(2)  # what is made once
        first, whole = (min(seconds_of(partial(ours.write, n)) for _ in range(3)) for n in (1, TOKENS))
        each = max(whole - first, 1e-9) / max(1, len(ours.write(TOKENS)) - 1)
        share = read_for_a_token(ours.bot) / each / most
        seen = f"{1 / each:,.1f} tokens/s, {share:.0%} of the bandwidth"
        yield Row("speed", quantize or dtype, "measured", seen, {"tokens_per_second": 1 / each, "share": share})


def training(kit: Kit) -> Iterator[Row]:
    """A training run on a GPU has the losses that it has on a processor, and two processes those of one."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        bot = Kit(kit.model, "cpu").load()
        side = bot.model.config.vision_config.image_size
        write_samples(desk / "data", 4 * STEPS, bot.processor.content_tokenizer.encode, side)
        del bot
        alone = _losses(kit, desk, "cpu", "float32")
        if kit.cuda:
            for dtype in ("float32", kit.half):
                found = _losses(kit, desk, "cuda", dtype)
                yield _near_losses(f"in {dtype}, as float32 on the processor", found, alone, NEAR_LOSS[dtype])
        else:
            yield Row("training", "as on a processor", "not run", NO_CUDA)
            found = _losses(kit, desk, "cpu", "float32", ranks=2)
            yield _near_losses("two ranks by gloo, as one", found, alone, NEAR_LOSS["float32"])
        if torch.cuda.device_count() < 2 or not kit.cuda:
            yield Row("training", "two ranks by NCCL", "not run", "one CUDA device" if kit.cuda else NO_CUDA)
        else:
            found = _losses(kit, desk, "cuda", "float32", ranks=2)
            yield _near_losses("two ranks by NCCL, as one on the processor", found, alone, NEAR_LOSS["float32"])


def _losses(kit: Kit, desk: Path, device: str, dtype: str, ranks: int = 1) -> list[float]:
    """Of a few steps of the projection, in processes of their own."""
    out = desk / f"{device}-{dtype}-{ranks}"
    content = {
        "out": str(out),
        "model": {"name": str(kit.model), "device": device, "dtype": dtype},
        "data": {"train": str(desk / "data" / "samples.jsonl")},
        "optimizer": {"lr": 1e-3},
        "run": {"max_steps": STEPS, "epochs": None, "batch_size": 4},
        "report": {"log_every": 1, "samples": 0, "tensorboard": False},
    }
    file = out.with_suffix(".yaml")
    file.write_text(write_yaml(content))
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *many, "-m", "minichat", "train", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The training failed: {done.stderr[-1500:]}")
    return [line["loss"] for line in read_metrics(out / METRICS) if "loss" in line]


def _near_losses(what: str, found: list[float], wanted: list[float], limit: float) -> Row:
    apart = max(abs(one / other - 1) for one, other in zip(found, wanted, strict=True))
    seen = f"the losses of {len(found)} steps differ by {apart:.3%}; {limit:.1%} is allowed"
    return _judged("training", what, apart <= limit, seen, {"apart": apart, "limit": limit})


CHECKS: dict[str, Callable[[Kit], Iterator[Row]]] = {
    check.__name__: check for check in (precisions, quantized, maps, engine, memory, speed, training)
}


# --- The report.


def run(kit: Kit, names: Collection[str]) -> Iterator[Row]:
    """What came of these checks; without bitsandbytes, of those that do without it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Row("all", "8 and 4 bits", "not run", "bitsandbytes is not installed")
        kit = replace(kit, bits=())
    for name in names:
        try:
            yield from CHECKS[name](kit)
        except Exception as error:  # also of a library that does not go with this GPU: said, and the others go on
            yield Row(name, "to its end", "failed", f"{type(error).__name__}: {sentence(error)}")
        gc.collect()
        free_memory()


def facts(device: str) -> dict[str, str]:
    """What the figures are of."""
    names = ("torch", "transformers", "accelerate", "bitsandbytes")
    found = {
        "device": ", ".join(f"{each.title}, {each.total / 2**30:.1f} GiB" for each in look().devices),
        "processor": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "libraries": ", ".join(f"{name} {version(name)}" for name in names if importlib.util.find_spec(name)),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        found["CUDA"] = f"{torch.version.cuda}, compute capability {major}.{minor}"
    return found


def write(rows: list[Row], told: dict[str, str], out: Path) -> None:
    """Write `report.md` and `report.json` to the new folder `out`."""
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    lines = ["# What was checked", "", ", ".join(f"{count} {status}" for status, count in counts.items()) + ".", ""]
    lines += [f"- {name}: {said}" for name, said in told.items()]
    lines += ["", "| check | of | | seen |", "|---|---|---|---|"]
    cells = [(row.check, row.what, row.status, " ".join(row.seen.replace("|", "\\|").split())) for row in rows]
    lines += [f"| {' | '.join(each)} |" for each in cells]
    with new_folder(out, SettingsError) as folder:
        (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {"facts": told, "counts": counts, "rows": [asdict(row) for row in rows]}
        (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES, default="medium", help="of the random model")
    parser.add_argument("--model", type=Path, help="a folder of a model, in place of a random one")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="these checks alone")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="a new folder")
    arguments = parser.parse_args(given)
    if arguments.out.exists():
        parser.error(f"{str(arguments.out)!r} is there already: name a new folder, or remove it")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here: --device cpu runs what makes sense on a processor")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or write_random_model(arguments.size, Path(folder) / arguments.size)
        told = {"model": model.name, **facts(arguments.device)}
        for row in run(Kit(model, arguments.device), arguments.only):
            rows.append(row)
            print(f"{row.check}, {row.what}: {row.status}: {row.seen}", flush=True)
    write(rows, told, arguments.out)
    print(f"The report is in {arguments.out}.")
    return int(any(row.status == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
