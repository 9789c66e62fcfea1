"""Folders of weights: where they are, what is in them, and errors that name the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minichat.errors import ModelError, sentence
from minichat.weights import hub

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = "model.safetensors"


def find_folder(name: str, what: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """A folder, or a hub id's files that match `patterns`. Raises `ModelError`; `what` says what was looked for."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{what} {name!r} is a file: give the folder that holds its config.json and weights.")
    nowhere = f"{what} {name!r} is not there: it is no folder that exists"
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{nowhere}, and no hub id of the form owner/name.")
    return from_hub(name, patterns, nowhere + ",", revision)


def from_hub(name: str, patterns: Sequence[str], nowhere: str, revision: str | None = None) -> Path:
    """The local copy of a repository's files; from the cache where there is no network. `nowhere` begins the error."""
    try:
        return hub.snapshot(name, patterns, revision)
    except hub.Absent:
        raise ModelError(f"{nowhere} and the hub has no such repository, or it is private.") from None
    except hub.Unreachable:
        raise ModelError(
            f"{nowhere} and as a hub id it is not in the local cache and the hub cannot be reached: go online once."
        ) from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a folder. Raises `ModelError` where it is missing or is none."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"The folder {folder.name!r} has no {name}: it is not a model, or not a whole one.") from None
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{name} in {folder.name!r} cannot be read as JSON: download or convert it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{name} in {folder.name!r} is not a JSON object: download or convert it again.")
    return content


def weight_files(folder: Path, base: str = WEIGHTS) -> list[str]:
    """The names of a folder's weight files, by its index where it has one. They may be missing.

    Raises `ModelError` for an index that names none, or points out of its folder.
    """
    index = f"{base}.index.json"
    if not (folder / index).is_file():
        return [base]
    return sorted(set(weight_map(folder, index).values()))


def weight_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor → file, as an index says. Raises `ModelError` as `weight_files` does."""
    listed = read_json(folder, index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{index} in {folder.name!r} names no weights: download or convert the model again.")
    files = {str(tensor): str(file) for tensor, file in listed.items()}
    for file in files.values():
        if Path(file).name != file:
            raise ModelError(f"The weights of {folder.name!r} point out of their folder, to {file!r}: that is refused.")
    return files


def check_header(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """A file's tensors: name → shape. Raises `ModelError`, naming it, unless it is a whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / name, framework="pt") as file:
            return {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"The folder {folder.name!r} has no {name}: some of the weights are missing.") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name} in {folder.name!r} is damaged or cut off ({sentence(error)}): download or convert it again."
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing its own report: what is wrong is raised, and a small model needs no progress."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
