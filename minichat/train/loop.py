"""A training run, from a configuration to a folder with the result. It is the same for every stage.

One step: this process's share of the global batch, part by part; the sum of the losses over the number of things that
the whole global batch learns; gradients added over processes; one update. So the result depends neither on the number
of processes nor on the parts, save for rounding and for what each draws for itself (dropout). All randomness follows
from the seed and the step, so that a run that goes on from a checkpoint is the run that was never stopped.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.errors import DataError, MiniChatError, ModelError, SettingsError
from minichat.hardware.exhaustion import memory_told
from minichat.train.config import Config, check_unused
from minichat.train.data import read_data
from minichat.train.ending import finish
from minichat.train.files import CONFIG
from minichat.train.interruption import Interruption
from minichat.train.introduction import introduce, less_memory
from minichat.train.journal import Entry
from minichat.train.network import precision
from minichat.train.optimizer import set_rate
from minichat.train.run import (
    Run,
    Say,
    alone_in,
    begin,
    held_out_loss,
    places,
    restore,
    save,
    save_before_the_end,
    tell_progress,
    to_device,
    tokens_of,
    validate,
    validate_every,
)
from minichat.train.schedule import rate_of
from minichat.train.seeding import seed_step
from minichat.train.stages import stage_of
from minichat.train.together import Together


@dataclass(frozen=True)
class Outcome:
    """What became of a run: where, and how far. A `signal` stopped it, or it is finished where that is None."""

    out: Path
    step: int
    signal: int | None = None


def train(config: Config, *, resume: bool = False, say: Say = lambda text: None) -> Outcome:
    """Run a configuration to its end, or until SIGTERM or Ctrl-C, after which the same call goes on.

    Args:
        resume: there must be a run to go on with; otherwise one is begun where there is none.
        say: is given the opening table and the lines of progress.

    Raises:
        SettingsError: for a setting that cannot be, and for a folder that holds a run of another configuration.
        DataError: for data that cannot be learnt from, naming file and line.
        ModelError: for a model that cannot be loaded, and where the loss is no number, naming the batch.
    """
    out = Path(config.out).expanduser()
    stage_class = stage_of(config.stage)
    accelerator = make_accelerator(config, stage_class.trainable, out)
    together = Together(accelerator.process_index, accelerator.num_processes)
    if not together.first:
        say = _nobody
    elif resume and not (out / CONFIG).exists():
        raise SettingsError(f"There is no run in {out.name!r} to resume: leave --resume out to begin one.")
    if together.count == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        say("One process: accelerate's --cpu starts no more. For several on the CPU: --multi_gpu, or torchrun.")
    with alone_in(out, together):
        if together.from_first(begin(out, config, say) if together.first else None):
            say(f"The run in {out} is finished.")
            return Outcome(out, 0)
        check_unused(config, stage_class.unused)
        stage = stage_class(config, accelerator.device)
        run = Run(config, out, accelerator, together, stage, read_data(config, stage, together, say), say)
        restore(run)
        introduce(run)
        with memory_told(lambda: SettingsError(f"Memory ran out at step {run.standing.step + 1}: {less_memory(run)}.")):
            stopped = loop(run)
        if stopped is None:
            finish(run)
        _end_trackers(run)
        return Outcome(out, run.standing.step, stopped)


def loop(run: Run) -> int | None:
    """Step after step to the end. Returns the signal that stopped it, if one did.

    A run that must end by an error is saved first, where its state is whole. Not after a `ModelError`, which is a loss
    that is no number: what it spoilt must not be kept. Nor by one process of several, unless all know of the error.
    """
    with Interruption() as interruption:
        try:
            _steps(run, interruption)
        except ModelError:
            raise
        except Exception as error:
            if run.together.count == 1:
                save_before_the_end(run, str(error))
            raise
        (stopping,) = run.together.agree(int(interruption.signal is not None))
    if not stopping:
        return None
    save(run)
    run.say(f"Stopped after step {run.standing.step} of {run.steps}: the same command goes on from there.")
    return interruption.signal or signal.SIGTERM


def _steps(run: Run, interruption: Interruption) -> None:
    config, stage, standing, together = run.config, run.stage, run.standing, run.together
    if standing.step == 0:
        standing.began = held_out_loss(run)
    stage.model.train()
    began, since = time.monotonic() - standing.seconds, time.monotonic()
    feed = run.data.feed.load(standing.step, config.data.workers, pinned=run.pinned)
    for batches, failure in _with_failure(feed):
        here = sum(stage.count(batch) for batch in batches), sum(tokens_of(batch) for batch in batches)
        told = int(interruption.signal is not None), int(failure is not None)
        items, tokens, stopping, failing = together.agree(*here, *told)
        if stopping or standing.ended:
            break
        if failing or items == 0:
            nothing = f"Nothing can be learnt at step {standing.step + 1}: {places(run, standing.step)}."
            if together.count > 1:
                save_before_the_end(run, str(failure))
            raise failure or DataError("Another process of this run says why it ends." if failing else nothing)

        _step(run, batches, items, tokens)
        last = standing.step == run.steps
        if last or standing.step % config.report.log_every == 0:
            since = tell_progress(run, since)
        if last or standing.step % validate_every(run) == 0:
            validate(run)
        standing.seconds = time.monotonic() - began
        if last or standing.ended or standing.step % config.run.save_every == 0:
            save(run)


def _step(run: Run, batches: Sequence[dict[str, Tensor]], items: int, tokens: int) -> None:
    """One update; its figures stay on the device."""
    config, standing, together, accelerator = run.config, run.standing, run.together, run.accelerator
    seed_step(config.seed, standing.step, together.rank)
    losses = []
    for batch in batches:
        with accelerator.autocast():
            loss = run.stage.loss(to_device(batch, accelerator.device)) / items  # () or (terms,)
        if loss.requires_grad:  # not where only the projection trains and the batch has no picture
            accelerator.backward(loss.sum())
        losses.append(loss.detach())
    together.add_gradients(run.weights.values())
    norm = accelerator.clip_grad_norm_(run.weights.values(), config.optimizer.clip or math.inf)
    rate = set_rate(run.optimizer, rate_of(standing.step, run.steps, config.optimizer))
    run.whole = False
    run.optimizer.step()
    run.optimizer.zero_grad()
    standing.step += 1
    run.journal.add(Entry(standing.step, losses, norm, rate, items, tokens))
    run.whole = True


def _with_failure(
    feed: Iterable[list[dict[str, Tensor]]],
) -> Iterator[tuple[list[dict[str, Tensor]], MiniChatError | None]]:
    """Each step's batches; or what is wrong with them, which all processes are to know before one of them ends."""
    try:
        for batches in feed:
            yield batches, None
    except MiniChatError as error:
        yield [], error


def _end_trackers(run: Run) -> None:
    try:
        run.accelerator.end_training()
    except OSError as error:  # a full disk; the result is there
        run.say(f"The trackers' curves could not be ended ({error.strerror or error}).")


def make_accelerator(config: Config, trainable: tuple[str, ...], out: Path) -> Any:
    """Accelerate's view of devices, processes and precision. Raises `SettingsError` for what is not here."""
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    AcceleratorState._reset_state()  # a run before this one in the same program may have had another precision
    # Without being told, accelerate's processes on a machine that has a CPU alone do not find each other.
    cpu = config.model.device == "cpu" or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu).device
    if config.model.device not in ("auto", device.type):
        raise SettingsError(f"model.device is {config.model.device!r}, but here is {device.type!r}: use auto.")
    trackers = [name for name in ("tensorboard", "wandb") if getattr(config.report, name)]
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"report.{name} is true, but {name} is not installed: install it, or set it to false.")
    dtype = str(precision(config.model.dtype, device)).removeprefix("torch.")
    # The projection alone takes care of itself; a larger part in float32 would be slow without autocast.
    mixed = dtype == "float16" or set(config.trainable or trainable) != {"projection"}
    return Accelerator(
        mixed_precision={"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "no") if mixed else "no",
        cpu=cpu,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "curves")),
    )


def _nobody(text: str) -> None:
    """All but the first process keep silent."""
