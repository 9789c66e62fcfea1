"""`minichat evaluate`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minichat.cli.shared import DEFAULT_MODEL, Device, Dtype, Keys, Model, Precision, commands, given, load_bot

if TYPE_CHECKING:
    from minichat.data.example import Problem
    from minichat.evaluate.files import Files
    from minichat.evaluate.report import Report
    from minichat.evaluate.run import Plan

app = commands()


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
        Keys | None,
        typer.Option("--unknown-keys", help="Of --data: refuse keys that nothing reads, or ignore them."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="How your captions or questions are asked for: '... {question}'.")
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
    dtype: Precision = Dtype.auto,
) -> None:
    """Measure a model, on held-out drawn scenes or on your own files; the table goes to stdout."""
    if (task is None) == (compare is None):
        raise typer.BadParameter("name a task, or two folders with --compare.")
    if compare is not None:
        for param in ctx.command.params:
            source = ctx.get_parameter_source(str(param.name))
            if param.name not in ("compare", "out") and source is not None and source.name == "COMMANDLINE":
                option = "/".join([*param.opts, *param.secondary_opts])
                raise typer.BadParameter(f"{option} is for a task: with --compare nothing is measured.")
        from minichat.evaluate.compare import compare as side_by_side

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
        ("--seed", seed is not None, not data, "of the held-out scenes: leave out --data"),
        ("--redrawn", redrawn is not None, not data and task in (Task.questions, Task.all), "for questions on scenes"),
        ("--rerank", rerank is not None, task in (Task.retrieval, Task.all), "for retrieval"),
    ):
        if is_given and not applies:  # what would do nothing is not passed over
            raise typer.BadParameter(f"{option} is {use}.")
    from minichat.evaluate.run import CHAT_TASKS, Plan

    tasks = CHAT_TASKS if task in (Task.all, None) else (task.value,)
    options = given(count=count, batch_size=batch_size, prompt=prompt, seed=seed, reranked=rerank, redrawn=redrawn)
    plan = Plan(tasks, blank=blank, **options)
    files = _files(data, images, plan, unknown_keys)
    if out is None:
        report = _measure(model, plan, files, device, dtype)
    else:
        from minichat.disk import new_folder
        from minichat.errors import DataError

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


def _files(data: list[Path] | None, images: Path | None, plan: Plan, unknown_keys: Keys | None) -> Files | None:
    if not data:
        return None
    from minichat.evaluate.files import Files

    told = given(unknown_keys=None if unknown_keys is None else unknown_keys.value)
    return Files(tuple(data), images, plan.count, left_out=_left_out, **told)


def _left_out(row: Problem) -> None:
    typer.echo(f"Left out: {row}", err=True)


def _measure(model: str, plan: Plan, files: Files | None, device: str, dtype: Dtype) -> Report:
    from minichat.evaluate.retrieval import can_retrieve, load_finder
    from minichat.evaluate.run import CHAT_TASKS, evaluate, search

    if plan.tasks == ("retrieval",) or (plan.tasks == CHAT_TASKS and can_retrieve(model)):
        return search(load_finder(model, device, dtype.value, plan.batch_size), model, plan, files)
    return evaluate(load_bot(model, device, dtype), plan, files, source=model, progress=_progress)


def _progress(task: str, answered: int) -> None:
    """A line on a terminal that overwrites itself; nothing in a log file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{task}: {answered:,} questions answered ")
        sys.stderr.flush()
