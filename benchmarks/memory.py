"""Estimated and measured memory on the processor: `python -m benchmarks.memory small medium full`.

Each model is loaded in a process of its own, encodes a picture, reads a prompt and replies, until the context is full.
Measured is the peak of the process's own memory (anonymous and shared, looked up in /proc every few milliseconds), and
the pages of files that it has mapped at the end: libraries, and weights that are used as they are stored. A file that
was read and is merely cached is not counted: it gives way.
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.random_model import SIZES, write_random_model
from minichat.device.memory import MIB, estimate

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat

FORMS = (("float32", None), ("bfloat16", None), ("bfloat16", "8bit"), ("bfloat16", "4bit"))
REPLY = 16  # tokens
_EVERY = 0.003  # seconds
_REPLIED = "replied"


@dataclass(frozen=True)
class Measured:
    """Bytes."""

    own: int  # peak of anonymous and shared memory
    files: int  # of mapped files, at the end

    @property
    def total(self) -> int:
        return self.own + self.files


def measure(folder: Path, dtype: str, quantize: str | None, context: int) -> Measured:
    """The memory of a process that loads a model and replies. Linux only. Raises `RuntimeError` where it fails."""
    code = f"from benchmarks.memory import reply; reply({str(folder)!r}, {dtype!r}, {quantize!r}, {context})"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        own = 0
        while process.stdout is not None and not select.select([process.stdout], [], [], _EVERY)[0]:
            status = _status(process.pid)
            own = max(own, status.get("RssAnon", 0) + status.get("RssShmem", 0))
        files = _status(process.pid).get("RssFile", 0)
        said, complaint = process.communicate("\n")
    if said.strip() != _REPLIED:
        raise RuntimeError(f"The process that was to reply failed: {complaint[-2000:]}")
    return Measured(own, files)


def reply(folder: str, dtype: str, quantize: str | None, context: int) -> None:
    """What is measured: a model is loaded and replies. Waits to be looked at."""
    import minichat

    fill(minichat.load(folder, device="cpu", dtype=dtype, quantize=quantize), context)
    print(_REPLIED, flush=True)
    sys.stdin.readline()


def fill(bot: MiniChat, context: int) -> None:
    """Let it answer one question about one picture, `context` tokens together."""
    from PIL import Image

    from minichat.prompt.conversation import Conversation

    picture = Image.effect_noise((320, 240), 100)
    words = "a"
    prompt = len(bot.processor.render(Conversation().user(words, [picture]), add_generation_prompt=True).ids)
    longer = len(bot.processor.content_tokenizer.encode(words + " a" * 64)) - len(
        bot.processor.content_tokenizer.encode(words)
    )
    words += " a" * ((context - REPLY - prompt) * 64 // longer)
    bot.chat(max_new_tokens=REPLY).ask(words, images=[picture])


def _status(process: int) -> dict[str, int]:
    """The sizes in a process's /proc/PID/status, in bytes; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}


def row(size: str, folder: Path, dtype: str, quantize: str | None, context: int) -> str:
    """A line of the table."""
    from minichat.inference.doctor import read_config

    estimated = estimate(read_config(str(folder)), dtype=dtype, quantize=quantize, context=context).total
    measured = measure(folder, dtype, quantize, context)
    return (
        f"| {size} | {quantize or dtype} | {context} | {estimated / MIB:,.0f} | {measured.total / MIB:,.0f} | "
        f"{measured.own / MIB:,.0f} + {measured.files / MIB:,.0f} | {estimated / measured.total:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimated and measured memory of random models, on the processor.")
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=list(SIZES))
    parser.add_argument("--context", type=int, default=512, help="tokens, at most 2048")
    parser.add_argument("--folder", type=Path, help="where the models are or are to be kept; default: nowhere")
    arguments = parser.parse_args()
    print("| model | form | context | estimate, MiB | measured, MiB | own + files | estimate : measured |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for size in arguments.sizes:
            folder = (arguments.folder or Path(temporary)) / size
            if not folder.exists():
                write_random_model(size, folder)
            for dtype, quantize in FORMS:
                print(row(size, folder, dtype, quantize, arguments.context), flush=True)


if __name__ == "__main__":
    main()
