"""Batches: every row once, the same rows whatever the number of processes, and tensors that say what the rows say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from minichat.data.dataset import Collator, Rows, Shares, padding, plan, shares
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.errors import DataError, SettingsError
from minichat.inference.bot import MiniChat
from minichat.prompt.render import IGNORED
from tests.data_samples import WORDS, example, rows_of
from tests.tiny import tiny_bot

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=120)
SIZES = st.integers(1, 9)


@given(LENGTHS, SIZES, st.integers(0, 3), st.integers(1, 5))
def test_an_epoch_holds_every_row_once(lengths: list[int], size: int, epoch: int, window: int) -> None:
    batches = plan(lengths, batch_size=size, seed=1, epoch=epoch, window=window)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert sum(len(batch) != size for batch in batches) == (len(lengths) % size > 0)
    assert batches == plan(lengths, batch_size=size, seed=1, epoch=epoch, window=window)


def test_epochs_and_seeds_differ() -> None:
    lengths = list(range(100))
    plans = [plan(lengths, batch_size=8, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(batches) for batches in plans}) == 9


@given(LENGTHS, SIZES, st.integers(1, 4), st.integers(1, 4))
def test_processes_share_the_same_batches(lengths: list[int], size: int, processes: int, accumulation: int) -> None:
    """Each row is learned from once, whoever does it, and every process does as many passes."""
    for batch in plan(lengths, batch_size=size, seed=0, epoch=0):
        mine = [shares(batch, accumulation=accumulation, rank=rank, processes=processes) for rank in range(processes)]
        assert {len(parts) for parts in mine} == {accumulation}
        assert all(share.rows for parts in mine for share in parts)
        learned = [row for parts in mine for share in parts if share.learn for row in share.rows]
        assert sorted(learned) == sorted(batch)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4))
def test_processes_have_rows_of_like_length_at_any_one_time(
    lengths: list[int], processes: int, accumulation: int
) -> None:
    """They wait for each other: in a batch in order of length, the n-th rows of all are next to each other."""
    lengths = sorted(lengths)
    division = [
        shares(range(len(lengths)), accumulation=accumulation, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    for part in zip(*division, strict=True):
        rows = [share.rows for share in part if share.learn]
        for number in range(max(map(len, rows), default=0)):
            together = sorted(some[number] for some in rows if number < len(some))
            assert together == list(range(together[0], together[0] + len(together)))


def test_little_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(60, 200, 2000)
    sorted_by_length = plan(lengths, batch_size=12, seed=0, epoch=0)
    at_random = plan(lengths, batch_size=12, seed=0, epoch=0, window=1)
    assert padding(lengths, at_random) > 0.25
    assert padding(lengths, sorted_by_length) < 0.04
    assert padding(lengths, sorted_by_length, accumulation=2, processes=2) < 0.04
    assert padding([3, 5], [[0, 1]]) == pytest.approx(0.2)
    assert padding([3, 5], [[0, 1]], multiple=8) == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": True}, {"batch_size": 4, "window": 0}])
def test_sizes_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="whole number"):
        plan([1, 2], seed=0, epoch=0, **wrong)
    with pytest.raises(SettingsError):
        shares([1], rank=2, processes=2)


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot()


@pytest.fixture(scope="module")
def rows(bot: MiniChat) -> Rows:
    """Unlike lengths; none, one and several pictures in a row, frames of unlike number, several turns."""
    counts = [1, 0, 3, 1, 2, 0, 5, 1, 1]
    samples = []
    for n, pictures in enumerate(counts):
        turn = (WORDS[n % 5][: 20 + 7 * n], WORDS[(n + 2) % 5][: 5 + 9 * n])
        samples.append(example(*[turn] * (1 + n % 2), pictures=pictures, line=n))
    return rows_of(bot, samples)


def test_a_batch_says_what_its_rows_say(bot: MiniChat, rows: Rows) -> None:
    chosen = [rows[i] for i in (2, 1, 6)]
    batch = Collator(bot.processor, multiple=16)(chosen)
    assert batch["input_ids"].shape[1] % 16 == 0
    for number, row in enumerate(chosen):
        length = len(row.ids)
        assert batch["input_ids"][number, :length].tolist() == row.ids.tolist()
        assert batch["labels"][number, :length].tolist() == row.labels.tolist()
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert (batch["labels"][number, length:] == IGNORED).all()
    pictures = [picture.open() for row in chosen for picture in row.pictures]
    assert len(pictures) == 8
    expected = bot.processor.image_processor(pictures)["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=0)


def test_a_batch_without_pictures_has_no_pixels(bot: MiniChat, rows: Rows) -> None:
    assert set(Collator(bot.processor)([rows[1], rows[5]])) == {"input_ids", "attention_mask", "labels"}


@torch.no_grad()
def test_padding_changes_no_loss(bot: MiniChat, rows: Rows) -> None:
    """A batch's summed loss is the sum of its rows', each by itself."""
    model = bot.model
    together = model(**Collator(bot.processor, multiple=32)(rows), num_items_in_batch=1, skip_logits=True).loss
    alone = [model(**Collator(bot.processor)([row]), num_items_in_batch=1, skip_logits=True).loss for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)


def test_muted_rows_add_nothing(bot: MiniChat, rows: Rows) -> None:
    model = bot.model
    model.zero_grad()
    loss = model(**Collator(bot.processor)([rows[0].masked()]), num_items_in_batch=3, skip_logits=True).loss
    loss.backward()
    assert loss.item() == 0
    assert not model.projection.weight.grad.any()
    model.zero_grad()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_share_is_the_same_whoever_asks_for_it(bot: MiniChat, rows: Rows, accumulation: int) -> None:
    epoch = Shares(
        rows, plan(rows.lengths, batch_size=2, seed=0, epoch=0), Collator(bot.processor), accumulation=accumulation
    )
    whole = [epoch[number] for number in range(len(epoch))]
    assert len(whole) == 5 * accumulation
    for number, share in enumerate(DataLoader(epoch, batch_size=None, sampler=range(3, len(epoch)), num_workers=2), 3):
        assert share.keys() == whole[number].keys()
        assert all(torch.equal(share[name], whole[number][name]) for name in share)
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in whole) == rows.supervised.sum()


def test_a_picture_that_is_gone_is_named(bot: MiniChat, tmp_path) -> None:
    """As a value: what a worker raises would come with its traceback."""
    lost = StoredPicture("lost.png", tmp_path / "lost.png")
    sample = Example((Turn("user", (lost, "What?")), Turn("assistant", ("It.",))), Where("talk.jsonl", 7))
    found = Shares(rows_of(bot, [sample]), [[0]], Collator(bot.processor))[0]
    assert isinstance(found, DataError)
    assert str(found).startswith("talk.jsonl:7: the picture 'lost.png' is missing")


def test_a_batch_needs_a_row(bot: MiniChat) -> None:
    with pytest.raises(DataError):
        Collator(bot.processor)([])
