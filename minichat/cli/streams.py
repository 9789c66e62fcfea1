"""Standard input, output and error as a program may find them: closed, full, in a narrow encoding, with bytes that are
no text.

`prepare` is called once, where the command line begins. After that a character that the encoding of an output lacks is
written as an escape (`\\u4e2d`), a message for a person that cannot be written is lost in silence, and data that cannot
be written is an `OutputError`. JSON goes out as bytes, in UTF-8 whatever the encoding.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from minichat.errors import DataError, MiniChatError, PromptError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_TEXT = "\udc80"  # stands in a line for bytes that cannot be read


class OutputError(MiniChatError, OSError):
    """Standard output cannot be written."""

    def __str__(self) -> str:
        return f"Standard output cannot be written ({self.strerror}): make room, or send it elsewhere."


class InputError(DataError):
    """Standard input cannot be read."""


def prepare() -> None:
    """Make the three streams safe to use; a closed one becomes one that cannot be used."""
    # A descriptor that stays free would be given to the next file that is opened, and be written to as if it were this
    # stream. Opened for the wrong direction it is taken, and to use it is an error (as gnulib's stdopen does it).
    closed = (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))
    for name, direction, mode in closed:
        if getattr(sys, name) is None:
            stream = open(os.open(os.devnull, direction), mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # as Python's own: kept, so that it is never closed
    sys.stdout = _guarded(sys.stdout, lossy=False)
    sys.stderr = _guarded(sys.stderr, lossy=True)


def _guarded(stream: TextIO, lossy: bool) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # somebody's own
        return stream
    raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # unbuffered (python -u), the buffer is the file itself
    return io.TextIOWrapper(
        io.BufferedWriter(_Guarded(raw, lossy)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Guarded(io.RawIOBase):
    """A file whose first failure to be written is an `OutputError`, or none if `lossy`; all later ones are silent.

    So nothing is left for the interpreter to fail on when it flushes its streams at the end.
    """

    def __init__(self, raw: io.RawIOBase, lossy: bool) -> None:
        self._raw, self._lost = raw, lossy

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int | None:
        try:
            return self._raw.write(data)
        except OSError as error:
            if self._lost:
                return len(data)
            self._lost = True
            if error.errno == errno.EPIPE or isinstance(error, BrokenPipeError):
                raise
            raise OutputError(error.errno, reason(error)) from None


def reason(error: OSError) -> str:
    """Why a stream cannot be used."""
    return "it is closed" if error.errno == errno.EBADF else str(error.strerror or error)


class Lines:
    """Standard input line by line: `lines(prompt)` returns the next without its end, and prompts for nothing.

    A line is UTF-8, or else in the encoding that the system says; a byte order mark is left out, and one of UTF-16
    says what the whole is in.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream  # which closes its buffer when nobody has it any more
        self._encoding = stream.encoding or "utf-8"
        self._decoded: Iterator[str] | None = None  # of UTF-16
        self.number = 0  # of the line that was read last, from 1

    def __call__(self, prompt: str = "") -> str:
        """Raises `EOFError` at the end, `PromptError` for a line that is no text, `InputError` if nothing is read."""
        try:
            raw = self._stream.buffer.readline() if self._decoded is None else b""
            if self.number == 0 and raw.startswith(_UTF16):
                self._decoded = _lines_of_utf16(raw + self._stream.buffer.read())
        except (OSError, ValueError) as error:  # ValueError: Python has closed it
            why = reason(error) if isinstance(error, OSError) else "it is closed"
            raise InputError(f"Standard input cannot be read ({why}): give it a file, a pipe or a terminal.") from None
        if self._decoded is not None:
            line = next(self._decoded, None)
        else:
            line = self._text(raw.removeprefix(codecs.BOM_UTF8)) if raw else None
        if line is None:
            raise EOFError
        self.number += 1
        return checked(line.rstrip("\r\n"))

    def _text(self, raw: bytes) -> str:
        for encoding in ("utf-8", self._encoding):
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError:
                continue
        return _NO_TEXT


def _lines_of_utf16(data: bytes) -> Iterator[str]:
    text = codecs.getincrementaldecoder("utf-16")("surrogatepass").decode(data)
    return iter(re.split("\r\n|\n|\r", text + _NO_TEXT * (len(data) % 2)))


def checked(line: str) -> str:
    """The line. Raises `PromptError` where it holds what is no text."""
    if "\0" in line:
        raise PromptError("A null character is no text: was this written in an encoding other than UTF-8?")
    try:
        line.encode()
    except UnicodeEncodeError:
        raise PromptError("Not all of these bytes are text in UTF-8: save or send them in UTF-8.") from None
    return line
