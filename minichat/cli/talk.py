"""`minichat chat` and `demo`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from minichat.cli.shared import (
    DEFAULT_MODEL,
    SOME_FAILED,
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
