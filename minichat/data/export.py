"""Data sets out: messages or LLaVA's JSON, train, validation and test sets, and a conversation in a file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from minichat.data.example import Example, StoredPicture, Turn, Where, records
from minichat.data.formats import chat
from minichat.data.formats.base import Shelf
from minichat.data.formats.chat import IMAGE
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.fileio import new_file, new_folder
from minichat.images import READ, format_of
from minichat.prompt.conversation import Conversation, Message, Text

# --- Data sets out: JSON lines of messages, or LLaVA's JSON. What is read back is what was written.
#
# Pictures that are files stay where they are and are named relative to the new file; those that a tar or a table held
# are written beside it, each content once, named by its hash.


#: The formats that can be written, and what stands before, between and after the records of a file.
FORMS = {"messages": ("", "\n", "\n"), "llava": ("[\n", ",\n", "\n]\n")}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


class Album:
    """Names pictures for a file that is to lie in `home`.

    Args:
        folder: where pictures that are no files go, as a path from `home`.
        made: that folder while it is being written; asked for when it is first needed.
    """

    def __init__(self, home: Path, folder: str, made: Callable[[], Path]) -> None:
        self._home = os.path.abspath(home)
        self._folder = folder
        self._made = made
        self._place: Path | None = None
        self._names: dict[str, str] = {}

    def name(self, picture: StoredPicture) -> str:
        """The picture's path. Raises `DataError` for one that cannot be read or written."""
        if isinstance(picture.source, Path):
            name = Path(os.path.relpath(os.path.abspath(picture.source), self._home)).as_posix()
            return name if name.isprintable() else self._written(picture)
        return self._written(picture)

    def _written(self, picture: StoredPicture) -> str:
        data = picture.read()
        key = StoredPicture(picture.name, data).key()
        if key not in self._names:
            name = key[:32] + READ.get(format_of(data) or "", ("",))[0]
            self._place = self._place or self._made()
            try:
                (self._place / name).write_bytes(data)
            except OSError as error:
                raise DataError(f"the picture {name!r} cannot be written ({error.strerror}).") from None
            self._names[key] = f"{self._folder}/{name}"
        return self._names[key]


def write(examples: Iterable[Example], out: str | os.PathLike[str], form: str = "messages") -> int:
    """Write a data set into the new file `out`, whole or not at all; returns how many records it has.

    Args:
        form: "messages" or "llava". Where pictures must be written too, they are in a folder of `out`'s name.

    Raises `DataError` if `out` exists or cannot be written, for a record that the format cannot hold, or if there is
    none.
    """
    if form not in FORMS:
        raise DataError(f"The format {form!r} cannot be written: use {' or '.join(FORMS)}.")
    start, between, end = FORMS[form]
    file = Path(out)
    folder = f"{file.stem}-pictures"
    with new_file(file, DataError) as text, ExitStack() as written:  # the pictures are there before the file
        album = Album(file.parent, folder, lambda: written.enter_context(new_folder(file.parent / folder, DataError)))
        count = 0
        for count, example in enumerate(examples, start=1):
            text.write(((start if count == 1 else between) + record(example, count, album, form)).encode())
        if count == 0:
            raise DataError("There is no record to write.")
        text.write(end.encode())
    return count


def record(example: Example, number: int, album: Album, form: str = "messages") -> str:
    """One record as JSON in a line, without the line's end. Raises `DataError` for what the format cannot hold."""
    try:
        made = {"messages": _messages(example, album)} if form == "messages" else _llava(example, number, album)
        text = json.dumps(made, ensure_ascii=False)
        text.encode()
        return text
    except MiniChatError as error:
        raise DataError(f"{example.where}: {error}") from None
    except UnicodeEncodeError:
        raise DataError(f"{example.where}: a picture's path is no Unicode: rename it.") from None


def _messages(example: Example, album: Album) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": [_part(part, album) for part in turn.parts]} for turn in example.turns]


def _part(part: str | StoredPicture, album: Album) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": album.name(part)}


def _llava(example: Example, number: int, album: Album) -> dict[str, Any]:
    names = [album.name(picture) for picture in example.pictures]
    shown = {} if not names else {"image": names[0] if len(names) == 1 else names}
    said = [{"from": _SPEAKERS[turn.role], "value": _marked(turn)} for turn in example.turns]
    return {"id": str(number), **shown, "conversations": said}


def _marked(turn: Turn) -> str:
    """A turn's words, and `<image>` in a line of its own for each picture."""
    if turn.role == "user" and IMAGE in turn.text:
        raise DataError(
            f"the user's words hold {IMAGE!r}, which LLaVA's JSON takes for the place of a picture: "
            "write messages instead, or change the words."
        )
    return "\n".join(part if isinstance(part, str) else IMAGE for part in turn.parts)


# --- Train, validation and test sets that have no picture in common.
#
# Records that show the same picture (the same bytes) belong together, and so do those that are tied through others,
# and those that say the same without a picture: each such group goes into one set as a whole.


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
    groups = groups_of(examples)
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


def groups_of(examples: Sequence[Example]) -> dict[str, list[int]]:
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


# --- A conversation in a file of messages with a folder of pictures beside it, as `minichat.data` reads them.


def save(conversation: Conversation, out: Path) -> None:
    """Write a conversation to a new file, its pictures as PNG to a folder beside it that has the file's name.

    Raises `DataError` where one of them exists or cannot be written, or nothing has been said.
    """
    if not len(conversation):
        raise DataError("There is nothing to save yet: ask something first.")
    turns = tuple(Turn(message.role, _parts(message)) for message in conversation)
    write([Example(turns, Where("this conversation"))], out, "messages")


def load(path: Path) -> Conversation:
    """Read the conversation of a file with one record of messages, its pictures opened.

    Raises `DataError`, naming the line, for what is no such record, and where there are several.
    """
    if not path.is_file():  # asked before opening: to open a named pipe would wait for ever
        raise DataError(f"There is no file {path.name!r}: check the path.")
    try:
        found = list(islice(records(path, path.name), 2))
    except OSError as error:
        raise DataError(f"{path.name!r} cannot be read ({error.strerror}): check the path.") from None
    if len(found) > 1:
        raise DataError(f"{path.name!r} holds several records: give a file that holds one conversation.")
    if not isinstance(found[0], tuple):
        raise DataError(str(found[0]))
    where, record = found[0]
    try:
        turns = tuple(chat.message_turns(record, Shelf(path.parent)))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Example(turns, where).conversation()


def _parts(message: Message) -> tuple[str | StoredPicture, ...]:
    return tuple(part.text if isinstance(part, Text) else _stored(part.image) for part in message.parts)


def _stored(picture: Image.Image) -> StoredPicture:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return StoredPicture("a picture", data.getvalue())
