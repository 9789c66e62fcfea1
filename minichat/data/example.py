"""One record of a data set: a conversation whose pictures are named but not yet opened."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minichat import images
from minichat.errors import DataError, ImageError, MiniChatError
from minichat.prompt.conversation import Conversation, Message, Part, Picture, Role, Text


@dataclass(frozen=True)
class Where:
    """The place of a record, for an error: a file, and its line (or record, counted from 1; 0: the file as a whole)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record, in its place."""

    where: Where
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class StoredPicture:
    """A picture on disk, or the bytes of one that a tar holds. `name` is what its record calls it."""

    name: str
    source: Path | bytes

    def read(self) -> bytes:
        """The file as it is. Raises `DataError` where it is missing, no file, or larger than any picture may be."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            found = self.source.stat()
            # Asked before opening: to open a named pipe would wait for ever.
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"the picture {self.name!r} is not a file: correct its path.")
            if found.st_size > images.MAX_BYTES:
                raise DataError(f"the picture {self.name!r} has {found.st_size:,} bytes: at most {images.MAX_BYTES:,}.")
            return self.source.read_bytes()
        except FileNotFoundError:
            raise DataError(f"the picture {self.name!r} is missing: put it there, or correct its path.") from None
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or "the path is not valid"
            raise DataError(f"the picture {self.name!r} cannot be read ({reason}).") from None

    def key(self) -> str:
        """The hash of its content: two files that hold the same bytes are the same picture."""
        return hashlib.sha256(self.read()).hexdigest()

    def open(self) -> Image.Image:
        """The picture, upright and in RGB. Raises `DataError` where it cannot be opened."""
        try:
            return images.load(self.read())
        except ImageError as error:
            raise DataError(f"the picture {self.name!r} cannot be used. {error}") from None


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
    """A record: its turns, as in `Conversation`, and where it stands."""

    turns: tuple[Turn, ...]
    where: Where

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
