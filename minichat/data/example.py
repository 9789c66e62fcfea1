"""One record of a data set: a conversation whose pictures are named but not yet opened."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from minichat import images
from minichat.data.tables import Cell
from minichat.errors import DataError, ImageError, MiniChatError, shown
from minichat.prompt.conversation import Conversation, Message, Part, Picture, Role, Text

_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\S*:\d+|[\d,]+")  # names, places and numbers


@dataclass(frozen=True)
class Where:
    """The place of a record, for an error: a file, its line (0: the file as a whole), and its number in a list.

    Of a tar, the line is the record's number. Both are counted from 1.
    """

    file: str
    line: int = 0
    record: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} (record {self.record})" if self.record else place


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record, in its place; or, where it is `mild`, what a sound data set may hold."""

    where: Where
    text: str
    mild: bool = False

    @property
    def kind(self) -> str:
        """The text without its names and numbers: equal for mistakes of one kind."""
        return _PARTICULAR.sub("…", self.text)

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Member:
    """A file within a tar: `size` bytes from `start` on."""

    tar: Path
    start: int
    size: int


@dataclass(frozen=True)
class StoredPicture:
    """A picture on disk, in a tar or a table, or as bytes. `name` is what its record calls it."""

    always_opens: ClassVar[bool] = False  # made when it is asked for: nothing of it can be missing or damaged
    name: str
    source: Path | Member | Cell | bytes

    def read(self) -> bytes:
        """The file as it is. Raises `DataError` where it is missing, no file, or larger than any picture may be."""
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, Cell):
            return self._of_table(self.source)
        member = self.source if isinstance(self.source, Member) else None
        path = self.source.tar if isinstance(self.source, Member) else self.source
        try:
            found = path.stat()
            # Asked before opening: to open a named pipe would wait for ever.
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"the picture {shown(self.name)} is not a file: correct its path.")
            size = found.st_size if member is None else member.size
            if size > images.MAX_BYTES:
                raise DataError(f"the picture {shown(self.name)} has {size:,} bytes: at most {images.MAX_BYTES:,}.")
            with open(path, "rb") as file:
                file.seek(0 if member is None else member.start)
                data = file.read(size)
        except FileNotFoundError:
            raise DataError(f"the picture {shown(self.name)} is missing: put it there, or correct its path.") from None
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or "the path is not valid"
            raise DataError(f"the picture {shown(self.name)} cannot be read ({reason}).") from None
        if len(data) < size:
            name = shown(self.name)
            raise DataError(f"the picture {name} has {len(data):,} bytes of {size:,}: its file was cut off.")
        return data

    def _of_table(self, cell: Cell) -> bytes:
        if cell.size > images.MAX_BYTES:
            raise DataError(f"the picture {shown(self.name)} has {cell.size:,} bytes: at most {images.MAX_BYTES:,}.")
        try:
            return cell.read()
        except (OSError, ValueError, LookupError, TypeError):
            raise DataError(
                f"the picture {shown(self.name)} is not in {cell.file.name!r} any more: it has changed, read it again."
            ) from None

    def key(self) -> str:
        """The hash of its content: two files that hold the same bytes are the same picture."""
        return hashlib.sha256(self.read()).hexdigest()

    def open(self) -> Image.Image:
        """The picture, upright and in RGB. Raises `DataError` where it cannot be opened."""
        try:
            return images.load(self.read())
        except ImageError as error:
            reason = str(error).removeprefix("The picture ")
            raise DataError(f"the picture {shown(self.name)} cannot be used: it {reason}") from None


@dataclass(frozen=True)
class Turn:
    """One message: words and pictures in order."""

    role: Role
    parts: tuple[str | StoredPicture, ...]

    @property
    def text(self) -> str:
        """Its words without its pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Example:
    """A record: its turns, as in `Conversation`, and where it stands. `unread`: its keys that nothing reads."""

    turns: tuple[Turn, ...]
    where: Where
    unread: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[StoredPicture, ...]:
        """All pictures, in the order in which they are shown to the model."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, StoredPicture))

    @property
    def replies(self) -> tuple[str, ...]:
        """The assistant's words, turn by turn."""
        return tuple(turn.text for turn in self.turns if turn.role == "assistant")

    def conversation(self, pictures: Sequence[Image.Image] | None = None) -> Conversation:
        """The conversation, its pictures opened, or `pictures` in their place.

        Raises `DataError`, naming file and line, for a picture that cannot be opened or turns that are out of order.
        """
        try:
            shown = iter([stored.open() for stored in self.pictures] if pictures is None else pictures)
            messages = []
            for turn in self.turns:
                parts: list[Part] = [Text(p) if isinstance(p, str) else Picture(next(shown)) for p in turn.parts]
                messages.append(Message(turn.role, tuple(parts)))
            return Conversation(tuple(messages))
        except MiniChatError as error:
            raise DataError(f"{self.where}: {error}") from None
