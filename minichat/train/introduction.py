"""Before the first step: what is about to happen, how long it will take, and whether it fits."""

from __future__ import annotations

import time

import torch

from minichat.errors import SettingsError
from minichat.hardware.exhaustion import memory_told
from minichat.train import opening, report
from minichat.train.config import FREE
from minichat.train.data import division
from minichat.train.files import BEFORE
from minichat.train.network import top
from minichat.train.run import Run, to_device, tokens_of

_LESS_MEMORY = {
    "run.device_batch_size": "lower run.device_batch_size",
    "run.batch_size": "lower run.batch_size",
    "data.features": "give data.features a folder",
    "data.max_tokens": "lower data.max_tokens",
    "model.checkpoint_llm": "set model.checkpoint_llm to true",
    "model.quantize": "set model.quantize",
    "model.vision_checkpoint": "set model.vision_checkpoint to true",
}


def introduce(run: Run) -> None:
    """Say what is about to happen, and keep what the model says before it."""
    config, stage, data = run.config, run.stage, run.data
    _, at_once = division(config, run.together.count)
    rows = opening.parts(stage.model)
    rows += opening.samples(data.feed.facts(), data.held_out.facts() if data.held_out else None, data.feed.padding())
    rows.append(opening.portions(config, run.steps, data.of_an_epoch, run.together.count, at_once))
    rows += opening.memory(stage.memory(at_once, data.longest), run.accelerator.device)
    if run.standing.step < run.steps:
        rows.append(("time", opening.duration(seconds_left(run)) + " expected, from a trial"))
    run.say(opening.table(rows))
    if run.standing.step == 0:
        for note in (*stage.notes, *_notes(run)):
            run.say(note)
    if run.together.first and data.shown and run.standing.step == 0:
        report.keep(run.out / BEFORE, stage.answer(data.shown))


def _notes(run: Run) -> list[str]:
    """What is allowed, but hardly meant."""
    warm = run.config.optimizer.warmup_steps
    if run.steps > warm or warm == 0:
        return []
    return [
        f"The run ends before its warm-up does (optimizer.warmup_steps is {warm:,}), so its rate never reaches "
        f"{run.config.optimizer.rate:g} and it learns little: lower that, or train longer."
    ]


def seconds_left(run: Run) -> float:
    """How long the steps that are left will take, by a trial of the largest batch, which changes nothing.

    Raises `SettingsError` where it does not fit into memory.
    """
    batches = next((some for some in run.data.feed.load(run.data.feed.heaviest(run.standing.step)) if some), [])
    run.data.feed.left_out()  # the loop reads these records again, and tells of them
    (items,) = run.together.agree(sum(map(run.stage.count, batches)))
    if not batches or items == 0:
        return 0.0  # nothing can be learnt, which the loop says by name
    heaviest = max(batches, key=lambda batch: batch["attention_mask"].numel())
    batch = to_device(heaviest, run.accelerator.device)
    run.stage.model.train()
    rows, length = heaviest["attention_mask"].shape
    too_much = f"{rows} rows of {length} tokens do not fit into memory at once"
    try:
        with memory_told(lambda: SettingsError(f"{too_much}: {less_memory(run)}.")):
            for _ in range(2):  # the first time is slower
                _settle(run.accelerator.device)
                began = time.monotonic()
                with run.accelerator.autocast():
                    loss = run.stage.loss(batch) / max(1, run.stage.count(batch))
                if loss.requires_grad:
                    run.accelerator.backward(loss.sum())
                _settle(run.accelerator.device)
                seconds = time.monotonic() - began
    finally:
        run.optimizer.zero_grad()
    mean = run.data.tokens_of_a_step or sum(tokens_of(some) for some in batches) * run.together.count
    return seconds * mean / run.together.count / max(1, tokens_of(heaviest)) * (run.steps - run.standing.step)


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
    _, at_once = division(config, run.together.count)
    of_no_use = {
        "run.device_batch_size": at_once == 1,
        "run.batch_size": at_once == 1,
        "data.features": config.data.features is not None or config.data.stream or "vision_model" in trained,
        "model.checkpoint_llm": config.model.checkpoint_llm,
        "model.quantize": config.model.quantize is not None or "language_model" in trained,
        "model.vision_checkpoint": config.model.vision_checkpoint or "vision_model" not in trained,
    }
    settings = [name for name in stage.lighter if not of_no_use.get(name, False)]
    going_on, anew = ([_LESS_MEMORY[n] for n in settings if (n in FREE) == free] for free in (True, False))
    ways = [f"{_either(going_on)}, and the same command goes on"] if going_on else []
    ways += [f"begin anew, in another out, and {_either(anew)}"] if anew else []
    return "; or ".join(ways) or "use a device with more memory"


def _either(ways: list[str]) -> str:
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
