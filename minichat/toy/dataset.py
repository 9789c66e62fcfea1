"""Synthetic data: a data set of scenes on disk, and examples without end that are drawn as they are read."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from minichat.data.example import Example, StoredPicture, Where
from minichat.data.example import Turn as RecordTurn
from minichat.errors import DataError, SettingsError
from minichat.fileio import new_folder
from minichat.toy import dialogues
from minichat.toy.asking import ALL_KINDS, Question
from minichat.toy.captions import (
    READING_REQUESTS,
    SHORT_REQUESTS,
    STORYBOOK_REQUESTS,
    detailed,
    inventory,
    nearly,
    page,
    reading,
    short,
    wanted,
)
from minichat.toy.dialogues import Talk, Turn, telling, training_dialogue
from minichat.toy.off_distribution import OUTSIDE, REQUESTS, outside_picture
from minichat.toy.pairs import pair_questions, questions_of_sides, random_pair
from minichat.toy.questions import questions
from minichat.toy.speech.lessons import LESSONS, NOISE, hastily
from minichat.toy.world import Scene, Style, Thing, draw, random_scene
from minichat.train.data_loader import Part

# --- A data set of synthetic scenes on disk: pictures, conversations, captions, questions, and the truth behind them.
#
#     OUT/pictures/000000.png …
#     OUT/conversations.jsonl   one conversation per scene, as Hugging Face messages; picture paths relative to OUT:
#                               dialogues, or in the style "storybook" one request and one long reply
#     OUT/captions.csv          image, short caption
#     OUT/descriptions.csv      image, detailed caption
#     OUT/questions.jsonl       image, kind, question, answer, reply
#     OUT/scenes.jsonl          image and scene; `Scene.from_dict(record["scene"])` reads it back
#
# Equal arguments write equal files, byte for byte; scene number n of a seed does not depend on `count`.


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
    return Turn(rng.choice(STORYBOOK_REQUESTS), (0,), page(scene, rng))


def _scene(seed: int, number: int) -> tuple[Scene, random.Random]:
    """Scene `number` of a seed, and the randomness for everything else about it."""
    rng = random.Random(f"scene {seed} {number}")
    return random_scene(rng), rng


def _line(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(f"{name}: {value!r} is not a whole number from {least} to {most}.")


# --- Data that is drawn as it is read: scenes, pictures of them, and what is said about them, without end.
#
# Example i follows from the seed and from i alone, so a run that goes on from a checkpoint reads what it would have
# read. A configuration mixes the kinds by their ratios: `{source: questions, format: synthetic, ratio: 3}`.


SIDE = 96  # pixels; a third are drawn larger, for the model's own processor to scale down
_POOL = 8  # batches: among so many, examples are sorted by length, so that little is padding
_HARD = ("relation", "count")  # what is slow to learn
_OFTEN = _HARD * 3 + ("existence", "position") * 2  # asked more often, therefore
_LEANING = {"topic": 12, "yes or no": 8, "and": 16, "other": 30, "beside": 16, "count": 24, "fresh": 2}
_COMPARING = ("only in", "only in", "more", "which has")  # more often what is slow to learn, here too
_WHOLE = Part()
_NUMBERS = (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)  # of things
_MANY = (3, 4, 4, 5, 5, 6, 6, 6)


@dataclass(frozen=True)
class SyntheticPicture(StoredPicture):
    """A picture that is drawn when it is opened: of `scene`, or, without one, of no drawn shapes at all."""

    always_opens: ClassVar[bool] = True
    source: bytes = b""
    scene: Scene | None = None
    seed: int = 0

    def read(self) -> bytes:
        """It as a PNG file."""
        file = io.BytesIO()
        self.open().save(file, "PNG")
        return file.getvalue()

    def key(self) -> str:
        return hashlib.sha256(f"{self.scene} {self.seed}".encode()).hexdigest()

    def open(self) -> Image.Image:
        rng = random.Random(self.seed)
        if self.scene is None:
            return outside_picture(rng, SIDE)
        side = rng.choice((128, 192, 320)) if rng.random() < 0.33 else SIDE
        return draw(self.scene, side, rng.getrandbits(32), Style.random(rng))


Said = tuple[list[dialogues.Turn], Sequence[Scene | None]]  # turns, and the scenes that they number


def _drawn_scene(rng: random.Random, easy: bool) -> Scene:
    return random_scene(rng, things=rng.choice((1, 1, 2, 2, 3) if easy else _NUMBERS))


def _questions(rng: random.Random, easy: bool, kinds: tuple[str, ...] = ALL_KINDS + _OFTEN) -> Said:
    """Separate questions about one picture, each of which must be looked up."""
    scene = _drawn_scene(rng, easy)
    asked = questions(scene, rng, rng.randint(8, 12), kinds)
    return _one_after_another(asked), [scene]


def _dialogue(rng: random.Random, easy: bool) -> Said:
    scene = _drawn_scene(rng, easy)
    return dialogues.training_dialogue(rng, [scene], turns=rng.randint(4, 8), two=0, none=0.04), [scene]


def _hard_dialogue(rng: random.Random, easy: bool) -> Said:
    """A dialogue in which most later questions lean on what was said: "the other one", "of the same colour"."""
    scene = random_scene(rng, things=rng.choice((2, 2, 3) if easy else (2, 2, 2, 3, 3, 4, 5, 6)))
    talk = Talk(scene, rng, moves=_LEANING)
    return _one_after_another([talk.turn() for _ in range(8)]), [scene]


def _pair(rng: random.Random, easy: bool) -> Said:
    """Questions that compare two pictures, or a dialogue about both."""
    scenes = random_pair(rng)
    asked = pair_questions(*scenes, rng, 8) if rng.random() < 0.5 else []
    if not asked:
        return dialogues.training_dialogue(rng, scenes, turns=rng.randint(3, 8), two=0.9), scenes
    return _one_after_another(asked, (0, 1)), scenes


def _hard_pair(rng: random.Random, easy: bool) -> Said:
    """What only one of two pictures has, and what there is more of. In half there are few things."""
    scenes = random_pair(rng, partial(_drawn_scene, easy=easy or rng.random() < 0.5))
    asked = pair_questions(*scenes, rng, 8, _COMPARING)
    if not asked:
        return _pair(rng, easy)
    return _one_after_another(asked, (0, 1)), scenes


def _sides(rng: random.Random, easy: bool) -> Said:
    """In which of two pictures something is, asked of all that one of them has alone. In half there are few things."""
    scenes = (_drawn_scene(rng, True), _drawn_scene(rng, True)) if easy or rng.random() < 0.5 else random_pair(rng)
    asked = questions_of_sides(*scenes, rng, 12)
    if not asked:
        return _pair(rng, easy)
    return _one_after_another(asked, (0, 1)), scenes


def _reading(rng: random.Random, easy: bool) -> Said:
    scene = _drawn_scene(rng, easy)
    return [dialogues.Turn(rng.choice(READING_REQUESTS), (0,), reading(scene))], [scene]


def _inventory(rng: random.Random, easy: bool) -> Said:
    """All that a caption could tell, in few words."""
    scene = _drawn_scene(rng, easy)
    return [dialogues.Turn(rng.choice(READING_REQUESTS), (0,), inventory(scene))], [scene]


def _caption(rng: random.Random, easy: bool) -> Said:
    """One sentence, as people write under a picture."""
    scene = _drawn_scene(rng, easy)
    return [dialogues.Turn(rng.choice(SHORT_REQUESTS), (0,), short(scene, rng))], [scene]


def _telling(rng: random.Random, easy: bool, draw: Callable[[random.Random, bool], Scene] = _drawn_scene) -> Said:
    """A caption, a list, a full description or a story."""
    scene = draw(rng, easy)
    told = telling(scene, rng)
    return [dialogues.Turn(told.text, (0,), told.reply)], [scene]


def _alike(rng: random.Random, easy: bool) -> Scene:
    """Of three scenes the one in which most things share a colour or a shape: where one is left out easily."""
    scenes = [_drawn_scene(rng, True) if easy else random_scene(rng, things=rng.choice(_MANY)) for _ in range(3)]
    return max(scenes, key=lambda scene: sum(itertools.starmap(_share, itertools.combinations(scene.things, 2))))


def _share(one: Thing, other: Thing) -> bool:
    return one.colour == other.colour or one.shape == other.shape


def _searched(rng: random.Random, easy: bool, second: bool = False) -> Said:
    """What one types to find a picture; the second of two examples has what the first nearly has."""
    scene = _drawn_scene(rng, easy)
    said = wanted(scene, rng)
    if second:
        scene, said = nearly(scene, said, rng)
    return [dialogues.Turn(rng.choice(SHORT_REQUESTS), (0,), said.text)], [scene]


def _outside(rng: random.Random, easy: bool) -> Said:
    asked = rng.sample(REQUESTS, rng.randint(1, 4))
    return _one_after_another([Question("outside", request, "", OUTSIDE) for request in asked]), [None]


def _one_after_another(asked: Sequence[Question], shown: tuple[int, ...] = (0,)) -> list[dialogues.Turn]:
    """Turns about what is shown with the first of them."""
    return [dialogues.Turn(one.text, () if number else shown, one.reply) for number, one in enumerate(asked)]


KINDS: dict[str, Callable[[random.Random, bool], Said]] = {
    "questions": _questions,
    "hard questions": partial(_questions, kinds=_HARD),
    "dialogues": _dialogue,
    "hard dialogues": _hard_dialogue,
    "pairs": _pair,
    "hard pairs": _hard_pair,
    "sides": _sides,
    "readings": _reading,
    "inventories": _inventory,
    "captions": _caption,
    "searched": _searched,
    "tellings": _telling,
    "hard tellings": partial(_telling, draw=_alike),
    "outside": _outside,
    **LESSONS,  # in people's words
}
CURRICULUM = "curriculum"  # the source whose kinds and ratios its stages say


class SyntheticStream:
    """Examples of several kinds, mixed.

    Args:
        ratios: kind → how much of the stream is of it.
        batch_size: as many that follow one another are of like length.
        seed: the same seed gives the same examples.
        easy: so many at the beginning show three things at most.
        examples: the first so many come again and again; none: there is no end of new ones.
        stages: of the one source "curriculum": ratios for each stretch of the stream, `[{until: 20000, kinds: {asked:
            3, talks: 1}}, {kinds: {…}}]`; `until` counts examples from the first, and the last stage has none.
        noise: the share of questions in people's words (`minichat.toy.speech`) that are typed hastily.

    Raises `SettingsError` for a kind that does not exist, for less than one example, and for stages out of order.
    """

    def __init__(
        self,
        ratios: dict[str, float],
        *,
        batch_size: int,
        seed: int = 0,
        easy: int = 0,
        examples: int | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
        noise: float = NOISE,
    ) -> None:
        self._stages = [(None, ratios)] if stages is None and CURRICULUM not in ratios else _stages(stages, ratios)
        for _, shares in self._stages:
            if unknown := sorted(shares.keys() - KINDS.keys()):
                raise SettingsError(
                    f"data.train: nothing is drawn of the kind {unknown[0]!r}; there are {', '.join(KINDS)}."
                )
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= 1:
            raise SettingsError(f"data.train: noise is {noise!r}; it must be from 0 to 1.")
        if examples is not None and (not isinstance(examples, int) or examples < 1):
            raise SettingsError(f"data.train: examples is {examples!r}; it must be a whole number, 1 or more.")
        if isinstance(easy, bool) or not isinstance(easy, int) or easy < 0:
            raise SettingsError(f"data.train: easy is {easy!r}; it must be a whole number, 0 or more.")
        self._batch_size, self._seed, self._easy = batch_size, seed, easy
        self._examples, self._noise = examples, noise

    def scan(self, part: Part = _WHOLE, skip: int = 0) -> Iterator[Example]:
        """The part's examples from number `skip` on; what is skipped costs nothing."""
        first = part.index + skip * part.count
        pool = self._batch_size * _POOL
        from_here = itertools.chain.from_iterable(self._pool(number) for number in itertools.count(first // pool))
        return itertools.islice(from_here, first % pool, None, part.count)

    def _pool(self, number: int) -> list[Example]:
        size = self._batch_size
        drawn = [self.example(number * size * _POOL + place) for place in range(size * _POOL)]
        drawn.sort(key=lambda example: sum(len(turn.text) for turn in example.turns))
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        random.Random(f"order {self._seed} {number}").shuffle(batches)
        return [example for batch in batches for example in batch]

    def example(self, index: int) -> Example:
        """Example number `index`, before any sorting."""
        index = index if self._examples is None else index % self._examples
        rng = random.Random(f"drawn {self._seed} {index}")
        shares = next(shares for until, shares in self._stages if until is None or index < until)
        (kind,) = rng.choices(list(shares), list(shares.values()))
        if kind == "searched":  # two that follow one another are of one scene, as it is and changed
            both = random.Random(f"searched {self._seed} {index // 2}")
            said, scenes = _searched(both, index < self._easy, second=index % 2 == 1)
        else:
            said, scenes = KINDS[kind](rng, index < self._easy)
            said = hastily(said, rng, self._noise) if kind in LESSONS else said
        where = Where(f"drawn {kind}", 0, index + 1)
        turns = []
        for turn in said:
            shown = [SyntheticPicture(f"drawn {index}", b"", scenes[n], rng.getrandbits(32)) for n in turn.pictures]
            turns += [RecordTurn("user", (*shown, turn.question)), RecordTurn("assistant", (turn.reply,))]
        return Example(tuple(turns), where)


Stage = tuple[int | None, Mapping[str, float]]  # up to which example, and what is drawn how often


def _stages(stages: Any, ratios: Mapping[str, float]) -> list[Stage]:
    """The stages of a curriculum, checked. Raises `SettingsError`."""
    if stages is None or list(ratios) != [CURRICULUM]:
        raise SettingsError(
            f"data.train: the stages of a stream belong to one source that is called {CURRICULUM!r}, and it needs them."
        )
    if not isinstance(stages, list) or not stages:
        raise SettingsError("data.train: stages is not a list of stages, each with its kinds.")
    found: list[Stage] = []
    for number, stage in enumerate(stages, 1):
        last = number == len(stages)
        given = stage if isinstance(stage, dict) else {}
        kinds, until = given.get("kinds"), given.get("until")
        if set(given) - {"kinds", "until"} or not isinstance(kinds, dict) or not kinds:
            raise SettingsError(
                f"data.train: stage {number} must have kinds with their ratios, and until, nothing else."
            )
        if any(isinstance(r, bool) or not isinstance(r, int | float) or not 0 < r < math.inf for r in kinds.values()):
            raise SettingsError(f"data.train: stage {number}: a ratio must be a number above 0.")
        before = (found[-1][0] or 0) if found else 0
        if last != (until is None) or (until is not None and (type(until) is not int or until <= before)):
            raise SettingsError(
                f"data.train: stage {number}: until is {until!r}; each stage but the last has a whole number of "
                "examples there, above that of the stage before."
            )
        found.append((until, kinds))
    return found
