"""Examples → rows of token ids with labels → batches: an epoch's order, each process's share, tensors."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from minichat.data.example import Cell, Example, Member, StoredPicture, Where
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.prompt.render import IGNORED

if TYPE_CHECKING:
    from minichat.data.feature_cache import FeatureCache
    from minichat.prompt.processor import MiniChatProcessor


# --- Tokenised examples: rendered once, kept small, with their replies' ids marked as supervised.
#
# Lengths are in ids, an image slot counting as one. Half a million conversations of 150 ids take about 0.5 GB.


Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Row:
    """One example as the model is to see it."""

    ids: Ids  # (T,)
    labels: Ids  # (T,): the ids where they are supervised, −100 elsewhere
    pictures: tuple[StoredPicture, ...]  # in the order of their slots
    where: Where
    cut: bool = False  # a part of its replies was over a length limit and is left out

    @property
    def supervised(self) -> int:
        """How many ids are supervised."""
        return int((self.labels != IGNORED).sum())

    def masked(self) -> Row:
        """The same row with nothing to learn."""
        return replace(self, labels=np.full_like(self.labels, IGNORED))


class Renderer:
    """Examples → rows, each cut to the length limits.

    Args:
        processor: the model's own.
        max_length: ids of a whole sample, such as the LLM's context; None: no limit.
        max_reply_tokens: ids from the first reply's first on, later questions among them (MiniGPT-4's `max_txt_len`,
            `minigpt4/models/minigpt_base.py`); None: no limit.
        max_question_tokens: ids before the first reply, pictures apart: of the words those are kept that the template
            says, of control tokens all (LAVIS's `max_txt_len`, `lavis/models/blip2_models`); None: no limit.

    A reply that a limit cuts has no end token, unless the template says so: its end is not where the writer ended it.
    What follows the last id that is supervised could teach nothing and is left out, a picture too.
    """

    def __init__(
        self,
        processor: MiniChatProcessor,
        *,
        max_length: int | None = None,
        max_reply_tokens: int | None = None,
        max_question_tokens: int | None = None,
    ) -> None:
        for name, limit in (
            ("max_length", max_length),
            ("max_reply_tokens", max_reply_tokens),
            ("max_question_tokens", max_question_tokens),
        ):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise DataError(f"{name} is {limit!r}; it must be a whole number of at least 1.")
        if max_question_tokens is not None and not processor.spelling.keeps:
            raise SettingsError(
                f"max_question_tokens cuts questions, which the template {processor.template!r} does not allow: leave "
                "it out, or set max_length."
            )
        self.processor = processor
        self.max_length = max_length
        self.max_reply_tokens = max_reply_tokens
        self.max_question_tokens = max_question_tokens
        self._end_text = processor.spelling.end[0]
        self._end_id = processor.end_id
        self._blank = Image.new("RGB", (1, 1))

    def __call__(self, example: Example) -> Row:
        """Raises `DataError`, with file and line, for an example that cannot be spelled or has nothing to supervise.

        No picture is opened.
        """
        conversation = example.conversation(pictures=[self._blank] * len(example.pictures))
        try:
            rendered = self.processor.render(conversation)
        except MiniChatError as error:
            raise DataError(f"{example.where}: {error}") from None
        ids, learn = np.array(rendered.ids, np.int32), np.array(rendered.loss_mask, bool)
        if not learn.any():
            raise DataError(f"{example.where}: there is no reply to learn from: add one, or remove the record.")
        if self.max_question_tokens is not None:
            asked = self._asked(ids, learn, self.max_question_tokens)
            ids, learn = ids[asked], learn[asked]
        kept = self._kept(ids, learn, example.where)
        cut = bool(learn[kept:].any())
        labels = np.where(learn, ids, np.int32(IGNORED))[:kept]
        ids = ids[:kept]
        if cut and self.processor.spelling.cut_ends and labels[-1] != self._end_id:
            ids[-1] = labels[-1] = self._end_id
        slots = int((ids == self.processor.image_token_id).sum())
        pictures = example.pictures[: slots // self.processor.num_image_tokens]
        if self.processor.instructed:
            questions = [turn.text for turn in example.turns if turn.role == "user"]
            replies = int((np.diff(learn[:kept].astype(np.int8), prepend=0) == 1).sum())
            pictures = tuple(replace(picture, question=questions[replies - 1]) for picture in pictures)
        return Row(ids, labels, pictures, example.where, cut=cut)

    def _asked(self, ids: Ids, learn: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
        """Which ids stay where what is before the first reply is cut to `limit`, pictures apart."""
        stays = np.ones(len(ids), bool)
        before = np.arange(len(ids)) < int(learn.argmax())
        pictures = before & (ids == self.processor.image_token_id)
        controls = before & np.isin(ids, list(self.processor.controls))
        words = (before & ~pictures & ~controls).nonzero()[0]
        over = len(words) + int(controls.sum()) - limit
        if over > 0:
            stays[words[:over] if self.processor.spelling.keeps == "last" else words[len(words) - over :]] = False
        return stays

    def _kept(self, ids: Ids, learn: NDArray[np.bool_], where: Where) -> int:
        """How many ids of a sample are within the limits, and needed."""
        first, end = int(learn.argmax()), len(ids)
        if self.max_length is not None:
            end = min(end, self.max_length)
        if self.max_reply_tokens is not None:
            end = min(end, first + self.max_reply_tokens)
        if end < len(ids) and learn[end]:
            end = min(end, self._end_of_words(ids, learn, end))
        if not learn[:end].any():
            raise DataError(
                f"{where}: the first reply begins after {first} tokens, and of it nothing is within the limits "
                f"(max_length {self.max_length}, max_reply_tokens {self.max_reply_tokens}): shorten what is before it, "
                "or raise the limit."
            )
        return int(learn[:end].nonzero()[0][-1]) + 1

    def _end_of_words(self, ids: Ids, learn: NDArray[np.bool_], inside: int) -> int:
        """Where the words of the reply that holds the id `inside` end, and its end token begins."""
        after = (~learn[inside:]).nonzero()[0]
        end = inside + int(after[0]) if len(after) else len(ids)
        before = (~learn[:inside]).nonzero()[0]
        start = int(before[-1]) + 1 if len(before) else 0
        tokenizer = self.processor.content_tokenizer
        if ids[end - 1] == self._end_id:
            end -= 1
        if not self._end_text:
            return end
        # The end may share a token with the words, or be several: the last tokens that spell it.
        for words in range(end - 1, start - 1, -1):
            if tokenizer.decode(ids[words:end].tolist()).endswith(self._end_text):
                return words
        return end


class Rows(Sequence[Row]):
    """The rows of a data set, in a few flat arrays rather than in an object for each id and path."""

    def __init__(self, rows: Iterable[Row]) -> None:
        ids, learn, ends = array("i"), bytearray(), array("q", [0])
        files: dict[str, int] = {}
        places, pictures, picture_ends = array("q"), _Pictures(), array("q", [0])
        cut = bytearray()
        for row in rows:
            ids.frombytes(np.ascontiguousarray(row.ids, np.int32).tobytes())
            learn += (row.labels != IGNORED).tobytes()
            ends.append(len(ids))
            places.extend((files.setdefault(row.where.file, len(files)), row.where.line, row.where.record))
            for picture in row.pictures:
                pictures.append(picture)
            picture_ends.append(len(pictures))
            cut.append(row.cut)
        self._ids = np.frombuffer(ids, np.int32) if ids else np.empty(0, np.int32)
        self._learn = np.frombuffer(learn, bool)
        self._ends, self._picture_ends = np.array(ends), np.array(picture_ends)
        self._files, self._places = list(files), np.array(places).reshape(-1, 3)
        self._pictures = pictures
        self._cut = np.frombuffer(cut, bool)
        #: (N,): ids of each row.
        self.lengths: NDArray[np.int64] = np.diff(self._ends)
        #: (N,): ids of each row that are supervised.
        self.supervised: NDArray[np.int64] = (
            np.add.reduceat(self._learn, self._ends[:-1], dtype=np.int64) if len(self.lengths) else self.lengths
        )
        #: (N,): pictures of each row.
        self.picture_counts: NDArray[np.int64] = np.diff(self._picture_ends)

    @property
    def cut(self) -> int:
        """How many rows lost a part of their replies to a length limit."""
        return int(self._cut.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        span = slice(self._ends[index], self._ends[index + 1])
        ids = self._ids[span]
        return Row(
            ids,
            np.where(self._learn[span], ids, np.int32(IGNORED)),
            tuple(self._pictures_of(index)),
            self._where(index),
            bool(self._cut[index]),
        )

    def _where(self, index: int) -> Where:
        file, line, record = self._places[index].tolist()
        return Where(self._files[file], line, record)

    def pictures(self) -> Iterator[tuple[Where, StoredPicture]]:
        """Every row's pictures, in order, and where the row stands; one that is in several rows comes as often."""
        return ((self._where(index), picture) for index in range(len(self)) for picture in self._pictures_of(index))

    def _pictures_of(self, index: int) -> Iterator[StoredPicture]:
        return (self._pictures[i] for i in range(self._picture_ends[index], self._picture_ends[index + 1]))


class _Pictures:
    """Names and places on disk, end to end in one buffer; pictures of tables, held as bytes, or of which something is
    asked stay as they are."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        self._held: dict[int, StoredPicture] = {}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, picture: StoredPicture) -> None:
        source = picture.source
        if isinstance(source, bytes | Cell) or picture.question:
            self._held[len(self)] = picture
        else:
            # A name that is no Unicode can only have come from a path; no path holds a null, but a name may.
            place = (source.start, source.size) if isinstance(source, Member) else ()
            path = source.tar if isinstance(source, Member) else source
            head = b"\0".join([*(b"%d" % number for number in place), os.fsencode(path)])
            self._text += b"%d" % len(place) + head + b"\0" + picture.name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __getitem__(self, index: int) -> StoredPicture:
        if index in self._held:
            return self._held[index]
        text = bytes(self._text[self._ends[index] : self._ends[index + 1]])
        *place, path, name = text[1:].split(b"\0", int(text[:1]) + 1)
        file = Path(os.fsdecode(path))
        source = Member(file, int(place[0]), int(place[1])) if place else file
        return StoredPicture(name.decode("utf-8", "surrogateescape"), source)


# --- From rows to batches: an epoch's order, each process's share of it, and tensors.
#
# A step's batch is *global*: it is the same whatever the number of processes and of the parts in which gradients are
# accumulated, and so is the order of batches. Rows of like length are put together, so that little is padding.


Batch = dict[str, Tensor]
WINDOW = 50  # batches: among so many, rows are sorted by length


def plan(
    lengths: Sequence[int] | NDArray[np.int64], *, batch_size: int, seed: int, epoch: int, window: int = WINDOW
) -> list[list[int]]:
    """An epoch: every row once, in global batches of `batch_size`; one of them may be smaller.

    The rows are shuffled, sorted by length within each stretch of `window` batches, and the batches are shuffled. The
    same arguments give the same batches anywhere. Within a batch, rows are in order of length.
    """
    for name, value in (("batch_size", batch_size), ("window", window)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    lengths = np.asarray(lengths)
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        stretch = order[start : start + window * batch_size]
        stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
        batches += [stretch[i : i + batch_size].tolist() for i in range(0, len(stretch), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


@dataclass(frozen=True)
class Share:
    """The rows that one process passes through the model at once."""

    rows: tuple[int, ...]
    learn: bool = True  # False: a row that others learn from, passed through so that all processes keep step


def shares(batch: Sequence[int], *, accumulation: int = 1, rank: int = 0, processes: int = 1) -> list[Share]:
    """What process `rank` of `processes` does for one global batch: `accumulation` shares, none of them empty.

    Each row is in exactly one share that learns. At any one time the processes have rows of like length.
    """
    if not 0 <= rank < processes or accumulation < 1:
        raise SettingsError(f"There is no share {rank} of {processes}, in {accumulation} parts.")
    parts = np.array_split(np.asarray(batch), accumulation)
    mine = [tuple(part[rank::processes].tolist()) for part in parts]
    return [Share(rows) if rows else Share((batch[0],), learn=False) for rows in mine]


def padding(
    lengths: Sequence[int] | NDArray[np.int64],
    batches: Sequence[Sequence[int]],
    *,
    accumulation: int = 1,
    processes: int = 1,
    multiple: int = 1,
) -> float:
    """The share of the positions that the model computes and that are padding, from 0 to 1."""
    lengths = np.asarray(lengths)
    used = computed = 0
    for batch in batches:
        for rank in range(processes):
            for share in shares(batch, accumulation=accumulation, rank=rank, processes=processes):
                some = lengths[list(share.rows)]
                used += int(some.sum()) if share.learn else 0
                computed += len(some) * _rounded(int(some.max()), multiple)
    return 1 - used / computed if computed else 0.0


class Collator:
    """Rows → tensors, padded on the right to the longest.

    Args:
        processor: the model's own.
        features: the bridge's output of every picture, if it is kept: then no picture is opened.
        multiple: lengths are rounded up to a multiple of this: fewer shapes, and ones that suit the hardware.
    """

    def __init__(
        self, processor: MiniChatProcessor, features: FeatureCache | None = None, *, multiple: int = 1
    ) -> None:
        self.processor = processor
        self.features = features
        self.multiple = multiple

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """B rows → `input_ids`, `attention_mask`, `labels` (B, T), each picture's place in them kept.

        All rows' pictures, row by row in slot order, are `image_features` (I, n, D) where they are kept, or else
        `pixel_values` (I, 3, S, S), with the words that an instructed Q-Former reads; neither is there where no row has
        a picture.

        Raises `DataError`, with file and line, for a picture that cannot be opened or is not among the kept ones.
        """
        if not rows:
            raise DataError("A batch needs at least one row.")
        length = _rounded(max(len(row.ids) for row in rows), self.multiple)
        ids = np.full((len(rows), length), self.processor.content_tokenizer.pad_id, np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], labels[number, : len(row.ids)] = row.ids, row.labels
            mask[number, : len(row.ids)] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(values) for name, values in batch.items()} | self._pictures(rows)

    def _pictures(self, rows: Sequence[Row]) -> Batch:
        found: list[Any] = []
        for row in rows:
            try:
                found += map(self._read, row.pictures)
            except MiniChatError as error:
                raise DataError(f"{row.where}: {error}") from None
        if not found:
            return {}
        if self.features is not None:
            return {"image_features": torch.stack(found)}
        pixels = self.processor.image_processor(found, return_tensors="pt")["pixel_values"]
        questions = [picture.question for row in rows for picture in row.pictures]
        return {"pixel_values": pixels, **self.processor.words(questions)}

    def _read(self, picture: StoredPicture) -> Any:
        return picture.open() if self.features is None else self.features[picture]


class Shares(Dataset[Batch | MiniChatError]):
    """One process's shares of an epoch, one after the other, as tensors.

    Item k is the same whoever asks for it and when: share k mod `accumulation` of step k div `accumulation`.
    """

    def __init__(
        self,
        rows: Rows,
        batches: Sequence[Sequence[int]],
        collate: Callable[[Sequence[Row]], Batch],
        *,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows = rows
        self.batches = batches
        self.collate = collate
        self.division = {"accumulation": accumulation, "rank": rank, "processes": processes}
        shares((0,), **self.division)  # refuses a division that is none

    def __len__(self) -> int:
        return len(self.batches) * self.division["accumulation"]

    def __getitem__(self, index: int) -> Batch | MiniChatError:
        step, part = divmod(index, self.division["accumulation"])
        share = shares(self.batches[step], **self.division)[part]
        rows = [self.rows[i] if share.learn else self.rows[i].masked() for i in share.rows]
        try:
            return self.collate(rows)
        except MiniChatError as error:
            # Handed over rather than raised: PyTorch would put a worker's traceback into the message.
            return error


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
