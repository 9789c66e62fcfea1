"""Data that is drawn as it is read: scenes, pictures of them, and what is said about them, without end.

Example i follows from the seed and from i alone, so a run that goes on from a checkpoint reads what it would have read.
A configuration mixes the kinds by their ratios: `{source: questions, form: drawn, ratio: 3}`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from PIL import Image

from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.data.formats.stream import Part
from minichat.errors import SettingsError
from minichat.scenes import training
from minichat.scenes.asking import Question
from minichat.scenes.captions import SHORT_REQUESTS, short
from minichat.scenes.description import READING_REQUESTS, inventory, reading
from minichat.scenes.dialogues import Talk, telling
from minichat.scenes.draw import Style, draw
from minichat.scenes.outside import OUTSIDE, REQUESTS, outside_picture
from minichat.scenes.pairs import pair_questions, questions_of_sides, random_pair
from minichat.scenes.questions import ALL_KINDS, questions
from minichat.scenes.speech.lessons import LESSONS, NOISE, hastily
from minichat.scenes.wanted import nearly, wanted
from minichat.scenes.world import Scene, Thing, random_scene

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
class DrawnPicture(StoredPicture):
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


Said = tuple[list[training.Turn], Sequence[Scene | None]]  # turns, and the scenes that they number


def _scene(rng: random.Random, easy: bool) -> Scene:
    return random_scene(rng, things=rng.choice((1, 1, 2, 2, 3) if easy else _NUMBERS))


def _questions(rng: random.Random, easy: bool, kinds: tuple[str, ...] = ALL_KINDS + _OFTEN) -> Said:
    """Separate questions about one picture, each of which must be looked up."""
    scene = _scene(rng, easy)
    asked = questions(scene, rng, rng.randint(8, 12), kinds)
    return _one_after_another(asked), [scene]


def _dialogue(rng: random.Random, easy: bool) -> Said:
    scene = _scene(rng, easy)
    return training.training_dialogue(rng, [scene], turns=rng.randint(4, 8), two=0, none=0.04), [scene]


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
        return training.training_dialogue(rng, scenes, turns=rng.randint(3, 8), two=0.9), scenes
    return _one_after_another(asked, (0, 1)), scenes


def _hard_pair(rng: random.Random, easy: bool) -> Said:
    """What only one of two pictures has, and what there is more of. In half there are few things."""
    scenes = random_pair(rng, partial(_scene, easy=easy or rng.random() < 0.5))
    asked = pair_questions(*scenes, rng, 8, _COMPARING)
    if not asked:
        return _pair(rng, easy)
    return _one_after_another(asked, (0, 1)), scenes


def _sides(rng: random.Random, easy: bool) -> Said:
    """In which of two pictures something is, asked of all that one of them has alone. In half there are few things."""
    scenes = (_scene(rng, True), _scene(rng, True)) if easy or rng.random() < 0.5 else random_pair(rng)
    asked = questions_of_sides(*scenes, rng, 12)
    if not asked:
        return _pair(rng, easy)
    return _one_after_another(asked, (0, 1)), scenes


def _reading(rng: random.Random, easy: bool) -> Said:
    scene = _scene(rng, easy)
    return [training.Turn(rng.choice(READING_REQUESTS), (0,), reading(scene))], [scene]


def _inventory(rng: random.Random, easy: bool) -> Said:
    """All that a caption could tell, in few words."""
    scene = _scene(rng, easy)
    return [training.Turn(rng.choice(READING_REQUESTS), (0,), inventory(scene))], [scene]


def _caption(rng: random.Random, easy: bool) -> Said:
    """One sentence, as people write under a picture."""
    scene = _scene(rng, easy)
    return [training.Turn(rng.choice(SHORT_REQUESTS), (0,), short(scene, rng))], [scene]


def _telling(rng: random.Random, easy: bool, draw: Callable[[random.Random, bool], Scene] = _scene) -> Said:
    """A caption, a list, a full description or a story."""
    scene = draw(rng, easy)
    told = telling(scene, rng)
    return [training.Turn(told.text, (0,), told.reply)], [scene]


def _alike(rng: random.Random, easy: bool) -> Scene:
    """Of three scenes the one in which most things share a colour or a shape: where one is left out easily."""
    scenes = [_scene(rng, True) if easy else random_scene(rng, things=rng.choice(_MANY)) for _ in range(3)]
    return max(scenes, key=lambda scene: sum(itertools.starmap(_share, itertools.combinations(scene.things, 2))))


def _share(one: Thing, other: Thing) -> bool:
    return one.colour == other.colour or one.shape == other.shape


def _searched(rng: random.Random, easy: bool, second: bool = False) -> Said:
    """What one types to find a picture; the second of two examples has what the first nearly has."""
    scene = _scene(rng, easy)
    said = wanted(scene, rng)
    if second:
        scene, said = nearly(scene, said, rng)
    return [training.Turn(rng.choice(SHORT_REQUESTS), (0,), said.text)], [scene]


def _outside(rng: random.Random, easy: bool) -> Said:
    asked = rng.sample(REQUESTS, rng.randint(1, 4))
    return _one_after_another([Question("outside", request, "", OUTSIDE) for request in asked]), [None]


def _one_after_another(asked: Sequence[Question], shown: tuple[int, ...] = (0,)) -> list[training.Turn]:
    """Turns about what is shown with the first of them."""
    return [training.Turn(one.text, () if number else shown, one.reply) for number, one in enumerate(asked)]


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


class DrawnStream:
    """Examples of several kinds, mixed.

    Args:
        ratios: kind → how much of the stream is of it.
        batch_size: as many that follow one another are of like length.
        seed: the same seed gives the same examples.
        easy: so many at the beginning show three things at most.
        examples: the first so many come again and again; none: there is no end of new ones.
        stages: of the one source "curriculum": ratios for each stretch of the stream, `[{until: 20000, kinds: {asked:
            3, talks: 1}}, {kinds: {…}}]`; `until` counts examples from the first, and the last stage has none.
        noise: the share of questions in people's words (`minichat.scenes.speech`) that are typed hastily.

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
            shown = [DrawnPicture(f"drawn {index}", b"", scenes[n], rng.getrandbits(32)) for n in turn.pictures]
            turns += [Turn("user", (*shown, turn.question)), Turn("assistant", (turn.reply,))]
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
