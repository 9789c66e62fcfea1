"""`minichat chat`, `demo`, `serve` and `caption`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minichat.cli.options import (
    DEFAULT_MODEL,
    KEPT,
    SOME_FAILED,
    Also,
    Beams,
    Device,
    DeviceMap,
    Kept,
    LengthPenalty,
    Lines,
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
    named,
    owned,
)
from minichat.errors import SettingsError

if TYPE_CHECKING:
    from minichat.captioning.cluster import Workers
    from minichat.captioning.run import Progress, Run
    from minichat.captioning.vllm_engine import VllmBot
    from minichat.data.formats.folder import Skipped
    from minichat.device import Dtype, Quantize
    from minichat.inference.session import ChatSession
    from minichat.prompt.conversation import Conversation


# --- `minichat chat`, `demo` and `serve`.


app = commands()


@app.command()
def chat(
    pictures: Annotated[list[str] | None, typer.Argument(metavar="[PICTURE]...", help="Shown at once.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = "auto",
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
    from minichat.cli.terminal import COMMANDS, WITH_PATHS, Keyboard, TerminalChat

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
        says = "/image FILE shows a picture, and so does a dropped one; /help lists the rest."
        typer.echo(f"{model} is ready. {says}", err=True)
    terminal.run()
    if terminal.failures and not typing:
        raise typer.Exit(SOME_FAILED)


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = "auto",
    quantize: Quantized = None,
    device_map: DeviceMap = None,
    verify: Verify = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option("--port", help="Default: 7860, or the next free one.")] = None,
    kept: Kept = KEPT,
    also: Also = None,
) -> None:
    """Chat in a web page."""
    from minichat import web

    has = owned(kept, also, model, False, device, dtype, quantize, device_map, verify)
    # The page may change to another model: nothing here holds on to the first.
    running = web.launch(web.build_app(has.load(model), owned=has), host=host, port=port)
    typer.echo(f"MiniChat is at {running.url}  (Ctrl-C ends it)", err=True)
    running.wait()


@app.command()
def serve(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = "auto",
    quantize: Quantized = None,
    verify: Verify = False,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: 8000.")] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model; default: its own name.")] = None,
    page: Annotated[bool, typer.Option("--page", help="The chat page at /, on the same engine.")] = False,
    key_file: Annotated[Path | None, typer.Option("--api-key-file", help="Else: $MINICHAT_API_KEY, or none.")] = None,
    origins: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="A web page's origin whose scripts may use this server.")
    ] = None,
    image_hosts: Annotated[
        list[str] | None, typer.Option("--allow-image-host", help="A host from which pictures may be fetched.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest reply that may be asked for.")] = None,
    queue: Annotated[int | None, typer.Option(help="Replies that may wait; more are refused at once.")] = None,
    kept: Kept = KEPT,
    also: Also = None,
) -> None:
    """Serve OpenAI's chat completions to other programs."""
    from minichat.serve import app as serving
    from minichat.serve import protocol, server

    key = _key(key_file)
    if also and not page:
        raise SettingsError("--also names models for visitors of the page: add --page, or leave it out.")
    limits = protocol.Limits(**given(max_tokens=max_tokens, queue=queue))
    listening = server.listen(host, server.PORT if port is None else port)  # an error comes before the weights
    bot = load_bot(model, device, dtype, quantize, None, verify)
    has = owned(kept, also, model, key is not None, device, dtype, quantize, None, verify) if page else False
    served = serving.build_app(
        bot, name=name, key=key, page=has, limits=limits, origins=origins or (), image_hosts=image_hosts or ()
    )
    address = server.address_of(listening)
    where = f"{address}/v1" + (f", the chat page is at {address}" if page else "")
    typer.echo(f"{name or bot.name} is served at {where}  (Ctrl-C ends it)", err=True)
    if key is None and host not in ("127.0.0.1", "::1", "localhost"):
        typer.echo("Whoever reaches this address may use it: set MINICHAT_API_KEY, or give --api-key-file.", err=True)
    server.serve(served, listening)


def _key(file: Path | None) -> str | None:
    """The key in a file, else that of the environment. Raises `SettingsError` for what is none."""
    where = "MINICHAT_API_KEY" if file is None else f"The key in {str(file)!r}"
    try:
        found = os.environ.get("MINICHAT_API_KEY") if file is None else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{where} cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8'}).") from None
    if found is None:
        return None
    key = found.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{where} must be one word of ASCII characters.")
    return key


# --- `minichat caption`.


_NAMED = 10  # failures that are named where the output has no room for them


class Format(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"
    coco = "coco"
    txt = "txt"
    caption = "caption"
    webdataset = "webdataset"


class Existing(StrEnum):
    keep = "keep"
    skip = "skip"
    append = "append"
    overwrite = "overwrite"


class Where(StrEnum):
    local = "local"
    ray = "ray"
    vllm = "vllm"


# Which model "auto" is depends on the run that is gone on with, so it is not settled as the options are read.
AnyModel = Annotated[str, typer.Option("--model", help=Model.__metadata__[0].help)]


@app.command()
def caption(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Pictures, folders, patterns, CSV or JSONL lists, tars, Parquet; -: a list on standard input.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write here, not to stdout; the same command goes on with it.")
    ] = None,
    form: Annotated[Format | None, typer.Option("--format", help="Default: told from --out.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="The instruction, with {name}, {folder}, {caption}; several: a caption for each."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file of instructions, one a line.")] = None,
    existing: Annotated[
        Existing | None,
        typer.Option(help="What of captions that pictures have; default: keep beside pictures, else overwrite."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before each caption.")] = "",
    suffix: Annotated[str, typer.Option(help="Put after each caption.")] = "",
    trigger: Annotated[list[str] | None, typer.Option(help="A word that stands first, with a comma.")] = None,
    forbid: Annotated[list[str] | None, typer.Option(help="Take this word out of captions.")] = None,
    words: Annotated[int | None, typer.Option(help="Keep the first so many words.")] = None,
    one_line: Annotated[bool, typer.Option("--one-line", help="No line breaks in captions.")] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Of MiniGPT-v2: ask for what is where, and add boxes, in fractions.")
    ] = False,
    image_column: Annotated[str | None, typer.Option("--image-column", help="A list's column of pictures.")] = None,
    text_column: Annotated[str | None, typer.Option("--text-column", help="A list's column of captions.")] = None,
    null: Annotated[bool, typer.Option("--null", help="Paths on standard input end with NUL.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Caption so many pictures, and stop.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to look through, too.")] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Pictures in each tar.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    engine: Annotated[
        Where,
        typer.Option(help="local: this machine; ray: workers on a cluster (RAY_ADDRESS, or started here); vllm: vLLM."),
    ] = Where.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes with a model each; with Ray one for each GPU, else machine.")
    ] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Name pictures by absolute paths, not as seen from the output's folder.")
    ] = False,
    model: AnyModel = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Precision = "auto",
    quantize: Quantized = None,
    device_map: DeviceMap = None,
    verify: Verify = False,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    num_beams: Beams = None,
    length_penalty: LengthPenalty = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
) -> None:
    """Caption pictures: a line {"image": ..., "caption": ...} or {"image": ..., "error": ...} for each.

    With --out the same command goes on where it was stopped, and does what was added or changed since.
    """
    from minichat.captioning import Asked, Run, Shape, open_output, read_prompts, sources_for
    from minichat.prompt.boxes import GROUNDING

    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    _check_engine(engine, workers, placed=device != "auto" or quantize is not None, spread=device_map is not None)
    listed = [*(prompt or []), *(read_prompts(prompts) if prompts is not None else [])]
    if boxes and not listed:
        listed = [GROUNDING]
    chosen = open_output(
        out,
        None if form is None else form.value,
        tuple(sources),
        stream=sys.stdout.buffer,
        prompts=tuple(listed) or (None,),
        shape=Shape(
            one_line=one_line,
            forbid=tuple(forbid or ()),
            words=words,
            prefix=prefix,
            suffix=suffix,
            triggers=tuple(trigger or ()),
            append=existing == Existing.append,
            boxes=boxes,
        ),
        shard_size=shard_size,
        page=html,
    )
    usual = Existing.keep if chosen.output.beside else Existing.overwrite
    asked = Asked(chosen.output.prompts, settings, (existing or usual).value, absolute)
    found = sources_for(
        tuple(sources), chosen, asked, image_column=image_column, text_column=text_column, null=null,
        stdin=getattr(sys.stdin, "buffer", None),
    )  # fmt: skip
    skipped: list[Skipped] = []

    def leave_out(each: Skipped) -> None:
        skipped.append(each)
        if len(skipped) <= _NAMED:
            typer.echo(f"minichat: {each.error}", err=True)

    sys.stdout.flush()
    with Run(chosen.output, asked, chosen.journal, dry=dry_run) as run:
        planned = run.plan(found, leave_out, retry)
        for note in chosen.output.notes:
            typer.echo(f"minichat: {note}", err=True)
        name = _model(run, model)
        if dry_run:
            _tell_what_would_be_done(run, name, chosen.form)
            return
        try:
            if planned.todo:
                with ExitStack() as stack:
                    bot: Any
                    if engine == Where.ray or (workers or 1) > 1:
                        bot = stack.enter_context(_workers(engine, name, device, dtype, quantize, verify, workers))
                    elif engine == Where.vllm:
                        bot = _vllm(name, dtype, verify, batch_size, settings)
                    else:
                        bot = load_bot(name, device, dtype, quantize, device_map, verify)
                    run.check_model(model, name, bot)
                    shown = _Shown(planned, len(asked.prompts), limit)
                    for _ in run.results(bot, batch_size, limit):
                        shown.update()
                    shown.end()
            else:
                run.output.finish(run.journal)
        except (KeyboardInterrupt, SystemExit):
            _tell_what_is_kept(run)
            raise
        if html is not None:
            _write_page(run, html)
        failed = _summarise(run, settings, len(skipped))
    if failed or skipped:
        raise typer.Exit(SOME_FAILED)


def _model(run: Run, requested: str) -> str:
    """The model that is meant; "auto" is the one that the run began with."""
    begun = run.journal.fact("model")
    if requested == DEFAULT_MODEL and begun is not None and begun["requested"] == DEFAULT_MODEL:
        typer.echo(f"The model is {begun['name']}, with which this run began.", err=True)
        return str(begun["name"])
    return named(requested)


def _workers(
    engine: Where, name: str, device: str, dtype: Dtype, quantize: Quantize | None, verify: bool, count: int | None
) -> Workers:
    """Workers that have loaded the model, of this machine's processor or of a Ray cluster."""
    from minichat.captioning.cluster import Workers
    from minichat.device.placement import choose_device

    here = engine == Where.local
    if here and choose_device(device).type != "cpu":
        raise SettingsError("--workers share the processor: with GPUs say --engine ray, too, or --device cpu.")
    name = os.path.abspath(name) if os.path.exists(name) else name  # their folder is another
    load = partial(load_bot, name, device, dtype, quantize, None, verify)
    typer.echo("Waiting for the first worker to load the model.", err=True)
    return Workers(load, count, gpus=device == "auto" or device.startswith("cuda"), here=here)


def _check_engine(engine: Where, workers: int | None, placed: bool, spread: bool) -> None:
    """Raise `SettingsError` for options that do not go together."""
    if spread and (engine == Where.ray or (workers or 1) > 1):
        raise SettingsError("Each worker has a device of its own: leave --device-map away.")
    if engine == Where.vllm and (placed or spread or workers):
        raise SettingsError("--engine vllm chooses devices itself: no --device, --quantize, --device-map or --workers.")


def _vllm(name: str, dtype: Dtype, verify: bool, batch_size: int, settings: Mapping[str, Any]) -> VllmBot:
    """vLLM with the model. What it cannot do is refused before anything is read."""
    from minichat.captioning.vllm_engine import VllmBot, check
    from minichat.inference.sampling import GenerationSettings
    from minichat.weights.registry import find

    check(GenerationSettings().updated(**settings))
    return VllmBot(find(name), dtype, verify, batch_size)


class _Shown:
    """A line on a terminal that overwrites itself: how far, how fast, how long still; nothing in a log file."""

    def __init__(self, planned: Progress, prompts: int, limit: int | None) -> None:
        self._planned, self._prompts = planned, prompts
        self._todo = planned.todo if limit is None else min(limit, planned.todo)
        self._start = self._last = time.monotonic()
        self._live = sys.stderr.isatty()

    def update(self) -> None:
        now = time.monotonic()
        if self._live and now - self._last >= 0.1:
            self._last = now
            self._write(now)

    def end(self) -> None:
        if self._live:
            self._write(time.monotonic())
            sys.stderr.write(os.linesep)
            sys.stderr.flush()

    def _write(self, now: float) -> None:
        done = self._planned.done // self._prompts
        line = progress_line(done, self._todo, now - self._start, self._planned.failed)
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()


def progress_line(done: int, todo: int, seconds: float, failed: int) -> str:
    """How far a run is, its rate and the time that is left."""
    parts = [f"{done:,} of {todo:,} pictures"]
    if done and seconds > 0:
        rate = done / seconds
        parts.append(f"{rate:.1f} per second" if rate >= 1 else f"{1 / rate:.1f} seconds each")
        if done < todo:
            parts.append(f"{_duration((todo - done) / rate)} left")
    if failed:
        parts.append(f"{failed:,} failed")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _summarise(run: Run, settings: dict[str, Any], skipped: int) -> int:
    """Say what came of it; returns how many pictures have no caption."""
    from minichat.inference.sampling import GenerationSettings

    made, several = run.progress, len(run.asked.prompts) > 1
    what = f"{made.done + made.before * len(run.asked.prompts):,} captions" if several else (
        f"{made.done + made.before:,} pictures"
    )  # fmt: skip
    before = f", {made.before:,} {'pictures ' if several else ''}done before" if made.before else ""
    lines = [f"{what}: {made.captioned:,} captioned, {made.failed:,} failed{before}."]
    left = made.todo * len(run.asked.prompts) - made.done
    if left > 0:
        lines.append(f"Left for another time (--limit): {left // len(run.asked.prompts):,}. The same command goes on.")
    if made.left_out:
        lines.append(f"Left out, since they have captions (--existing skip): {made.left_out:,}.")
    if made.gone:
        lines.append(f"Rows taken out, whose pictures are not there any more: {made.gone:,}.")
    results, failed, cut, empty = run.journal.tally()
    if cut:
        limit = settings.get("max_new_tokens", GenerationSettings.max_new_tokens)
        marked = ', and marked "finish": "length"' if run.output.marks else ""
        lines.append(f"Cut off after {limit} tokens{marked}: {cut:,}. --max-new-tokens allows more.")
    if empty:
        lines.append(f"Captions in which the model said nothing: {empty:,}.")
    if failed > made.failed:
        lines.append(f"Failed in all: {failed:,} of {results:,}. --retry tries them again.")
    lines += run.output.told
    if skipped > _NAMED:
        lines.append(f"Records and folders that could not be read: {skipped:,}.")
    for line in lines:
        typer.echo(line, err=True)
    if failed and not run.output.marks:
        for number, result in enumerate(run.journal.failures(_NAMED)):
            typer.echo(f"minichat: {result.place}: {result.error}", err=True)
            if number + 1 == _NAMED and failed > _NAMED:
                typer.echo(f"minichat: and {failed - _NAMED:,} more.", err=True)
    return failed


def _tell_what_would_be_done(run: Run, name: str, form: str) -> None:
    from minichat.captioning.journal import filled
    from minichat.errors import PromptError

    made, prompts = run.progress, run.asked.prompts
    where = "stdout" if run.output.path is None else str(run.output.path)
    typer.echo(
        f"{made.total:,} pictures: {made.before:,} done before, {made.todo:,} to do. Nothing was done (--dry-run)."
    )
    typer.echo(f"Model: {name}. Output: {form}, {where}.")
    for number, planned in enumerate(run.journal.todo(len(prompts), 5)):
        if number == 5:
            break
        for prompt in prompts:
            with suppress(PromptError):
                said = filled(prompt, planned.place, planned.before)
                typer.echo(f"  {planned.place}" + ("" if said is None else f": {said}"))
    if made.todo > 5:
        typer.echo(f"  and {made.todo - 5:,} more.")


def _tell_what_is_kept(run: Run) -> None:
    """Where captioning was stopped: what is there, all of it whole, and how to go on."""
    out = run.output.path
    left = next(run.journal.todo(len(run.asked.prompts), 1), None)
    rows = run.journal.tally()[0] // len(run.asked.prompts)
    if rows == 0:
        said = "nothing was written"
    elif left is None:
        said = "all pictures have their rows"
    else:
        place = left.picture.get("path", left.place)
        kept = f" in {str(out)!r}, which is kept" if out else ""
        if not run.output.live:
            kept = f" in the record of {str(out)!r}, which is written at the end"
        said = f"{rows:,} of {run.progress.total:,} pictures have their rows{kept}; the next is {place!r}. "
        goes_on = out is not None or run.output.beside
        said += "The same command goes on" if goes_on else "The same command begins anew: name those that are left"
    typer.echo(f"minichat: Stopped: {said}.", err=True)


def _write_page(run: Run, path: Path) -> None:
    from minichat.captioning.formats import write_page

    typer.echo(f"A page of {write_page(run.journal, run.output, path):,} captions is at {path}.", err=True)
