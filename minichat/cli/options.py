"""What the subcommands share: options, exit codes, output files, progress, and standard streams of any kind."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from minichat import __version__
from minichat.device import Dtype, Quantize
from minichat.errors import DataError, MiniChatError, PromptError

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat
    from minichat.web import Owned


# --- Standard input, output and error as a program may find them: closed, full, in a narrow encoding, with bytes that
# are no text.
#
# `prepare` is called once, where the command line begins. After that a character that the encoding of an output lacks
# is written as an escape (`\u4e2d`), a message for a person that cannot be written is lost in silence, and data that
# cannot be written is an `OutputError`. JSON goes out as bytes, in UTF-8 whatever the encoding.


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


# --- What the subcommands share: options, exit codes, errors as one line, output files, progress.


FAILED = 1
SOME_FAILED = 3
TERMINATED = 128 + signal.SIGTERM


class _Commands(TyperGroup):
    """Turns an error that a person can mend into one line and an exit code; any other is a defect and shows itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MiniChatError as error:
            typer.echo(f"minichat: {error}", err=True)
            raise typer.Exit(FAILED) from None


def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)] = False,
) -> None:
    """Talk about pictures, caption folders of them, and find them by words."""
    if version:
        typer.echo(f"minichat {__version__}")
        raise typer.Exit()


def commands(no_args_is_help: bool = True, **options: Any) -> typer.Typer:
    """A group of subcommands."""
    return typer.Typer(
        cls=_Commands,
        pretty_exceptions_enable=False,
        no_args_is_help=no_args_is_help,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


DEFAULT_MODEL = "auto"


def named(model: str) -> str:
    """The model that is meant; which one "auto" is, is said."""
    if model != DEFAULT_MODEL:
        return model
    from minichat.weights.registry import default_model

    chosen = default_model()
    typer.echo(f"The model is {chosen}.", err=True)
    return chosen


Model = Annotated[
    str,
    typer.Option("--model", help="A known name, a folder, or a hub id; auto: the built-in one.", callback=named),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision of the frozen parts.")]
Quantized = Annotated[Quantize | None, typer.Option("--quantize", help="Keep the LLM in 8 or 4 bits (bitsandbytes).")]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help="auto: spread the LLM over all GPUs, and the CPU if need be.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Check all weights against the hashes that were recorded.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Longest reply, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0: always the likeliest word; above: sampled.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Sample from the likeliest words of this probability.")]
Beams = Annotated[int | None, typer.Option("--num-beams", help="Above 1: beam search.")]
LengthPenalty = Annotated[
    float | None, typer.Option("--length-penalty", help="Of beams: below 1 short replies win more often.")
]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1: fewer repetitions.")]
KEPT = Path("runs/kept")
Kept = Annotated[
    Path, typer.Option("--set", metavar="FOLDER", help="Where the page keeps the replies that are to be learnt.")
]
Also = Annotated[
    list[str] | None, typer.Option("--also", metavar="MODEL", help="Another that a visitor of the page may choose.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed samples the same reply.")]


def load_bot(
    model: str,
    device: str,
    dtype: Dtype,
    quantize: Quantize | None = None,
    device_map: str | None = None,
    verify: bool = False,
) -> MiniChat:
    from minichat.inference.load import load

    chosen: Any = given(quantize=quantize, device_map=device_map, verify=verify or None)
    return load(model, device=device, dtype=dtype, **chosen)


def owned(folder: Path, also: Sequence[str] | None, model: str, keyed: bool, *how: Any) -> Owned:
    """What the page's owner has: the set of kept replies, and other models, loaded as this one is (`load_bot`).

    Those named in `also` are loaded at once, for visitors to choose among.
    """
    from minichat.device.placement import choose
    from minichat.web import Owned

    return Owned(folder, model, lambda name: load_bot(name, *how), partial(choose, *how[:4]), keyed, tuple(also or ()))


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given; what was not keeps the library's default, which has one home."""
    return {name: value for name, value in settings.items() if value is not None}


@contextmanager
def output(path: Path | None) -> Iterator[IO[bytes]]:
    """Stdout, or a new file; raises DataError if it exists or cannot be made. An empty one is not left behind."""
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    try:
        # Unbuffered: what could not be written is not tried again when the file is closed.
        file = open(path, "xb", buffering=0)  # noqa: SIM115 (closed below)
    except FileExistsError:
        raise DataError(f"{str(path)!r} exists already: remove it, or name another file.") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be made ({error.strerror}): check the folder.") from None
    try:
        with file:
            yield file
    finally:
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()


def progress(done: int, total: int) -> None:
    """A line on a terminal that overwrites itself; nothing in a log file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {total:,} pictures" + (os.linesep if done == total else ""))
        sys.stderr.flush()
