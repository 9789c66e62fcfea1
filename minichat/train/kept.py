"""A run's `config.yaml`, which a run that goes on is held against: written with a checksum, and read with care."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minichat.disk import replace_file, told
from minichat.errors import ModelError, SettingsError
from minichat.train.checkpoint import Checkpoints
from minichat.train.config import Config, plain, read_config, write_yaml
from minichat.train.files import CHECKPOINTS, CONFIG
from minichat.train.typed import build

_SUM = re.compile(rb"# sha256 of what follows: ([0-9a-f]{64})\r?\n")


def keep_config(out: Path, config: Config) -> None:
    """Write a configuration. Raises `SettingsError` where the disk does not take it."""
    text = write_yaml(config).encode()
    with told(CONFIG, SettingsError):
        replace_file(out / CONFIG, f"# sha256 of what follows: {hashlib.sha256(text).hexdigest()}\n".encode() + text)


def kept_config(out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The configuration of the run in a folder, as a plain dict.

    Where the file is damaged the newest checkpoint tells it, and it is written anew. Raises `SettingsError` where no
    checkpoint does.
    """
    try:
        return plain(_read(out / CONFIG))
    except SettingsError as error:
        damage = f"{CONFIG} in {out.name!r} is damaged ({str(error).rstrip('.')})"
    try:
        saved = Checkpoints(out / CHECKPOINTS).last(say, tidy=False)
    except ModelError:
        saved = None
    if saved is None or "config" not in saved.facts:
        raise SettingsError(
            f"{damage}, and no checkpoint tells what it held: put back a copy of it, or begin anew in another out."
        )
    config = build(Config, saved.facts["config"])
    keep_config(out, config)
    say(f"{damage}: it is written anew, as the checkpoint of step {saved.step} has it.")
    return plain(config)


def _read(path: Path) -> Config:
    """Raises `SettingsError` for a file that is not as it was written; one of an earlier version has no checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"it cannot be read: {error.strerror}") from None
    written = _SUM.match(content)
    if written and hashlib.sha256(content[written.end() :]).hexdigest() != written[1].decode():
        raise SettingsError("what it holds does not match its checksum")
    return read_config(path)
