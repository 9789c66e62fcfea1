"""Data sets out: JSON lines of messages, or LLaVA's JSON. What is read back is what was written.

Pictures that are files stay where they are and are named relative to the new file; those that a tar or a table held
are written beside it, each content once, named by its hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from minichat.data.example import Example, StoredPicture, Turn
from minichat.data.formats.marked import IMAGE
from minichat.disk import new_file, new_folder
from minichat.errors import DataError, MiniChatError
from minichat.signatures import READ, format_of

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
