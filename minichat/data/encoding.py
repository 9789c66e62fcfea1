"""The pass that computes features: every picture once through the vision encoder and the bridge, to a cache on disk."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minichat.data.example import StoredPicture, Where
from minichat.data.features import (
    KEY,
    PLACE,
    SUM,
    FeatureCache,
    Origin,
    begin,
    place_of,
    read_table,
    record_size,
    shard_file,
)
from minichat.disk import locked
from minichat.errors import DataError, MiniChatError, SettingsError, shown, some
from minichat.hardware.exhaustion import memory_told

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processing import MiniChatProcessor

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
    begin(folder, origin)
    training = model.training
    model.eval()
    try:
        with _Shard(folder, rank, origin) as shard:
            known = FeatureCache(folder, origin)
            encoder = _Encoder(model, shard, batch_size)
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

    name: str
    place: bytes | None  # to be remembered
    key: bytes
    pixels: Tensor | None
    instead: str | None = None  # the file in which the features are damaged


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
        key = None if place is None else self.known.key_at(place)
        if key is not None and self.known.holds(key):
            return _Opened(picture.name, None, key, None)
        data = picture.read()
        key = hashlib.sha256(data).digest()
        if self.known.holds(key):
            return _Opened(picture.name, place, key, None)
        opened = StoredPicture(picture.name, data).open()
        pixels = self.processor.image_processor([opened])["pixel_values"]
        return _Opened(picture.name, place, key, pixels, self.known.file_of(key))


class _Encoder:
    """Gathers pictures, encodes as many as may go together, and hands them to the shard."""

    def __init__(self, model: MiniChatForConditionalGeneration, shard: _Shard, batch_size: int) -> None:
        self._model, self._shard, self._batch_size = model, shard, batch_size
        self._device = next(model.vision_model.parameters()).device
        self._waiting: list[_Opened] = []
        self._done: set[bytes] = set()
        #: Names of files with damaged features, in whose place there are new ones.
        self.renewed: set[str] = set()

    def add(self, found: _Opened) -> None:
        if found.place is not None:
            self._shard.remember(found.place, found.key)
        if found.pixels is not None and found.key not in self._done:
            self._done.add(found.key)
            self.renewed |= set() if found.instead is None else {found.instead}
            self._waiting.append(found)
        if len(self._waiting) == self._batch_size:
            self.finish()

    def finish(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        pixels = torch.cat([found.pixels for found in waiting if found.pixels is not None])  # (I, 3, S, S)
        with memory_told(lambda: SettingsError(_TOO_MANY.format(self._batch_size))), torch.inference_mode():
            features = self._model.encode_features(pixels.to(self._device)).cpu()  # (I, n, D)
        for found, one in zip(waiting, features, strict=True):
            if not one.isfinite().all():
                raise DataError(
                    f"The model sees something that is no number in the picture {shown(found.name)}: try another dtype."
                )
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
