"""`minichat …`: each subcommand calls one library function, which is imported only then, so that `--help` is instant.

Exit codes: 0; 1 failed (one line on stderr says why); 2 usage; 3 some inputs failed; 130 Ctrl-C; 143 SIGTERM.
Data goes to stdout, all else to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from minichat import __version__
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


_PLAIN = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, **_PLAIN)  # type: ignore[arg-type]
data = typer.Typer(help="Data sets.", **_PLAIN)  # type: ignore[arg-type]
app.add_typer(data, name="data")


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Format(StrEnum):
    projection = "projection"
    blip2 = "blip2"


Model = Annotated[str, typer.Option("--model", help="A known name, a folder, or a hub id.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision of the frozen parts.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Longest reply, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0: always the likeliest word; above: sampled.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Sample from the likeliest words of this probability.")]
Beams = Annotated[int | None, typer.Option("--num-beams", help="Above 1: beam search.")]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1: fewer repetitions.")]
Seed = Annotated[int | None, typer.Option(help="The same seed samples the same reply.")]

DEFAULT_MODEL = "minichat-tiny"


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)] = False,
) -> None:
    """Talk about pictures, and caption folders of them."""
    if version:
        typer.echo(f"minichat {__version__}")
        raise typer.Exit()


@app.command()
def chat(
    pictures: Annotated[list[str] | None, typer.Argument(metavar="[PICTURE]...", help="Shown at once.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
) -> None:
    """Chat in the terminal, or answer the lines of a pipe. /help lists what can be typed."""
    from minichat.terminal import TerminalChat

    settings = _given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    bot = _load(model, device, dtype)
    terminal = TerminalChat(lambda: bot.chat(**settings), sys.stdin, sys.stdout, sys.stderr)
    for picture in pictures or []:
        terminal.add_picture(picture)
    typing = sys.stdin.isatty()
    if typing:
        typer.echo(f"{model} is ready. /image FILE shows a picture, /help lists the rest.", err=True)
    terminal.run()
    if terminal.failures and not typing:
        raise typer.Exit(SOME_FAILED)


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option("--port", help="Default: 7860, or the next free one.")] = None,
) -> None:
    """Chat in a web page."""
    from minichat import web

    running = web.launch(web.build_app(_load(model, device, dtype)), host=host, port=port)
    typer.echo(f"MiniChat is at {running.url}  (Ctrl-C ends it)", err=True)
    running.wait()


@app.command()
def caption(
    files_or_folders: Annotated[list[Path], typer.Argument(help="Pictures, and folders of pictures.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write here, not to stdout; must not exist yet.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The instruction; default: the model's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    num_beams: Beams = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
) -> None:
    """Caption pictures: a line {"image": ..., "caption": ...} or {"image": ..., "error": ...} for each."""
    from minichat.caption import append_row, caption_paths, find_pictures

    settings = _given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    paths = find_pictures(files_or_folders)
    done = failed = 0
    with _output(out) as file:
        bot = _load(model, device, dtype)
        for row in caption_paths(bot, paths, prompt=prompt, batch_size=batch_size, **settings):
            append_row(file, row)
            done += 1
            failed += row.error is not None
            _progress(done, len(paths))
    typer.echo(f"{done} pictures: {done - failed} captioned, {failed} failed.", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def convert(
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    projection: Annotated[Path, typer.Option("--projection", help="What MiniGPT-4's training saved (.pth).")],
    llm: Annotated[str, typer.Option("--llm", help="The LLM: a Hugging Face folder, or a hub id.")],
    template: Annotated[str, typer.Option("--template", help="Prompt template: vicuna-v0, llama2, minigpt-v2, ...")],
    vit: Annotated[Path | None, typer.Option("--vit", help="EVA's ViT as published (eva_vit_g.pth).")] = None,
    qformer: Annotated[
        Path | None, typer.Option("--qformer", help="BLIP-2's Q-Former as published; none: patches are joined.")
    ] = None,
    blip2: Annotated[
        str | None, typer.Option("--blip2", help="Instead of both: a Hugging Face BLIP-2, folder or hub id.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Copy the LLM in; otherwise it is referred to.")] = False,
    vision_heads: Annotated[int | None, typer.Option(help="Attention heads of the ViT; as published: 16.")] = None,
    vision_layers: Annotated[int | None, typer.Option(help="Blocks of the ViT to use; as published: 39.")] = None,
    qformer_heads: Annotated[
        int | None, typer.Option(help="Attention heads of the Q-Former; as published: 12.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the pictures; default: what the ViT has.")] = None,
    allow_unused: Annotated[
        list[str] | None, typer.Option("--allow-unused", help="Leave out unknown tensors of this name (a glob).")
    ] = None,
) -> None:
    """Make a model's folder from published MiniGPT-4 and BLIP-2 weights."""
    from minichat.weights.convert import convert as make

    make(
        out,
        projection=projection,
        llm=llm,
        template=template,
        vit=vit,
        qformer=qformer,
        blip2=blip2,
        merge=merge,
        vision_heads=vision_heads,
        vision_layers=vision_layers,
        qformer_heads=qformer_heads,
        image_size=image_size,
        allow_unused=allow_unused or (),
        progress=lambda message: typer.echo(f"{message} ...", err=True),
    )
    typer.echo(f"The model is in {out}.", err=True)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A known name, a folder, or a hub id.")],
    form: Annotated[
        Format, typer.Option("--format", help="projection: the trained part alone; blip2: for plain transformers.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
) -> None:
    """Write a model's trained projection, or the whole model for other programs."""
    from minichat.weights.export import export as write

    write(model, form.value, out)
    typer.echo(f"It is in {out}.", err=True)


@data.command()
def scenes(
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    count: Annotated[int, typer.Option("--count", help="How many samples.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data set.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.")] = 96,
) -> None:
    """Write drawn scenes and conversations about them, as JSONL of messages with a folder of pictures."""
    from minichat.scenes import dataset

    dataset.write(out, count, seed=seed, size=size)
    typer.echo(f"{count} samples are in {out}.", err=True)


def main() -> None:
    """Run the command line and leave with its exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # so that files are closed and `finally` is heeded
    app(prog_name="minichat")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def _load(model: str, device: str, dtype: Dtype) -> MiniChat:
    from minichat.load import load

    return load(model, device=device, dtype=dtype.value)


def _given(**settings: Any) -> dict[str, Any]:
    """The settings that were given; what was not keeps the library's default, which has one home."""
    return {name: value for name, value in settings.items() if value is not None}


@contextmanager
def _output(path: Path | None) -> Iterator[IO[bytes]]:
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


def _progress(done: int, total: int) -> None:
    """A line on a terminal that overwrites itself; nothing in a log file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {total:,} pictures" + (os.linesep if done == total else ""))
        sys.stderr.flush()
