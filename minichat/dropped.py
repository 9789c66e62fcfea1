"""Paths as a terminal writes them when files are dropped on it: bare, quoted, with escaped blanks, or as `file://`.

Some terminals quote (GNOME's, Windows'), some escape (macOS', Konsole's), some give addresses; and a bare path may have
blanks in it, so that where it ends is told by which files there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from minichat.images import SUFFIXES

_LONGEST = 4096  # characters of a path
_QUOTED = re.compile(r"""'([^'\n]*)'|"([^"\n]*)\"""")
_ESCAPED = re.compile(r"\\([^\w\n])")  # "\ " and "\(", but not the "\p" of C:\pictures
_ABSOLUTE = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\")
_WORD = re.compile(r"(?:\\[^\n]|[^\\\s])+")


def split(text: str) -> tuple[list[str], str]:
    """The pictures that a line begins with, and the words after them.

    A path counts if it is absolute, quoted or an address, and there is such a file; a relative one must also end as
    pictures do. So `cat.png` alone is a picture where that file is, and a word where it is not.
    """
    paths = []
    while (found := _first(text)) is not None:
        path, text = found
        paths.append(path)
    return paths, text


def all_paths(text: str) -> list[str]:
    """A text of paths and nothing else, also of files that are not there."""
    if os.path.isfile(os.path.expanduser(text)):  # as it stands, whatever is in its name
        return [text]
    paths: list[str] = []
    while text := text.strip():
        found = _first(text, named=True) or _word(text)
        paths.append(found[0])
        text = found[1]
    return paths


def _first(text: str, named: bool = False) -> tuple[str, str] | None:
    """The path that `text` begins with, and what follows it. `named`: it was said to be one, so any file is meant."""
    text = text.lstrip()
    quoted = _QUOTED.match(text)
    if quoted is not None:
        path = _plain(quoted[1] or quoted[2] or "")
        return (path, text[quoted.end() :].lstrip()) if os.path.isfile(os.path.expanduser(path)) else None
    for end in _ends(text):
        for path in _readings(text[:end]):
            meant = named or _ABSOLUTE.match(text) or text.startswith("file:") or path.lower().endswith(SUFFIXES)
            if meant and os.path.isfile(os.path.expanduser(path)):
                return path, text[end:].lstrip()
    return None


def _ends(text: str) -> Iterator[int]:
    """Where a path that the text begins with may end: before a blank, the longest first."""
    line = text.split("\n", 1)[0]
    ends = [match.start() for match in re.finditer(r"\s", line[:_LONGEST])]
    return reversed(ends if len(line) > _LONGEST else [*ends, len(line)])


def _readings(written: str) -> Iterator[str]:
    """What a path that is written so may be."""
    written = written.rstrip()
    yield _plain(written)
    if "\\" in written:
        yield _ESCAPED.sub(r"\1", written)


def _plain(path: str) -> str:
    """A path, or that of a file's address (RFC 8089)."""
    if not path.startswith("file:"):
        return path
    try:
        place = urlsplit(path)
    except ValueError:
        return path
    host = "" if place.netloc in ("", "localhost") else f"//{place.netloc}"
    # Of an address, # and ? are no part; a terminal writes them as %23 and %3F, and one that does not means the file.
    rest = path.split("//", 1)[1].removeprefix(place.netloc) if "//" in path else path.removeprefix("file:")
    return host + (url2pathname(rest) if os.name == "nt" else unquote(rest))


def _word(text: str) -> tuple[str, str]:
    """What stands before the next blank, or in quotation marks, as a path."""
    quoted = _QUOTED.match(text)
    if quoted is not None:
        return _plain(quoted[1] or quoted[2] or ""), text[quoted.end() :]
    word = _WORD.match(text)
    if word is None:  # a backslash at the end
        return text, ""
    *_, path = _readings(word[0])
    return path, text[word.end() :]


def expanded(path: str) -> Path:
    """With `~` as the person's folder, and of a file's address its path."""
    return Path(os.path.expanduser(_plain(path)))
