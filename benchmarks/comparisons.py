"""The comparisons of BLIP-2 and MiniGPT-4, on synthetic scenes: `python -m benchmarks.comparisons NAME`.

docs/COMPARISONS.md says what each asks. Each trains its arms with the road's own configurations and the same steps,
seed and data, and writes NAME.json, NAME.md and NAME.png. What is finished is not done again; what was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.arms import (
    CONFIGS,
    Arm,
    Command,
    Comparison,
    Counted,
    Reading,
    Reported,
    Row,
    Runner,
    anew,
    before_the_llm,
    carry_out,
    exam,
    fails,
    keep_plan,
    names_nothing,
    report,
    run_minichat,
    training,
)
from benchmarks.comparison_table import facts, measured, plot, table
from minichat.errors import MiniChatError, SettingsError
from minichat.fileio import write_json
from minichat.train.config import read_config

RATE_ANEW = "optimizer.lr=2e-3"  # the road's own rates are for what has learned before and need not go far
SHARES = (10, 30, 50, 100)  # per cent of the alignment data
PORTIONS = (4, 2, 1)  # a quarter of the steps, a half, all
OBJECTIVES = {
    "contrast, matching and generation": ("itc", "itm", "itg"),
    "without generation": ("itc", "itm"),
    "without matching": ("itc", "itg"),
}
TOLD = (
    ("short captions", "captions", "short"),
    ("detailed captions", "captions", "detailed"),
    ("stories", "stories", None),
)
KINDS = ("colour", "shape", "count", "position", "relation")
FOUND = ("text of a picture", "picture of a text")


# --- what is asked of a model


def questions(model: Path, count: int) -> Command:
    return exam("questions", model, count, "--redrawn", "0")


def answers(model: Path) -> dict[str, Reading]:
    """How many questions are answered rightly: all, those about blank pictures, and those of some kinds."""
    there = report("questions", model)
    every: dict[str, Reading] = {
        "questions right": Reported(there, "questions", "overall"),
        "blank picture": Reported(there, "questions", "overall", blank=True),
    }
    return every | {kind: Reported(there, "questions", kind) for kind in KINDS}


# --- the comparisons


def stage1(road: Path, out: Path, steps: int, count: int) -> Comparison:
    """Stage 2 from a Q-Former that went through stage 1, and from a random one, after ever more steps."""
    untrained = out / "untrained"
    # One step, so short that it moves nothing: what stage 1 itself began with.
    still = ("optimizer.lr=1e-12", "optimizer.weight_decay=0", *_stage1_parts(road))
    begins = {
        "stage1": (before_the_llm(road / "1_qformer", road, out / "stage1" / "begin"),),
        "random": (
            training("1_qformer", untrained, 1, *still),
            before_the_llm(untrained, road, out / "random" / "begin"),
        ),
    }
    arms, rows = [], []
    for (place, begin), series in zip(begins.items(), ("from stage 1", "from a random Q-Former"), strict=True):
        for part in PORTIONS:
            taken = max(1, steps // part)
            model = out / place / str(taken) / "model"
            train = training("2b_generative", model, taken, f"model.name={begin[-1].out}", RATE_ANEW)
            arms.append(Arm(f"{series}, {taken:,} steps", (*begin, train, questions(model, count))))
            rows.append(Row(arms[-1].name, answers(model), taken, series))
    title = "Stage 2 from a pre-trained and from a random Q-Former"
    return Comparison("stage1", title, arms, rows, ("questions right",), "steps of stage 2")


def objectives(road: Path, out: Path, steps: int, count: int) -> Comparison:
    """Stage 1 with all objectives and with one left out, measured by retrieval."""
    arms, rows = [], []
    for name, learned in OBJECTIVES.items():
        model = out / "-".join(learned) / "model"
        chosen = f"qformer.objectives=[{', '.join(learned)}]"
        train = training("1_qformer", model, steps, chosen, *_stage1_parts(road))
        matches = "itm" in learned
        arms.append(
            Arm(name, (train, exam("retrieval", model, count, "--no-blank", *(() if matches else ("--rerank", "0")))))
        )
        rows.append(Row(f"{name}; by contrast", _recalls(report("retrieval", model), "")))
        if matches:
            rows.append(Row(f"{name}; re-ranked", _recalls(report("retrieval", model), ", re-ranked")))
    title = "Retrieval after stage 1, by its objectives"
    return Comparison("objectives", title, arms, rows, tuple(f"{way}: R@1" for way in FOUND))


def _stage1_parts(road: Path) -> tuple[str, str]:
    new = "qformer.new"
    return f"{new}.vision={road / '0a_vision'}", f"{new}.tokenizer={road / '1_vocabulary'}"


def _recalls(there: Path, manner: str) -> dict[str, Reading]:
    return {f"{way}: R@{k}": Reported(there, "retrieval", f"{way}{manner}: R@{k}") for way in FOUND for k in (1, 5, 10)}


def qformer(road: Path, out: Path, steps: int, count: int) -> Comparison:
    """Four patches joined in place of a Q-Former; in all arms the projection alone trains, on the data of stage 2."""
    begins = {
        "no Q-Former, four patches joined": (
            before_the_llm(road / "1_qformer", road, out / "none" / "begin", "--no-qformer"),
        ),
        "Q-Former of stage 1": (before_the_llm(road / "1_qformer", road, out / "stage1" / "begin"),),
        "Q-Former of stages 1 and 2": anew(road, out / "both"),
    }
    arms, rows = [], []
    for name, begin in begins.items():
        model = begin[-1].out.parent / "model"
        train = training(
            "2b_generative",
            model,
            steps,
            f"model.name={begin[-1].out}",
            RATE_ANEW,
            "trainable=[projection]",
            "optimizer.name=adamw",
        )
        arms.append(Arm(name, (*begin, train, questions(model, count))))
        rows.append(Row(name, answers(model)))
    title = "With and without a Q-Former; the projection alone trains"
    return Comparison("qformer", title, arms, rows, ("questions right", "blank picture"))


def data(road: Path, out: Path, steps: int, count: int) -> Comparison:
    """Stage 3 from a random projection with a share of the examples, which come the more often the fewer they are."""
    begin = anew(road, out)
    there = read_config(CONFIGS / "3_alignment.yaml")
    arms, rows = [], []
    for share in SHARES:
        model = out / str(share) / "model"
        few = examples(steps * there.run.batch_size, share)
        limits = [f"data.train.{number}.options.examples={few}" for number in range(len(there.data.train))]
        anew_from = f"model.name={begin[-1].out}", RATE_ANEW
        train = training("3_alignment", model, steps, *anew_from, *limits)
        measures = questions(model, count), exam("captions", model, count, "--no-blank")
        arms.append(Arm(f"{share} %", (*begin, train, *measures)))
        told: dict[str, Reading] = {
            f"{style} captions: objects {what}": Reported(
                report("captions", model), "captions", f"{style}: objects {what}"
            )
            for style in ("short", "detailed")
            for what in ("right", "invented")
        }
        right = answers(model)["questions right"]
        rows.append(Row(f"{share} % ({few:,} pictures)", {"questions right": right} | told, share))
    plotted = ("questions right", "short captions: objects right", "detailed captions: objects right")
    title = "Stage 3 from a random projection, by its data"
    return Comparison("data", title, arms, rows, plotted, "per cent of the alignment data")


def examples(whole: int, share: int) -> int:
    """`share` per cent of `whole` examples, one at least."""
    return max(1, whole * share // 100)


def finetuning(road: Path, out: Path, steps: int, count: int) -> Comparison:
    """The replies that fail before and after stage 4. Nothing is trained: both models are the road's."""
    stages = {"before": "3_alignment", "after": "4_finetune"}
    arms = []
    for when, stage in stages.items():
        models = ("--model", str(road / stage), "--count", str(count), "--no-blank")
        places = {task: out / stage / task for task in ("captions", "stories")}
        measures = [Command(("evaluate", task, *models, "--out", str(to)), to) for task, to in places.items()]
        arms.append(Arm(when, tuple(measures)))
    rows = [
        Row(f"{name}, {when}", _failures(out / stage / task, task, style))
        for name, task, style in TOLD
        for when, stage in stages.items()
    ]
    return Comparison("finetuning", "Replies that fail, before and after stage 4", arms, rows, ("fail",))


def _failures(there: Path, task: str, style: str | None) -> dict[str, Reading]:
    prefix = f"{style}: " if style else ""
    return {
        "fail": Counted(there, task, style, lambda record: fails(record) or names_nothing(record)),
        "empty, endless or repeated": Counted(there, task, style, fails),
        "name nothing that is there": Counted(there, task, style, names_nothing),
        "invent an object": Reported(there, task, f"{prefix}texts that invent an object"),
    }


Maker = Callable[[Path, Path, int, int], Comparison]
#: Each comparison with its usual steps (0: nothing is trained) and scenes.
COMPARISONS: dict[str, tuple[Maker, int, int]] = {
    "stage1": (stage1, 300, 100),
    "objectives": (objectives, 800, 500),
    "qformer": (qformer, 300, 100),
    "data": (data, 200, 100),
    "finetuning": (finetuning, 0, 100),
}


def compare(
    name: str, road: Path, out: Path, steps: int | None = None, count: int | None = None, run: Runner = run_minichat
) -> str:
    """Make what is not made yet of a comparison, write its JSON, table and plot into `out`, and return the table.

    Raises `SettingsError` for what is asked wrongly, `DataError` for a report that is damaged, and `SystemExit` after a
    command that failed or was stopped: the same call goes on.
    """
    make, usual, scenes = COMPARISONS[name]
    if not usual and steps is not None:
        raise SettingsError(f"{name} trains nothing: leave out --steps.")
    for option, value in (("steps", steps), ("count", count)):
        if value is not None and value < 1:
            raise SettingsError(f"--{option} is {value}; it must be 1 or more.")
    steps, count = usual if steps is None else steps, scenes if count is None else count
    if not road.is_dir():
        raise SettingsError(f"There is no road in {str(road)!r}: `make tiny` walks it, or name another with --road.")
    plan = {"road": str(road), "steps": steps, "count": count}
    comparison = make(road, out / name, steps, count)
    keep_plan(out / name, plan)
    carry_out(comparison.arms, run, _say)
    found = measured(comparison)
    shown = table(comparison, found, steps, count)
    write_json(out / f"{name}.json", facts(comparison, found, plan))
    (out / f"{name}.md").write_text(shown, encoding="utf-8")
    plot(out / f"{name}.png", comparison, found)
    return shown


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = "; ".join(f"{name} {steps or '–'} and {count}" for name, (_, steps, count) in COMPARISONS.items())
    parser.add_argument("name", choices=COMPARISONS, help="what is compared")
    parser.add_argument("--road", type=Path, default=Path("runs/tiny"), help="the folder of `make tiny`")
    parser.add_argument("--out", type=Path, default=Path("runs/comparisons"), help="where all of it goes")
    parser.add_argument("--steps", type=int, help=f"of each training (steps and scenes, if not given: {usual})")
    parser.add_argument("--count", type=int, help="held-out scenes that are asked about")
    options = parser.parse_args(words)
    try:
        print(compare(options.name, options.road, options.out, options.steps, options.count), end="")
    except MiniChatError as error:
        raise SystemExit(f"comparisons: {error}") from None


if __name__ == "__main__":
    main()
