"""A run's parts, and what is done to them around the loop: init, restore, tell, validate, save."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minichat.device.memory import gib
from minichat.device.placement import peak_flops
from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.fileio import disk_errors, locked, replace_file
from minichat.model.loss import ProcessGroup
from minichat.train import logging
from minichat.train.checkpoint import (
    CHECKPOINTS,
    CONFIG,
    LEFT_OUT,
    LESSONS,
    LOCK,
    METRICS,
    Checkpoints,
    initialize,
    is_finished,
    keep_config,
    kept_config,
    read_start,
)
from minichat.train.config import Config, difference
from minichat.train.data import Data
from minichat.train.data_loader import BatchLoader
from minichat.train.logging import MetricsLogger
from minichat.train.optimizer import load_optimizer, make_optimizer, optimizer_tensors, trained
from minichat.train.setup import precision
from minichat.train.stages import Stage
from minichat.train.yaml_config import plain
from minichat.weights.checkpoint_io import fingerprint, read_checkpoint
from minichat.weights.hub import is_projection, weight_files
from minichat.weights.projection import read_projection

Say = Callable[[str], None]
_STEP = re.compile(r"step (\d+): ")


@dataclass
class TrainingState:
    """How far a run has come; a checkpoint holds it."""

    step: int = 0  # optimizer steps that are done
    best: float = math.inf  # the lowest validation loss …
    best_step: int = 0  # … and after which step
    began: float | None = None  # the validation loss before the first step
    last: float | None = None  # and that of the last validation
    waited: int = 0  # validations since then
    seconds: float = 0.0  # of training so far
    ended: bool = False  # before all steps, for want of a better validation loss


@dataclass
class Run:
    """What the loop works with."""

    config: Config
    out: Path
    accelerator: Any
    group: ProcessGroup
    stage: Stage
    data: Data
    say: Say
    state: TrainingState = field(default_factory=TrainingState)

    def __post_init__(self) -> None:
        self.weights: dict[str, nn.Parameter] = trained(self.stage.model)
        self.optimizer = self.accelerator.prepare(make_optimizer(self.weights, self.config.optimizer))
        self.checkpoints = Checkpoints(self.out / CHECKPOINTS)
        self.saved = 0  # the step of the newest checkpoint that this run wrote
        self._tracked = True
        self.whole = True  # not while the optimizer moves the weights
        self.metrics = MetricsLogger(
            self.out / METRICS,
            self.group,
            self._track,
            terms=self.stage.terms,
            norms_may_overflow=self.accelerator.scaler is not None,
        )
        device = self.accelerator.device
        known = peak_flops(device, precision(self.config.model.dtype, device))
        self.metrics.peak_flops = self.config.report.peak_flops or known

    def _track(self, figures: Mapping[str, float], step: int) -> None:
        if not self._tracked:
            return
        try:
            self.accelerator.log(figures, step)
        except OSError as error:
            self._tracked = False
            self.say(f"The trackers' curves end here ({error.strerror or error}); {METRICS} goes on.")

    @property
    def steps(self) -> int:
        return self.data.loader.steps

    @property
    def pinned(self) -> bool:
        """Whether batches are read into memory from which a GPU copies: a CPU has no use for it."""
        return bool(self.accelerator.device.type == "cuda")

    @cached_property
    def provenance(self) -> dict[str, str]:
        """What a run stands on and does not change. The frozen weights are told as they are held, in `precision`;
        quantized ones are not told: another device may round them otherwise."""
        held_out, device, model = self.data.held_out, self.accelerator.device, self.config.model
        weights = ((n, w.detach()) for n, w in self.stage.model.named_parameters() if n not in self.weights)
        frozen = ((name, weight) for name, weight in weights if weight.is_floating_point())
        precise = {precision(name, device) for name in (model.dtype, model.vision_dtype or model.dtype)}
        return {
            "data": self.data.loader.facts()["fingerprint"],
            "held_out": "" if held_out is None else held_out.facts()["fingerprint"],
            "frozen": fingerprint(frozen),
            "precision": f"{' and '.join(sorted(str(p).removeprefix('torch.') for p in precise))} on {device.type}",
        }


# --- before


@contextmanager
def alone_in(out: Path, group: ProcessGroup) -> Iterator[None]:
    """Keep other runs out of the folder. Raises `SettingsError` where one is at work in it."""

    def busy() -> None:
        raise SettingsError(f"Another run is at work in {out.name!r}: wait for its end, or give another out.")

    if not group.first:
        yield
        return
    lock = locked(out / LOCK, busy)
    try:
        lock.__enter__()
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError(f"The folder {out.name!r} cannot be written ({reason}): give another out.") from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def init_run(out: Path, config: Config, say: Say = lambda text: None) -> bool:
    """Take the folder for a run, new or to go on with; whether that run is finished.

    A configuration alone is left by a run that could not begin, and stands in nobody's way. Raises `SettingsError`
    where the folder holds a run of another configuration, naming the key that differs, or files of another kind, and
    `ModelError` where its result is damaged and no checkpoint is left to make it anew of.
    """
    held = {file.name for file in out.iterdir() if not file.name.startswith(".")} - {LESSONS}
    if CONFIG in held and held != {CONFIG}:
        if found := difference(kept_config(out, say), plain(config)):
            key, there, asked = found
            raise SettingsError(
                f"{out.name!r} holds a run with {key} {there!r}, but {asked!r} is asked for: give another out, or the "
                "same configuration to go on with it."
            )
        return is_finished(out) and _is_sound(out, say)
    if held - {CONFIG}:
        raise SettingsError(f"{out.name!r} holds files, but no run: give a new or empty folder as out.")
    keep_config(out, config)
    return False


def _is_sound(out: Path, say: Say) -> bool:
    """Whether a result is as it was written. One that is not is to be made anew, of its checkpoints."""
    try:
        if is_projection(out):
            read_projection(out)
        else:
            for file in weight_files(out):
                read_checkpoint(out / file)
    except ModelError as error:
        if not any((out / CHECKPOINTS).glob("*.safetensors")):
            raise
        say(f"{error} It is made anew of the checkpoints.")
        return False
    return True


def resume_run(run: Run) -> None:
    """Resume from the last checkpoint, if there is one: everything is put back as that has it.

    Raises `SettingsError` where the data sets or the frozen weights are not those that the run began with.
    """
    config, first = run.config, run.group.first
    saved = run.group.from_first(run.checkpoints.last(run.say) if first else None)
    if saved is None and config.initialize_from is not None:
        start = run.group.from_first(read_start(config.initialize_from, run.weights, run.say) if first else None)
        initialize(run.weights, start, run.say)
        if start.facts and _same_weights_elsewhere(run, start.facts):
            run.say(
                "Its frozen weights were others than those here: what was learned before them may be of little use."
            )
    if saved is not None:
        _check_provenance(run, saved.facts)
        load_weights(run.weights, saved.tensors)
        load_optimizer(run.optimizer, run.weights, saved.tensors)
        if run.accelerator.scaler is not None and "scaler" in saved.facts:  # not of a run that began elsewhere
            run.accelerator.scaler.load_state_dict(saved.facts["scaler"])
        run.state = TrainingState(**(saved.facts.get("state") or saved.facts["standing"]))  # its earlier name
        run.say(f"Going on after step {run.state.step}.")
    facts = {} if saved is None else saved.facts
    if damaged := run.metrics.rewind(run.state.step, facts.get("unwritten", ())):
        run.say(
            f"{METRICS}: what is in line {', '.join(map(str, damaged))} is no step's (cut off, or damaged); it is left "
            "out, and the curve lacks it unless its step is done again."
        )
    elif first and facts.get("metrics") not in (None, run.metrics.checksum()):
        run.say(f"{METRICS} is not as it was written up to step {run.state.step}: its curve may not be true.")
    if first:
        forget_what_was_left_out(run)
    tell_what_was_left_out(run, run.data.damaged)
    start_trackers(run)


def _same_weights_elsewhere(run: Run, facts: Mapping[str, Any]) -> bool:
    """Whether a run trained the same parts before other frozen weights, as far as they can be compared."""
    now = run.provenance
    return facts.get("precision") == now["precision"] and facts.get("frozen") != now["frozen"]


def _check_provenance(run: Run, began: dict[str, Any]) -> None:
    """What the run stood on when it began is what it stands on now, or a person is told."""
    now = run.provenance
    same = {name: began.get(name, now[name]) == now[name] for name in now}
    changed = {"data": "The data set has", "held_out": "The held-out data have", "frozen": "The frozen weights have"}
    if not same["precision"]:  # another machine; it has the same weights in another form
        run.say(f"The run began in {began['precision']} and goes on in {now['precision']}: its figures may differ.")
        del changed["frozen"]
    for name in (name for name in changed if not same[name]):
        raise SettingsError(
            f"{changed[name]} changed since the run in {run.out.name!r} began ({began[name][:12]} is now "
            f"{now[name][:12]}): put back what was there; or begin a new run with its weights: give another out and "
            f"--initialize-from {run.config.out}."
        )


def load_weights(weights: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])


def start_trackers(run: Run) -> None:
    run.accelerator.init_trackers(
        run.config.report.project,
        init_kwargs={"tensorboard": {"purge_step": run.state.step + 1}, "wandb": {"dir": str(run.out)}},
    )


# --- meanwhile


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def tokens_of(batch: dict[str, Tensor]) -> int:
    """Tokens of a batch on the host, without padding."""
    return int(batch["attention_mask"].sum())


def validate_every(run: Run) -> int:
    if run.config.run.validate_every is not None:
        return run.config.run.validate_every
    return run.data.of_an_epoch if run.config.run.epochs is not None and run.data.of_an_epoch else run.steps


def places(run: Run, step: int) -> str:
    """Where the rows of a step are from."""
    return ", ".join(dict.fromkeys(place for some in run.data.loader.where(step) for place in some))


def tell_progress(run: Run, since: float) -> float:
    """Write the figures of the last steps, and a line about them. Returns the time now."""
    run.metrics.flush(run.data.loader.where)
    lines, now = run.metrics.recent(), time.monotonic()
    tell_what_was_left_out(run)
    if lines:
        mean = {name: sum(line[name] for line in lines) / len(lines) for name in ("loss", *run.stage.terms)}
        loss = "  ".join(f"{name} {value:.4f}" for name, value in mean.items())
        left = (now - since) / len(lines) * (run.steps - run.state.step)
        memory = gib(logging.memory_used(run.accelerator.device))
        run.say(
            f"step {run.state.step}/{run.steps}  {loss}  lr {lines[-1]['lr']:.2e}  {logging.speed(lines)}  {memory}  "
            f"{logging.duration(left)} left"
        )
    return now


def tell_what_was_left_out(run: Run, before: Iterable[str] = ()) -> None:
    """Name the records of a stream that could not be read since the last time, and keep their list, step by step.

    `before` are those that are left out of the whole run; they stand at step 0.
    """
    found = sorted(itertools.chain.from_iterable(run.group.from_all(run.data.loader.left_out())))
    found = [*((0, problem) for problem in before), *found]
    if not found or not run.group.first:
        return
    more = f" (and {len(found) - 1} more: {LEFT_OUT})" if len(found) > 1 else ""
    run.say(f"Left out: {found[0][1]}{more}")
    with disk_errors(LEFT_OUT, SettingsError), (run.out / LEFT_OUT).open("a", encoding="utf-8") as file:
        file.write("".join(f"step {step}: {problem}\n" for step, problem in found))


def forget_what_was_left_out(run: Run) -> None:
    """Of steps that will be done again."""
    file = run.out / LEFT_OUT
    if file.exists():
        lines = file.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
        kept = [line for line in lines if (said := _STEP.match(line)) and 0 < int(said[1]) <= run.state.step]
        with disk_errors(LEFT_OUT, SettingsError):
            replace_file(file, "".join(kept).encode())


@torch.no_grad()
def validate(run: Run) -> None:
    """The loss per token on what was held out; the best weights are kept, and patience is counted."""
    run.metrics.flush(run.data.loader.where)
    state = run.state
    loss = held_out_loss(run)
    if loss is None:
        return
    state.last = loss
    run.metrics.write({"step": state.step, "validation_loss": loss})
    above = state.began is not None and loss > state.began
    more = f", above {state.began:.4f}, which it was before the first step" if above else ""
    run.say(f"step {state.step}/{run.steps}  validation loss {loss:.4f}{more}")
    if loss < state.best:
        state.best, state.best_step, state.waited = loss, state.step, 0
        if run.group.first:
            run.checkpoints.save_best(state.step, run.weights, {"validation_loss": loss})
        return
    state.waited += 1
    if run.config.run.patience is not None and state.waited >= run.config.run.patience:
        state.ended = True
        run.say(f"No better validation loss for {state.waited} times: the run ends here.")


@torch.no_grad()
def held_out_loss(run: Run) -> float | None:
    """The loss per token on what was held out, as the weights are; None where nothing was.

    Raises `ModelError`, naming the records that it is from, for a loss that is no number.
    """
    loader, stage, state = run.data.held_out, run.stage, run.state
    if loader is None:
        return None
    stage.model.eval()
    sums, count = [torch.zeros((), device=run.accelerator.device)], 0
    for batches in loader.load(pinned=run.pinned):
        for batch in batches:
            with run.accelerator.autocast():
                sums.append(stage.loss(to_device(batch, run.accelerator.device)).sum())
            count += stage.count(batch)
    stage.model.train()
    (items,) = run.group.agree(count)
    loss = float(run.group.add(torch.stack(sums).sum())) / items
    if not math.isfinite(loss):
        when = f"after step {state.step}" if state.step else "before the first step"
        raise ModelError(f"The validation loss is {loss} {when}, {_culprits(run, loader, sums[1:])}.")
    return loss


def _culprits(run: Run, loader: BatchLoader, sums: list[Tensor]) -> str:
    """Where the losses are from that are no numbers, and what to do; each of the loader's steps is one batch."""
    wrong = [step for step, loss in enumerate(sums) if not math.isfinite(loss.item())]
    named = run.group.listed(place for step in wrong for places in loader.where(step) for place in places)
    all_wrong, batches = run.group.agree(len(wrong), len(sums))
    if all_wrong == batches > 1 and not run.state.step:
        return "from all held-out records: the weights that it begins with are spoilt. Begin with others"
    if all_wrong == batches > 1:
        return "from all held-out records: the weights are spoilt. Lower optimizer.lr, and begin anew in another out"
    return f"from {named}: mend or drop these records, or lower optimizer.lr, and begin anew in another out"


def save(run: Run) -> None:
    """Write a checkpoint, after a look at the losses so far: what is no number must not be kept.

    Raises `SettingsError` where the disk does not take it, or the figures beside it, which it then holds.
    """
    failure = None
    # A run that goes on from here does not read the records again that were left out.
    for told_before in (lambda: run.metrics.flush(run.data.loader.where), lambda: tell_what_was_left_out(run)):
        try:
            told_before()
        except SettingsError as error:
            failure = failure or error
    if not run.group.first:
        return
    tensors = {**run.weights, **optimizer_tensors(run.optimizer, run.weights)}
    facts: dict[str, Any] = {"state": asdict(run.state), "config": plain(run.config), **run.provenance}
    facts |= {"metrics": run.metrics.checksum(), "unwritten": run.metrics.unwritten}
    if run.accelerator.scaler is not None:
        facts["scaler"] = run.accelerator.scaler.state_dict()
    run.checkpoints.save(run.state.step, tensors, facts)
    run.saved = run.state.step
    if failure is not None:
        raise failure


def save_before_the_end(run: Run, why: str) -> None:
    """Keep what is whole where the run must end by an error; that is told, and also where it cannot be kept."""
    if not run.whole or not run.state.step:
        return
    try:
        save(run)
    except (MiniChatError, OSError, RuntimeError) as error:
        if str(error) != why:
            run.say(str(error))
    if run.saved == run.state.step:
        run.say(f"Saved after step {run.saved}: the same command goes on from there.")
