"""Train, validation and test sets that have no picture in common.

Records that show the same picture (the same bytes) belong together, and so do those that are tied through others, and
those that say the same without a picture: each such group goes into one set as a whole.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from minichat.data.example import Example
from minichat.data.write import Album, record
from minichat.disk import new_folder
from minichat.errors import DataError, MiniChatError, SettingsError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_PICTURES = "pictures"


def divide(
    examples: Sequence[Example], validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> dict[str, list[Example]]:
    """The three sets, each in the order of `examples`; one whose share is 0 is empty.

    Validation and test have at most their share of the records, to the nearest; a group that does not fit goes to
    train. The same seed divides the same records alike, in whatever order they come.

    Raises `SettingsError` for shares out of range, `DataError` if a set that is asked for would be empty.
    """
    for name, share in ((VALIDATION, validation), (TEST, test)):
        if not 0 <= share < 1:
            raise SettingsError(f"{name} is {share}: it must be a share from 0 to below 1.")
    if validation + test >= 1:
        raise SettingsError(f"validation and test are {validation + test} together: leave something to train on.")
    groups = _groups(examples)
    order = sorted(groups)
    random.Random(f"split {seed}").shuffle(order)
    room = {TEST: round(test * len(examples)), VALIDATION: round(validation * len(examples))}
    place: dict[int, str] = {}
    for group in order:
        members = groups[group]
        chosen = next((name for name, left in room.items() if len(members) <= left), TRAIN)
        if chosen in room:
            room[chosen] -= len(members)
        place |= dict.fromkeys(members, chosen)
    sets: dict[str, list[Example]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for number, example in enumerate(examples):
        sets[place[number]].append(example)
    for name, share in ((TRAIN, 1.0), (VALIDATION, validation), (TEST, test)):
        if share > 0 and not sets[name]:
            raise DataError(
                f"The {name} set would be empty: {len(examples)} records make {len(groups)} groups that share no "
                f"picture, the largest of {max(map(len, groups.values()), default=0)}. Add records, or ask for other "
                "shares."
            )
    return sets


def split(
    examples: Sequence[Example],
    out: str | os.PathLike[str],
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> dict[str, int]:
    """Divide, and write the sets as JSON lines of messages into the new folder `out`; returns how many are in each.

    Raises as `divide` does, and `DataError` if `out` is there already or cannot be written.
    """
    sets = divide(examples, validation, test, seed)
    folder = Path(out)
    with new_folder(folder, DataError) as made:

        def pictures() -> Path:
            (made / _PICTURES).mkdir()
            return made / _PICTURES

        album = Album(folder, _PICTURES, pictures)
        for name, chosen in sets.items():
            if chosen:
                with open(made / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as file:
                    file.writelines(record(one, number, album) + "\n" for number, one in enumerate(chosen))
    return {name: len(chosen) for name, chosen in sets.items()}


def _groups(examples: Sequence[Example]) -> dict[str, list[int]]:
    """The numbers of the records that belong together, by the smallest key of what ties them."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    ties = [list(_ties(example)) for example in examples]
    for first, *others in ties:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parents[high] = low
    groups: dict[str, list[int]] = {}
    for number, (first, *_) in enumerate(ties):
        groups.setdefault(root(first), []).append(number)
    return groups


def _ties(example: Example) -> Iterator[str]:
    """The contents of a record's pictures, or what it says where it has none."""
    try:
        keys = [picture.key() for picture in example.pictures]
    except MiniChatError as error:
        raise DataError(f"{example.where}: {error}") from None
    said = repr([(turn.role, turn.parts) for turn in example.turns]) if not keys else ""
    yield from keys or [hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()]
