"""A training run, from a configuration to a folder with the result. It is the same for every stage."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.modeling_layers import GradientCheckpointingLayer

from minichat.device.memory import memory_errors
from minichat.device.placement import computes_bfloat16
from minichat.errors import DataError, MiniChatError, ModelError, SettingsError
from minichat.fileio import disk_errors
from minichat.model.loss import ProcessGroup
from minichat.train import logging
from minichat.train.checkpoint import BEFORE, CONFIG, CURVE, METRICS, PAGE, seed_step
from minichat.train.config import FREE, Config, OptimizerConfig, check_unused
from minichat.train.data import division, read_data
from minichat.train.data_loader import Interruption
from minichat.train.logging import Entry, read_metrics
from minichat.train.optimizer import lr_at, set_lr
from minichat.train.run import (
    Run,
    Say,
    TrainingState,
    alone_in,
    held_out_loss,
    init_run,
    load_weights,
    places,
    resume_run,
    save,
    save_before_the_end,
    tell_progress,
    to_device,
    tokens_of,
    validate,
    validate_every,
)
from minichat.train.setup import precision, top, versions
from minichat.train.stages import stage_of
from minichat.train.yaml_config import plain

# --- Whether a run made its model better: said at its end, with the losses before and after.


_WORSE = 1.001  # times the validation loss before; less is rounding
_WORSE_TRAINING = 1.1  # times the training loss of the first steps: batches differ
_FEW = 10  # steps at each end


def verdict(state: TrainingState, metrics: Sequence[Mapping[str, float]], optimizer: OptimizerConfig) -> str | None:
    """What to say of a run that ended above where it began, or nothing.

    Where there is a validation loss it alone counts, otherwise the training loss.
    """
    before, best, last = state.began, state.best, state.last
    if before is not None and last is not None and math.isfinite(best):
        if best > before * _WORSE:
            return (
                f"Training made it worse: the validation loss was {before:.4g} before the first step and {best:.4g} at "
                f"best, after step {state.best_step}. {_advice(optimizer)}"
            )
        if last > before * _WORSE:
            return (
                f"Training diverged after step {state.best_step}: the validation loss was {before:.4g} before the "
                f"first step, {best:.4g} at best, and is {last:.4g} at the end. {_advice(optimizer)}"
            )
        return None
    losses = [line["loss"] for line in metrics if "loss" in line]
    few = max(1, min(_FEW, len(losses) // 10))
    if len(losses) <= few:
        return None
    first, end = (sum(some) / few for some in (losses[:few], losses[-few:]))
    if end <= first * _WORSE_TRAINING:
        return None
    return (
        f"Training made it worse, unless its data became harder: the loss was {first:.4g} at first and is {end:.4g} at "
        f"the end. {_advice(optimizer)} With data.validation, the best weights on the way are kept."
    )


def _advice(optimizer: OptimizerConfig) -> str:
    return (
        f"Lower optimizer.lr ({optimizer.lr:g}), or lengthen its warm-up (optimizer.warmup_steps is "
        f"{optimizer.warmup_steps})."
    )


# --- Before the first step: what is about to happen, how long it will take, and whether it fits.


_LESS_MEMORY = {
    "run.micro_batch_size": "lower run.micro_batch_size",
    "run.batch_size": "lower run.batch_size",
    "data.feature_cache": "give data.feature_cache a folder",
    "data.max_length": "lower data.max_length",
    "model.gradient_checkpointing": "set model.gradient_checkpointing to true",
    "model.quantize": "set model.quantize",
    "model.vision_gradient_checkpointing": "set model.vision_gradient_checkpointing to true",
}


def summarize(run: Run) -> None:
    """Say what is about to happen, and keep what the model says before it."""
    config, stage, data = run.config, run.stage, run.data
    _, at_once = division(config, run.group.count)
    rows = logging.parts(stage.model)
    rows += logging.samples(
        data.loader.facts(), data.held_out.facts() if data.held_out else None, data.loader.padding()
    )
    rows.append(logging.portions(config, run.steps, data.of_an_epoch, run.group.count, at_once))
    rows += logging.memory(stage.memory(at_once, data.longest), run.accelerator.device)
    seconds = seconds_left(run) if run.state.step < run.steps else None
    run.say(logging.table(rows))
    if seconds is not None:
        run.say(f"Training takes about {logging.duration(seconds)}, from a trial.")
    if run.state.step == 0:
        for note in (*stage.notes, *_notes(run)):
            run.say(note)
    if run.group.first and data.shown and run.state.step == 0:
        logging.keep(run.out / BEFORE, stage.answer(data.shown))


def _notes(run: Run) -> list[str]:
    """What is allowed, but hardly meant."""
    notes: list[str] = []
    warm = run.config.optimizer.warmup_steps
    if warm > 0 and run.steps <= warm:
        notes.append(
            f"The run ends before its warm-up does (optimizer.warmup_steps is {warm:,}), so its rate never reaches "
            f"{run.config.optimizer.lr:g} and it learns little: lower that, or train longer."
        )
    device, model = run.accelerator.device, run.config.model
    halves = {precision(name, device) for name in (model.dtype, model.vision_dtype or model.dtype)} - {torch.float32}
    if device.type == "cpu" and halves and not computes_bfloat16():
        notes.append(
            "This processor does not compute in bfloat16, which is many times slower here than float32: unless memory "
            "is short, set model.dtype to float32."
        )
    return notes


def seconds_left(run: Run) -> float:
    """How long the steps that are left and their validations will take, by a trial of the largest batch, which changes
    nothing.

    Raises `SettingsError` where it does not fit into memory.
    """
    batches = next((some for some in run.data.loader.load(run.data.loader.heaviest(run.state.step)) if some), [])
    run.data.loader.left_out()  # the loop reads these records again, and tells of them
    (items,) = run.group.agree(sum(map(run.stage.count, batches)))
    if not batches or items == 0:
        return 0.0  # nothing can be learned, which the loop says by name
    heaviest = max(batches, key=lambda batch: batch["attention_mask"].numel())
    batch = to_device(heaviest, run.accelerator.device)
    run.stage.model.train()
    rows, length = heaviest["attention_mask"].shape
    too_much = f"{rows} rows of {length} tokens do not fit into memory at once"
    try:
        with memory_errors(lambda: SettingsError(f"{too_much}: {less_memory(run)}.")):
            flops = flops_of(run.stage.model, lambda: _forward(run, batch), run.accelerator.backward)
            _settle(run.accelerator.device)
            began = time.monotonic()  # the first time was slower
            loss = _forward(run, batch)
            _settle(run.accelerator.device)
            forward = time.monotonic() - began
            if loss.requires_grad:
                run.accelerator.backward(loss)
            _settle(run.accelerator.device)
            seconds = time.monotonic() - began
    finally:
        run.optimizer.zero_grad()
    run.metrics.flops_per_token = flops / max(1, heaviest["attention_mask"].numel())  # a share may hold no row
    mean = run.data.tokens_of_a_step or sum(tokens_of(some) for some in batches) * run.group.count
    left = seconds * mean * (run.steps - run.state.step)
    if run.data.held_out is not None:
        left += forward * int(run.data.held_out.rows.lengths.sum()) * validations_left(run)
    return left / run.group.count / max(1, tokens_of(heaviest))


def validations_left(run: Run) -> int:
    """How often what is held out is still to be looked at: before the first step, every so many, and at the end."""
    every, done = validate_every(run), run.state.step
    return (done == 0) + run.steps // every - done // every + (run.steps % every > 0)


def _forward(run: Run, batch: dict[str, Tensor]) -> Tensor:
    with run.accelerator.autocast():
        loss: Tensor = (run.stage.loss(batch) / max(1, run.stage.count(batch))).sum()
    return loss


def flops_of(model: nn.Module, forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> int:
    """The FLOPs of a pass to a loss and back, in matrix products and attention, as the model asks for them.

    What is only done again to save memory is left out, as in PaLM's model FLOPs (arXiv:2204.02311, appendix B): layers
    under gradient checkpointing, and a fused attention's scores on the way back. Products in 8 bits are not seen.
    """
    aten = torch.ops.aten
    kinds = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")
    attention: dict[Any, Any] = {}
    for kind in kinds:
        attention[getattr(aten, f"_scaled_dot_product_{kind}")] = _attention_flops
        attention[getattr(aten, f"_scaled_dot_product_{kind}_backward")] = _attention_flops_back
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    began, again = list[int](), 0
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:

        def entered(layer: nn.Module, inputs: Any) -> None:
            began.append(counter.get_total_flops())

        def left(layer: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal again
            again += counter.get_total_flops() - began.pop()

        checkpointed = [layer for layer in layers if layer.gradient_checkpointing and layer.training]
        hooks = [layer.register_forward_pre_hook(entered) for layer in checkpointed]
        hooks += [layer.register_forward_hook(left) for layer in checkpointed]
        try:
            with set_checkpoint_early_stop(False):  # otherwise a layer's last products are not done again
                loss = forward()
        finally:
            for hook in hooks:
                hook.remove()
        if not loss.requires_grad:
            return int(counter.get_total_flops())
        backward(loss)
    return int(counter.get_total_flops()) - again


def _attention_flops(query: Any, key: Any, value: Any, *more: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_flops_back(gradient: Any, query: Any, key: Any, value: Any, *more: Any, **options: Any) -> int:
    """Four products, where the way there has two."""
    return 2 * int(sdpa_flop_count(query, key, value))


def _settle(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def less_memory(run: Run) -> str:
    """What a person can do where memory ran out, of what this stage has: first what the run can go on with."""
    config, stage = run.config, run.stage
    trained = {top(name) for name in config.trainable or stage.trainable}
    _, at_once = division(config, run.group.count)
    of_no_use = {
        "run.micro_batch_size": at_once == 1,
        "run.batch_size": at_once == 1,
        "data.feature_cache": config.data.feature_cache is not None
        or config.data.streaming
        or "vision_model" in trained,
        "model.gradient_checkpointing": config.model.gradient_checkpointing,
        "model.quantize": config.model.quantize is not None or "language_model" in trained,
        "model.vision_gradient_checkpointing": config.model.vision_gradient_checkpointing
        or "vision_model" not in trained,
    }
    settings = [name for name in stage.lighter if not of_no_use.get(name, False)]
    going_on, anew = ([_LESS_MEMORY[n] for n in settings if (n in FREE) == free] for free in (True, False))
    ways = [f"{_either(going_on)}, and the same command goes on"] if going_on else []
    ways += [f"begin anew, in another out, and {_either(anew)}"] if anew else []
    return "; or ".join(ways) or "use a device with more memory"


def _either(ways: list[str]) -> str:
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)


# --- The end of a run: the result, the curve, and the page of replies.


def finish(run: Run) -> None:
    """Leave the curve, the page of replies and the result, which is that of the best validation loss, if any.

    Raises `SettingsError` or `ModelError` where the disk does not take them: the last checkpoint is there, and the same
    command ends the run.
    """
    if run.group.first:
        _take_the_best(run)
        metrics = read_metrics(run.out / METRICS)
        with disk_errors(CURVE, SettingsError):
            logging.curve(run.out / CURVE, metrics, run.stage.terms)
        facts = facts_of(run, metrics)
        if run.data.shown:
            with disk_errors(PAGE, SettingsError):
                _page(run, facts)
        with disk_errors("The result", SettingsError):
            run.stage.write(run.out, run.config.model.name, {"training": facts})
        worse = verdict(run.state, metrics, run.config.optimizer)
        if worse is None:
            run.say(f"The result is in {run.out}.")
        else:
            run.say(f"{worse}\nThe weights of step {facts['steps']} are in {run.out} all the same.")
    run.group.wait()


def _take_the_best(run: Run) -> None:
    """Put the weights of the best validation loss back, if there was one and they are whole."""
    if not run.state.best_step:
        return
    try:
        best = run.checkpoints.best()
        why = "The best weights, of the lowest validation loss, are gone."
    except ModelError as error:
        best, why = None, str(error)
    if best is not None:
        load_weights(run.weights, best.tensors)
        return
    run.say(f"{why} The result is of the last step instead.")
    run.state.best_step, run.state.best = run.state.step, run.state.last or math.inf


def _page(run: Run, facts: dict[str, Any]) -> None:
    shown = run.data.shown
    try:
        before = logging.kept(run.out / BEFORE)
    except ModelError as error:
        before = None
        run.say(f"{error} What the model said before training is not on the page {PAGE}.")
    if before is None or len(before) != len(shown):  # the report's settings may change when a run goes on
        before = ["(not kept)"] * len(shown)
    said = [("steps", f"{facts['steps']:,}"), ("time", logging.duration(facts["seconds"]))]
    for name in ("validation_loss_before", "validation_loss"):
        if facts.get(name) is not None:
            said.append((name.replace("_", " "), f"{facts[name]:.4f}"))
    logging.page(run.out / PAGE, shown, before, run.stage.answer(shown), said, run.out / CURVE)


def facts_of(run: Run, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of a run beside its result."""
    data = run.data
    facts: dict[str, Any] = {
        "config": plain(run.config),
        "versions": versions(),
        "data": data.loader.facts(),
        "steps": run.state.best_step or run.state.step,
        "seconds": round(run.state.seconds, 1),
        "processes": run.group.count,
        "device": str(run.accelerator.device),
    }
    if data.held_out is not None:
        facts |= {"validation_data": data.held_out.facts(), "validation_loss": run.state.best}
        facts |= {} if run.state.began is None else {"validation_loss_before": run.state.began}
    losses = [line["loss"] for line in metrics if "loss" in line]
    return facts | ({"loss": losses[-1]} if losses else {})


# --- A training run, from a configuration to a folder with the result. It is the same for every stage.
#
# One step: this process's share of the global batch, part by part; the sum of the losses over the number of things
# that the whole global batch learns; gradients added over processes; one update. So the result depends neither on the
# number of processes nor on the parts, save for rounding and for what each draws for itself (dropout). All randomness
# follows from the seed and the step, so that a run that goes on from a checkpoint is the run that was never stopped.


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
        DataError: for data that cannot be learned from, naming file and line.
        ModelError: for a model that cannot be loaded, and where the loss is no number, naming the batch.
    """
    out = Path(config.out).expanduser()
    stage_class = stage_of(config.stage)
    accelerator = make_accelerator(config, stage_class.trainable, out)
    group = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    if not group.first:
        say = _nobody
    elif resume and not (out / CONFIG).exists():
        raise SettingsError(f"There is no run in {out.name!r} to resume: leave --resume out to begin one.")
    if group.count == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        say("One process: accelerate's --cpu starts no more. For several on the CPU: --multi_gpu, or torchrun.")
    with alone_in(out, group):
        if group.from_first(init_run(out, config, say) if group.first else None):
            say(f"The run in {out} is finished.")
            return Outcome(out, 0)
        check_unused(config, stage_class.unused)
        stage = stage_class(config, accelerator.device)
        run = Run(config, out, accelerator, group, stage, read_data(config, stage, group, say), say)
        resume_run(run)
        summarize(run)
        with memory_errors(lambda: SettingsError(f"Memory ran out at step {run.state.step + 1}: {less_memory(run)}.")):
            stopped = loop(run)
        if stopped is None:
            finish(run)
        _end_trackers(run)
        return Outcome(out, run.state.step, stopped)


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
            if run.group.count == 1:
                save_before_the_end(run, str(error))
            raise
        (stopping,) = run.group.agree(int(interruption.signal is not None))
    if not stopping:
        return None
    save(run)
    run.say(f"Stopped after step {run.state.step} of {run.steps}: the same command goes on from there.")
    return interruption.signal or signal.SIGTERM


def _steps(run: Run, interruption: Interruption) -> None:
    config, stage, state, group = run.config, run.stage, run.state, run.group
    if state.step == 0:
        state.began = held_out_loss(run)
    stage.model.train()
    began, since = time.monotonic() - state.seconds, time.monotonic()
    ended = since  # when the step before did
    loader = run.data.loader.load(state.step, config.data.num_workers, pinned=run.pinned)
    for batches, failure in _with_failure(loader):
        waited = time.monotonic() - ended
        here = sum(stage.count(batch) for batch in batches), sum(tokens_of(batch) for batch in batches)
        told = int(interruption.signal is not None), int(failure is not None)
        items, tokens, stopping, failing = group.agree(*here, *told)
        if stopping or state.ended:
            break
        if failing or items == 0:
            nothing = f"Nothing can be learned at step {state.step + 1}: {places(run, state.step)}."
            if group.count > 1:
                save_before_the_end(run, str(failure))
            raise failure or DataError("Another process of this run says why it ends." if failing else nothing)

        _step(run, batches, items, tokens, ended, waited)
        last = state.step == run.steps
        if last or state.step % config.report.log_every == 0:
            since = tell_progress(run, since)
        if last or state.step % validate_every(run) == 0:
            validate(run)
        state.seconds = time.monotonic() - began
        if last or state.ended or state.step % config.run.save_every == 0:
            save(run)
        ended = time.monotonic()


def _step(run: Run, batches: Sequence[dict[str, Tensor]], items: int, tokens: int, since: float, waited: float) -> None:
    """One update; its losses stay on the device. `since`: when the one before ended; `waited`: seconds for data."""
    config, state, group, accelerator = run.config, run.state, run.group, run.accelerator
    seed_step(config.seed, state.step, group.rank)
    losses = []
    for batch in batches:
        with accelerator.autocast():
            loss = run.stage.loss(to_device(batch, accelerator.device)) / items  # () or (terms,)
        if loss.requires_grad:  # not where only the projection trains and the batch has no picture
            accelerator.backward(loss.sum())
        losses.append(loss.detach())
    group.add_gradients(run.weights.values())
    norm = accelerator.clip_grad_norm_(run.weights.values(), config.optimizer.max_grad_norm or math.inf)
    lr = set_lr(run.optimizer, lr_at(state.step, run.steps, config.optimizer))
    run.whole = False
    run.optimizer.step()
    run.optimizer.zero_grad()
    state.step += 1
    run.metrics.add(Entry(state.step, losses, norm, lr, items, tokens, time.monotonic() - since, waited))
    run.whole = True


def _with_failure(
    loader: Iterable[list[dict[str, Tensor]]],
) -> Iterator[tuple[list[dict[str, Tensor]], MiniChatError | None]]:
    """Each step's batches; or what is wrong with them, which all processes are to know before one of them ends."""
    try:
        for batches in loader:
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
    larger = config.lora is not None or set(config.trainable or trainable) != {"projection"}
    mixed = dtype == "float16" or larger
    return Accelerator(
        mixed_precision={"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "no") if mixed else "no",
        cpu=cpu,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "curves")),
    )


def _nobody(text: str) -> None:
    """All but the first process keep silent."""
