"""What an index keeps on disk: one SQLite file, which is whole at any moment, whoever is killed while writing it.

`files` says which picture each file holds, `pictures` what the model saw in it. A picture is known by the pixels that
the model was shown: files that hold the same picture share it, and one that is renamed is not seen anew.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minichat.errors import DataError

_TABLES = (
    "CREATE TABLE IF NOT EXISTS pictures (key BLOB PRIMARY KEY, embeddings BLOB NOT NULL, patches BLOB)",
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, key BLOB NOT NULL)",
)
_SAVE_EVERY = 2.0  # seconds: at most so much work is lost
_PATIENCE = 60.0  # seconds that another process's writing is waited for


@dataclass(frozen=True)
class Table:
    """All that is compared: each file, by its path below the folder, its picture's key, and unit vectors (N, n, E)."""

    paths: tuple[bytes, ...]
    keys: tuple[bytes, ...]
    embeddings: Tensor  # float16


class Store:
    """The file. `shape` is a picture's (n, E), `width` a patch's W. Raises `DataError` where it cannot be used."""

    def __init__(self, file: Path, shape: tuple[int, int], width: int) -> None:
        self.file, self._shape, self._width = file, shape, width
        with self._connected() as database, database:
            for statement in _TABLES:
                database.execute(statement)

    def files(self) -> dict[bytes, tuple[int, int]]:
        """Path → size in bytes, and when the file was changed, as `Writer.add_file` was told."""
        with self._connected() as database:
            return {path: (size, at) for path, size, at in database.execute("SELECT path, size, changed FROM files")}

    def table(self) -> Table:
        """All files, in the order of their paths."""
        paths, keys, numbers = list[bytes](), list[bytes](), bytearray()
        with self._connected() as database:
            rows = database.execute("SELECT path, key, embeddings FROM files JOIN pictures USING (key) ORDER BY path")
            for path, key, seen in rows:  # one by one: all embeddings are held once
                paths.append(path)
                keys.append(key)
                numbers += seen
        embeddings = torch.frombuffer(numbers, dtype=torch.float16) if numbers else torch.empty(0, dtype=torch.float16)
        return Table(tuple(paths), tuple(keys), embeddings.view(-1, *self._shape))

    def patches(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """What was kept of each picture (1 + P, W), or None."""
        with self._connected() as database:
            found = [database.execute("SELECT patches FROM pictures WHERE key = ?", (key,)).fetchone() for key in keys]
        return [None if row is None or row[0] is None else self._patches(row[0]) for row in found]

    def _patches(self, blob: bytes) -> Tensor:
        return torch.frombuffer(bytearray(blob), dtype=torch.bfloat16).view(-1, self._width)

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """For one process at a time. Whatever ends the block, all that was added is kept."""
        with self._connected() as database:
            try:
                yield Writer(database)
            finally:
                database.commit()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, timeout=_PATIENCE)) as database:
                yield database
        except sqlite3.OperationalError as error:
            raise DataError(
                f"The index {str(self.file)!r} cannot be used ({error}): check the disk, or keep it in another folder."
            ) from None
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"The index {str(self.file)!r} is damaged ({error}): remove that file, and it is made again."
            ) from None


class Writer:
    """Adds to the store, in transactions of a few seconds' work."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._saved = time.monotonic()

    def __contains__(self, key: object) -> bool:
        return self._database.execute("SELECT 1 FROM pictures WHERE key = ?", (key,)).fetchone() is not None

    def add_picture(self, key: bytes, embeddings: Tensor, patches: Tensor | None) -> None:
        """What was seen in a picture: (n, E), and (1 + P, W) if that is kept. The files that hold it are added next."""
        seen = embeddings.to(torch.float16).cpu().numpy().tobytes()
        kept = None if patches is None else patches.to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes()
        self._database.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", (key, seen, kept))

    def add_file(self, path: bytes, size: int, changed: int, key: bytes) -> None:
        self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (path, size, changed, key))
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._database.commit()
            self._saved = time.monotonic()

    def forget(self, paths: Iterable[bytes]) -> None:
        """Leave files out."""
        self._database.executemany("DELETE FROM files WHERE path = ?", ((path,) for path in paths))

    def sweep(self) -> None:
        """Remove the pictures that no file holds any more."""
        self._database.execute("DELETE FROM pictures WHERE key NOT IN (SELECT key FROM files)")
