"""Teach a model a person's own pictures: look, plan, train, and tell what was learnt and what was forgotten."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minichat.data.example import Example
from minichat.data.export import write
from minichat.errors import DataError
from minichat.fileio import disk_errors, new_folder, write_json
from minichat.model.loss import ProcessGroup
from minichat.teach.lessons import (
    DOTS,
    LEAST_OF_A_KIND,
    QUESTIONS,
    Material,
    asked,
    hold_out,
    is_unasked,
    lessons,
    look,
)
from minichat.teach.measure import (
    CHANCE,
    Surprise,
    common_words,
    exchangeable,
    is_named,
    known,
    replies_to,
    surprise,
)
from minichat.teach.plan import FEATURES, KNOWN, TAUGHT, VALIDATION, Plan, what_it_knew
from minichat.train import logging
from minichat.train.checkpoint import CURVE, LESSONS, PAGE, TEACHING
from minichat.train.config import Config, DataConfig, ModelConfig, Source
from minichat.train.stages.finetune import Finetune
from minichat.train.trainer import train
from minichat.weights.registry import AUTO, default_model

Say = Callable[[str], None]

_FORGOTTEN = 0.03  # of the questions it answered rightly before; less is hardly noticed
_LONGEST = 400  # tokens of a reply
_FOR_LOSS = 32  # records of what it knew that are held out, too, so that the best step is one that keeps them


@dataclass(frozen=True)
class Taught:
    """What came of it. `signal`: one that stopped it, and the same call goes on; nothing else is known then."""

    out: Path
    learnt: bool = False
    sentences: tuple[str, ...] = ()
    signal: int | None = None


def teach(
    source: str | Path,
    out: str | Path,
    model: str = AUTO,
    *,
    device: str = "auto",
    say: Say = lambda text: None,
    **options: Any,
) -> Taught:
    """Teach `model` what is in `source`; the new folder `out` is then a model as any other.

    Captions that ask nothing get questions, some pictures are held out, and what the model knew is learnt again beside
    what is new. The same call goes on with one that was stopped.

    Args:
        source, options: a file or a folder and how it is read, as `minichat.teach.lessons.look` takes them.
        model: as `minichat.load` takes it.
        device: "auto", "cpu", "cuda" or "mps".
        say: is told what is about to be done, how it goes, and what came of it.

    Raises:
        DataError: where there is too little to learn from, or where `out` was begun with other data.
        SettingsError, ModelError: as training raises them.
    """
    out, model = Path(out).expanduser(), default_model() if model == AUTO else model
    if (out / TEACHING).is_file():
        done = json.loads((out / TEACHING).read_text(encoding="utf-8"))
        say("\n".join((f"{out} has been taught.", *done["said"])))
        return Taught(out, done["learnt"], tuple(done["said"]))
    material = look(source, **options)
    taught, held = hold_out(material)
    shown = [asked(one, QUESTIONS[n % len(QUESTIONS)]) if is_unasked(one) else one for n, one in enumerate(held)]
    stage = _stage(model, device)
    network = stage.bot.model
    bridged = any(True for _ in network.bridge.parameters())
    plan = Plan.of(sum(weight.numel() for weight in network.language_model.parameters()), len(taught), bridged)
    say(_intention(material, plan, len(taught), len(held), model))

    began = time.monotonic()
    before = _measure(stage, shown, plan, out)
    measuring, steps = time.monotonic() - began, plan.steps(len(taught))
    say(
        f"What it says of them now is known after {logging.duration(measuring)}; at the end they are asked about again."
    )

    _write_lessons(out, material, taught, held, plan, stage, model, before.known)
    del stage
    outcome = train(plan.config(model, out, device, steps), say=_progress_alone(say))
    if outcome.signal is not None:
        return Taught(out, signal=outcome.signal)
    shutil.rmtree(out / FEATURES, ignore_errors=True)  # they are of the bridge as it was
    after = _measure(_stage(str(out), device), shown, plan, out)
    shutil.rmtree(out / FEATURES, ignore_errors=True)
    learnt, said = conclusion(material.kinds, shown, before, after)
    _write_result(out, shown, before, after, learnt, said)
    say("\n".join((*said, f"Before and after, side by side: {out / PAGE}")))
    return Taught(out, learnt, said)


# --- Before: what is there, what will be done, how long it takes, and the data sets for it.


def _stage(model: str, device: str) -> Finetune:
    """A model as training has it, to talk to and to measure."""
    from minichat.device.placement import choose_device

    return Finetune(
        Config(model=ModelConfig(name=model), data=DataConfig(train=(Source("nothing"),))), choose_device(device)
    )


def _intention(material: Material, plan: Plan, taught: int, held: int, model: str) -> str:
    """What is there, and what will be done."""
    lines = [f"{len(material.examples):,} records with {len(material.groups):,} different pictures."]
    if material.kinds:
        shown = [f"{name} ({number})" for name, number in material.kinds.most_common(8)]
        more = f" and {len(material.kinds) - 8} more" if len(material.kinds) > 8 else ""
        lines.append(f"{len(material.kinds)} kinds: {', '.join(shown)}{more}.")
        if few := [name for name, number in material.kinds.items() if number < LEAST_OF_A_KIND]:
            lines.append(f"Too few to hold any out, so that what is learnt of them is not measured: {', '.join(few)}.")
    if material.left_out:
        more = f" (and {len(material.left_out) - 1:,} more)" if len(material.left_out) > 1 else ""
        lines.append(f"Left out: {material.left_out[0]}{more}")
    if material.passed_over:
        lines.append(f"Nothing reads, and nothing is learnt of: {', '.join(material.passed_over)}.")
    if material.unasked:
        lines.append(
            f"{material.unasked:,} of them ask nothing. They are learnt under {len(QUESTIONS) - 1} questions, such as "
            f"“{QUESTIONS[1]}” and “{QUESTIONS[2]}”, and under none."
        )
    parts = "its projection and its LLM" if plan.lora is None else "its projection and an adapter (LoRA) of its LLM"
    parts = f"Its bridge, {parts}" if "bridge" in plan.trainable else f"I{parts[1:]}"
    lines += [
        f"{model} learns from {taught:,} of them, each seen {plan.passes} times, its picture a little moved. {parts} "
        "train. Beside them it learns again what it knew.",
        f"{held:,} are held out: they tell when to stop, and what was learnt.",
    ]
    return "\n".join(lines)


def _side(stage: Finetune) -> int:
    """Pixels of a moved picture's side: somewhat more than the model sees."""
    return int(stage.bot.processor.image_processor.size["height"]) * 3 // 2


def _write_lessons(
    out: Path,
    material: Material,
    taught: Sequence[Example],
    held: Sequence[Example],
    plan: Plan,
    stage: Finetune,
    model: str,
    share: float,
) -> None:
    """The data sets that training reads, whole or not at all. Those that are there are kept, if they are of this data.

    Raises `DataError` where they are of other data.
    """
    folder, mark = out / LESSONS, {"data": _fingerprint(material.examples), "model": model}
    if folder.is_dir() and any(folder.iterdir()):
        if json.loads((folder / "source.json").read_text(encoding="utf-8")) != mark:
            raise DataError(f"{out.name!r} was begun with other data or another model: give another out.")
        return
    knew = list(what_it_knew(stage.bot, model, share, plan.known + _FOR_LOSS))
    tests = [asked(one, text) for one in held for text in QUESTIONS if is_unasked(one)]
    tests += [one for one in held if not is_unasked(one)]
    with new_folder(folder, DataError) as made:
        write(lessons(taught, plan.passes, _side(stage)), made / TAUGHT)
        if len(knew) > _FOR_LOSS:
            write(knew[_FOR_LOSS:], made / KNOWN)
        write([*tests, *knew[:_FOR_LOSS]], made / VALIDATION)
        write_json(made / "source.json", mark)


def _fingerprint(examples: Sequence[Example]) -> str:
    """Of what is said and shown."""
    whole = hashlib.sha256()
    for one in examples:
        said = [(turn.role, turn.text) for turn in one.turns]
        whole.update(repr((said, [picture.key() for picture in one.pictures])).encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def _progress_alone(say: Say) -> Say:
    """Of what a run tells, what changes as it goes: its opening table is the expert's."""

    def tell(text: str) -> None:
        if not text.startswith(("  ", "The result is in", "Looking at")):
            say(text)

    return tell


# --- Before and after: what is said of what was held out, whether the pictures matter, what is left of what it knew.


@dataclass(frozen=True)
class Measured:
    """What a model says of the records that were held out, and what it knows."""

    replies: list[str]
    surprise: Surprise  # of some of these records
    known: float  # share of right answers about drawn scenes …
    asked: int  # … of so many


def _measure(stage: Finetune, held: Sequence[Example], plan: Plan, out: Path) -> Measured:
    tokenizer, exchanged = stage.bot.processor.content_tokenizer, exchangeable(held)
    most = max((len(tokenizer.encode(one.replies[0])) for one in held), default=0)
    replies = replies_to(stage.bot, held, min(16 + 2 * most, _LONGEST))
    share, count = known(stage.bot, plan.scenes)
    pictures = [(one.where, one.pictures[0]) for one in exchanged]
    stage.see(pictures, str(out / FEATURES), 0, ProcessGroup(0, 1))
    return Measured(replies, surprise(stage, exchanged), share, count)


def conclusion(
    kinds: Collection[str], held: Sequence[Example], before: Measured, after: Measured
) -> tuple[bool, tuple[str, ...]]:
    """Whether something was learnt of the pictures, and what to say of it."""
    said = []
    if Surprise.least([one.replies[0] for one in exchangeable(held)]) > CHANCE:
        said.append(f"The {len(held)} pictures that were held out are too few to tell what was learnt from chance.")
    elif after.surprise.own >= before.surprise.own:
        said.append("Nothing was learnt: the texts of the pictures that were held out are no likelier than before.")
    elif after.surprise.chance > CHANCE:
        said.append(
            "Nothing was learnt of the pictures: of those that were held out, the texts are no likelier with their own "
            "pictures than with each other's. Do the texts say what is to be seen?"
        )
    learnt = not said
    said.append(_what_is_said(kinds, held, before.replies, after.replies))
    forgotten = before.known - after.known >= _FORGOTTEN
    said.append(
        f"Of {after.asked:,} questions about drawn scenes it answers {after.known:.1%} rightly (before: "
        f"{before.known:.1%}){': it has forgotten some of what it knew' * forgotten}."
    )
    return learnt, tuple(said)


def _what_is_said(kinds: Collection[str], held: Sequence[Example], before: Sequence[str], after: Sequence[str]) -> str:
    pictures, wanted = f"{len(held)} pictures that were held out", [one.replies[0].strip(DOTS) for one in held]

    def score(replies: Sequence[str], right: Callable[[str, str], float]) -> list[float]:
        return list(map(right, replies, wanted))

    if not kinds:
        then, now = (sum(score(replies, common_words)) / max(1, len(held)) for replies in (before, after))
        return f"What it says of {pictures} has {now:.0%} of its words in common with your texts (before: {then:.0%})."

    def named(reply: str, kind: str) -> bool:
        return is_named(reply, kind, kinds)

    found = score(after, named)
    wrong = [f"{name} (“{reply}”)" for name, reply, right in zip(wanted, after, found, strict=True) if not right]
    more = f" Wrong: {', '.join(wrong[:6])}." if wrong else ""
    return f"Of {pictures} it names {sum(found)} rightly (before: {sum(score(before, named))}).{more}"


def _write_result(
    out: Path, held: Sequence[Example], before: Measured, after: Measured, learnt: bool, said: Sequence[str]
) -> None:
    """The page, and what was measured."""
    facts = [("what came of it", " ".join(said))]
    facts += [("what it knew", f"{before.known:.1%} before, {after.known:.1%} after")]
    with disk_errors(PAGE, DataError):
        logging.page(out / PAGE, held, before.replies, after.replies, facts, out / CURVE)
        rows = zip(held, before.replies, after.replies, strict=True)
        write_json(
            out / TEACHING,
            {
                "learnt": learnt,
                "said": list(said),
                "known": {"questions": after.asked, "before": before.known, "after": after.known},
                "chance": after.surprise.chance,
                "held_out": [
                    {"record": str(one.where), "wanted": one.replies[0], "before": then, "after": now}
                    for one, then, now in rows
                ],
            },
        )
