"""A full-size model on a processor, beside plain transformers: `python -m benchmarks.full_size`.

The same random weights, as MiniChat's folder and exported as a `Blip2ForConditionalGeneration`, answer the same prompt
about the same picture, greedily, one after the other in one process: seconds to load, to encode a picture, to the first
token, for each further token, and how much of the memory's measured bandwidth writing a token reaches. Of repeated
measurements the fastest counts. Everything was read from disk before, so loading is from the system's cache; to load,
MiniChat reads every value, and transformers none.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minichat
from benchmarks.random_model import SIZES, write_random_model
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from minichat.weights.export import export_blip2

QUESTION = "What is in the picture?"
PICTURE = Image.effect_noise((224, 224), 60).convert("RGB")


@dataclass(frozen=True)
class Seconds:
    """The fastest of each."""

    load: float
    encode: float
    first: float  # a question with its picture → the first token
    each: float  # of the other tokens


class Ours:
    """MiniChat, through its public functions."""

    def __init__(self, folder: Path, dtype: str, quantize: str | None = None, device: str = "cpu") -> None:
        self.bot: MiniChat = minichat.load(folder, device=device, dtype=dtype, quantize=quantize)

    def encode(self) -> None:
        self.bot.encode([PICTURE])

    def write(self, tokens: int) -> list[int]:
        chat = self.bot.chat()
        chat.ask(QUESTION, PICTURE, max_new_tokens=tokens)
        return list(chat.conversation.messages[-1].ids or ())


class Theirs:
    """transformers, with the ids and pixels that MiniChat gives its own network; a picture's place has its own id."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from transformers import Blip2ForConditionalGeneration

        self.model: Any = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.batch: dict[str, Tensor] = {}

    def give(self, batch: dict[str, Tensor], slot: int) -> None:
        ids = batch["input_ids"]
        self.batch = {**batch, "input_ids": ids.masked_fill(ids == slot, self.model.config.image_token_id)}

    def encode(self) -> None:
        with torch.inference_mode():
            self.model.get_image_features(self.batch["pixel_values"].to(self.model.dtype))

    def write(self, tokens: int) -> list[int]:
        given = {**self.batch, "pixel_values": self.batch["pixel_values"].to(self.model.dtype)}
        with torch.inference_mode():
            ids = self.model.generate(**given, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
        return [int(i) for i in ids[0, -tokens:]]


Programs = dict[str, Any]


def measure(makers: dict[str, Callable[[], Any]], tokens: int, repeats: int) -> tuple[dict[str, Seconds], Programs]:
    """Time every program, in turns. Quantizing takes long, so it is done once."""
    programs: Programs = {}
    loading = {name: [0.0] for name in makers}
    for name, make in makers.items():
        loading[name] = [seconds_of(make) for _ in range(0 if "bit" in name else repeats - 1)]
        start = time.perf_counter()
        programs[name] = make()
        loading[name].append(time.perf_counter() - start)
    batch = prompt(programs["MiniChat"].bot)
    for program in programs.values():
        if isinstance(program, Theirs):
            program.give(batch, programs["MiniChat"].bot.processor.image_token_id)
        program.write(2)  # what is made once, such as packed weights
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            steps = (program.encode, lambda p=program: p.write(1), lambda p=program: p.write(tokens))
            times[name].append((seconds_of(steps[0]), seconds_of(steps[1]), seconds_of(steps[2])))
    found: dict[str, Seconds] = {}
    for name in programs:
        encode, first, whole = (min(column) for column in zip(*times[name], strict=True))
        found[name] = Seconds(min(loading[name]), encode, first, (whole - first) / (tokens - 1))
    return found, programs


def prompt(bot: MiniChat) -> dict[str, Tensor]:
    """The question as ids, mask and pixels."""
    rendered = bot.processor.render(Conversation().user(QUESTION, [PICTURE]), add_generation_prompt=True)
    return dict(bot.processor.batch([rendered]))


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second at which a device reads its memory (all threads together): a gigabyte's sum, the best of ten."""
    memory = torch.ones(2**28, device=device)
    return memory.nbytes / min(seconds_of(lambda: memory.sum().item()) for _ in range(10))


def read_for_a_token(bot: MiniChat) -> int:
    """Bytes of weights that are read to write one token: the LLM's, but of its embedding one row."""
    llm, embedding = bot.model.language_model, bot.model.get_input_embeddings()
    looked_up = set(map(id, embedding.parameters())) - set(map(id, bot.model.get_output_embeddings().parameters()))
    return sum(tensor.nbytes for tensor in llm.parameters() if id(tensor) not in looked_up)


def difference(ours: Ours, theirs: Theirs) -> float:
    """‖ours − theirs‖ / ‖theirs‖ of the logits that follow the prompt, in the columns of the vocabulary."""
    with torch.inference_mode():
        found, wanted = (
            model(**{**batch, "pixel_values": batch["pixel_values"].to(model.dtype)}).logits[0, -1].float()
            for model, batch in ((ours.bot.model, prompt(ours.bot)), (theirs.model, theirs.batch))
        )
    wanted = wanted[: found.shape[0]]
    return float((found - wanted).norm() / wanted.norm())


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _read(folder: Path) -> None:
    """Bring a folder's weights into the system's cache."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=32, help="of the reply")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quantized", action="store_true", help="also MiniChat with its LLM in 8 and 4 bits")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        own, other = Path(work) / "model", Path(work) / "blip2"
        write_random_model(arguments.size, own)
        export_blip2(str(own), other)
        _read(own)
        _read(other)
        makers: dict[str, Callable[[], Any]] = {
            "MiniChat": lambda: Ours(own, arguments.dtype),
            "transformers": lambda: Theirs(other, arguments.dtype),
        }
        for bits in ("8bit", "4bit") if arguments.quantized else ():
            makers[f"MiniChat, {bits}"] = lambda bits=bits: Ours(own, arguments.dtype, bits)  # type: ignore[misc]
        before = bandwidth()
        seconds, programs = measure(makers, arguments.tokens, arguments.repeats)
        report(arguments, seconds, programs, max(before, bandwidth()))


def report(arguments: argparse.Namespace, seconds: dict[str, Seconds], programs: Programs, most: float) -> None:
    """Print the table, and how far the two programs agree."""
    ours, theirs = programs["MiniChat"], programs["transformers"]
    parameters = sum(tensor.numel() for tensor in ours.bot.model.parameters())
    length = theirs.batch["input_ids"].shape[1]
    print(
        f"{parameters / 1e9:.2f} billion parameters in {arguments.dtype}, {torch.get_num_threads()} threads, a prompt "
        f"of {length} tokens and a reply of {arguments.tokens}; memory is read at {most / 1e9:.1f} GB/s\n"
    )
    rows = {
        "load": [f"{s.load:.2f} s" for s in seconds.values()],
        "encode a picture": [f"{s.encode:.2f} s" for s in seconds.values()],
        "picture and question to the first token": [f"{s.first:.2f} s" for s in seconds.values()],
        "each further token": [f"{s.each * 1000:.0f} ms" for s in seconds.values()],
        "of the memory's bandwidth": [
            f"{read_for_a_token(getattr(programs[name], 'bot', ours.bot)) / s.each / most:.0%}"
            for name, s in seconds.items()
        ],
    }
    print(f"| to | {' | '.join(seconds)} |\n|---|{'---|' * len(seconds)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    written = ours.write(arguments.tokens), theirs.write(arguments.tokens)
    same = next((n for n, (a, b) in enumerate(zip(*written, strict=True)) if a != b), arguments.tokens)
    print(
        f"\nThe first {same} of {arguments.tokens} ids are the same; after the prompt the two programs' logits differ "
        f"by {difference(ours, theirs):.2%} of their norm."
    )


if __name__ == "__main__":
    main()
