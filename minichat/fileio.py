"""Files and folders that are written whole or not at all, locks, and what is read as a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from minichat.errors import MiniChatError

# --- Files and folders that are written whole or not at all.


locks: ModuleType | None
try:
    import fcntl as locks
except ImportError:  # Windows
    locks = None

_UNFINISHED = ".unfinished"


@contextmanager
def new_folder(out: Path, error: type[MiniChatError]) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end, and is removed if anything fails before.

    What a killed process left there of its own attempt is removed first. Raises `error` if `out` is there already and
    not an empty folder, or cannot be written.
    """
    out = out.expanduser().absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise error(f"{out.name!r} exists already: remove it, or name another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(out)
        made, held = _make_unfinished(out)
    except OSError as failure:
        raise error(f"{out.name!r} cannot be made ({failure.strerror}): check the folder it is to be in.") from None
    try:
        yield made
        open_to_others(made)
        if os.name == "nt" and out.is_dir():  # elsewhere an empty folder gives way
            out.rmdir()
        os.replace(made, out)
    except OSError as failure:
        reason = failure.strerror or failure
        raise error(f"{out.name!r} cannot be written ({reason}): nothing was left behind.") from failure
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if held is not None:
            os.close(held)


def _make_unfinished(out: Path) -> tuple[Path, int | None]:
    """A new temporary folder, locked for as long as this process is at work in it."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_UNFINISHED, dir=out.parent))
        try:
            return made, _lock(made)
        except (BlockingIOError, FileNotFoundError):  # another process found it before it was locked, and removes it
            continue


def _remove_unfinished(out: Path) -> None:
    """Remove the temporary folders for `out` that no process is at work in."""
    for left in out.parent.iterdir():
        if left.name.startswith(f".{out.name}.") and left.name.endswith(_UNFINISHED):
            try:
                held = _lock(left)
            except OSError:
                continue
            if held is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process; None where the system has none.

    Raises `BlockingIOError` where another process holds it, and `FileNotFoundError` for a folder that is gone.
    """
    if locks is None:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        locks.flock(held, locks.LOCK_EX | locks.LOCK_NB)
        folder.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(held)
        raise
    except OSError:  # a file system without locks
        os.close(held)
        return None
    return held


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one process at a time into the block; the lock on the file `path` ends with the process, however it ends.

    `waiting` is called once where another process is in it. Raises `OSError` where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if locks is not None:
            try:
                locks.flock(file, locks.LOCK_EX | locks.LOCK_NB)
            except BlockingIOError:
                waiting()
                locks.flock(file, locks.LOCK_EX)
            except OSError:  # a file system without locks
                pass
        yield


@contextmanager
def new_file(out: Path, error: type[MiniChatError]) -> Iterator[IO[bytes]]:
    """A temporary file beside `out` that becomes `out` at the end, and is removed if anything fails before.

    Raises `error` if `out` is there already, or cannot be written.
    """
    out = out.expanduser().absolute()
    if out.exists():
        raise error(f"{out.name!r} exists already: remove it, or name another file.")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as failure:
        raise error(f"{out.name!r} cannot be made ({failure.strerror}): check the folder it is to be in.") from None
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        open_to_others(Path(temporary))
        os.replace(temporary, out)
    except OSError as failure:
        raise error(f"{out.name!r} cannot be written ({failure.strerror}): nothing was left behind.") from failure
    finally:
        Path(temporary).unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, also after a power cut, the old or the new one is there whole."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        open_to_others(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_disk(path: Path) -> None:
    """Past the system's buffers: a file's content, or a folder's list of names where the system lets that be asked."""
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folder, and some file systems sync none
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)  # Windows syncs no file that is opened to be read


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(name: str, error: type[MiniChatError]) -> Iterator[None]:
    """Raise `error`, in a sentence, where the disk does not take the file `name` in the block."""
    try:
        yield
    except OSError as failure:
        raise error(
            f"{name} cannot be written ({failure.strerror or failure}): make room or check the folder, and the same "
            "command goes on."
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, in readable letters of any script."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # of what is no Unicode that is JSON's escape


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line without its end, in readable letters of any script."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is no Unicode: escaped, it can be read back
        return json.dumps(record)
    return line


def open_to_others(made: Path) -> None:
    """What `tempfile` or safetensors makes is private: give it, and the files in it, the rights that a new one has."""
    mask = os.umask(0)
    os.umask(mask)
    made.chmod((0o777 if made.is_dir() else 0o666) & ~mask)
    for file in made.iterdir() if made.is_dir() else ():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def open_file(path: Path) -> IO[bytes]:
    """An ordinary file, opened to be read. A named pipe, which would be waited for without end, a socket and a device
    raise an `OSError` that says so, as all else that cannot be opened does.
    """
    sorts = {"a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR, "a disk": stat.S_ISBLK}
    mode = path.stat().st_mode  # asked before opening: to open a pipe waits for whoever writes to it
    for name, is_it in sorts.items():
        if is_it(mode):
            raise OSError(errno.EINVAL, f"it is {name}, not a file")
    return open(path, "rb")
