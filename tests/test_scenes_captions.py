"""Captions and stories: everything they state is so, and what they state can be read back."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from minichat.toy.captions import Facts, detailed, facts, listing, setting, short, story
from minichat.toy.world import COLOURS, SHAPES, Background, Scene, Thing, random_scene

STAR = Thing("star", "red", "large", 0.2, 0.2, 0.15)
RING = Thing("ring", "orange", "small", 0.8, 0.25, 0.08)
CROSSES = (Thing("cross", "blue", "small", 0.2, 0.8, 0.08), Thing("cross", "blue", "large", 0.5, 0.5, 0.15))
WHITE = Background("plain", ("white",))
RAMP = Background("gradient", ("green", "black"))
SCENE = Scene((CROSSES[1], RING, STAR, CROSSES[0]), WHITE)
PLACES = {
    "at the top left": (0, 0), "at the top right": (2, 0), "at the top": (1, 0), "on the left": (0, 1),
    "in the centre": (1, 1), "on the right": (2, 1), "at the bottom left": (0, 2), "at the bottom right": (2, 2),
    "at the bottom": (1, 2),
}  # fmt: skip


def test_short_names_everything_in_reading_order() -> None:
    named = "a red star, an orange ring and two blue crosses on a plain white background."
    said = {short(SCENE, random.Random(seed)) for seed in range(20)}
    assert said == {"A" + named[1:], "The picture shows " + named}
    assert listing(SCENE) == "A red star, an orange ring and two blue crosses."


def test_equal_things_are_named_together_where_nothing_stands_between() -> None:
    cross = Thing("cross", "blue", "small", 0.9, 0.9, 0.08)
    ring = Thing("ring", "blue", "small", 0.5, 0.85, 0.08)
    assert listing(Scene((*CROSSES, cross), WHITE)) == "Three blue crosses."
    assert listing(Scene((*CROSSES, cross, ring), WHITE)) == "Two blue crosses, a blue ring and a blue cross."


def test_detailed_gives_size_colour_shape_and_place_of_each() -> None:
    text = detailed(SCENE, random.Random(0))
    assert text.startswith(
        "The picture shows four objects on a plain white background. A large red star is at the top left. "
        "A small orange ring is at the top right. A large blue cross is in the centre. "
        "A small blue cross is at the bottom left. "
    )
    assert text.endswith("The red star is left of the orange ring.")


def test_one_thing_is_one_object() -> None:
    text = detailed(Scene((STAR,), RAMP), random.Random(0))
    ramp = "a background that goes from green to black"
    assert text == f"The picture shows one object on {ramp}. A large red star is at the top left."


def test_the_way_a_gradient_runs_is_left_open() -> None:
    assert setting(Scene((STAR,), Background("gradient", ("black", "green")))) == setting(Scene((STAR,), RAMP))


def truth(scene: Scene, total: bool) -> Facts:
    background = scene.background
    colours = tuple(sorted(background.colours, key=COLOURS.index))
    things = Counter((thing.colour, thing.shape) for thing in scene.things)
    return Facts(Counter(things), len(scene.things) if total else None, (background.kind, colours))


def test_captions_state_the_facts() -> None:
    rng = random.Random(3)
    for _ in range(800):
        scene = random_scene(rng)
        assert facts(short(scene, rng)) == truth(scene, total=False)
        assert facts(detailed(scene, rng)) == truth(scene, total=True)
        assert facts(listing(scene)).things == truth(scene, total=False).things


@pytest.mark.parametrize(
    ("text", "things", "total", "background"),
    [
        ("A RED STAR AND 2 GREY CIRCLES.", {("red", "star"): 1, ("gray", "circle"): 2}, None, (None, ())),
        ("There are three objects.", {}, 3, (None, ())),
        ("The red star is left of the ring.", {("red", "star"): 1, (None, "ring"): 1}, None, (None, ())),
        ("A star. The star is red.", {(None, "star"): 1}, None, (None, ())),
        ("no stars, two crosses", {(None, "cross"): 2}, None, (None, ())),
        ("The background is noisy grey.", {}, None, ("noisy", ("gray",))),
        ("a gradient from blue to red", {}, None, ("gradient", ("red", "blue"))),
        ("On a white background there is a large pink heart.", {("pink", "heart"): 1}, None, (None, ("white",))),
        ("A dog on a sofa.", {}, None, (None, ())),
        ("", {}, None, (None, ())),
        ("a blue thing", {("blue", None): 1}, None, (None, ())),
    ],
)
def test_facts_of_free_text(
    text: str, things: dict[tuple[str | None, str | None], int], total: int | None, background: tuple[object, object]
) -> None:
    assert facts(text) == Facts(Counter(things), total, background)  # type: ignore[arg-type]


def third(value: float) -> int:
    return 0 if value < 0.36 else 1 if value < 0.64 else 2


def test_each_sentence_of_a_detailed_caption_is_so() -> None:
    rng = random.Random(4)
    relations = 0
    for _ in range(600):
        scene = random_scene(rng)
        _, *sentences = detailed(scene, rng).rstrip(".").split(". ")
        told = []
        for sentence in sentences:
            if match := re.fullmatch(r"(?:An?) (\w+) (\w+) (\w+) is (.+)", sentence):
                told.append((match[1], match[2], match[3], *PLACES[match[4]]))
                continue
            match = re.fullmatch(r"The (\w+) (\w+) is (left of|right of|above|below) the (\w+) (\w+)", sentence)
            assert match is not None, sentence
            relations += 1
            (first,) = [t for t in scene.things if (t.colour, t.shape) == (match[1], match[2])]
            (second,) = [t for t in scene.things if (t.colour, t.shape) == (match[4], match[5])]
            step = {"left of": second.x - first.x, "right of": first.x - second.x,
                    "above": second.y - first.y, "below": first.y - second.y}[match[3]]  # fmt: skip
            assert step >= 0.12
        assert sorted(told) == sorted((t.size, t.colour, t.shape, third(t.x), third(t.y)) for t in scene.things)
    assert relations > 300


def test_stories_are_short_true_and_about_everyone() -> None:
    rng = random.Random(5)
    for _ in range(600):
        scene = random_scene(rng)
        text = story(scene, rng)
        assert 3 <= text.count(".") <= 5
        kinds = {(thing.colour, thing.shape) for thing in scene.things}
        said = set(re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text))
        assert said == kinds
        for size, colour, shape in re.findall(rf"\b(small|large) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text):
            assert any((t.size, t.colour, t.shape) == (size, colour, shape) for t in scene.things)
        for colour in scene.background.colours:
            assert colour in text.split(".")[0]


def test_equal_seeds_give_equal_words() -> None:
    for tell in (short, detailed, story):
        assert [tell(SCENE, random.Random(7)) for _ in range(2)] == [tell(SCENE, random.Random(7))] * 2
