"""Data that is drawn as it is read, and what a scene's description tells."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from minichat.errors import SettingsError
from minichat.toy.captions import (
    CELLS,
    COLUMNS,
    NONE,
    ROWS,
    TOKENS,
    WORDS,
    description,
    outside_description,
    reading,
    words_of,
)
from minichat.toy.dataset import KINDS, SyntheticPicture, SyntheticStream
from minichat.toy.dialogues import ORDINALS
from minichat.toy.train_lm import train_tokenizer, word_ids
from minichat.toy.world import MAX_THINGS, Scene, random_scene, reading_order
from minichat.train.data_loader import Part

ALL = dict.fromkeys(KINDS, 1.0)


def first(stream: SyntheticStream, count: int, **options: object) -> list[object]:
    return list(itertools.islice(stream.scan(**options), count))  # type: ignore[arg-type]


def test_a_stream_is_entered_anywhere() -> None:
    stream = SyntheticStream(ALL, batch_size=4, seed=3)
    assert first(stream, 60)[37:] == first(SyntheticStream(ALL, batch_size=4, seed=3), 23, skip=37)
    assert first(stream, 5) != first(SyntheticStream(ALL, batch_size=4, seed=4), 5)


def test_of_so_many_examples_each_comes_as_often() -> None:
    every, few = SyntheticStream(ALL, batch_size=4, seed=3), SyntheticStream(ALL, batch_size=4, seed=3, examples=16)
    wanted = [every.example(index) for index in range(16)]
    assert [few.example(16 + index) for index in range(16)] == wanted
    pool = 8 * 4  # in which the order is mixed
    drawn = first(few, 2 * pool)
    assert all(drawn.count(example) == 2 * pool // 16 for example in wanted)
    assert first(few, 20, skip=13) == drawn[13:33]
    for wrong in (0, -1, 2.5):
        with pytest.raises(SettingsError, match="examples is"):
            SyntheticStream(ALL, batch_size=4, examples=wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="easy is 'many'"):
        SyntheticStream(ALL, batch_size=4, easy="many")  # type: ignore[arg-type]


def test_parts_share_the_stream() -> None:
    stream = SyntheticStream(ALL, batch_size=4)
    whole = first(stream, 40)
    assert [first(stream, 20, part=Part(rank, 2)) for rank in (0, 1)] == [whole[0::2], whole[1::2]]
    assert first(stream, 7, part=Part(1, 2), skip=13) == whole[27::2]


def test_no_example_is_lost_by_sorting() -> None:
    stream = SyntheticStream(ALL, batch_size=3, seed=1)
    drawn = [stream.example(index) for index in range(24)]
    read = first(stream, 24)
    assert sorted(read, key=lambda e: e.where.record) == drawn  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["questions", "hard dialogues", "hard pairs", "hard tellings"])
def test_easy_scenes_come_first(kind: str) -> None:
    stream = SyntheticStream({kind: 1}, batch_size=4, easy=16)
    counts = [len(p.scene.things) for i in range(80) for p in stream.example(i).pictures]  # type: ignore[attr-defined]
    assert max(counts[:16]) <= 3 < max(counts[16:])


@pytest.mark.parametrize(
    ("kind", "hard"),
    [
        ("questions", r"\b(left|right|above|below|how many|count)\b"),
        ("dialogues", r"\bother (one|object|objects)\b"),
        ("pairs", r"\b(but not|that the \w+ has not|more|fewer)\b"),
    ],
)
def test_a_hard_kind_asks_more_often_what_is_hard(kind: str, hard: str) -> None:
    def share(kind: str) -> float:
        stream = SyntheticStream({kind: 1}, batch_size=4, seed=6)
        asked = [turn.text for i in range(150) for turn in stream.example(i).turns if turn.role == "user"]
        return sum(re.search(hard, text, re.IGNORECASE) is not None for text in asked) / len(asked)

    assert share(f"hard {kind}") > 1.5 * share(kind)


def test_hard_tellings_tell_of_many_things_that_are_alike() -> None:
    def alike(scenes: list[Scene]) -> int:
        pairs = [pair for scene in scenes for pair in itertools.combinations(scene.things, 2)]
        return sum(a.colour == b.colour or a.shape == b.shape for a, b in pairs)

    stream, rng = SyntheticStream({"hard tellings": 1}, batch_size=4), random.Random(0)
    hard = [p.scene for i in range(200) for p in stream.example(i).pictures]  # type: ignore[attr-defined]
    counts = [len(scene.things) for scene in hard]
    assert min(counts) >= 3 and max(counts) == MAX_THINGS
    assert alike(hard) > 1.1 * alike([random_scene(rng, things=count) for count in counts])


def test_a_drawn_picture_is_always_the_same_picture() -> None:
    for example in first(SyntheticStream(ALL, batch_size=4, seed=5), 20):
        for picture in example.pictures:  # type: ignore[attr-defined]
            again = SyntheticPicture(picture.name, b"", picture.scene, picture.seed)
            assert picture.read() == again.read() and picture.key() == again.key()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'photographs'.*questions"):
        SyntheticStream({"photographs": 1.0}, batch_size=2)


def test_things_are_named_in_the_order_of_the_cells_they_are_in() -> None:
    for seed in range(300):
        things = reading_order(random_scene(random.Random(seed)).things)
        cells = [int(thing.y * ROWS) * COLUMNS + int(thing.x * COLUMNS) for thing in things]
        assert cells == sorted(cells)


@pytest.mark.parametrize("blurred", [False, True])
def test_a_description_tells_each_thing_where_it_is_and_nothing_else(blurred: bool) -> None:
    for seed in range(300):
        scene = random_scene(random.Random(seed))
        told = description(scene, random.Random(seed) if blurred else None)
        assert len(told) == TOKENS
        names = {bag[:3] for bag in told[:CELLS] if bag != (NONE,)}
        assert names == {(thing.size, thing.colour, thing.shape) for thing in scene.things}
        own = [int(thing.y * ROWS) * COLUMNS + int(thing.x * COLUMNS) for thing in scene.things]
        if len(set(own)) == len(own):
            for thing, cell in zip(scene.things, own, strict=True):
                assert told[cell][:3] == words_of(thing)[:3]
        assert told[CELLS][0] == scene.background.kind
        assert set(told[CELLS][1:]) == set(scene.background.colours)


def test_a_reading_spells_the_description() -> None:
    scene = random_scene(random.Random(0), things=2)
    text = reading(scene)
    for bag in description(scene):
        assert ("".join(bag[3:]) if bag[0] in ("small", "large") else bag[0]) in text


def test_each_word_of_a_description_is_one_piece() -> None:
    ids = word_ids(train_tokenizer(1024, "minigpt-v2"))
    assert set(ids) == {*WORDS, *ORDINALS} and len(set(ids.values())) == len(ids)
    assert {word for bag in outside_description() for word in bag} <= set(ids)


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"vocab_size is 400"):
        train_tokenizer(400, "minigpt-v2")
