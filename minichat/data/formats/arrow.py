"""What Hugging Face's `datasets` writes: Parquet files, or the folder of `save_to_disk`; pictures may lie within.

A source is a file, a folder of them, or a pattern such as `data/train-*.parquet`. A row is read as a record of
messages, ShareGPT, LLaVA or pairs is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from minichat.data import tables
from minichat.data.example import Problem, Where
from minichat.data.formats.lines import Value
from minichat.disk import open_file
from minichat.errors import DataError, listing

STATE = "state.json"  # what a folder of `save_to_disk` holds
SETS = "dataset_dict.json"  # and where it is of several sets
ENDING = ".parquet"


def is_saved(folder: Path) -> bool:
    """Whether a folder is one of `save_to_disk`."""
    return any((folder / name).is_file() for name in (STATE, SETS))


def is_folder(folder: Path) -> bool:
    """Whether a folder holds Parquet files, as one of the Hugging Face hub does."""
    return bool(_shards(folder))


def files(folder: Path, shown: str) -> list[str]:
    """The tables of a folder, in order. Raises `DataError` where it holds several sets, or none."""
    if (folder / SETS).is_file():
        raise _several(shown, (entry.parent.name for entry in folder.glob(f"*/{STATE}")))
    if (folder / STATE).is_file():
        return [os.path.join(shown, name) for name in _saved(folder / STATE, shown)]
    found = _shards(folder)
    # The hub's own names: train-00000-of-00002.parquet.
    sets = {path.stem.split("-")[0] for path in found if "-of-" in path.stem}
    if len(sets) > 1:
        raise _several(shown, sets, f"/…/{sorted(sets)[0]}-*{ENDING}")
    if not found:
        raise DataError(f"{shown!r} holds no table: name a Parquet file, or a folder of them.")
    return [os.path.join(shown, os.path.relpath(path, folder)) for path in found]


def rows(path: Path, file: str) -> Iterator[Value | Problem]:
    """The rows of one table as objects, counted from 1; bytes in them are places in the file.

    Raises `DataError` for a file that cannot be read.
    """
    count = 0
    try:
        with open_file(path):  # or it is said why not
            pass
        for count, row in enumerate(tables.rows(path), start=1):
            yield Where(file, count), row
    except FileNotFoundError:
        raise DataError(f"{file} was not found: check the path.") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        yield Problem(Where(file, count + 1), f"the table cannot be read ({tables.reason(error)}).")
        return
    if count == 0:
        yield Problem(Where(file, 1), "the table is empty: there is no row in it.")


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ENDING}")) or sorted(folder.glob(f"data/*{ENDING}"))


def _saved(state: Path, shown: str) -> list[str]:
    try:
        told = json.loads(state.read_text(encoding="utf-8"))
        return [file["filename"] for file in told["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{STATE} in {shown!r} cannot be read: save the data set again.") from None


def _several(shown: str, sets: Iterable[str], pattern: str = "") -> DataError:
    named = f"its files by a pattern, such as {shown}{pattern}" if pattern else "the folder of one"
    return DataError(f"{shown!r} holds several sets ({listing(sorted(sets))}): name {named}.")
