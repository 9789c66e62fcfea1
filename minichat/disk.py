"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minichat.errors import MiniChatError


@contextmanager
def new_folder(out: Path, error: type[MiniChatError]) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end, and is removed if anything fails before.

    Raises `error` if `out` is there already and not an empty folder, or cannot be written.
    """
    out = out.expanduser().absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise error(f"{out.name!r} exists already: remove it, or name another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as failure:
        raise error(f"{out.name!r} cannot be made ({failure.strerror}): check the folder it is to be in.") from None
    try:
        yield made
        _open_to_others(made)
        os.replace(made, out)  # an empty folder gives way
    except OSError as failure:
        reason = failure.strerror or failure
        raise error(f"{out.name!r} cannot be written ({reason}): nothing was left behind.") from failure
    finally:
        shutil.rmtree(made, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, also after a power cut, the old or the new one is there whole."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _open_to_others(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, in readable letters of any script."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_to_others(made: Path) -> None:
    """What `tempfile` makes is private: give it, and the files in it, the rights that a new one has."""
    mask = os.umask(0)
    os.umask(mask)
    made.chmod((0o777 if made.is_dir() else 0o666) & ~mask)
    for file in made.iterdir() if made.is_dir() else ():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
