"""What the subcommands share: options, exit codes, errors as one line, output files, progress."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from minichat.errors import DataError, MiniChatError

if TYPE_CHECKING:
    from minichat.chat import MiniChat

FAILED = 1
SOME_FAILED = 3
TERMINATED = 128 + signal.SIGTERM


class _Commands(TyperGroup):
    """Turns an error that a person can mend into one line and an exit code; any other is a defect and shows itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MiniChatError as error:
            typer.echo(f"minichat: {error}", err=True)
            raise typer.Exit(FAILED) from None


def commands(no_args_is_help: bool = True, **options: Any) -> typer.Typer:
    """A group of subcommands."""
    return typer.Typer(
        cls=_Commands,
        pretty_exceptions_enable=False,
        no_args_is_help=no_args_is_help,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


class Bits(StrEnum):
    eight = "8bit"
    four = "4bit"


class Keys(StrEnum):
    """What is done with keys of a record that nothing reads."""

    refuse = "refuse"
    ignore = "ignore"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


DEFAULT_MODEL = "auto"


def _named(model: str) -> str:
    """The model that is meant; which one "auto" is, is said."""
    if model != DEFAULT_MODEL:
        return model
    from minichat.weights.zoo import default_model

    chosen = default_model()
    typer.echo(f"The model is {chosen}.", err=True)
    return chosen


Model = Annotated[
    str,
    typer.Option("--model", help="A known name, a folder, or a hub id; auto: the best built-in one.", callback=_named),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision of the frozen parts.")]
Quantized = Annotated[Bits | None, typer.Option("--quantize", help="Keep the LLM in 8 or 4 bits (bitsandbytes).")]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help="auto: spread the LLM over all GPUs, and the CPU if need be.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Check all weights against the hashes that were recorded.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Longest reply, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0: always the likeliest word; above: sampled.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Sample from the likeliest words of this probability.")]
Beams = Annotated[int | None, typer.Option("--num-beams", help="Above 1: beam search.")]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1: fewer repetitions.")]
Seed = Annotated[int | None, typer.Option(help="The same seed samples the same reply.")]


def load_bot(
    model: str,
    device: str,
    dtype: Dtype,
    quantize: Bits | None = None,
    device_map: str | None = None,
    verify: bool = False,
) -> MiniChat:
    from minichat.load import load

    bits = None if quantize is None else quantize.value
    chosen: Any = given(quantize=bits, device_map=device_map, verify=verify or None)
    return load(model, device=device, dtype=dtype.value, **chosen)


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given; what was not keeps the library's default, which has one home."""
    return {name: value for name, value in settings.items() if value is not None}


@contextmanager
def output(path: Path | None) -> Iterator[IO[bytes]]:
    """Stdout, or a new file; raises DataError if it exists or cannot be made. An empty one is not left behind."""
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    try:
        # Unbuffered: what could not be written is not tried again when the file is closed.
        file = open(path, "xb", buffering=0)  # noqa: SIM115 (closed below)
    except FileExistsError:
        raise DataError(f"{str(path)!r} exists already: remove it, or name another file.") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be made ({error.strerror}): check the folder.") from None
    try:
        with file:
            yield file
    finally:
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()


def progress(done: int, total: int) -> None:
    """A line on a terminal that overwrites itself; nothing in a log file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {total:,} pictures" + (os.linesep if done == total else ""))
        sys.stderr.flush()
