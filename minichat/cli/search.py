"""`minichat search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minichat.cli.shared import SOME_FAILED, Device, Dtype, Model, Precision, commands, given, progress
from minichat.cli.streams import Lines
from minichat.disk import json_line

if TYPE_CHECKING:
    from minichat.search import Hit

app = commands()

FINDER = "minichat-tiny-stage1"


@app.command()
def search(
    query_and_folder: Annotated[
        list[str],
        typer.Argument(metavar="[QUERY] FOLDER", help="What is to be seen (-: each line of stdin), and where."),
    ],
    image: Annotated[Path | None, typer.Option("--image", help="Find what is like this picture; no QUERY.")] = None,
    top: Annotated[int | None, typer.Option("--top", help="How many pictures (10).")] = None,
    rerank: Annotated[
        int | None, typer.Option("--rerank", help="So many of the most similar are matched (32); 0: none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object for each picture.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet here, too: a .png that must not exist yet.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", help="Keep the index in this folder, not in the user's cache.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures that are encoded together.")] = None,
    model: Model = FINDER,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
) -> None:
    """Find the pictures in a folder that fit some words best: a line with score and path for each.

    The folder is indexed once; after that only pictures that are new or have changed are read.
    """
    *queries, folder = query_and_folder
    if len(queries) != (image is None):
        raise typer.BadParameter("give QUERY and FOLDER, or --image PICTURE and FOLDER.")
    if image is not None and rerank is not None:
        raise typer.BadParameter("--rerank is for words: pictures that are like one another are not matched.")
    if sheet is not None and (queries == ["-"] or sheet.suffix.lower() != ".png"):
        raise typer.BadParameter("--sheet is for one query, and its name ends in .png.")
    from minichat.disk import new_file
    from minichat.errors import DataError
    from minichat.search import Index, contact_sheet

    # Made first: what stands in its way is told before a folder is indexed.
    with nullcontext() if sheet is None else new_file(sheet, DataError) as file:
        found = Index.open(
            folder,
            model,
            where=index,
            device=device,
            dtype=dtype.value,
            progress=progress,
            waiting=lambda: typer.echo("Another process is indexing this folder: waiting for it ...", err=True),
            **given(batch_size=batch_size),
        )
        for skipped in found.skipped:
            typer.echo(f"minichat: {_spelled(skipped.path)}: {skipped.error}", err=True)
        failed, options = bool(found.skipped), given(top=top, rerank=rerank)
        if queries == ["-"]:
            failed = not _answer_lines(lambda query: found.find(query, **options), as_json) or failed
        else:
            hits = found.find(queries[0], **options) if image is None else found.find_image(image, **given(top=top))
            if file is not None:
                contact_sheet(hits).save(file, format="PNG")
    if queries != ["-"]:  # last: what hinders the output is no fault of the sheet
        _show(hits, as_json)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _answer_lines(find: Callable[[str], Sequence[Hit]], as_json: bool) -> bool:
    """Answer the queries of standard input, one a line, as they come; whether all of them could be."""
    from minichat.errors import PromptError

    lines, well = Lines(sys.stdin), True
    while True:
        query = ""
        hits: Sequence[Hit] = ()
        try:
            query = lines().strip()
            if not query:
                continue
            hits = find(query)
        except EOFError:
            return well
        except PromptError as error:  # it costs the other lines nothing, and its answer is empty
            typer.echo(f"minichat: line {lines.number}: {error}", err=True)
            well = False
        _show(hits, as_json, query)


def _show(hits: Sequence[Hit], as_json: bool, query: str | None = None) -> None:
    """One line for each; an empty one ends the answer to one of several queries."""
    for hit in hits:
        typer.echo(_json(hit, query).encode() if as_json else f"{hit.score:.4f}  {_spelled(hit.path)}")
    if query is not None and not as_json:
        typer.echo()


def _json(hit: Hit, query: str | None) -> str:
    record: dict[str, Any] = given(query=query) | {"image": str(hit.path), "score": hit.score}
    return json_line(record | {"similarity": hit.similarity, "matching": hit.matching})


def _spelled(path: Path) -> str:
    """A path as it is; quoted and escaped where it would break a line or is no Unicode."""
    text = str(path)
    return text if text.isprintable() else json.dumps(text)
