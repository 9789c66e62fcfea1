"""`minichat data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minichat.cli.shared import commands

app = commands(help="Data sets.")


@app.command()
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
