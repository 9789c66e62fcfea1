"""From a configuration's data sets to feeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minichat.data import formats
from minichat.data.batches import plan
from minichat.data.formats import stream
from minichat.data.rows import Rows
from minichat.errors import DataError, SettingsError
from minichat.train.config import Config, Source
from minichat.train.feed import Epochs, Feed, Listed, Streamed

if TYPE_CHECKING:
    from minichat.data.example import Example
    from minichat.train.stages import Stage
    from minichat.train.together import Together


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    feed: Feed
    of_an_epoch: int | None  # steps; None: a stream
    longest: int  # tokens of a row
    held_out: Listed | None
    shown: list[Example]  # held-out samples for the report


def read_data(config: Config, stage: Stage, together: Together, say: Callable[[str], None]) -> Data:
    """Read all data sets that are not streams, and check them.

    Raises `DataError`, naming file and line, for a record that is wrong, and where there is nothing to learn from.
    """
    parts, at_once = division(config, together.count)
    shared: dict[str, Any] = {"parts": parts, "rank": together.rank, "processes": together.count}
    examples = list(_examples(config.data.validation, config.seed))
    held_out = _rows(examples, stage) if examples else None
    rows = None if config.data.stream else _rows(_examples(config.data.train, config.seed), stage)
    if config.data.features is not None:
        pictures = [picture for some in (rows, held_out) if some is not None for picture in some.pictures()]
        say(f"Looking at {len(pictures):,} pictures, unless {config.data.features} holds them ...")
        stage.see(pictures, config.data.features, config.data.workers, together)

    validation = None
    if held_out is not None:
        # In order of length, so that little is padding.
        batches = plan(held_out.lengths, batch_size=at_once * together.count, seed=0, epoch=0, window=len(held_out))
        validation = Listed(held_out, batches, stage.collate, **{**shared, "parts": 1})
    shown = examples[:: max(1, len(examples) // max(1, config.report.pictures))][: config.report.pictures]
    if rows is None:
        return Data(_stream(config, stage, shared), None, stage.longest, validation, shown)
    run = config.run
    epochs = Epochs(rows.lengths, batch_size=run.batch_size, seed=config.seed, epochs=run.epochs, steps=run.steps)
    feed = Listed(rows, epochs, stage.collate, **shared)
    return Data(feed, epochs.of_an_epoch, int(rows.lengths.max()), validation, shown)


def division(config: Config, processes: int) -> tuple[int, int]:
    """In how many parts a process takes its share of a step's batch, and the most rows of a part."""
    share = -(-config.run.batch_size // processes)
    at_once = min(share, config.run.device_batch_size or share)
    return -(-share // at_once), at_once


def _examples(sources: Sequence[Source], seed: int) -> Iterator[Example]:
    for source in sources:
        yield from formats.read(source.source, source.form, **{"seed": seed, **source.options})


def _rows(examples: Iterable[Example], stage: Stage) -> Rows:
    rows = Rows(stage.render(example) for example in examples)
    if not len(rows):
        raise DataError("The data set holds no conversation: nothing could be learnt from it.")
    return rows


def _stream(config: Config, stage: Stage, shared: dict[str, Any]) -> Streamed:
    sources = config.data.train
    options = sources[0].options
    if any(source.options != options for source in sources):
        raise SettingsError("data.train: sources of one stream must have the same options.")
    if unknown := sorted(set(options) - {"instructions", "shuffle"}):
        raise SettingsError(f"data.train: a stream has no option {unknown[0]!r}; it has instructions and shuffle.")
    mixed = stream.Stream([stream.Source(s.source, s.ratio) for s in sources], seed=config.seed, **options)
    return Streamed(
        mixed,
        stage.render,
        stage.collate,
        steps=config.run.steps or 0,
        batch_size=config.run.batch_size,
        fingerprint=hashlib.sha256(repr([(s.source, s.ratio) for s in sources]).encode()).hexdigest(),
        **shared,
    )
