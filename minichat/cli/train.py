"""`minichat teach`, `train`, `evaluate` and `search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minichat.cli.data import Options, reads_a_source
from minichat.cli.options import (
    DEFAULT_MODEL,
    FAILED,
    SOME_FAILED,
    Device,
    Lines,
    Model,
    Precision,
    commands,
    given,
    load_bot,
    progress,
)
from minichat.data import UnknownKeys
from minichat.device import Dtype
from minichat.fileio import json_line

if TYPE_CHECKING:
    from minichat.data.example import Problem
    from minichat.evaluate.datasets import Files
    from minichat.evaluate.run import Plan, Report
    from minichat.search import Hit


# --- `minichat teach` and `train`.


app = commands()


class TrainsOn(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


@app.command()
@reads_a_source
def teach(
    source: Annotated[Path, typer.Argument(metavar="FOLDER_OR_FILE", help="Pictures with texts, in any usual form.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder: the model that has learnt them.")],
    model: Model = DEFAULT_MODEL,
    device: Annotated[TrainsOn, typer.Option("--device")] = TrainsOn.auto,
    *,
    options: Options,
) -> None:
    """Teach a model your own pictures: it looks, says what it will do, trains, and tells what was learnt.

    Once it trains, Ctrl-C and SIGTERM save first, and the same command goes on. Exit code 1: nothing was learnt.
    """
    from minichat.teach.run import teach as run

    outcome = run(source, out, model, device=device.value, say=lambda text: typer.echo(text, err=True), **options)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)
    if not outcome.learnt:
        raise typer.Exit(FAILED)
    typer.echo(f"Talk to it: minichat chat --model {out}", err=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as those in train_configs/.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Instead of the file's: optimizer.lr=1e-4.")
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
    from minichat.train.trainer import train as run

    given = list(settings or ())
    for key, value in (("out", out), ("initialize_from", initialize_from)):
        given += [] if value is None else [f"{key}={json.dumps(str(value))}"]
    say = partial(typer.echo, err=True)
    outcome = run(read_config(config, given, say), resume=resume, say=say)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


# --- `minichat evaluate`.


class Task(StrEnum):
    questions = "questions"
    captions = "captions"
    hallucination = "hallucination"
    dialogue = "dialogue"
    pairs = "pairs"
    stories = "stories"
    outside = "outside"
    wordings = "wordings"
    retrieval = "retrieval"
    all = "all"


@app.command()
def evaluate(
    ctx: typer.Context,
    task: Annotated[
        Task | None, typer.Argument(help="What to measure; all: what the model can, save wordings.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write JSON, table, plots and replies: a new folder.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="How many scenes (2,000; to retrieve 1,000) or records (all).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the held-out scenes.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Your own file instead of scenes: COCO, VQAv2, POPE, JSONL.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Where its pictures are; default: beside it.")] = None,
    unknown_keys: Annotated[
        UnknownKeys | None,
        typer.Option("--unknown-keys", help="Of --data: refuse keys that nothing reads, or ignore them."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="How your captions or questions are asked for: '... {question}'.")
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", help="Your questions' possible answers, one in each line: the likeliest."),
    ] = None,
    rerank: Annotated[int | None, typer.Option("--rerank", help="Retrieval: how many candidates are matched.")] = None,
    redrawn: Annotated[
        int | None, typer.Option("--redrawn", help="Questions: how many scenes another program draws, too.")
    ] = None,
    blank: Annotated[bool, typer.Option("--blank/--no-blank", help="Ask everything of a blank picture, too.")] = True,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Questions at a time.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Set two folders of --out side by side instead.")
    ] = None,
    device: Device = "auto",
    dtype: Precision = "auto",
) -> None:
    """Measure a model, on held-out synthetic scenes or on your own files; the table goes to stdout."""
    if (task is None) == (compare is None):
        raise typer.BadParameter("name a task, or two folders with --compare.")
    if compare is not None:
        for param in ctx.command.params:
            source = ctx.get_parameter_source(str(param.name))
            if param.name not in ("compare", "out") and source is not None and source.name == "COMMANDLINE":
                option = "/".join([*param.opts, *param.secondary_opts])
                raise typer.BadParameter(f"{option} is for a task: with --compare nothing is measured.")
        from minichat.evaluate.run import compare as side_by_side

        comparison = side_by_side(*compare)
        if out is not None:
            comparison.write(out)
        typer.echo(comparison.to_markdown(), nl=False)
        return
    pictures = data and task is not Task.outside
    asks = task in (Task.captions, Task.questions, Task.pairs)
    for option, is_given, applies, use in (
        ("--data", data, task is not Task.all, "for one task: name it"),
        ("--images", images is not None, pictures, "for --data that names pictures: their folder"),
        ("--unknown-keys", unknown_keys is not None, data, "for --data"),
        ("--prompt", prompt is not None, data and asks, "for captions and questions of your own: with --data"),
        (
            "--candidates",
            candidates is not None,
            data and task is Task.questions,
            "for questions of your own: with --data",
        ),
        ("--seed", seed is not None, not data, "of the held-out scenes: leave out --data"),
        ("--redrawn", redrawn is not None, not data and task in (Task.questions, Task.all), "for questions on scenes"),
        ("--rerank", rerank is not None, task in (Task.retrieval, Task.all), "for retrieval"),
    ):
        if is_given and not applies:  # what would do nothing is not passed over
            raise typer.BadParameter(f"{option} is {use}.")
    from minichat.evaluate.run import CHAT_TASKS, Plan

    tasks = CHAT_TASKS if task in (Task.all, None) else (task.value,)
    options = given(count=count, batch_size=batch_size, prompt=prompt, seed=seed, reranked=rerank, redrawn=redrawn)
    if candidates is not None:
        options["candidates"] = tuple(_answers(candidates))
    plan = Plan(tasks, blank=blank, **options)
    files = _files(data, images, plan, unknown_keys)
    if out is None:
        report = _measure(model, plan, files, device, dtype)
    else:
        from minichat.errors import DataError
        from minichat.fileio import new_folder

        with new_folder(out, DataError) as folder:  # made first: what stands in its way is told before hours of work
            report = _measure(model, plan, files, device, dtype)
            report.write_into(folder)
    typer.echo(report.to_markdown(), nl=False)
    for line in report.blind:
        hint = " Or did it learn from pictures without a question? Then ask none: --prompt ''."
        hint = hint if data and prompt is None else ""
        typer.echo(
            f"minichat: the pictures make no difference to {line.task}: is the model's vision intact?{hint}", err=True
        )


def _files(data: list[Path] | None, images: Path | None, plan: Plan, unknown_keys: UnknownKeys | None) -> Files | None:
    if not data:
        return None
    from minichat.evaluate.datasets import Files

    told = given(unknown_keys=unknown_keys)
    return Files(tuple(data), images, plan.count, left_out=_left_out, **told)


def _answers(path: Path) -> list[str]:
    """The lines of a file, without those that are empty."""
    from minichat.errors import DataError
    from minichat.fileio import open_file

    try:
        with open_file(path) as file:
            lines = [line.decode("utf-8-sig").strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8"
        raise DataError(f"The answers {str(path)!r} cannot be read ({why}): name another file.") from None
    if not any(lines):
        raise DataError(f"{path.name} holds no answers: write one in each line.")
    return list(dict.fromkeys(filter(None, lines)))


def _left_out(row: Problem) -> None:
    typer.echo(f"Left out: {row}", err=True)


def _measure(model: str, plan: Plan, files: Files | None, device: str, dtype: Dtype) -> Report:
    from minichat.evaluate.run import CHAT_TASKS, evaluate, search
    from minichat.evaluate.tasks import can_retrieve, load_finder

    if plan.tasks == ("retrieval",) or (plan.tasks == CHAT_TASKS and can_retrieve(model)):
        return search(load_finder(model, device, dtype, plan.batch_size), model, plan, files)
    return evaluate(load_bot(model, device, dtype), plan, files, source=model, progress=_progress)


def _progress(task: str, answered: int) -> None:
    """A line on a terminal that overwrites itself; nothing in a log file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{task}: {answered:,} questions answered ")
        sys.stderr.flush()


# --- `minichat search`.


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
    dtype: Precision = "auto",
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
    from minichat.errors import DataError
    from minichat.fileio import new_file
    from minichat.search import Index, contact_sheet

    # Made first: what stands in its way is told before a folder is indexed.
    with nullcontext() if sheet is None else new_file(sheet, DataError) as file:
        found = Index.open(
            folder,
            model,
            where=index,
            device=device,
            dtype=dtype,
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
