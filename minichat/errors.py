"""Every error that MiniChat raises on purpose, and words that they are made of.

Each message is a sentence for a person: what is wrong, where, and how to mend it. Command line and web page print the
message alone; only an error that is *not* one of these is a defect and deserves a traceback.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable


class MiniChatError(Exception):
    """Base of all errors that a person can mend."""


class ImageError(MiniChatError):
    """A picture cannot be opened safely."""


class PromptError(MiniChatError):
    """A conversation, a template, or the number of image slots is not what it must be."""


class SettingsError(MiniChatError):
    """A setting is out of range; the message names the field."""


class ModelError(MiniChatError):
    """A model cannot be loaded, or its parts do not belong together."""


class ContextError(MiniChatError):
    """A request does not fit into the model's context."""


class DataError(MiniChatError):
    """A record of a data set is malformed; the message names file and line."""


#: How a file begins that Git leaves in the place of a large one that was not fetched.
POINTER = b"version https://git-lfs"
UNFETCHED = "is a Git LFS pointer, not the file itself: run `git lfs pull` where it is from"


def some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def sentence(error: BaseException) -> str:
    """The first line of another library's message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


class _Short(reprlib.Repr):
    """A value in a few words: bytes are counted, not printed."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = self.maxlist = self.maxtuple = self.maxdict = self.maxset = 3
        self.maxstring = self.maxother = 80

    def repr_str(self, x: str, level: int) -> str:
        return repr(x if len(x) <= self.maxstring else x[: self.maxstring - 3] + "...")

    def repr_bytes(self, x: bytes, level: int) -> str:
        return f"<{len(x):,} bytes>"

    repr_bytearray = repr_memoryview = repr_bytes


def shown(value: object) -> str:
    """A value in a sentence: at most a few words of a text, and of bytes only how many they are."""
    return _Short().repr(value)


def listing(names: Iterable[object], most: int = 12) -> str:
    """Names in a sentence, each shortened, and how many more there are."""
    there = list(names)
    more = f" and {len(there) - most} more" if len(there) > most else ""
    return ", ".join(map(shown, there[:most])) + more
