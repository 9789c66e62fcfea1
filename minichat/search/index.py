"""Find the pictures of a folder by words or by a picture: what the model saw in each is kept, and brought up to date.

By contrast a query is compared with all pictures; matching then looks at the best of them together with the words
(arXiv:2301.12597, section 4.4).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minichat.disk import locked
from minichat.errors import DataError, ModelError, PromptError, SettingsError
from minichat.folders import Skipped, find_pictures
from minichat.hardware.exhaustion import memory_told
from minichat.model.pretraining import QFormerPretraining
from minichat.model.retrieval import rerank as rerank_by_match
from minichat.search.opening import Opened, open_all, state
from minichat.search.reader import DEFAULT, Reader, Words, load_reader
from minichat.search.store import Store, Table, Writer

if TYPE_CHECKING:
    from minichat.images import Source

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
        """What hits are put in order by: similarity + logit (`minichat.model.retrieval`)."""
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
                with memory_told(lambda: SettingsError(_TOO_MANY.format(batch_size))):
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
                `minichat.model.retrieval.rerank` does; 0: none is.

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
    from minichat.weights.places import home

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
