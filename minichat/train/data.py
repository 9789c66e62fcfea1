"""From a configuration's data sets to a data loader, without pictures that cannot be opened."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from minichat.data import formats
from minichat.data.dataset import WINDOW, Row, Rows
from minichat.data.example import Example, Problem, StoredPicture, Where
from minichat.data.feature_cache import PLACE, Lookup, place_of, read_table, share
from minichat.data.formats import Options
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.train import data_loader
from minichat.train.config import Config, DataConfig, Source
from minichat.train.data_loader import BatchLoader, Examples, ListedBatches, Part, StreamedBatches
from minichat.weights.hub import home

if TYPE_CHECKING:
    from minichat.model.loss import ProcessGroup
    from minichat.train.stages import Stage


# --- Pictures that cannot be opened: found before anything is learned, so that none of them ends a run.
#
# Each picture is decoded once, as training does it; only so is it sure. What was found to be sound is remembered by
# its place, size and time of change, for all runs of this user, so that the next start looks at new and changed ones
# alone.


Damage = Mapping["StoredPicture", str]  # of each picture that cannot be opened, why

_FILE = "opened-1.bin"  # the places, end to end; one that is torn or flipped is of no picture, which is looked at again
_THREADS = min(8, os.cpu_count() or 1)  # decoders leave the interpreter alone
_AT_ONCE = 512
_TOLD_EVERY = 20.0  # seconds


def find_damaged(
    pictures: Iterable[tuple[Where, StoredPicture]], group: ProcessGroup, say: Callable[[str], None]
) -> Damage:
    """Open every picture that was not found to be sound before, of those that are this process's share."""
    file = home() / _FILE
    known = Lookup(read_table(file, PLACE))
    own = (p for _, p in pictures if not p.always_opens and share(p, group.count) == group.rank)
    damaged: dict[StoredPicture, str] = {}
    seen, told, count = set[bytes](), time.monotonic(), 0
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(itertools.islice(own, _AT_ONCE)):
            sound: list[bytes] = []
            for picture, (place, reason) in zip(part, pool.map(lambda p: _look(p, known, seen), part), strict=True):
                if reason is not None:
                    damaged[picture] = reason
                elif place is not None:
                    sound.append(place)
            seen.update(sound)
            _remember(file, sound)
            count += len(part)
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                say(f"Looking whether pictures can be opened, which is remembered: {count:,} so far ...")
    return damaged


def problems(rows: Iterable[tuple[Where, StoredPicture]], damaged: Damage) -> Iterator[str]:
    """A sentence for each record's damaged pictures, with its place."""
    return (f"{where}: {damaged[picture]}" for where, picture in rows if picture in damaged)


def without(rows: Rows, damaged: Damage) -> Rows:
    """The rows whose pictures can all be opened. Raises `DataError` where none is left."""
    if not damaged:
        return rows
    left = Rows(row for row in rows if not damaged.keys() & set(row.pictures))
    if not len(left):
        raise DataError(f"Of no record can the pictures be opened: {next(problems(rows.pictures(), damaged))}")
    return left


def _look(picture: StoredPicture, known: Lookup, seen: set[bytes]) -> tuple[bytes | None, str | None]:
    """A place to be remembered if there is something new to remember, and what is wrong, if anything is."""
    try:
        place = _place(picture)
        if place in seen or known.find(place) is not None:
            return None, None
        picture.open()
    except MiniChatError as error:
        return None, str(error)
    return place, None


def _place(picture: StoredPicture) -> bytes:
    """Raises `DataError` where its file is missing."""
    place = place_of(picture)
    return hashlib.blake2b(picture.read(), digest_size=PLACE).digest() if place is None else place


def _remember(file: Path, places: list[bytes]) -> None:
    if not places:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as opened:
            opened.write(b"\0" * (-opened.tell() % PLACE) + b"".join(places))
    except OSError:  # nothing is lost but time
        return


# --- From a configuration's data sets to batch loaders.


SYNTHETIC = "synthetic"  # the form of a source that is made up as it is read: its name is a kind of what is drawn
#: Where each form of endless data is; it is imported when it is asked for.
STREAMS = {SYNTHETIC: "minichat.toy.dataset:SyntheticStream"}
#: What a stream may be told besides `shuffle`.
OPTIONS = tuple(field.name for field in fields(Options) if field.name not in ("seed", "epoch"))
_WHOLE = Part()
_LOOKED_AT = 100  # records: what is drawn differs among so many


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    loader: BatchLoader
    of_an_epoch: int | None  # steps; None: a stream
    longest: int  # tokens of a row
    tokens_of_a_step: float | None  # on average; None: a stream
    held_out: ListedBatches | None
    shown: list[Example]  # held-out samples for the report
    damaged: list[str]  # the records that are left out for their pictures, each with its place


def read_data(config: Config, stage: Stage, group: ProcessGroup, say: Callable[[str], None]) -> Data:
    """Read all data sets that are not streams, and check them.

    Raises `DataError`, naming file and line, for a record that is wrong, and where there is nothing to learn from.
    """
    parts, at_once = division(config, group.count)
    place: dict[str, Any] = {"rank": group.rank, "processes": group.count}
    left_out = _LeftOut()
    held_out = list(_examples(config.data, config.data.validation, config.seed, left_out=left_out))
    held_out_rows = _rows(held_out, stage.render) if held_out else None
    rows_of = None if config.data.streaming else _Rows(config, stage.render, left_out)
    listed = [rows for rows in (rows_of(0) if rows_of else None, held_out_rows) if rows is not None]
    damaged = _damaged(config, stage, group, listed, say)
    told = [problem for rows in listed for problem in problems(rows.pictures(), damaged)]
    if told and config.data.damaged_pictures == "refuse":
        raise DataError(
            f"{len(told):,} of the pictures cannot be opened, and data.damaged_pictures is refuse: mend them, drop "
            f"their records, or let them be left out (leave_out). The first: {told[0]}"
        )
    if told:
        held_out = [example for example in held_out if not damaged.keys() & set(example.pictures)]
        held_out_rows = None if held_out_rows is None else without(held_out_rows, damaged)
        if rows_of is not None:
            rows_of.leave_out(damaged)

    validation = None
    if held_out_rows is not None:
        # Sorted by length as a whole, so that little is padding.
        size = {"batch_size": at_once * group.count, "window": 1 if stage.joined else len(held_out)}
        validation = ListedBatches(partial(_same, held_out_rows), stage.collate, **size, **place)
    shown = held_out[:: max(1, len(held_out) // max(1, config.report.samples))][: config.report.samples]
    run = config.run
    if rows_of is None:
        left_out.tell(say)
        loader = _stream(config, stage, parts=parts, **place)
        return Data(loader, None, stage.longest, None, validation, shown, told)
    length: dict[str, Any] = {"epochs": run.epochs, "steps": run.max_steps, "batch_size": run.batch_size}
    # Where rows are compared with each other, those of like length must not meet again and again.
    window = 1 if stage.joined else WINDOW
    listed_loader = ListedBatches(
        rows_of, stage.collate, seed=config.seed, parts=parts, window=window, **length, **place
    )
    left_out.tell(say)
    lengths = listed_loader.rows.lengths
    mean = float(lengths.mean()) * run.batch_size
    return Data(listed_loader, listed_loader.of_an_epoch, int(lengths.max()), mean, validation, shown, told)


def _damaged(
    config: Config, stage: Stage, group: ProcessGroup, listed: Sequence[Rows], say: Callable[[str], None]
) -> Damage:
    """All pictures of these rows that cannot be opened, whichever process found them."""
    pictures = itertools.chain.from_iterable(rows.pictures() for rows in listed)
    found: dict[StoredPicture, str] = {}
    if config.data.feature_cache is None:
        found |= find_damaged(pictures, group, say)
    else:
        count = sum(int(rows.picture_counts.sum()) for rows in listed)
        say(f"Looking at {count:,} pictures, unless {config.data.feature_cache} holds them ...")

        def damaged(where: Where, picture: StoredPicture, reason: str) -> None:
            found[picture] = reason

        stage.see(list(pictures), config.data.feature_cache, config.data.num_workers, group, damaged, say)
    return dict(itertools.chain.from_iterable(each.items() for each in group.from_all(found)))


def _same(rows: Rows, epoch: int) -> Rows:
    """Held-out rows are the same in every epoch."""
    return rows


class _Rows:
    """The rows of an epoch: what is drawn, an instruction or one of several captions, is drawn anew in each."""

    def __init__(self, config: Config, render: Callable[[Example], Row], left_out: Callable[[Problem], None]) -> None:
        self._data, self._seed, self._render, self._left_out = config.data, config.seed, render, left_out
        sources = config.data.train
        random = "random" in (config.data.several_captions, *(s.options.get("several_captions") for s in sources))
        first, second = (
            [list(itertools.islice(self._examples(epoch, [source]), _LOOKED_AT)) for source in sources]
            for epoch in (0, 1)
        )
        self._drawn = random or first != second
        self._first: Rows | None = None
        self._damaged: Damage = {}

    def _examples(self, epoch: int, sources: Sequence[Source]) -> Iterator[Example]:
        return _examples(self._data, sources, self._seed, epoch)

    def __call__(self, epoch: int) -> Rows:
        if self._first is None:
            told = _examples(self._data, self._data.train, self._seed, left_out=self._left_out)
            self._first = _rows(told, self._render)
        if epoch == 0 or not self._drawn:
            return self._first
        return without(_rows(self._examples(epoch, self._data.train), self._render), self._damaged)

    def leave_out(self, damaged: Damage) -> None:
        """Have no rows with these pictures, in no epoch. Raises `DataError` where none is left."""
        self._damaged, self._first = damaged, without(self(0), damaged)


def division(config: Config, processes: int) -> tuple[int, int]:
    """In how many parts a process takes its share of a step's batch, and the most rows of a part."""
    share = -(-config.run.batch_size // processes)
    at_once = min(share, config.run.micro_batch_size or share)
    return -(-share // at_once), at_once


def _examples(
    data: DataConfig,
    sources: Sequence[Source],
    seed: int,
    epoch: int = 0,
    left_out: Callable[[Problem], None] = lambda problem: None,
) -> Iterator[Example]:
    for source in sources:
        options = {**_of_all(data), "seed": seed, "epoch": epoch, **source.options}
        yield from formats.read(source.source, source.format, left_out=left_out, **options)


class _LeftOut:
    """Counts the records that hold nothing to learn, and says so once."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def __call__(self, problem: Problem) -> None:
        self._found.append(problem)

    def tell(self, say: Callable[[str], None]) -> None:
        if self._found:
            more = f" (and {len(self._found) - 1:,} more)" if len(self._found) > 1 else ""
            say(f"Left out: {self._found[0]}{more}")
            self._found = []


def _rows(examples: Iterable[Example], render: Callable[[Example], Row]) -> Rows:
    rows = Rows(render(example) for example in examples)
    if not len(rows):
        raise DataError("The data set holds no conversation: nothing could be learned from it.")
    return rows


def _mixed(config: Config) -> Examples:
    """The records of all sources as one stream."""
    drawn = [source for source in config.data.train if source.format == SYNTHETIC]
    read = [source for source in config.data.train if source.format != SYNTHETIC]
    streams: list[tuple[float, Examples]] = []
    for sources, known in ((drawn, ("easy", "examples", "noise", "stages")), (read, ("shuffle", *OPTIONS))):
        if not sources:
            continue
        options = sources[0].options
        if any(source.options != options for source in sources):
            raise SettingsError("data.train: sources of one stream must have the same options.")
        if unknown := sorted(set(options) - set(known)):
            raise SettingsError(f"data.train: a stream has no option {unknown[0]!r}; it has {' and '.join(known)}.")
        streams.append((sum(source.ratio for source in sources), _streamed(config, sources)))
    return streams[0][1] if len(streams) == 1 else ByTurns(streams, config.run.batch_size, config.seed)


def _streamed(config: Config, sources: Sequence[Source]) -> Examples:
    """Sources of one kind, all drawn or all read, as a stream."""
    options = sources[0].options
    if sources[0].format == SYNTHETIC:
        ratios = {source.source: source.ratio for source in sources}
        made: Examples = resolve_name(STREAMS[SYNTHETIC])(
            ratios, batch_size=config.run.batch_size, seed=config.seed, **options
        )
        return made
    files = [data_loader.Source(source.source, source.ratio, source.format) for source in sources]
    return data_loader.Stream(files, seed=config.seed, **{**_of_all(config.data), **options})


class ByTurns:
    """Streams of unlike kinds, by their ratios: each batch is of one of them, which follows from its number alone.

    So rows of like length, which a stream puts one after another, stay in one batch.
    """

    def __init__(self, streams: Sequence[tuple[float, Examples]], batch_size: int, seed: int) -> None:
        self._ratios, self._streams = zip(*streams, strict=True)
        self._batch_size, self._seed = batch_size, seed

    def scan(self, part: Part = _WHOLE, skip: int = 0) -> Iterator[Example | Problem]:
        """A process's share of the records, from its number `skip` on."""
        of_a_batch = self._batch_size // part.count
        batch, within = divmod(skip, of_a_batch)
        passed = [0] * len(self._streams)
        for number in range(batch):
            passed[self._whose(number)] += of_a_batch
        passed[self._whose(batch)] += within
        records = [s.scan(part, skip=before) for s, before in zip(self._streams, passed, strict=True)]
        for number in itertools.count(batch):
            yield from itertools.islice(records[self._whose(number)], of_a_batch - (within if number == batch else 0))

    def _whose(self, batch: int) -> int:
        (place,) = random.Random(f"by turns {self._seed} {batch}").choices(range(len(self._streams)), self._ratios)
        return place


def _of_all(data: DataConfig) -> dict[str, Any]:
    """The options that all data sets of a run have, where they do not say otherwise."""
    return {"several_captions": data.several_captions, "unknown_keys": data.unknown_keys}


def texts(config: Config, most: int = 20_000) -> Iterator[str]:
    """The replies that a run is to learn from; of a stream, those of its first `most` records.

    Raises as reading the data does.
    """
    if not config.data.streaming:
        examples: Iterable[Example] = _examples(config.data, config.data.train, config.seed)
    else:
        first = itertools.islice(_mixed(config).scan(), most)
        examples = (record for record in first if not isinstance(record, Problem))
    return (reply for example in examples for reply in example.replies)


def _stream(config: Config, stage: Stage, **division: int) -> StreamedBatches:
    sources = config.data.train
    return StreamedBatches(
        _mixed(config),
        stage.render,
        stage.collate,
        refuse_damaged=config.data.damaged_pictures == "refuse",
        steps=config.run.max_steps or 0,
        batch_size=config.run.batch_size,
        joined=stage.joined,
        fingerprint=hashlib.sha256(repr([(s.source, s.ratio) for s in sources]).encode()).hexdigest(),
        **division,
    )
