"""A person's own pictures as lessons: what there is, what is asked about them, what is held out, how it is written."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from minichat.data import formats
from minichat.data.example import Example, Problem, StoredPicture, Turn
from minichat.data.export import groups_of
from minichat.errors import DataError, MiniChatError
from minichat.prompt.template import CAPTION_PROMPT

# --- What a person has: records that can be learnt from, and what is wrong with the others.


LEAST = 12  # different pictures; of fewer nothing is left to find out whether they were learnt
LEAST_OF_A_KIND = 4
_LISTS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DOTS = " .!\n"


@dataclass
class Material:
    """Records whose pictures can all be opened, in groups of those that share a picture."""

    examples: list[Example]
    left_out: list[str] = field(default_factory=list)  # why, each with the record's place
    passed_over: list[str] = field(default_factory=list)  # keys that nothing reads

    def __post_init__(self) -> None:
        self.groups = [members for _, members in sorted(groups_of(self.examples).items())]
        said = Counter(map(self.said, self.groups))
        # The names of kinds, where texts are names of kinds: said of several pictures, most of them.
        self.kinds = said if 2 * len(said) <= len(self.groups) else Counter[str]()

    @property
    def unasked(self) -> int:
        """How many records have a picture and a text, and no question."""
        return sum(map(is_unasked, self.examples))

    def said(self, group: Sequence[int]) -> str:
        """The first reply of a group, without its full stop."""
        return self.examples[group[0]].replies[0].strip(DOTS)


def look(source: str | Path, form: str | None = None, **options: Any) -> Material:
    """Read all records and open every picture. What is wrong with one costs no other.

    Args:
        source: a file or a folder in one of the formats of `minichat.data.formats`, or a folder with one list in it.
        form, options: as `minichat.data.formats.read` takes them.

    Raises:
        DataError: where there is nothing to learn from, or too little: the message says what is missing.
    """
    found, left_out, unread = list[Example](), list[str](), list[str]()
    seen: dict[StoredPicture, str | None] = {}
    for item in formats.scan(_list_in(Path(source)) if form is None else source, form, **options):
        problem = str(item) if isinstance(item, Problem) else _damage(item, seen)
        if problem is not None:
            left_out.append(problem)
        elif isinstance(item, Example):
            unread += item.unread
            found.append(replace(item, unread=()))
    if not found:
        why = f" The first problem: {left_out[0]}" if left_out else ""
        raise DataError(f"There is nothing to learn in {str(source)!r}.{why}")
    material = Material(found, left_out, list(dict.fromkeys(unread)))
    _check_enough(material)
    return material


def _list_in(source: Path) -> Path:
    """The one list in a folder that is in no format itself; otherwise the source."""
    if not source.is_dir() or formats.form_of(source, str(source)) is not None:
        return source
    lists = [file for file in source.iterdir() if file.suffix.lower() in _LISTS]
    return lists[0] if len(lists) == 1 else source


def _damage(example: Example, seen: dict[StoredPicture, str | None]) -> str | None:
    """Why a record's pictures cannot be used, or None. Each picture is opened once."""
    for picture in example.pictures:
        if picture not in seen:
            try:
                picture.open()
                seen[picture] = None
            except MiniChatError as error:
                seen[picture] = str(error)
        if seen[picture] is not None:
            return f"{example.where}: {seen[picture]}"
    return None


def _check_enough(material: Material) -> None:
    count = len(material.groups)
    if count < LEAST:
        raise DataError(
            f"{count} different pictures are too few to learn from, and to tell whether they were learnt: give {LEAST} "
            f"or more, at least {LEAST_OF_A_KIND} of each kind. Ten of a kind do well."
        )
    if len({example.replies for example in material.examples}) == 1:
        raise DataError(
            f"All {len(material.examples)} records say the same ({material.said(material.groups[0])[:60]!r}): what is "
            "said of every picture has nothing to do with any. Give texts that differ as the pictures do."
        )


# --- What is held out: some of each kind, or of all where texts are no names of kinds. Pictures that records share stay
# on one side.


SHARE = 0.1
LEAST_HELD = 6  # of all, so that exchanging their pictures tells more than chance
MOST = 64


def hold_out(material: Material, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """The records that are learnt from, and those that are not, each in their order."""
    order = random.Random(f"hold out {seed}")
    sorts: dict[str, list[list[int]]] = {}
    for group in material.groups:
        sorts.setdefault(material.said(group) if material.kinds else "", []).append(group)
    each = max(1, -(-LEAST_HELD // len(sorts)) + (len(sorts) < 4 and bool(material.kinds)))
    held: set[int] = set()
    for _, members in sorted(sorts.items(), key=lambda one: (-len(one[1]), one[0])):
        order.shuffle(members)
        wanted = max(round(SHARE * len(members)), min(each, len(members) // 3))
        for group in members[: wanted if len(members) >= LEAST_OF_A_KIND else 0]:
            if len(held) < MOST:
                held.update(group)
    examples = list(enumerate(material.examples))
    return [one for number, one in examples if number not in held], [one for number, one in examples if number in held]


# --- Questions for captions that have none: what the page, `chat` and `caption` ask, and what people do; and none.


QUESTIONS = (
    CAPTION_PROMPT,
    "Describe the picture.",
    "What is this?",
    "What is in the picture?",
    "What do you see?",
    "What does the picture show?",
    "What is it?",
    "What can you see here?",
    "What is shown here?",
    "Tell me what this is.",
    "Say what you see.",
    "",
)


def is_unasked(example: Example) -> bool:
    """Whether a record is a picture, or pictures, and a text, without a question."""
    return bool(example.pictures) and not any(t.text.strip() for t in example.turns if t.role == "user")


def asked(example: Example, question: str) -> Example:
    """The record, with the question behind its first pictures."""
    first = next(number for number, turn in enumerate(example.turns) if turn.role == "user")
    parts = (*example.turns[first].parts, *((question,) if question else ()))
    return replace(example, turns=(*example.turns[:first], Turn("user", parts), *example.turns[first + 1 :]))


# --- The same pictures, a little moved, turned, nearer and lit otherwise: what is learnt of few must not hang on that.
#
# Nothing is mirrored, and nothing leaves the picture: what is said of places and of writing stays true.


_SHIFT, _TURN, _NEARER, _LIGHT = 0.07, 6.0, 0.12, 0.1  # of the side; degrees; shares


def moved(picture: Image.Image, rng: random.Random) -> Image.Image:
    """An RGB picture of the same size. What lies beyond its edge is like its edge."""
    width, height = picture.size
    border = max(width, height) // 3
    grown = Image.fromarray(np.pad(np.asarray(picture), ((border, border), (border, border), (0, 0)), mode="edge"))
    middle = width / 2 + border, height / 2 + border
    turned = grown.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BILINEAR, center=middle)
    scale = rng.uniform(1 - _NEARER, 1 + _NEARER)
    x, y = middle[0] + rng.uniform(-_SHIFT, _SHIFT) * width, middle[1] + rng.uniform(-_SHIFT, _SHIFT) * height
    box = (x - width / 2 / scale, y - height / 2 / scale, x + width / 2 / scale, y + height / 2 / scale)
    cut = turned.resize(picture.size, Image.Resampling.BICUBIC, box)
    return ImageEnhance.Brightness(cut).enhance(rng.uniform(1 - _LIGHT, 1 + _LIGHT))


def with_moved_pictures(example: Example, side: int, rng: random.Random) -> Example:
    """The record with its pictures moved; `side`: more pixels than that need not be kept."""
    turns = []
    for turn in example.turns:
        parts = (part if isinstance(part, str) else _moved_file(part, side, rng) for part in turn.parts)
        turns.append(Turn(turn.role, tuple(parts)))
    return replace(example, turns=tuple(turns))


def _moved_file(stored: StoredPicture, side: int, rng: random.Random) -> StoredPicture:
    picture = stored.open()
    picture.thumbnail((side, side))
    written = io.BytesIO()
    moved(picture, rng).save(written, "PNG" if max(picture.size) <= 256 else "JPEG", quality=92)
    return StoredPicture(stored.name, written.getvalue())


def lessons(examples: Sequence[Example], passes: int, side: int, seed: int = 0) -> Iterator[Example]:
    """Each record so many times: at first as it is, then with its pictures moved; who asks nothing is asked in turn."""
    for number in range(passes):
        for place, example in enumerate(examples):
            rng = random.Random(f"lesson {seed} {number} {place}")
            made = example if number == 0 else with_moved_pictures(example, side, rng)
            yield asked(made, QUESTIONS[(place + number) % len(QUESTIONS)]) if is_unasked(made) else made
