"""What Hugging Face's `datasets` writes: a Parquet file, or the folder of `save_to_disk`; pictures may lie within.

A row is read as a record of messages, ShareGPT, LLaVA or pairs is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.data.formats.lines import Value
from minichat.errors import DataError

MAGIC = b"PAR1"  # begins and ends a Parquet file
STATE = "state.json"  # what a folder of `save_to_disk` holds


def rows(path: Path, file: str) -> Iterator[Value | Problem]:
    """The rows as objects, counted from 1; a picture that lies within is `{"bytes", "path"}`.

    Raises `DataError` for a file that cannot be read.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{file}: to read it, install the library datasets (pip install datasets).") from None
    try:
        table = datasets.load_from_disk(os.fspath(path)) if path.is_dir() else _parquet(path)
        if isinstance(table, datasets.DatasetDict):
            names = ", ".join(map(repr, table))
            raise DataError(f"{file!r} holds several sets ({names}): name the folder of one.")
        count = 0
        stream = table.to_iterable_dataset() if isinstance(table, datasets.Dataset) else table
        for count, row in enumerate(stream.decode(False), start=1):
            yield Where(file, count), row
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        yield Problem(Where(file, 1), f"the table cannot be read ({reason}).")
        return
    if count == 0:
        yield Problem(Where(file, 1), "the table is empty: there is no row in it.")


def _parquet(path: Path) -> Any:
    import datasets

    with tempfile.TemporaryDirectory() as cache:  # streaming, it puts nothing there but a lock
        options = {"split": "train", "streaming": True, "cache_dir": cache}
        return datasets.load_dataset("parquet", data_files=os.fspath(path), **options)
