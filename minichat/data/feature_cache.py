"""The feature cache: what the frozen vision side makes of each picture, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minichat.data.example import Cell, Member, StoredPicture, Where
from minichat.device.memory import memory_errors
from minichat.errors import DataError, MiniChatError, SettingsError, shown, some
from minichat.fileio import locked, replace_file
from minichat.images import READING

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processor import MiniChatProcessor


# --- What the frozen eyes see, computed once: the bridge's output of every picture, kept on disk.
#
# A cache is a folder. `features.json` says what computed it. Each process that fills it has a shard of its own: its
# records (n · D numbers each) end to end in `records-000.bin`, and for each record, once it is whole, an entry in
# `journal-000.bin`: the SHA-256 of the picture's file and the record's CRC-32. `places-000.bin` remembers where on
# disk the files are, so that one that has not changed since is not read again.


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

        from minichat.weights.checkpoint_io import identity

        config = model.config
        held = {
            "vision_model": identity(model.vision_model, config.vision_config),
            "bridge": identity(model.bridge, config.bridge_config),
        }
        pixels = processor.image_processor
        # Pillow resizes alike within a major version.
        said = f"{pixels.fit} {pixels.image_mean} {pixels.image_std} Pillow {pillow.split('.')[0]} {READING}"
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

    A picture is known by its file's content, and where an instructed Q-Former reads it, by what is asked of it, too. A
    file that has the size and the time of its last change that it had when it was read is taken to have the same
    content; any other is read again.
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
        """What its features are kept under; its file is read only where it is not known, or has changed."""
        place = place_of(picture)
        known = None if place is None else self.content_at(place)
        return asked(bytes.fromhex(picture.key()) if known is None else known, picture.question)

    def content_at(self, place: bytes) -> bytes | None:
        """The content that a place had when it was last read, or None."""
        entry = self._places.find(place)
        return None if entry is None else self._where[entry, PLACE:].tobytes()


def asked(content: bytes, question: str) -> bytes:
    """The key of a picture's features: its content, and what is asked of it where they depend on that."""
    return hashlib.sha256(content + question.encode()).digest() if question else content


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


def init_folder(folder: Path, origin: Origin) -> None:
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


# --- The pass that computes features: every picture once through the vision encoder and the bridge, to a cache on
# disk.


_SAVE_EVERY = 2.0  # seconds: at most so much work is lost
_TOO_MANY = "batch_size is {}, and so many pictures do not fit into memory: lower it; features so far are kept."
_AT_ONCE = 10_000  # pictures that are listed at a time


def encode(
    model: MiniChatForConditionalGeneration,
    processor: MiniChatProcessor,
    pictures: Iterable[tuple[Where, StoredPicture]],
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
    damaged: Callable[[Where, StoredPicture, str], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> FeatureCache:
    """Compute the features of every picture that `folder` does not hold yet, and keep them there.

    A pass that was stopped, however it was, goes on where it stood. Of several processes each computes its own part,
    given the same pictures; what the others have computed is there when the cache is next opened.

    Args:
        model, processor: their vision encoder, bridge and preprocessing are used, in the model's precision.
        pictures: each with the place of its record.
        folder: a new folder, or one that holds features of the same origin.
        batch_size: pictures that are encoded together.
        workers: processes that open pictures ahead of time.
        rank, processes: which part this process does.
        progress: is told how many of the pictures have been passed.
        say: is told of features that were kept and are damaged on the disk; they are computed anew.
        damaged: is told of each picture that cannot be opened, and why, and the pass goes on; None: that ends it.

    Raises `DataError`, with file and line, for a picture that cannot be opened, and for a folder of another origin or
    that cannot be written.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
    origin, folder = Origin.of(model, processor), Path(folder)
    init_folder(folder, origin)
    training = model.training
    model.eval()
    try:
        with _Shard(folder, rank, origin) as shard:
            known = FeatureCache(folder, origin)
            encoder = _Encoder(model, processor, shard, batch_size)
            for part in _parts(pictures, rank, processes):
                for (number, where, picture), found in zip(part, _opened(part, known, processor, workers), strict=True):
                    if isinstance(found, _Opened):
                        encoder.add(found)
                    elif damaged is None:
                        raise DataError(f"{where}: {found}")
                    else:
                        damaged(where, picture, str(found))
                    progress(number)
            encoder.finish()
        if encoder.renewed:
            say(f"Features in {some(encoder.renewed)} of {folder.name!r} were damaged: those are computed anew.")
    finally:
        model.train(training)
    return FeatureCache(folder, origin)


_Item = tuple[int, Where, StoredPicture]  # the picture's number, from 1


@dataclass(frozen=True)
class _Opened:
    """A picture's content, and its pixels (1, 3, S, S) unless its features are known."""

    picture: StoredPicture
    place: bytes | None  # to be remembered, with …
    content: bytes
    pixels: Tensor | None
    instead: str | None = None  # the file in which the features are damaged

    @property
    def key(self) -> bytes:
        return asked(self.content, self.picture.question)


def _parts(pictures: Iterable[tuple[Where, StoredPicture]], rank: int, processes: int) -> Iterator[list[_Item]]:
    """This process's pictures, so many at a time. One that comes again comes to the same process."""
    own = (
        (number, where, picture)
        for number, (where, picture) in enumerate(pictures, start=1)
        if share(picture, processes) == rank
    )
    while part := list(itertools.islice(own, _AT_ONCE)):
        yield part


def share(picture: StoredPicture, processes: int) -> int:
    """Which process a picture is for: the same wherever it is asked."""
    # One in memory is known by its content alone: its name may be every other's, too.
    said = picture.key() if isinstance(picture.source, bytes) else repr(picture.source)
    return zlib.crc32(said.encode("utf-8", "surrogateescape")) % processes


def _opened(
    items: Sequence[_Item], known: FeatureCache, processor: MiniChatProcessor, workers: int
) -> Iterator[_Opened | MiniChatError]:
    """The pictures, in order, opened by `workers` processes ahead of time; an error in place of one that cannot be."""
    reader = _Reader(items, known, processor)
    yield from DataLoader(reader, batch_size=None, num_workers=min(workers, len(items)))


class _Reader(Dataset[_Opened | MiniChatError]):
    def __init__(self, items: Sequence[_Item], known: FeatureCache, processor: MiniChatProcessor) -> None:
        self.items, self.known, self.processor = items, known, processor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Opened | MiniChatError:
        try:
            return self._open(self.items[index][2])
        except MiniChatError as error:
            # Handed over rather than raised: PyTorch would put a worker's traceback into the message.
            return error.with_traceback(None)

    def _open(self, picture: StoredPicture) -> _Opened:
        place = place_of(picture)
        content = None if place is None else self.known.content_at(place)
        if content is not None and self.known.holds(asked(content, picture.question)):
            return _Opened(picture, None, content, None)
        data = picture.read()
        content = hashlib.sha256(data).digest()
        key = asked(content, picture.question)
        if self.known.holds(key):
            return _Opened(picture, place, content, None)
        opened = StoredPicture(picture.name, data).open()
        pixels = self.processor.image_processor([opened])["pixel_values"]
        return _Opened(picture, place, content, pixels, self.known.file_of(key))


class _Encoder:
    """Gathers pictures, encodes as many as may go together, and hands them to the shard."""

    def __init__(
        self, model: MiniChatForConditionalGeneration, processor: MiniChatProcessor, shard: _Shard, batch_size: int
    ) -> None:
        self._model, self._processor, self._shard, self._batch_size = model, processor, shard, batch_size
        self._device = next(model.vision_model.parameters()).device
        self._waiting: list[_Opened] = []
        self._done: set[bytes] = set()
        #: Names of files with damaged features, in whose place there are new ones.
        self.renewed: set[str] = set()

    def add(self, found: _Opened) -> None:
        if found.place is not None:
            self._shard.remember(found.place, found.content)
        if found.pixels is not None and found.key not in self._done:
            self._done.add(found.key)
            self.renewed |= set() if found.instead is None else {found.instead}
            self._waiting.append(found)
        if len(self._waiting) == self._batch_size:
            self.finish()

    def finish(self) -> None:
        if not self._waiting:
            return
        from minichat.model.minichat import words_of

        waiting, self._waiting = self._waiting, []
        pixels = torch.cat([found.pixels for found in waiting if found.pixels is not None])  # (I, 3, S, S)
        with memory_errors(lambda: SettingsError(_TOO_MANY.format(self._batch_size))), torch.inference_mode():
            words = words_of(self._processor.words([found.picture.question for found in waiting]), self._device)
            features = self._model.encode_features(pixels.to(self._device), words).cpu()  # (I, n, D)
        for found, one in zip(waiting, features, strict=True):
            if not one.isfinite().all():
                name = shown(found.picture.name)
                raise DataError(f"The model sees something that is no number in the picture {name}: try another dtype.")
            self._shard.add(found.key, one)


class _Shard:
    """Where one process adds records. Whatever stops it, the entries in its journal have their whole records."""

    def __init__(self, folder: Path, number: int, origin: Origin) -> None:
        self._folder, self._number, self._size = folder, number, record_size(origin)
        self._dtype = getattr(torch, origin.dtype)
        self._journal, self._places = bytearray(), bytearray()  # not written yet
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._saved = time.monotonic()

    def __enter__(self) -> _Shard:
        with self._told():
            self._stack.enter_context(locked(self._folder / f".lock-{self._number:03}"))
            files = {kind: shard_file(self._folder, kind, self._number) for kind in ("records", "journal", "places")}
            for kind, file in files.items():
                self._files[kind] = self._stack.enter_context(open(file, "ab"))
            entries = len(read_table(files["journal"], KEY + SUM))
            whole = min(entries, files["records"].stat().st_size // self._size)
            self._files["records"].truncate(whole * self._size)
            self._files["journal"].truncate(whole * (KEY + SUM))
            self._files["places"].truncate(len(read_table(files["places"], PLACE + KEY)) * (PLACE + KEY))
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._save()
        finally:
            with self._told():  # which writes what is still held
                self._stack.close()

    def remember(self, place: bytes, key: bytes) -> None:
        self._places += place + key

    def add(self, key: bytes, features: Tensor) -> None:
        """Append one picture's features (n, D)."""
        record = features.to(self._dtype).contiguous().view(torch.uint8).numpy().tobytes()
        with self._told():
            self._files["records"].write(record)
        self._journal += key + zlib.crc32(record).to_bytes(SUM, "little")
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        """Records first, then the entries that vouch for them."""
        with self._told():
            self._write("records", b"")
            self._write("journal", self._journal)
            self._write("places", self._places)
        self._journal, self._places, self._saved = bytearray(), bytearray(), time.monotonic()

    def _write(self, kind: str, data: bytes | bytearray) -> None:
        file = self._files[kind]
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"The features cannot be written to {self._folder.name!r} ({error.strerror}): those so far are kept."
            ) from None
