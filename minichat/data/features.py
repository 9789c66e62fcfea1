"""What the frozen eyes see, computed once: the bridge's output of every picture, kept on disk.

A cache is a folder. `features.json` says what computed it. Each process that fills it has a shard of its own: its
records (n · D numbers each) end to end in `records-000.bin`, and for each record, once it is whole, an entry in
`journal-000.bin`: the SHA-256 of the picture's file and the record's CRC-32. `places-000.bin` remembers where on disk
the files are, so that one that has not changed since is not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minichat.data.example import Member, StoredPicture
from minichat.data.tables import Cell
from minichat.disk import replace_file
from minichat.errors import DataError, shown
from minichat.images import READING

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processing import MiniChatProcessor

FACTS = "features.json"
KEY, PLACE, SUM = 32, 16, 4  # bytes of a content's hash, of a place's, of a check sum
_FORMAT = "minichat-features-2"


@dataclass(frozen=True)
class Origin:
    """What features were computed by: they are of no use with anything else."""

    vision_model: str  # hashes of all weights as they are in memory, and of the configuration
    bridge: str
    preprocessing: str
    dtype: str
    shape: tuple[int, int]  # (n, D)

    @classmethod
    def of(cls, model: MiniChatForConditionalGeneration, processor: MiniChatProcessor) -> Origin:
        """Of what this model and its processor compute, in the precision in which they are loaded."""
        from PIL import __version__ as pillow

        from minichat.weights.identity import identity

        config = model.config
        held = {
            "vision_model": identity(model.vision_model, config.vision_config),
            "bridge": identity(model.bridge, config.bridge_config),
        }
        pixels = processor.image_processor
        # Pillow resizes alike within a major version.
        said = f"{pixels.size['height']} {pixels.image_mean} {pixels.image_std} Pillow {pillow.split('.')[0]} {READING}"
        shape = (model.config.num_image_tokens, model.config.image_feature_size)
        return cls(**held, preprocessing=said, dtype=str(_dtype(model)).removeprefix("torch."), shape=shape)

    def to_json(self) -> dict[str, Any]:
        return {"format": _FORMAT, **vars(self), "shape": list(self.shape)}


def _dtype(model: MiniChatForConditionalGeneration) -> torch.dtype:
    """The precision in which the bridge computes: that of its first floating-point weight, or of the encoder's."""
    weights = [*model.bridge.parameters(), *model.vision_model.parameters()]
    return next(weight.dtype for weight in weights if weight.is_floating_point())


class FeatureCache:
    """Pictures → their features (n, D), read from disk as they are asked for, by any number of processes.

    A picture is known by its file's content. A file that has the size and the time of its last change that it had when
    it was read is taken to have the same content; any other is read again.
    """

    def __init__(self, folder: str | os.PathLike[str], origin: Origin) -> None:
        """Open a cache. Raises `DataError` where there is none, it is damaged, or `origin` is not what computed it."""
        self.folder = Path(folder)
        self.origin = origin
        _check_facts(self.folder, origin)
        self._size = record_size(origin)
        self._open()

    def _open(self) -> None:
        entries, homes, places = [], [], []
        self._records: list[NDArray[np.uint8]] = []
        for number in shards(self.folder):
            file = shard_file(self.folder, "records", number)
            journal = read_table(shard_file(self.folder, "journal", number), KEY + SUM)
            whole = min(len(journal), file.stat().st_size // self._size if file.exists() else 0)
            if whole:
                homes.append(np.stack([np.full(whole, len(self._records)), np.arange(whole)], axis=1))
                self._records.append(np.memmap(file, np.uint8, "r", shape=(whole, self._size)))
            entries.append(journal[:whole])
            places.append(read_table(shard_file(self.folder, "places", number), PLACE + KEY))
        self._homes = np.concatenate([np.empty((0, 2), np.int64), *homes])  # of each entry: file and record
        self._entries = np.concatenate([np.empty((0, KEY + SUM), np.uint8), *entries])
        self._where = np.concatenate([np.empty((0, PLACE + KEY), np.uint8), *places])
        self._contents, self._places = Lookup(self._entries[:, :KEY]), Lookup(self._where[:, :PLACE])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "origin": self.origin}  # another process maps the files for itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        """How many pictures, by their content."""
        return len(self._contents)

    def __contains__(self, picture: object) -> bool:
        return isinstance(picture, StoredPicture) and self.find(self.key(picture)) is not None

    def __getitem__(self, picture: StoredPicture) -> Tensor:
        """(n, D). Raises `DataError` for a picture that is missing, is not in the cache, or whose record is damaged."""
        key = self.key(picture)
        for entry in self._contents.rows(key):
            if (data := self._record(entry)) is not None:
                return torch.frombuffer(data, dtype=getattr(torch, self.origin.dtype)).view(self.origin.shape)
        file = self.file_of(key)
        if file is None:
            raise DataError(
                f"the picture {shown(picture.name)} is not among the features in {self.folder.name!r}: it is new or "
                "has changed; compute them again, which only adds what is missing."
            )
        raise DataError(
            f"the features of the picture {shown(picture.name)} are damaged, in {file} of {self.folder.name!r}: "
            "compute them again, which puts sound ones there."
        )

    def holds(self, key: bytes) -> bool:
        """Whether a content's features are here as they were written."""
        return any(self._record(entry) is not None for entry in self._contents.rows(key))

    def file_of(self, key: bytes) -> str | None:
        """The name of the file that has a content's features, sound or not; None where none has."""
        entry = self.find(key)
        return None if entry is None else Path(str(self._records[self._homes[entry][0]].filename)).name

    def _record(self, entry: int) -> bytearray | None:
        """An entry's bytes, or None where they are not those that were written."""
        shard, record = self._homes[entry]
        data = bytearray(self._records[shard][record].tobytes())
        return data if zlib.crc32(data).to_bytes(SUM, "little") == self._entries[entry, KEY:].tobytes() else None

    def find(self, key: bytes) -> int | None:
        """The number of a content's entry, or None."""
        return self._contents.find(key)

    def key(self, picture: StoredPicture) -> bytes:
        """The picture's content; its file is read only where it is not known, or has changed."""
        place = place_of(picture)
        known = None if place is None else self.key_at(place)
        return bytes.fromhex(picture.key()) if known is None else known

    def key_at(self, place: bytes) -> bytes | None:
        """The content that a place had when it was last read, or None."""
        entry = self._places.find(place)
        return None if entry is None else self._where[entry, PLACE:].tobytes()


class Lookup:
    """Finds which row of a table (K, bytes) of hashes is a given one; a hash that is there twice counts once."""

    def __init__(self, table: NDArray[np.uint8]) -> None:
        heads = np.ascontiguousarray(table[:, :8]).view(">u8").ravel().astype(np.uint64)
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]
        self._table = table

    def __len__(self) -> int:
        return len(np.unique(np.ascontiguousarray(self._table), axis=0))

    def find(self, wanted: bytes) -> int | None:
        """The number of the last such row, or None."""
        return next(self.rows(wanted), None)

    def rows(self, wanted: bytes) -> Iterator[int]:
        """The numbers of all such rows, the last first."""
        head = np.uint64(int.from_bytes(wanted[:8], "big"))
        for place in range(int(np.searchsorted(self._heads, head, "right")) - 1, -1, -1):
            if self._heads[place] != head:
                return
            row = int(self._order[place])
            if self._table[row].tobytes() == wanted:
                yield row


def record_size(origin: Origin) -> int:
    """Bytes of one picture's features."""
    return origin.shape[0] * origin.shape[1] * int(getattr(torch, origin.dtype).itemsize)


def shard_file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:03}.bin"


def shards(folder: Path) -> list[int]:
    """The numbers of the shards that are there."""
    return sorted(int(file.stem.rpartition("-")[2]) for file in folder.glob("journal-*.bin"))


def read_table(file: Path, width: int) -> NDArray[np.uint8]:
    """The whole entries of a file (K, width); one that was being written when its process was killed is left out."""
    data = np.fromfile(file, np.uint8) if file.exists() else np.empty(0, np.uint8)
    return data[: len(data) // width * width].reshape(-1, width)


def place_of(picture: StoredPicture) -> bytes | None:
    """Where a picture's file is, its size and its last change, as a hash; None for one in memory.

    Raises `DataError` where the file is missing.
    """
    source = picture.source
    if isinstance(source, bytes):
        return None
    inside: tuple[object, ...] = ()
    if isinstance(source, Cell):
        path, inside = source.file, (source.column, source.row, source.steps)
    elif isinstance(source, Member):
        path, inside = source.tar, (source.start, source.size)
    else:
        path = source
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        picture.read()  # which says what is wrong
        return None
    facts = (os.fsencode(os.path.abspath(path)), inside, found.st_size, found.st_mtime_ns)
    return hashlib.blake2b(repr(facts).encode(), digest_size=PLACE).digest()


def begin(folder: Path, origin: Origin) -> None:
    """Make the cache's folder, or see that what is there is one of the same origin. Raises `DataError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / FACTS).exists():
            if any(not name.startswith(".") for name in os.listdir(folder)):
                raise DataError(f"{folder.name!r} exists and holds no features: name another folder.")
            replace_file(folder / FACTS, (json.dumps(origin.to_json(), indent=2) + "\n").encode())
    except OSError as error:
        raise DataError(f"{folder.name!r} cannot be made ({error.strerror}): check the folder.") from None
    _check_facts(folder, origin)


def _check_facts(folder: Path, origin: Origin) -> None:
    try:
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder.name!r} has no {FACTS}: no features are kept there.") from None
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{FACTS} in {folder.name!r} cannot be read: remove the folder, and compute again.") from None
    for field, wanted in origin.to_json().items():
        there = found.get(field) if isinstance(found, dict) else None
        if there != wanted:
            raise DataError(
                f"The features in {folder.name!r} were not computed by this model: their {field} is "
                f"{_shown(there)}, and the model's is {_shown(wanted)}; name another folder, or remove this one."
            )


def _shown(value: Any) -> str:
    """A value as it is, a fingerprint by its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
