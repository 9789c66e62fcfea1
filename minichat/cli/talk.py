"""`minichat chat`, `demo` and `caption`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minichat.cli.shared import (
    DEFAULT_MODEL,
    SOME_FAILED,
    Beams,
    Device,
    DeviceMap,
    Dtype,
    Model,
    NewTokens,
    Penalty,
    Precision,
    Quantized,
    Seed,
    Temperature,
    TopP,
    Verify,
    commands,
    given,
    load_bot,
    output,
    progress,
)
from minichat.cli.streams import Lines

if TYPE_CHECKING:
    from minichat.chat import ChatSession
    from minichat.prompt.conversation import Conversation

app = commands()


@app.command()
def chat(
    pictures: Annotated[list[str] | None, typer.Argument(metavar="[PICTURE]...", help="Shown at once.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    quantize: Quantized = None,
    device_map: DeviceMap = None,
    verify: Verify = False,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
) -> None:
    """Chat in the terminal, or answer the lines of a pipe. /help lists what can be typed."""
    from minichat.keyboard import Keyboard
    from minichat.terminal import COMMANDS, WITH_PATHS, TerminalChat

    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    bot = load_bot(model, device, dtype, quantize, device_map, verify)
    typing = sys.stdin.isatty()
    read = Keyboard(sys.stderr, COMMANDS, WITH_PATHS) if typing else Lines(sys.stdin)

    def new_session(conversation: Conversation | None = None) -> ChatSession:
        return bot.chat(**given(conversation=conversation), **settings)

    terminal = TerminalChat(new_session, read, sys.stdout, sys.stderr)
    for picture in pictures or []:
        terminal.add_picture(picture)
    if typing:
        typer.echo(
            f"{model} is ready. /image FILE shows a picture, and so does a dropped one; /help lists the rest.",
            err=True,
        )
    terminal.run()
    if terminal.failures and not typing:
        raise typer.Exit(SOME_FAILED)


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    quantize: Quantized = None,
    device_map: DeviceMap = None,
    verify: Verify = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option("--port", help="Default: 7860, or the next free one.")] = None,
) -> None:
    """Chat in a web page."""
    from minichat import web

    bot = load_bot(model, device, dtype, quantize, device_map, verify)
    running = web.launch(web.build_app(bot), host=host, port=port)
    typer.echo(f"MiniChat is at {running.url}  (Ctrl-C ends it)", err=True)
    running.wait()


@app.command()
def caption(
    files_or_folders: Annotated[list[Path], typer.Argument(help="Pictures, and folders of pictures.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write here, not to stdout; must not exist yet.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The instruction; default: the model's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Name pictures by absolute paths, not as seen from the output's folder.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    quantize: Quantized = None,
    device_map: DeviceMap = None,
    verify: Verify = False,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    num_beams: Beams = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
) -> None:
    """Caption pictures: a line {"image": ..., "caption": ...} or {"image": ..., "error": ...} for each."""
    from minichat.caption import Skipped, append_row, caption_paths, find_pictures, named_from
    from minichat.settings import GenerationSettings

    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    skipped: list[Skipped] = []
    paths = find_pictures(files_or_folders, skipped.append)
    for each in skipped:
        typer.echo(f"minichat: {each.error}", err=True)
    beside = None if absolute else Path() if out is None else out.parent
    done = failed = cut = 0
    try:
        with output(out) as file:
            bot = load_bot(model, device, dtype, quantize, device_map, verify)
            for row in caption_paths(bot, paths, prompt=prompt, batch_size=batch_size, **settings):
                append_row(file, replace(row, image=named_from(row.image, beside)))
                done += 1
                failed += row.error is not None
                cut += row.cut
                progress(done, len(paths))
    except (KeyboardInterrupt, SystemExit):
        _tell_what_is_kept(done, paths, out)
        raise
    typer.echo(f"{done} pictures: {done - failed} captioned, {failed} failed.", err=True)
    if cut:
        limit = settings.get("max_new_tokens", GenerationSettings.max_new_tokens)
        typer.echo(
            f'Cut off after {limit} tokens, and marked "finish": "length": {cut}. --max-new-tokens allows more.',
            err=True,
        )
    if failed or skipped:
        raise typer.Exit(SOME_FAILED)


def _tell_what_is_kept(done: int, paths: list[Path], out: Path | None) -> None:
    """Where captioning was stopped: the rows that are there, all of them whole, and where to go on."""
    if out is not None:  # a row may have been written, but not yet counted
        done = out.read_bytes().count(b"\n") if out.is_file() else 0
    if done == 0:
        said = "nothing was written"
    elif done == len(paths):
        said = "all pictures have their rows"
    else:
        rows = f"{done} of {len(paths)} pictures have their rows" + (f" in {str(out)!r}, which is kept" if out else "")
        said = f"{rows}; the next is {str(paths[done])!r}. The same command begins anew: name those that are left"
        said += ", and another --out" if out else ""
    typer.echo(f"minichat: Stopped: {said}.", err=True)
