"""Rows: what is learned is the replies' tokens and their end, and a reply that was cut has no end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minichat.data.dataset import Renderer, Rows
from minichat.data.example import Example, Member, StoredPicture, Turn, Where
from minichat.errors import DataError
from minichat.inference.bot import MiniChat
from minichat.prompt.processor import MiniChatProcessor
from minichat.prompt.render import IGNORED
from minichat.prompt.template import EOS, TEMPLATES, get_template
from tests.data_samples import WORDS, example, rows_of
from tests.tiny import tiny_bot, tokenizer_model

BOTS = {name: tiny_bot(name) for name in TEMPLATES}
SAMPLE = example((WORDS[1], WORDS[0]), (WORDS[3], WORDS[4]), (WORDS[2], "A cat."), pictures=2)
TEMPLATE_NAMES = st.sampled_from(sorted(TEMPLATES))


@pytest.fixture(params=sorted(TEMPLATES))
def bot(request: pytest.FixtureRequest) -> MiniChat:
    return BOTS[request.param]


def replies(bot: MiniChat, row) -> list[str]:
    """The texts that are learned, one for each stretch of labels."""
    texts, run = [], []
    for label in [*row.labels.tolist(), IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            texts.append(bot.processor.decode(run, skip_special_tokens=False))
            run = []
    return texts


def test_the_replies_and_their_end_are_learnt(bot: MiniChat) -> None:
    row = Renderer(bot.processor)(SAMPLE)
    template = bot.processor.spelling
    assert replies(bot, row) == [
        template.reply_begin + text + template.reply_end for text in (WORDS[0], WORDS[4], "A cat.")
    ]
    assert not row.cut
    assert row.supervised == sum(label != IGNORED for label in row.labels.tolist())
    assert all(label in (IGNORED, token) for token, label in zip(row.ids, row.labels, strict=True))
    rendered = bot.processor.render(SAMPLE.conversation())
    assert row.ids.tolist() == rendered.ids
    assert row.labels.tolist() == rendered.labels


def end_ids(bot: MiniChat, name: str) -> list[int]:
    """The ids with which a reply that ends in a full stop ends."""
    row = Renderer(bot.processor)(example(("Which?", "A cat.")))
    words = bot.processor.content_tokenizer.encode(bot.processor.spelling.reply_begin + "A cat.")
    learned = row.labels[row.labels != IGNORED].tolist()
    assert learned[: len(words)] == words
    assert len(learned) > len(words), name
    return learned[len(words) :]


@given(TEMPLATE_NAMES, st.integers(1, 140), st.booleans())
def test_a_cut_reply_has_no_end(name: str, limit: int, whole: bool) -> None:
    """At every length, by either limit: what is left are the first ids, and an end is whole or not there at all.

    FLAN-T5's tokenizer, as LAVIS uses it, puts the end in place of the last id that is left.
    """
    bot, template = BOTS[name], get_template(name)
    full = Renderer(bot.processor)(SAMPLE)
    first = int((full.labels != IGNORED).argmax())
    limits = {"max_length": first + limit} if whole else {"max_reply_tokens": limit}
    row = Renderer(bot.processor, **limits)(SAMPLE)
    assert len(row.ids) <= first + limit
    assert row.cut == (row.supervised < full.supervised)
    if row.cut and template.cut_ends:
        assert row.ids[-1] == row.labels[-1] == bot.processor.end_id
        row = replace(row, ids=row.ids[:-1], labels=row.labels[:-1])
        if row.labels[-1] == IGNORED:
            return
    assert row.ids.tolist() == full.ids[: len(row.ids)].tolist()
    assert row.labels.tolist() == full.labels[: len(row.ids)].tolist()
    assert row.labels[-1] != IGNORED  # nothing that teaches nothing is kept
    end = template.reply_end
    *before, last = replies(bot, row)
    assert all(text.endswith(end) for text in before)
    wanted = template.reply_begin + [WORDS[0], WORDS[4], "A cat."][len(before)]
    assert last == wanted + end or wanted.startswith(last.rstrip("�"))
    if last == wanted + end:
        assert row.labels[-len(end_ids(bot, name)) :].tolist() == end_ids(bot, name)


def test_an_end_is_never_half_there() -> None:
    """Where the end is several ids, a cut between them takes all of them."""
    processor = MiniChatProcessor.from_tokenizer_model(
        tokenizer_model(340), image_size=56, template="vicuna-v0", num_image_tokens=4
    )
    sample = example(("Which?", "A cat."))
    whole = Renderer(processor)(sample)
    ends = len(processor.content_tokenizer.encode("A cat.###")) - len(processor.content_tokenizer.encode("A cat."))
    assert ends == 2
    kept = [Renderer(processor, max_length=len(whole.ids) - less)(sample) for less in range(4)]
    assert [len(whole.ids) - len(row.ids) for row in kept] == [0, 2, 2, 3]
    assert [row.cut for row in kept] == [False, True, True, True]


def test_a_picture_behind_the_cut_goes_with_its_slots(bot: MiniChat) -> None:
    late = Example(
        (
            *SAMPLE.turns[:2],
            Turn("user", (SAMPLE.pictures[0], "And this?")),
            Turn("assistant", ("A dog.",)),
        ),
        SAMPLE.where,
    )
    first = Renderer(bot.processor)(SAMPLE)
    for limit in range(1, 60):
        row = Renderer(bot.processor, max_reply_tokens=limit)(late)
        slots = int((row.ids == bot.processor.image_token_id).sum())
        assert slots == len(row.pictures) * bot.processor.num_image_tokens
        assert row.pictures == late.pictures[: len(row.pictures)]
    assert len(Renderer(bot.processor, max_reply_tokens=1)(late).pictures) == 2 < len(late.pictures)
    assert first.pictures == SAMPLE.pictures


def test_what_cannot_be_learnt_is_named(bot: MiniChat) -> None:
    with pytest.raises(DataError, match=r"^talk\.jsonl:3: there is no reply"):
        rows_of(bot, [SAMPLE, Example((Turn("user", ("Hello?",)),), Where("talk.jsonl", 3))])
    with pytest.raises(DataError, match=r"^talk\.jsonl:1: .* \d+ tokens.*max_length 5\b"):
        rows_of(bot, [SAMPLE], max_length=5)
    with pytest.raises(DataError, match="max_reply_tokens"):
        rows_of(bot, [SAMPLE], max_reply_tokens=0)
    wrong = Example((Turn("assistant", ("Hello.",)),), Where("talk.jsonl", 4))
    with pytest.raises(DataError, match=r"^talk\.jsonl:4: "):
        rows_of(bot, [wrong])


def test_rows_are_kept_as_they_were(bot: MiniChat, tmp_path) -> None:
    """Flat arrays give back what went in: ids, labels, pictures on disk and in memory, places."""
    odd = tmp_path / "Änderung \udce4.png"
    on_disk = Example(
        (Turn("user", (StoredPicture(odd.name, odd), "What?")), Turn("assistant", ("A boat.",))),
        Where("other.json", record=12),
    )
    member = StoredPicture("b\0c", Member(odd, 512, 7))
    packed = Example((Turn("user", (member,)), Turn("assistant", ("A boat.",))), Where("a.tar", 2))
    samples = [
        SAMPLE,
        on_disk,
        packed,
        example(("Which?", "A cat."), line=9),
        example((WORDS[1], WORDS[0]), pictures=3, line=4),
    ]
    render = Renderer(bot.processor, max_reply_tokens=12)
    expected = [render(sample) for sample in samples]
    rows = Rows(iter(expected))
    assert len(rows) == len(samples)
    for ours, theirs in zip(rows, expected, strict=True):
        assert (ours.ids.dtype, ours.labels.dtype) == (np.int32, np.int32)
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.labels, theirs.labels)
        assert (ours.pictures, ours.where, ours.cut) == (theirs.pictures, theirs.where, theirs.cut)
    assert rows.lengths.tolist() == [len(row.ids) for row in expected]
    assert rows.supervised.tolist() == [row.supervised for row in expected]
    assert rows.picture_counts.tolist() == [2, 1, 1, 0, 3]
    assert list(rows.pictures()) == [(row.where, picture) for row in expected for picture in row.pictures]
    assert rows.cut == sum(row.cut for row in expected) > 0
    assert np.array_equal(rows[-1].ids, expected[-1].ids)
    with pytest.raises(IndexError):
        rows[5]


def test_templates_end_replies_in_both_ways() -> None:
    ends = {template.reply_end.endswith(EOS) for template in TEMPLATES.values()}
    assert ends == {True, False}
