"""`minichat …`: each subcommand calls one library function, which is imported only then, so that `--help` is instant.

Exit codes: 0; 1 failed (one line on stderr says why; silent where the reader of a pipe has left); 2 usage; 3 some
inputs failed; 130 Ctrl-C; 143 SIGTERM. Data goes to stdout, all else to stderr.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from minichat import __version__
from minichat.cli import chat, data, models, options, train
from minichat.cli.options import FAILED, TERMINATED, commands

app = commands()


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)] = False,
) -> None:
    """Talk about pictures, caption folders of them, and find them by words."""
    if version:
        typer.echo(f"minichat {__version__}")
        raise typer.Exit()


for group in (chat, train, models):
    app.registered_commands += group.app.registered_commands
app.add_typer(data.app, name="data")
app.add_typer(models.catalogue, name="models")


def main() -> None:
    """Run the command line and leave with its exit code."""
    options.prepare()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # so that files are closed and `finally` is heeded
    try:
        try:
            app(prog_name="minichat")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(FAILED)
    except options.OutputError as error:
        typer.echo(f"minichat: {error}", err=True)
        sys.exit(FAILED)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
