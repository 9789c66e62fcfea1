"""The end of a run: the result, the curve, and the page of replies."""

from __future__ import annotations

from typing import Any

from minichat.train import opening, report
from minichat.train.config import plain
from minichat.train.files import BEFORE, CURVE, METRICS, PAGE
from minichat.train.journal import read_metrics
from minichat.train.result import versions
from minichat.train.run import Run, load_weights


def finish(run: Run) -> None:
    """Leave the result, the curve and the page of replies; the result is that of the best validation loss, if any."""
    if run.together.first:
        best = run.checkpoints.best()
        if best is not None:
            load_weights(run.weights, best.tensors)
        metrics = read_metrics(run.out / METRICS)
        report.curve(run.out / CURVE, metrics, run.stage.terms)
        facts = facts_of(run, metrics)
        before = report.kept(run.out / BEFORE)
        if run.data.shown and before is not None:
            said = [("steps", f"{facts['steps']:,}"), ("time", opening.duration(facts["seconds"]))]
            if "validation_loss" in facts:
                said.append(("validation loss", f"{facts['validation_loss']:.4f}"))
            after = run.stage.answer(run.data.shown)
            report.page(run.out / PAGE, run.data.shown, before, after, said, run.out / CURVE)
        run.stage.write(run.out, run.config.model.name, {"training": facts})
        run.say(f"The result is in {run.out}.")
    run.together.wait()


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
    losses = [line["loss"] for line in metrics if "loss" in line]
    return facts | ({"loss": losses[-1]} if losses else {})
