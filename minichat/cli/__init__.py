"""`minichat …`: each subcommand calls one library function, which is imported only then, so that `--help` is instant.

Exit codes: 0; 1 failed (one line on stderr says why; silent where the reader of a pipe has left); 2 usage; 3 some
inputs failed; 130 Ctrl-C; 143 SIGTERM. Data goes to stdout, all else to stderr.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import threading
from types import FrameType

import typer

from minichat.cli import chat, data, models, options, train
from minichat.cli.options import FAILED, TERMINATED, commands, root

app = commands()
app.callback(invoke_without_command=True)(root)

for group in (chat, train, models):
    app.registered_commands += group.app.registered_commands
app.add_typer(data.app, name="data")
app.add_typer(models.catalogue, name="models")


def main() -> None:
    """Run the command line and leave with its exit code."""
    options.prepare()
    # What is imported makes a million objects that stay. To look for garbage among them takes a second, half of it at
    # the very end, when the process is about to give all of them back.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
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
