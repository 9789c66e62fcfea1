"""From a configuration's data sets to feeds."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from minichat.data import formats
from minichat.data.batches import WINDOW
from minichat.data.drawn import DrawnStream
from minichat.data.example import Problem
from minichat.data.formats import stream
from minichat.data.rows import Row, Rows
from minichat.errors import DataError, SettingsError
from minichat.train.config import Config, Source
from minichat.train.feed import Examples, Feed, Listed, Streamed

if TYPE_CHECKING:
    from minichat.data.example import Example
    from minichat.train.stage import Stage
    from minichat.train.together import Together

DRAWN = "drawn"  # the form of a source that is made up as it is read: its name is a kind of `minichat.data.drawn`
_LOOKED_AT = 100  # records: what is drawn differs among so many


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    feed: Feed
    of_an_epoch: int | None  # steps; None: a stream
    longest: int  # tokens of a row
    tokens_of_a_step: float | None  # on average; None: a stream
    held_out: Listed | None
    shown: list[Example]  # held-out samples for the report


def read_data(config: Config, stage: Stage, together: Together, say: Callable[[str], None]) -> Data:
    """Read all data sets that are not streams, and check them.

    Raises `DataError`, naming file and line, for a record that is wrong, and where there is nothing to learn from.
    """
    parts, at_once = division(config, together.count)
    place: dict[str, Any] = {"rank": together.rank, "processes": together.count}
    held_out = list(_examples(config.data.validation, config.seed))
    held_out_rows = _rows(held_out, stage.render) if held_out else None
    rows_of = None if config.data.stream else _Rows(config, stage.render)
    if config.data.features is not None:
        listed = [rows for rows in (rows_of(0) if rows_of else None, held_out_rows) if rows is not None]
        pictures = [picture for rows in listed for picture in rows.pictures()]
        say(f"Looking at {len(pictures):,} pictures, unless {config.data.features} holds them ...")
        stage.see(pictures, config.data.features, config.data.workers, together)

    validation = None
    if held_out_rows is not None:
        # Sorted by length as a whole, so that little is padding.
        size = {"batch_size": at_once * together.count, "window": 1 if stage.joined else len(held_out)}
        validation = Listed(partial(_same, held_out_rows), stage.collate, **size, **place)
    shown = held_out[:: max(1, len(held_out) // max(1, config.report.pictures))][: config.report.pictures]
    run = config.run
    if rows_of is None:
        feed = _stream(config, stage, parts=parts, **place)
        return Data(feed, None, stage.longest, None, validation, shown)
    length: dict[str, Any] = {"epochs": run.epochs, "steps": run.steps, "batch_size": run.batch_size}
    # Where rows are compared with each other, those of like length must not meet again and again.
    window = 1 if stage.joined else WINDOW
    listed_feed = Listed(rows_of, stage.collate, seed=config.seed, parts=parts, window=window, **length, **place)
    lengths = listed_feed.rows.lengths
    mean = float(lengths.mean()) * run.batch_size
    return Data(listed_feed, listed_feed.of_an_epoch, int(lengths.max()), mean, validation, shown)


def _same(rows: Rows, epoch: int) -> Rows:
    """Held-out rows are the same in every epoch."""
    return rows


class _Rows:
    """The rows of an epoch: where instructions are drawn from a file, they are drawn anew in each."""

    def __init__(self, config: Config, render: Callable[[Example], Row]) -> None:
        self._sources, self._seed, self._render = config.data.train, config.seed, render
        first, second = (
            [list(itertools.islice(_examples([source], self._seed, epoch), _LOOKED_AT)) for source in self._sources]
            for epoch in (0, 1)
        )
        self._drawn = first != second
        self._first: Rows | None = None

    def __call__(self, epoch: int) -> Rows:
        if self._first is None:
            self._first = _rows(_examples(self._sources, self._seed), self._render)
        if epoch == 0 or not self._drawn:
            return self._first
        return _rows(_examples(self._sources, self._seed, epoch), self._render)


def division(config: Config, processes: int) -> tuple[int, int]:
    """In how many parts a process takes its share of a step's batch, and the most rows of a part."""
    share = -(-config.run.batch_size // processes)
    at_once = min(share, config.run.device_batch_size or share)
    return -(-share // at_once), at_once


def _examples(sources: Sequence[Source], seed: int, epoch: int = 0) -> Iterator[Example]:
    for source in sources:
        yield from formats.read(source.source, source.form, **{"seed": seed, "epoch": epoch, **source.options})


def _rows(examples: Iterable[Example], render: Callable[[Example], Row]) -> Rows:
    rows = Rows(render(example) for example in examples)
    if not len(rows):
        raise DataError("The data set holds no conversation: nothing could be learnt from it.")
    return rows


def _mixed(config: Config) -> Examples:
    """The records of all sources as one stream."""
    sources = config.data.train
    options = sources[0].options
    if any(source.options != options for source in sources):
        raise SettingsError("data.train: sources of one stream must have the same options.")
    drawn = {source.form == DRAWN for source in sources}
    if len(drawn) > 1:
        raise SettingsError(f"data.train: what is {DRAWN} and what is read cannot be mixed: use one or the other.")
    known = ("easy", "examples") if drawn == {True} else ("captions", "instructions", "shuffle")
    if unknown := sorted(set(options) - set(known)):
        raise SettingsError(f"data.train: a stream has no option {unknown[0]!r}; it has {' and '.join(known)}.")
    if drawn == {True}:
        ratios = {source.source: source.ratio for source in sources}
        return DrawnStream(ratios, batch_size=config.run.batch_size, seed=config.seed, **options)
    return stream.Stream([stream.Source(s.source, s.ratio) for s in sources], seed=config.seed, **options)


def texts(config: Config, most: int = 20_000) -> Iterator[str]:
    """The replies that a run is to learn from; of a stream, those of its first `most` records.

    Raises as reading the data does.
    """
    if not config.data.stream:
        examples: Iterable[Example] = _examples(config.data.train, config.seed)
    else:
        first = itertools.islice(_mixed(config).scan(), most)
        examples = (record for record in first if not isinstance(record, Problem))
    return (reply for example in examples for reply in example.replies)


def _stream(config: Config, stage: Stage, **division: int) -> Streamed:
    sources = config.data.train
    return Streamed(
        _mixed(config),
        stage.render,
        stage.collate,
        steps=config.run.steps or 0,
        batch_size=config.run.batch_size,
        joined=stage.joined,
        fingerprint=hashlib.sha256(repr([(s.source, s.ratio) for s in sources]).encode()).hexdigest(),
        **division,
    )
