"""`minichat data …`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minichat.cli.options import (
    DEFAULT_MODEL,
    FAILED,
    SOME_FAILED,
    Device,
    Model,
    Precision,
    commands,
    given,
    load_bot,
    progress,
)
from minichat.data import SeveralCaptions, UnknownKeys

if TYPE_CHECKING:
    from minichat.data.example import Problem

app = commands(help="Look at, check, split and make data sets.")

OF_A_KIND = 20  # so many mistakes of one kind are shown


class To(StrEnum):
    messages = "messages"
    llava = "llava"


class Talk(StrEnum):
    dialogues = "dialogues"
    storybook = "storybook"


Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a folder, or tars: 'shards/{000..012}.tar'.")]
Options = dict[str, Any]


def how_to_read(
    form: Annotated[
        str | None, typer.Option("--format", "--form", help="Its format; default: told from the content.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="The folder that pictures' paths start from.")] = None,
    instructions: Annotated[
        Path | None,
        typer.Option("--instructions", help="Lines to draw a question from where there is only a text."),
    ] = None,
    image_column: Annotated[str | None, typer.Option("--image-column", help="Of a table: the pictures.")] = None,
    text_column: Annotated[str | None, typer.Option("--text-column", help="Of a table: the texts.")] = None,
    question_column: Annotated[str | None, typer.Option("--question-column", help="Of a table: the questions.")] = None,
    several_captions: Annotated[
        SeveralCaptions | None,
        typer.Option("--several-captions", help="Of one picture: each a sample, the first, or a drawn one."),
    ] = None,
    unknown_keys: Annotated[
        UnknownKeys | None,
        typer.Option("--unknown-keys", help="Refuse records with keys that nothing reads, or ignore these."),
    ] = None,
) -> Options:
    """How a source is read, as `minichat.data.formats.read` takes it."""
    return given(
        form=form,
        pictures=images,
        instructions=instructions,
        image_column=image_column,
        text_column=text_column,
        question_column=question_column,
        several_captions=several_captions,
        unknown_keys=unknown_keys,
    )


def reads_a_source(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `how_to_read`; it gets what came of them as `options`."""
    own, shared = (dict(inspect.signature(one, eval_str=True).parameters) for one in (command, how_to_read))
    del own["options"]

    @functools.wraps(command)
    def run(**said: Any) -> None:
        options = how_to_read(**{name: said.pop(name) for name in shared})
        command(**said, options=options)

    run.__signature__ = inspect.Signature([*own.values(), *shared.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {name: told.annotation for name, told in (own | shared).items()}
    return run


@app.command()
@reads_a_source
def check(
    source: Source,
    model: Annotated[
        str | None, typer.Option("--model", help="Count tokens as this model does, and compare with its context.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Not only the first of each kind of mistake.")] = False,
    *,
    options: Options,
) -> None:
    """Read all, open every picture, and say by file and line what is wrong; then the lengths."""
    from minichat.data.check import check

    processor = context = None
    if model is not None:
        processor, context = _processor(model)

    kinds: Counter[str] = Counter()

    def tell(problem: Problem) -> None:
        kinds[problem.kind] += 1
        if everything or kinds[problem.kind] <= OF_A_KIND:
            typer.echo(str(problem))

    report = check(source, processor=processor, context=context, found=tell, progress=_progress, **options)
    if sys.stderr.isatty():
        typer.echo("\r", nl=False, err=True)
    more = sum(max(0, count - OF_A_KIND) for count in kinds.values())
    if more and not everything:
        typer.echo(f"... and {more:,} more of these kinds (--all shows them).")
    typer.echo(report.summary())
    if report.wrong:
        raise typer.Exit(FAILED if report.wrong == report.records else SOME_FAILED)


@app.command()
@reads_a_source
def preview(
    source: Source,
    model: Model = DEFAULT_MODEL,
    count: Annotated[int, typer.Option("--count", min=1, help="How many records.")] = 5,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page, with pictures: a new file.")] = None,
    colour: Annotated[bool | None, typer.Option("--colour/--no-colour", help="Default: colour on a terminal.")] = None,
    *,
    options: Options,
) -> None:
    """Show records as the model is to see them, with what it learns from marked."""
    from itertools import islice

    from minichat.data import check as previews
    from minichat.data.formats import read
    from minichat.errors import DataError
    from minichat.fileio import new_file

    processor, _ = _processor(model)
    left_out: list[Problem] = []
    records = islice(read(source, left_out=left_out.append, **options), count)
    samples = (previews.sample(example, processor) for example in records)
    if html is None:
        for text in previews.to_terminal(samples, sys.stdout.isatty() if colour is None else colour):
            typer.echo(text, color=True)
        _tell(left_out)
        return
    with new_file(html, DataError) as file:
        file.write(previews.to_html(samples).encode())
    _tell(left_out)
    typer.echo(f"The page is {html}.", err=True)


@app.command()
@reads_a_source
def convert(
    source: Source,
    to: Annotated[To, typer.Option("--to", help="The format to write.")],
    out: Annotated[Path, typer.Option("--out", help="A new file.")],
    *,
    options: Options,
) -> None:
    """Write a data set as JSON lines of messages, or as LLaVA's JSON."""
    from minichat.data.export import write
    from minichat.data.formats import read

    left_out: list[Problem] = []
    count = write(read(source, left_out=left_out.append, **options), out, to.value)
    _tell(left_out)
    typer.echo(f"{count:,} records are in {out}.", err=True)


@app.command()
@reads_a_source
def split(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    validation: Annotated[float, typer.Option("--validation", help="Share of the records.")] = 0.1,
    test: Annotated[float, typer.Option("--test", help="Share of the records.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="The same seed divides alike.")] = 0,
    *,
    options: Options,
) -> None:
    """Write train, validation and test sets, no picture of one of which is in another."""
    from minichat.data.export import split
    from minichat.data.formats import examples

    left_out: list[Problem] = []
    sizes = split(examples(source, left_out=left_out.append, **options), out, validation, test, seed)
    _tell(left_out)
    typer.echo(f"{', '.join(f'{name} {size:,}' for name, size in sizes.items())}: in {out}.", err=True)


@app.command()
@reads_a_source
def features(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="A new folder, or one with features of the same model.")],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Pictures that are encoded together.")] = 8,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that open pictures ahead.")] = 0,
    *,
    options: Options,
) -> None:
    """Compute what the frozen parts see in every picture, once; training with data.feature_cache=OUT then opens none.

    A folder that holds some of them already is made whole: a pass that was stopped goes on. Pictures that cannot be
    opened are named.
    """
    from minichat.data.feature_cache import encode
    from minichat.data.formats import examples

    left_out: list[Problem] = []
    records = examples(source, left_out=left_out.append, **options)
    pictures = [(example.where, picture) for example in records for picture in example.pictures]
    _tell(left_out)
    bot = load_bot(model, device, dtype)
    failed: list[object] = []

    def tell(where: object, picture: object, reason: str) -> None:
        failed.append(picture)
        typer.echo(f"minichat: {where}: {reason}", err=True)

    cache = encode(
        bot.model,
        bot.processor,
        pictures,
        out,
        batch_size=batch_size,
        workers=workers,
        progress=lambda done: progress(done, len(pictures)),
        damaged=tell,
        say=lambda text: typer.echo(text, err=True),
    )
    more = f" {len(failed):,} cannot be opened." if failed else ""
    typer.echo(f"{len(cache):,} different pictures are in {out}.{more}", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
@reads_a_source
def vocabulary(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    size: Annotated[int, typer.Option("--size", help="Word pieces, at the most.")] = 1000,
    *,
    options: Options,
) -> None:
    """Write a vocabulary like BERT's of the replies, for a Q-Former that begins without BERT.

    SOURCE may also be a training configuration (.yaml): then it is of the replies that this learns from.
    """
    from minichat.data.formats import examples
    from minichat.prompt.tokenizer import write_vocabulary
    from minichat.train.config import read_config
    from minichat.train.data import texts as texts_of

    if Path(source).suffix in (".yaml", ".yml"):
        texts = texts_of(read_config(source, say=partial(typer.echo, err=True)))
    else:
        left_out: list[Problem] = []
        records = examples(source, left_out=left_out.append, **options)
        _tell(left_out)
        texts = (reply for example in records for reply in example.replies)
    typer.echo(f"{write_vocabulary(out, texts, size):,} word pieces are in {out}.", err=True)


@app.command()
def answers(
    questions: Annotated[Path, typer.Argument(help="A text file, a question in each line.")],
    out: Annotated[Path, typer.Option("--out", help="A new file, .jsonl.")],
    model: Annotated[str, typer.Option("--model", help="Who answers: a model's name or folder.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="A longer reply is left out.")] = 160,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions at a time.")] = 16,
) -> None:
    """Write what a model answers to plain questions, without a picture, as conversations to train on.

    Mixed into a training, its own words keep an LLM from forgetting how it talks (self-distillation).
    """
    from minichat.data.example import Example, Turn, Where
    from minichat.data.export import write
    from minichat.data.formats.base import read_instructions
    from minichat.evaluate.replies import Ask, Teller
    from minichat.inference.load import load

    asked = list(dict.fromkeys(read_instructions(questions)))

    def whole() -> Iterator[Example]:
        """Read once the file is made: what stands in its way is told before the model answers."""
        teller = Teller(load(model), batch_size=batch_size, progress=_progress)
        replies = teller.replies(list(map(Ask, asked)), max_new_tokens)
        for number, (question, reply) in enumerate(zip(asked, replies, strict=True), 1):
            if reply.whole:
                turns = Turn("user", (question,)), Turn("assistant", (reply.text,))
                yield Example(turns, Where(questions.name, 0, number))

    count = write(whole(), out)
    typer.echo(f"{count:,} answers are in {out}; {len(asked) - count:,} were too long.", err=True)


@app.command()
def scenes(
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    count: Annotated[int, typer.Option("--count", help="How many samples.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data set.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.")] = 96,
    style: Annotated[Talk, typer.Option("--style", help="Of the conversations.")] = Talk.dialogues,
) -> None:
    """Write synthetic scenes and conversations about them, as JSONL of messages with a folder of pictures."""
    from minichat.toy import dataset

    dataset.write(out, count, seed=seed, size=size, style=style.value)
    typer.echo(f"{count} samples are in {out}.", err=True)


def _tell(left_out: list[Problem]) -> None:
    """Say which records hold nothing to learn."""
    if left_out:
        more = f" (and {len(left_out) - 1:,} more)" if len(left_out) > 1 else ""
        typer.echo(f"Left out: {left_out[0]}{more}", err=True)


def _processor(model: str) -> Any:
    """A model's processor, and how many tokens it can read; its weights stay where they are."""
    from minichat.inference.load import load_processor

    return load_processor(model)


def _progress(done: int) -> None:
    if sys.stderr.isatty() and done % 100 == 0:
        typer.echo(f"\r{done:,} records", nl=False, err=True)
