"""A conversation in a file of messages with a folder of pictures beside it, as `minichat.data` reads them."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

from PIL import Image

from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.data.formats import messages
from minichat.data.formats.lines import records
from minichat.data.formats.record import Shelf
from minichat.data.write import write
from minichat.errors import DataError
from minichat.prompt.conversation import Conversation, Message, Text


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
        turns = tuple(messages.turns(record, Shelf(path.parent)))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Example(turns, where).conversation()


def _parts(message: Message) -> tuple[str | StoredPicture, ...]:
    return tuple(part.text if isinstance(part, Text) else _stored(part.image) for part in message.parts)


def _stored(picture: Image.Image) -> StoredPicture:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return StoredPicture("a picture", data.getvalue())
