"""Tables on disk, Parquet and Arrow: their rows one by one, and single cells of them.

A row is a dict, as pyarrow reads it. Bytes in it are a `Cell`, a place in the file, until they are read: so a table of
any size costs the memory of its words. A cell is read with its whole row group; of a file whose groups are larger than
`GROUP_BYTES` the bytes themselves are held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from minichat.disk import open_file
from minichat.errors import DataError, sentence

PARQUET = b"PAR1"  # begins and ends a Parquet file
ARROW = b"ARROW1"  # begins an Arrow file; a stream, which `datasets` writes, begins with its first message
GROUP_BYTES = 64 * 1024 * 1024
_AT_ONCE = 16  # rows
_LEAST = 256  # bytes: what is smaller is kept as it is


@dataclass(frozen=True)
class Cell:
    """Bytes within a table: of the row `row`, counted from 0, in `column`, by these steps into lists and structs."""

    file: Path
    row: int
    column: str
    steps: tuple[int | str, ...]
    size: int

    def read(self) -> bytes:
        """Raises `OSError` or `ValueError`, pyarrow's own, where the file is not what it was."""
        found = os.stat(self.file)
        value = _table(self.file, found.st_mtime_ns).cell(self.column, self.row)
        for step in self.steps:
            value = value[step]
        if not isinstance(value, bytes) or len(value) != self.size:
            raise ValueError("the table has changed")
        return value


def is_table(path: Path) -> bool:
    """Whether a file is a table by its content, or an Arrow stream by its name."""
    if path.suffix.lower() == ".arrow":
        return True
    with open_file(path) as file:
        return file.read(len(ARROW)).startswith((PARQUET, ARROW))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Raises `OSError` or `ValueError`, pyarrow's own, for a file that is damaged, `DataError` without pyarrow."""
    table = _table(path, os.stat(path).st_mtime_ns)
    for number, row in enumerate(table.rows()):
        yield {
            name: _placed(value, Cell(path, number, name, (), 0)) if table.seeks(number) else value
            for name, value in row.items()
        }


def _placed(value: Any, cell: Cell) -> Any:
    """The value with cells in place of its bytes."""
    if isinstance(value, bytes) and len(value) >= _LEAST:
        return Cell(cell.file, cell.row, cell.column, cell.steps, len(value))
    steps: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [
        (step, _placed(one, Cell(cell.file, cell.row, cell.column, (*cell.steps, step), 0))) for step, one in steps
    ]
    if isinstance(value, dict):
        return dict(inner)
    return [one for _, one in inner] if isinstance(value, list) else value


class _Parquet:
    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(os.fspath(path), pre_buffer=False)
        facts = self._file.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        self._small = [group.total_byte_size <= GROUP_BYTES for group in groups]
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(_AT_ONCE, use_threads=False):
            yield from batch.to_pylist()

    def seeks(self, row: int) -> bool:
        return self._small[self._group(row)]

    def cell(self, column: str, row: int) -> Any:
        group = self._group(row)
        return _column(self, group, column)[row - self._starts[group]].as_py()

    def _group(self, row: int) -> int:
        import bisect

        return min(bisect.bisect_right(self._starts, row) - 1, len(self._small) - 1)

    def column(self, group: int, column: str) -> Any:
        return self._file.read_row_group(group, columns=[column], use_threads=False)[column]


@lru_cache(maxsize=4)
def _column(table: _Parquet, group: int, column: str) -> Any:
    """A column of a row group; few are kept, for pictures are mostly asked for in their order."""
    return table.column(group, column)


class _Arrow:
    """Read in place: the file's pages are memory that the system can take back."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        mapped = pa.memory_map(os.fspath(path))
        is_file = mapped.read(len(ARROW)) == ARROW
        mapped.seek(0)
        self._table = (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all()

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(_AT_ONCE):
            yield from batch.to_pylist()

    def seeks(self, row: int) -> bool:
        return True

    def cell(self, column: str, row: int) -> Any:
        return self._table[column][row].as_py()


@lru_cache(maxsize=16)
def _table(path: Path, changed: int) -> _Parquet | _Arrow:
    """A file, opened; `changed` is when it was last written."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DataError(f"{path.name}: to read it, install the library pyarrow (pip install datasets).") from None
    with open_file(path) as file:
        parquet = file.read(len(PARQUET)) == PARQUET
    return _Parquet(path) if parquet else _Arrow(path)


def reason(error: Exception) -> str:
    """pyarrow's words in short."""
    return sentence(error)[:200]
