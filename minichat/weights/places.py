"""Where things are kept on this machine, and how they are told to a person."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """Where converted models are, and what a person puts there: `MINICHAT_HOME`, or `minichat` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MINICHAT_HOME") or f"{cache}/minichat").expanduser().absolute()


def files_folder() -> Path:
    """Where a person puts published files that cannot be fetched, or that are to be taken instead."""
    return home() / "files"


def shown(path: Path) -> str:
    """A path for a person, who knows the own home folder."""
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):
        return str(path)


def gigabytes(size: float) -> str:
    """Bytes as the hub's pages show them."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def tell(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
