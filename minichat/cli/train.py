"""`minichat train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from minichat.cli.shared import commands

app = commands()


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as those in train_configs/.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Instead of the file's: optimizer.rate=1e-4.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder; one that holds this run goes on with it.")
    ] = None,
    initialize_from: Annotated[
        str | None,
        typer.Option(
            "--initialize-from",
            metavar="RUN_OR_MODEL",
            help="Begin with its weights: a run, also a stopped one, or a model.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a run; never begin one.")] = False,
) -> None:
    """Train a part of a model on conversations. Ctrl-C and SIGTERM save first; the same command then goes on."""
    from minichat.train.config import read_config
    from minichat.train.loop import train as run

    given = list(settings or ())
    for key, value in (("out", out), ("initialize_from", initialize_from)):
        given += [] if value is None else [f"{key}={json.dumps(str(value))}"]
    outcome = run(read_config(config, given), resume=resume, say=lambda text: typer.echo(text, err=True))
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)
