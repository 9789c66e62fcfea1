"""An index of a folder's pictures, kept in SQLite and brought up to date; searching it; a contact sheet."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

import minichat.images as images
from minichat.data.formats.folder import Skipped, find_pictures
from minichat.device.memory import memory_errors
from minichat.errors import DataError, ImageError, ModelError, PromptError, SettingsError
from minichat.fileio import locked
from minichat.model.qformer_pretrain import QFormerPretraining
from minichat.model.qformer_pretrain import rerank as rerank_by_match
from minichat.search.encoder import DEFAULT, Opened, Reader, Words, load_reader, open_all, state

if TYPE_CHECKING:
    from minichat.images import Source


# --- What an index keeps on disk: one SQLite file, which is whole at any moment, whoever is killed while writing it.
#
# `files` says which picture each file holds, `pictures` what the model saw in it. A picture is known by the pixels
# that the model was shown: files that hold the same picture share it, and one that is renamed is not seen anew.


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


# --- Find the pictures of a folder by words or by a picture: what the model saw in each is kept, and brought up to
# date.
#
# By contrast a query is compared with all pictures; matching then looks at the best of them together with the words
# (arXiv:2301.12597, section 4.4).


TOP = 10
RERANK = 32  # so many of the most similar are matched
_FORMAT = "minichat-search-1"
_KEPT = 64 * 1024  # bytes: patches that take no more are kept, larger ones are computed again when they are matched
_TOO_MANY = "batch_size is {}, and so many pictures do not fit into memory: lower it; what is indexed is kept."
_AT_ONCE = 4096  # pictures that are compared at a time


@dataclass(frozen=True)
class Hit:
    """A picture that was found: its path, and how well it fits.

    `similarity` is the cosine by contrast; `matching` the probability that picture and words belong together, and
    `logit` what the model says for that; None where nothing was matched.
    """

    path: Path
    similarity: float
    matching: float | None = None
    logit: float | None = None

    @property
    def score(self) -> float:
        """What hits are put in order by: similarity + logit (`minichat.model.qformer_pretrain`)."""
        return self.similarity + (self.logit or 0.0)


class Index:
    """The pictures in a folder and below it, as one model sees them.

    `skipped` are the files and folders that could not be opened when the folder was last looked through.
    """

    def __init__(
        self, folder: str | os.PathLike[str], reader: Reader, where: str | os.PathLike[str] | None = None
    ) -> None:
        """What is kept of the folder already; `update` looks through it. Most want `Index.open`, which does both."""
        self.folder, self.reader = Path(folder), reader
        if not self.folder.is_dir():
            raise DataError(f"{str(folder)!r} is not a folder: name one with pictures in it.")
        self.file = _file(self.folder, reader, where)
        config = reader.model.config
        self._store = Store(
            self.file, (config.bridge_config.num_query_tokens, config.contrast_size), config.vision_config.hidden_size
        )
        self._held: Table | None = None
        self.skipped: tuple[Skipped, ...] = ()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | Reader = DEFAULT,
        *,
        where: str | os.PathLike[str] | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        progress: Callable[[int, int], None] = lambda done, total: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Index:
        """The index of a folder, which is made, or brought up to date.

        Args:
            folder: its pictures and those below it, as `minichat caption` finds them.
            model: a known name, a folder or a hub id of a stage-1 model, or what `load_reader` returned.
            where: the folder that the index is kept in; default: `search` in MiniChat's own folder in the user's cache.
                Each pair of a folder and a model has a file of its own in it.
            device, dtype: as in `minichat.load`.
            batch_size, progress, waiting: as in `update`.

        Raises:
            DataError: the folder is none, has no pictures or cannot be read, or the index cannot be kept.
            ModelError, SettingsError: as `load_reader` does.
        """
        reader = model if isinstance(model, Reader) else load_reader(model, device, dtype)
        index = cls(folder, reader, where)
        index.update(batch_size, progress, waiting)
        return index

    @property
    def _table(self) -> Table:
        """Read when it is first needed: `open` would hold it twice, as it was and as it is."""
        if self._held is None:
            self._held = self._store.table()
        return self._held

    def __len__(self) -> int:
        """How many pictures can be found."""
        return len(self._table.paths)

    def update(
        self,
        batch_size: int = 32,
        progress: Callable[[int, int], None] = lambda done, total: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> int:
        """See the pictures that are new or have changed, forget those that are gone; how many files were read.

        A file that has the size and the time of its last change that it had is taken to be the same. What cannot be
        opened is left out, is in `skipped`, and is tried again the next time. However a process is stopped, the next
        goes on where it stood; one process at a time works on an index.

        Args:
            batch_size: pictures that are encoded together.
            progress: is told how many of how many files were read.
            waiting: is called where another process is at work on this index, before that is waited for.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
        closed: list[Skipped] = []
        paths = find_pictures([self.folder], closed.append)
        found = {os.fsencode(os.path.relpath(path, self.folder)): path for path in paths}
        try:
            with locked(self.file.with_suffix(".lock"), waiting):
                read, skipped = self._bring_up_to_date(found, closed, batch_size, progress)
        except OSError as error:
            raise _not_kept(self.file.parent, error) from None
        self.skipped = (*closed, *skipped)
        return read

    def _bring_up_to_date(
        self, found: dict[bytes, Path], closed: list[Skipped], batch_size: int, progress: Callable[[int, int], None]
    ) -> tuple[int, list[Skipped]]:
        known = self._store.files()
        stale = [(name, path) for name, path in found.items() if name not in known or known[name] != state(path)]
        skipped: list[Skipped] = []
        # What is in a folder that cannot be read just now may be there again tomorrow.
        kept = tuple(os.fsencode(os.path.relpath(each.path, self.folder)) + b"/" for each in closed)
        with self._store.writing() as writer:
            writer.forget(name for name in known.keys() - found.keys() if not name.startswith(kept))
            for start in range(0, len(stale), batch_size):
                part = stale[start : start + batch_size]
                opened = list(open_all(self.reader, [path for _, path in part]))
                with memory_errors(lambda: SettingsError(_TOO_MANY.format(batch_size))):
                    self._see(opened, writer)
                for (name, path), each in zip(part, opened, strict=True):
                    if each.pixels is None:
                        writer.forget([name])
                        skipped.append(Skipped(path, each.error))
                    else:
                        writer.add_file(name, each.size, each.changed, each.key)
                progress(start + len(part), len(stale))
            writer.sweep()
        self._held = self._store.table()
        return len(stale), skipped

    def find(self, text: str, top: int = TOP, rerank: int = RERANK) -> list[Hit]:
        """The `top` pictures that fit the words best, best first.

        Args:
            text: what is to be seen; what is longer than the Q-Former can read is cut.
            top: how many.
            rerank: so many of the most similar, and at least `top`, are matched and put in order by both, as
                `minichat.model.qformer_pretrain.rerank` does; 0: none is.

        A picture that must be read again to be matched, and cannot be any more, is left out. Raises `PromptError` for a
        text without words or with what is no character, `SettingsError` for a number out of range.
        """
        _check("top", top, 1)
        _check("rerank", rerank, 0)
        if not text.strip():
            raise PromptError("The words to search for are empty: say what is to be seen.")
        try:
            text.encode()
        except UnicodeEncodeError:  # as the command line and a pipe hand over bytes that they cannot read
            raise PromptError("The words to search for are no valid text: write them in UTF-8.") from None
        table, words = self._table, self.reader.words([text])
        similarity = _to_best_query(table, self.reader.read(words)[0].cpu())
        logits = torch.full((len(similarity), 2), torch.nan)  # NaN: not matched

        def match(query: Tensor, rows: Tensor) -> Tensor:
            logits[rows] = self._logits(table, rows, words)
            return logits[rows]

        count = max(rerank, top) if rerank else 0
        order = rerank_by_match(similarity[None], match, count)[0]
        there = order[logits[order, 1] != -torch.inf][:top].tolist()
        return [self._hit(table, row, similarity, logits) for row in there]

    def find_image(self, picture: Source, top: int = TOP) -> list[Hit]:
        """The `top` pictures that are most like this one, best first; nothing is matched.

        The similarity is the mean over the queries of the cosine between what each has read in both pictures: 1 for the
        same picture. `picture` is whatever `minichat.images.load` takes. Raises `ImageError` where it cannot be opened.
        """
        _check("top", top, 1)
        table = self._table
        _, embeddings = self.reader.see(self.reader.pixels(picture))
        similarity = _to_same_query(table, embeddings[0].cpu())
        order = similarity.argsort(descending=True, stable=True)[:top].tolist()
        return [self._hit(table, row, similarity) for row in order]

    def patches(self, table: Table, rows: Sequence[int]) -> list[Tensor | None]:
        """The patches (1 + P, W) of some files: kept, or computed again; None for a file that cannot be read."""
        kept = self._store.patches([table.keys[row] for row in rows])
        lacking = [place for place, patches in enumerate(kept) if patches is None]
        opened = list(open_all(self.reader, [self._path(table.paths[rows[place]]) for place in lacking]))
        pixels = [each.pixels for each in opened if each.pixels is not None]
        if pixels:
            seen = iter(self.reader.see(torch.cat(pixels))[0])
            for place, each in zip(lacking, opened, strict=True):
                kept[place] = None if each.pixels is None else next(seen)
        return kept

    def _logits(self, table: Table, rows: Tensor, words: Words) -> Tensor:
        """Whether a text and each file (M,) match (M, 2), index 1 for a match: −∞ for a file that cannot be read."""
        logits = torch.tensor([0.0, -torch.inf]).repeat(len(rows), 1)
        found = self.patches(table, rows.tolist())
        there = [place for place, patches in enumerate(found) if patches is not None]
        if there:
            here = self.reader.model
            patches = torch.stack([each.to(here.device, here.dtype) for each in found if each is not None])
            many = {name: ids.expand(len(there), -1) for name, ids in words.items()}
            logits[there] = self.reader.match(patches, many).cpu()
        return logits

    def _path(self, name: bytes) -> Path:
        return self.folder / os.fsdecode(name)

    def _hit(self, table: Table, row: int, similarity: Tensor, logits: Tensor | None = None) -> Hit:
        path, near = self._path(table.paths[row]), float(similarity[row])
        if logits is None or logits[row].isnan().any():
            return Hit(path, near)
        return Hit(path, near, float(logits[row].softmax(0)[1]), float(logits[row, 1]))

    def _see(self, opened: Sequence[Opened], writer: Writer) -> None:
        """Encode the pictures that are new, each once."""
        new = {each.key: each for each in opened if each.key and each.key not in writer}
        if not new:
            return
        pixels = [each.pixels for each in new.values() if each.pixels is not None]
        patches, embeddings = self.reader.see(torch.cat(pixels))
        keep = patches[0].numel() * torch.bfloat16.itemsize <= _KEPT
        for row, (key, each) in enumerate(new.items()):
            if not embeddings[row].isfinite().all():
                raise ModelError(
                    f"The model sees something that is no number in {str(each.path)!r}: try another dtype."
                )
            writer.add_picture(key, embeddings[row], patches[row] if keep else None)


def _file(folder: Path, reader: Reader, where: str | os.PathLike[str] | None) -> Path:
    """Where the index of a folder is kept for a model: by the folder's own place and the model's weights."""
    from minichat.weights.hub import home

    root = home() / "search" if where is None else Path(where).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_kept(root, error) from None
    place = os.path.realpath(folder)
    name = "".join(c for c in os.path.basename(place) if c.isascii() and (c.isalnum() or c in "-_"))[:40]
    said = b"\0".join((_FORMAT.encode(), os.fsencode(place), reader.origin().encode()))
    return root / f"{name or 'pictures'}-{hashlib.sha256(said).hexdigest()[:16]}.sqlite"


def _not_kept(folder: Path, error: OSError) -> DataError:
    return DataError(f"The index cannot be kept in {str(folder)!r} ({error.strerror}): name another folder for it.")


def _to_best_query(table: Table, text: Tensor) -> Tensor:
    """The cosine of a text (E,) and each picture's best query (N,)."""
    parts = [QFormerPretraining.similarity(part.float(), text[None])[:, 0] for part in _parts(table)]
    return torch.cat(parts) if parts else torch.empty(0)


def _to_same_query(table: Table, picture: Tensor) -> Tensor:
    """The mean cosine of a picture's queries (n, E) and the same ones of each picture (N,)."""
    parts = [torch.einsum("ine,ne->i", part.float(), picture) / len(picture) for part in _parts(table)]
    return torch.cat(parts) if parts else torch.empty(0)


def _parts(table: Table) -> tuple[Tensor, ...]:
    return table.embeddings.split(_AT_ONCE) if len(table.paths) else ()


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


# --- A contact sheet: what was found, in one picture.


_COLUMNS, _MARGIN, _LINE = 5, 12, 18
_PAPER, _INK, _EMPTY = (255, 255, 255), (30, 30, 30), (225, 225, 225)


def contact_sheet(hits: Sequence[Hit], side: int = 192) -> Image.Image:
    """The pictures in rows of five, best first, each fitted into `side` × `side` pixels above its score and file name.

    One that cannot be opened any more is an empty field. Raises `DataError` where there is nothing to show.
    """
    if not hits:
        raise DataError("There is nothing to put on a contact sheet: no picture was found.")
    columns, rows = min(_COLUMNS, len(hits)), -(-len(hits) // _COLUMNS)
    across, down = side + _MARGIN, side + 2 * _LINE + _MARGIN
    sheet = Image.new("RGB", (columns * across + _MARGIN, rows * down + _MARGIN), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, hit in enumerate(hits):
        left = _MARGIN + number % _COLUMNS * across
        top = _MARGIN + number // _COLUMNS * down
        sheet.paste(_thumbnail(hit, side), (left, top))
        pen.text((left, top + side + 2), f"{number + 1}.  {hit.score:.4f}", fill=_INK, font=font)
        pen.text((left, top + side + 2 + _LINE), _fitted(hit.path.name, side, font), fill=_INK, font=font)
    return sheet


def _thumbnail(hit: Hit, side: int) -> Image.Image:
    try:
        return ImageOps.pad(images.load(hit.path), (side, side), color=_PAPER)
    except ImageError:
        return Image.new("RGB", (side, side), _EMPTY)


def _fitted(name: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The name, or as much of its end as `width` pixels have room for."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    if font.getlength(shown) <= width:
        return shown
    while shown and font.getlength(f"…{shown}") > width:
        shown = shown[1:]
    return f"…{shown}"
