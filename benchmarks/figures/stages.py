"""What each stage of the road trains and what it leaves as it is, from the configurations that run it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures.paper import FROZEN, LARGE, NORMAL, SMALL, SOFT, TRAINED, WIDTH, say, sheet, whole
from minichat.train.config import Config, Source, read_config
from minichat.train.stages import stage_of

ROAD = Path(__file__).parents[2] / "train_configs" / "tiny"
CHAIN = {"vision_model": "ViT", "bridge": "Q-Former", "projection": "projection", "language_model": "LLaMA"}
TRAINS, RESTS, DROPPED = "trains", "is frozen", "trains, and does not go on to stage 2"

_OBJECTIVES = {"itc": "contrast", "itm": "matching", "itg": "generation"}
_ASKS = {
    "0a": "What is there, and where?",
    "0b": "How does one talk about it?",
    "0c": "The same, about full scenes",
    "0d": "The same, mostly what is hard",
    "0e": "In which of two pictures?",
    "0f": "How do two pictures compare?",
    "0g": "And the other one?",
    "0h": "What is there, each thing once?",
    "0i": "How many others are like it?",
    "0j": "What do people say?",
    "0k": "And templates, too?",
    "0l": "And words in other letters?",
    "0m": "And in any words, in capitals?",
    "1": "What do words say of what is seen?",
    "1b": "Where is what someone looks for?",
    "2a": "What does this LLaMA call it?",
    "2b": "How is it told to this LLaMA?",
    "3": "How is a picture described?",
    "4": "How does one answer a person?",
}


_TAKE_PART = {"qformer": ["vision_model", "bridge"], "word_alignment": ["vision_model", "bridge", "projection"]}


@dataclass(frozen=True)
class Stage:
    """One configuration: its number, its parts by their names in `CHAIN`, and what trains but does not go on."""

    number: str
    name: str
    parts: dict[str, str]
    aside: str | None
    reads: str
    loss: str
    length: str


def stages(road: Path = ROAD) -> list[Stage]:
    """The stages in their order, as `road`'s files have them. Raises `SettingsError` for a file that is not one."""
    return [_stage(file.stem, read_config(file)) for file in sorted(road.glob("*.yaml"))]


def _stage(stem: str, config: Config) -> Stage:
    number, _, name = stem.partition("_")
    trains = tuple(config.trainable or stage_of(config.stage).trainable)
    kinds = [kind for source in config.data.train for kind in _kinds(source)]
    sources = ", ".join(f"{kind}\u00a0{ratio:g}" for kind, ratio in kinds)
    length = f"{config.run.max_steps:,} steps of {config.run.batch_size}"
    parts, aside = _parts(config.stage, trains)
    return Stage(number, name, parts, aside, sources, _loss(config), length)


def _kinds(source: Source) -> list[tuple[str, float]]:
    """What a source holds, and how often; of a curriculum what its last stage draws."""
    stages = source.options.get("stages")
    return list(stages[-1]["kinds"].items()) if stages else [(source.source, source.ratio)]


def _parts(stage: str, trains: tuple[str, ...]) -> tuple[dict[str, str], str | None]:
    """What becomes of each part that takes part, and what trains beside them."""
    if stage == "vision":  # its one part is the ViT with all that reads it there
        return {"vision_model": TRAINS}, "linear heads,\ntext encoder"
    if stage == "language":
        return {"language_model": TRAINS}, None
    tops = {name.partition(".")[0] for name in trains}
    taking_part = _TAKE_PART.get(stage, list(CHAIN))
    parts = {part: TRAINS if part in tops else RESTS for part in taking_part}
    return parts, "word side,\nthree heads" if tops - set(CHAIN) else None


def _loss(config: Config) -> str:
    if config.stage == "vision":
        contrast = config.vision.contrastive_weight if config.vision else 0.0
        return "a patch names its thing" + (f"\n+ {contrast:g} × contrast" if contrast else "")
    if config.stage == "qformer" and config.qformer:
        return " +\n".join(_OBJECTIVES[name] for name in config.qformer.objectives)
    if config.stage == "word_alignment":
        return "each token is the sum\nof its place's words"
    return "next token of the reply"


# The drawing, in inches.

_NUMBER, _PARTS, _LOSS = 0.12, 2.62, 6.88  # where columns begin
_ROW, _HEAD, _BOX, _STEP, _GAP = 0.96, 0.5, 0.4, 1.05, 0.17
_PALE, _EDGE = "#fdeedd", "#b8651b"
_LOOK = {TRAINS: (TRAINED, _EDGE, "-"), RESTS: (FROZEN, SOFT, "-"), DROPPED: (_PALE, _EDGE, (0, (3, 2)))}


def draw(road: Path = ROAD) -> Any:
    """A row for each stage: what it asks, what goes in, what trains (orange) or is frozen (grey), and the loss."""
    every = stages(road)
    figure = sheet(_HEAD + _ROW * len(every) + 0.4)
    axes = whole(figure)
    for left, text in ((_NUMBER, "stage, and what it reads"), (_PARTS, "what takes part"), (_LOSS, "loss")):
        say(axes, left, 0.26, text, size=LARGE, color=SOFT)
    for row, (before, stage) in enumerate(zip([None, *every[:-1]], every, strict=True)):
        _row(axes, stage, _HEAD + row * _ROW, before is not None and before.parts == stage.parts)
    _legend(axes, _HEAD + _ROW * len(every) + 0.18)
    return figure


def _row(axes: Any, stage: Stage, top: float, same: bool) -> None:
    """One stage; the parts of one that is the `same` as the row above are not drawn again."""
    axes.plot([_NUMBER, WIDTH - _NUMBER], [top, top], color=FROZEN, linewidth=0.8)
    say(axes, _NUMBER, top + 0.17, f"{stage.number}  {stage.name}", size=LARGE, weight="bold")
    say(axes, _NUMBER, top + 0.36, _ASKS.get(stage.number, ""), style="italic")
    reads = "\n".join(textwrap.wrap(stage.reads, 50, max_lines=3, placeholder=" …"))
    say(axes, _NUMBER, top + 0.5, reads, size=SMALL, color=SOFT, va="top", linespacing=1.3)
    if same and stage.aside is None:
        say(axes, _PARTS, top + _ROW / 2, "the same parts", color=SOFT)
    else:
        _chain(axes, stage, top + _ROW / 2)
    say(axes, _LOSS, top + 0.36, stage.loss, linespacing=1.3)
    say(axes, _LOSS, top + 0.7, stage.length, size=SMALL, color=SOFT)


def _chain(axes: Any, stage: Stage, middle: float) -> None:
    """The parts from left to right, each at its own place in all rows, and what is handed on."""
    places = {part: _PARTS + _STEP * number for number, part in enumerate(CHAIN)}
    last = max(places[part] for part in stage.parts)
    for part, fate in stage.parts.items():
        _box(axes, CHAIN[part], places[part], middle, fate)
    reached = [places[part] for part in stage.parts if places[part] > _PARTS]
    if "vision_model" not in stage.parts:
        _box(axes, "the scene in words, at its 32 places", _PARTS, middle, "", 3 * _STEP - _GAP)
    if stage.aside:
        reached.append(last + _STEP)
        _box(axes, stage.aside, last + _STEP, middle, DROPPED)
    for at in reached:
        arrow = {"arrowstyle": "-|>", "color": SOFT, "lw": 0.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        axes.annotate("", (at - 0.01, middle), (at - _GAP + 0.01, middle), arrowprops=arrow)


def _box(axes: Any, name: str, left: float, middle: float, fate: str, width: float = _STEP - _GAP) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge, line = _LOOK.get(fate, ("white", SOFT, (0, (3, 2))))
    shape = "round,pad=0,rounding_size=0.06"
    corner = left, middle - _BOX / 2
    axes.add_patch(
        FancyBboxPatch(corner, width, _BOX, shape, facecolor=fill, edgecolor=edge, linewidth=0.9, linestyle=line)
    )
    weight = "bold" if fate == TRAINS else "normal"
    size = NORMAL if "\n" not in name else SMALL
    say(axes, left + width / 2, middle, name, ha="center", size=size, weight=weight)


def _legend(axes: Any, at: float) -> None:
    from matplotlib.patches import Rectangle

    left = _NUMBER
    for fate, width in ((TRAINS, 0.85), (RESTS, 0.95), (DROPPED, 2.6)):
        fill, edge, line = _LOOK[fate]
        axes.add_patch(
            Rectangle((left, at - 0.07), 0.2, 0.14, facecolor=fill, edgecolor=edge, linewidth=0.7, linestyle=line)
        )
        say(axes, left + 0.27, at, fate)
        left += width
    note = "Numbers behind kinds of data: how often, relative to each other."
    say(axes, WIDTH - _NUMBER, at, note, size=SMALL, color=SOFT, ha="right")
