"""What one types to find a picture: it is true of the scene that it is of, and the nearly right scene has its own."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from minichat.toy.captions import Wanted, nearly, wanted
from minichat.toy.dataset import SyntheticPicture, SyntheticStream
from minichat.toy.world import Background, Scene, Thing, random_scene

WHITE = Background("plain", ("white",))
STAR = Thing("star", "red", "large", 0.2, 0.5, 0.15)
CIRCLE = Thing("circle", "blue", "small", 0.8, 0.5, 0.08)


@given(st.integers(0, 10**6))
def test_each_is_true_of_its_own_scene(seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng)
    said = wanted(scene, rng)
    other, against = nearly(scene, said, rng)
    assert said.shown_in(scene)
    assert against.shown_in(other)
    assert said.text != against.text
    assert len(other.things) == len(scene.things)
    assert other.background == scene.background
    assert not {thing.colour for thing in other.things} & set(other.background.colours)


def test_the_nearly_right_is_hardly_ever_right() -> None:
    """It may be, where another thing has the same name with another size."""
    both = 0
    for seed in range(1000):
        rng = random.Random(seed)
        scene = random_scene(rng)
        said = wanted(scene, rng)
        other, _ = nearly(scene, said, rng)
        both += said.shown_in(other)
    assert both < 30


def test_a_relation_is_mirrored() -> None:
    said = Wanted(((None, "red", "star"), (None, "blue", "circle")), "left")
    scene = Scene((STAR, CIRCLE), WHITE)
    assert said.text == "a red star left of a blue circle"
    other, against = nearly(scene, said, random.Random(0))
    assert against.text == "a blue circle left of a red star"
    assert (said.shown_in(scene), said.shown_in(other)) == (True, False)
    assert (against.shown_in(scene), against.shown_in(other)) == (False, True)


def test_the_background_counts_where_it_is_said() -> None:
    said = Wanted(((None, "red", "star"),), None, "on a plain white background")
    assert said.text == "a red star on a plain white background"
    assert said.shown_in(Scene((STAR,), WHITE))
    assert not said.shown_in(Scene((STAR,), Background("noisy", ("white",))))
    assert not said.shown_in(Scene((CIRCLE,), WHITE))


def test_a_stream_shows_the_two_side_by_side() -> None:
    """Mostly in one batch, where each is the other's hard negative."""
    stream = SyntheticStream({"searched": 1}, batch_size=8)
    for index in range(0, 40, 2):
        first, second = (stream.example(index + one) for one in (0, 1))
        scenes = [p.scene for e in (first, second) for p in e.pictures if isinstance(p, SyntheticPicture)]
        assert scenes[0] != scenes[1]
        assert first.replies != second.replies
        assert scenes[0] and scenes[1] and scenes[0].background == scenes[1].background
    numbers = [example.where.line for example in itertools.islice(stream.scan(), 64)]
    together = [{(number - 1) // 2 for number in numbers[start : start + 8]} for start in range(0, 64, 8)]
    assert sum(map(len, together)) < 48  # 32 if all were with their own, nearly 64 if none were
