"""A data set of drawn scenes on disk: pictures, conversations, captions, questions, and the truth behind them.

    OUT/pictures/000000.png …
    OUT/conversations.jsonl   one conversation per scene, as Hugging Face messages; picture paths relative to OUT:
                              dialogues, or in the style "storybook" one request and one long reply
    OUT/captions.csv          image, short caption
    OUT/descriptions.csv      image, detailed caption
    OUT/questions.jsonl       image, kind, question, answer, reply
    OUT/scenes.jsonl          image and scene; `Scene.from_dict(record["scene"])` reads it back

Equal arguments write equal files, byte for byte; scene number n of a seed does not depend on `count`.
"""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

from minichat.disk import new_folder
from minichat.errors import DataError, SettingsError
from minichat.scenes import storybook
from minichat.scenes.captions import detailed, short
from minichat.scenes.draw import Style, draw
from minichat.scenes.questions import questions
from minichat.scenes.training import Turn, training_dialogue
from minichat.scenes.world import Scene, random_scene

PICTURES = "pictures"
STYLES = ("dialogues", "storybook")
SIZES = range(16, 4097)  # sides in pixels
QUESTIONS = 7  # per scene: one of each kind where the scene allows it
TWO = 0.15  # share of conversations that go on about the next scene's picture too


def write(out: str | os.PathLike[str], count: int, seed: int = 0, size: int = 96, style: str = "dialogues") -> Path:
    """Write `count` scenes with all that is said about them into the new or empty folder `out`.

    Everything goes to a temporary folder beside it, which takes its name when it is whole: a run that is stopped leaves
    nothing behind.

    Args:
        size: side of the pictures in pixels.
        style: of the conversations, one of `STYLES`; all else is the same.

    Raises:
        SettingsError: `count`, `seed` or `size` is no whole number in range, or the style is unknown.
        DataError: `out` is a file or a folder with something in it, or cannot be written.
    """
    _whole("count", count, 1, 10_000_000)
    _whole("seed", seed, -(2**63), 2**63 - 1)
    _whole("size", size, SIZES.start, SIZES.stop - 1)
    if style not in STYLES:
        raise SettingsError(f"style: {style!r} is unknown; choose from {', '.join(STYLES)}.")
    folder = Path(out)
    with new_folder(folder, DataError) as temporary:
        _write(temporary, count, seed, size, style)
    return folder


def _write(folder: Path, count: int, seed: int, size: int, style: str) -> None:
    (folder / PICTURES).mkdir()
    digits = max(6, len(str(count - 1)))
    with (
        open(folder / "conversations.jsonl", "w", encoding="utf-8") as conversations,
        open(folder / "questions.jsonl", "w", encoding="utf-8") as asked,
        open(folder / "scenes.jsonl", "w", encoding="utf-8") as scenes,
        open(folder / "captions.csv", "w", encoding="utf-8", newline="") as captions,
        open(folder / "descriptions.csv", "w", encoding="utf-8", newline="") as descriptions,
    ):
        tables = csv.writer(captions), csv.writer(descriptions)
        for table in tables:
            table.writerow(("image", "caption"))
        for number in range(count):
            image = f"{PICTURES}/{number:0{digits}d}.png"
            after = (number + 1) % count
            scene, rng = _scene(seed, number)
            draw(scene, size, seed=rng.getrandbits(32), style=Style.random(rng)).save(folder / image)
            talked = (scene, _scene(seed, after)[0]) if after != number else (scene,)
            turns = training_dialogue(rng, talked, two=TWO, none=0.0)
            if style == "storybook":
                turns = [_page(scene, random.Random(f"page {seed} {number}"))]
            names = (image, f"{PICTURES}/{after:0{digits}d}.png")
            _line(conversations, {"messages": messages(turns, names)})
            for question in questions(scene, rng, QUESTIONS):
                _line(asked, {"image": image, "kind": question.kind, "question": question.text,
                              "answer": question.answer, "reply": question.reply})  # fmt: skip
            for table, text in zip(tables, (short(scene, rng), detailed(scene, rng)), strict=True):
                table.writerow((image, text))
            _line(scenes, {"image": image, "scene": scene.to_dict()})


def messages(turns: list[Turn], images: tuple[str, ...]) -> list[dict[str, Any]]:
    """A dialogue as Hugging Face messages; `images[i]` is the path of picture i."""
    said: list[dict[str, Any]] = []
    for turn in turns:
        content: list[dict[str, str]] = [{"type": "image", "image": images[index]} for index in turn.pictures]
        said.append({"role": "user", "content": [*content, {"type": "text", "text": turn.question}]})
        said.append({"role": "assistant", "content": [{"type": "text", "text": turn.reply}]})
    return said


def _page(scene: Scene, rng: random.Random) -> Turn:
    return Turn(rng.choice(storybook.REQUESTS), (0,), storybook.page(scene, rng))


def _scene(seed: int, number: int) -> tuple[Scene, random.Random]:
    """Scene `number` of a seed, and the randomness for everything else about it."""
    rng = random.Random(f"scene {seed} {number}")
    return random_scene(rng), rng


def _line(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(f"{name}: {value!r} is not a whole number from {least} to {most}.")
