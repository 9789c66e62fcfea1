"""The end of a run: the result, the curve, and the page of replies."""

from __future__ import annotations

import math
from typing import Any

from minichat.disk import told
from minichat.errors import ModelError, SettingsError
from minichat.train import opening, report
from minichat.train.config import plain
from minichat.train.files import BEFORE, CURVE, METRICS, PAGE
from minichat.train.journal import read_metrics
from minichat.train.result import versions
from minichat.train.run import Run, load_weights
from minichat.train.verdict import verdict


def finish(run: Run) -> None:
    """Leave the curve, the page of replies and the result, which is that of the best validation loss, if any.

    Raises `SettingsError` or `ModelError` where the disk does not take them: the last checkpoint is there, and the same
    command ends the run.
    """
    if run.together.first:
        _take_the_best(run)
        metrics = read_metrics(run.out / METRICS)
        with told(CURVE, SettingsError):
            report.curve(run.out / CURVE, metrics, run.stage.terms)
        facts = facts_of(run, metrics)
        if run.data.shown:
            with told(PAGE, SettingsError):
                _page(run, facts)
        with told("The result", SettingsError):
            run.stage.write(run.out, run.config.model.name, {"training": facts})
        worse = verdict(run.standing, metrics, run.config.optimizer)
        if worse is None:
            run.say(f"The result is in {run.out}.")
        else:
            run.say(f"{worse}\nThe weights of step {facts['steps']} are in {run.out} all the same.")
    run.together.wait()


def _take_the_best(run: Run) -> None:
    """Put the weights of the best validation loss back, if there was one and they are whole."""
    if not run.standing.best_step:
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
    run.standing.best_step, run.standing.best = run.standing.step, run.standing.last or math.inf


def _page(run: Run, facts: dict[str, Any]) -> None:
    shown = run.data.shown
    try:
        before = report.kept(run.out / BEFORE)
    except ModelError as error:
        before = None
        run.say(f"{error} What the model said before training is not on the page {PAGE}.")
    if before is None or len(before) != len(shown):  # the report's settings may change when a run goes on
        before = ["(not kept)"] * len(shown)
    said = [("steps", f"{facts['steps']:,}"), ("time", opening.duration(facts["seconds"]))]
    for name in ("validation_loss_before", "validation_loss"):
        if facts.get(name) is not None:
            said.append((name.replace("_", " "), f"{facts[name]:.4f}"))
    report.page(run.out / PAGE, shown, before, run.stage.answer(shown), said, run.out / CURVE)


def facts_of(run: Run, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of a run beside its result."""
    data = run.data
    facts: dict[str, Any] = {
        "config": plain(run.config),
        "versions": versions(),
        "data": data.feed.facts(),
        "steps": run.standing.best_step or run.standing.step,
        "seconds": round(run.standing.seconds, 1),
        "processes": run.together.count,
        "device": str(run.accelerator.device),
    }
    if data.held_out is not None:
        facts |= {"validation_data": data.held_out.facts(), "validation_loss": run.standing.best}
        facts |= {} if run.standing.began is None else {"validation_loss_before": run.standing.began}
    losses = [line["loss"] for line in metrics if "loss" in line]
    return facts | ({"loss": losses[-1]} if losses else {})
