"""Captions and stories read back: what is right, missed, invented."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minichat.evaluate.replies import Reply
from minichat.evaluate.tasks import fails
from minichat.toy.captions import detailed, listing, short, story
from minichat.toy.evaluate_captions import check, fact_figures, tally
from minichat.toy.world import Background, Scene, Thing, random_scene

# A large red star at the top left, small blue circles at the top right and in the centre.
SCENE = Scene(
    (
        Thing("star", "red", "large", 0.2, 0.2, 0.15),
        Thing("circle", "blue", "small", 0.8, 0.2, 0.08),
        Thing("circle", "blue", "small", 0.5, 0.5, 0.08),
        Thing("ring", "green", "large", 0.2, 0.8, 0.15),
    ),
    Background("plain", ("white",)),
)
TRUTH = (
    "The picture shows four objects on a plain white background. A large red star is at the top left. A small blue "
    "circle is at the top right. A small blue circle is in the centre. A large green ring is at the bottom left. The "
    "red star is above the green ring."
)


def counts(text: str) -> tuple[int, int, int]:
    """Right, missed, invented."""
    objects = check(text, SCENE).objects
    return objects.right, objects.missed, objects.invented


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("tell", [short, detailed, story, lambda scene, rng: listing(scene)])
def test_what_is_told_of_a_scene_by_its_own_language_is_right(tell, seed):
    rng = random.Random(f"facts {seed}")
    scene = random_scene(rng)
    found = check(tell(scene, rng), scene)
    assert (found.objects.right, found.objects.missed, found.objects.invented) == (len(scene.things), 0, 0)
    assert (found.colours.missed, found.colours.invented) == (0, 0)
    assert found.number
    assert found.background is not False
    assert all([*found.sizes, *found.places, *found.relations])


def test_a_caption_that_is_wholly_right():
    found = check(TRUTH, SCENE)
    assert counts(TRUTH) == (4, 0, 0)
    assert found.number and found.background
    assert (found.sizes, found.places, found.relations) == ([True] * 2, [True] * 2, [True])


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("A large red star", "A large pink star", (3, 1, 1)),
        ("A small blue circle is at the top right. ", "", (3, 1, 0)),
        ("A large green ring", "A large green ring and a black heart", (4, 0, 1)),
        ("A small blue circle is in the centre.", "A small blue square is in the centre.", (3, 1, 1)),
    ],
)
def test_objects_that_are_missed_or_invented(old, new, wanted):
    assert counts(TRUTH.replace(old, new).replace("The red star is above the green ring.", "")) == wanted


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("large green ring", "small green ring", "sizes"),
        ("at the bottom left", "at the top right", "places"),
        ("is above the green", "is below the green", "relations"),
    ],
)
def test_a_wrong_size_place_or_relation(old, new, field):
    found = check(TRUTH.replace(old, new), SCENE)
    for name in ("sizes", "places", "relations"):
        assert all(getattr(found, name)) == (name != field)


def test_a_relation_to_what_is_not_there_is_wrong():
    assert check("The red star is left of the black heart.", SCENE).relations == [False]


def test_a_wrong_number_and_a_wrong_background():
    assert not check(TRUTH.replace("four objects", "five objects"), SCENE).number
    assert check(TRUTH.replace("plain white", "noisy white"), SCENE).background is False
    assert check("A red star.", SCENE).background is None


def test_a_name_without_a_shape_or_a_colour_fits_what_is_left():
    assert counts("A star, a blue object, a blue circle and a ring.") == (4, 0, 0)
    assert counts("Three stars.") == (1, 3, 2)


def test_the_plainest_names_are_matched_first():
    """ "A star and a red star" are the blue one and the red one."""
    said = Counter({(None, "star"): 1, ("red", "star"): 1})
    assert tally(said, Counter({("red", "star"): 1, ("blue", "star"): 1})).right == 2


@given(
    st.lists(st.tuples(st.sampled_from([None, "red", "blue"]), st.sampled_from([None, "star", "ring"])), max_size=6),
    st.lists(st.tuples(st.sampled_from(["red", "blue"]), st.sampled_from(["star", "ring"])), max_size=6),
)
def test_nothing_is_matched_twice(said, there):
    found = tally(Counter(said), Counter(there))
    assert (found.there, found.said) == (len(there), len(said))
    assert 0 <= found.right <= min(len(there), len(said))
    assert found.right + found.missed == len(there)
    assert found.right + found.invented == len(said)
    exact = (Counter(said) & Counter(there)).total()
    assert found.right >= exact


def test_figures_of_two_captions():
    """Of 8 objects 7 are named; of the 8 named 1 is not there; one caption of two invents."""
    checks = [check(TRUTH, SCENE), check(TRUTH.replace("A large green ring", "A large green heart"), SCENE)]
    # The ring comes back in "above the green ring", which names it where nothing did before.
    figures = {name: figure.value for name, figure in fact_figures(checks, "x: ").items()}
    assert figures["x: objects right"] == 1
    assert figures["x: objects invented"] == pytest.approx(1 / 9)
    assert figures["x: texts that invent an object"] == 0.5
    assert figures["x: places right"] == 1
    assert figures["x: number right"] == 1


def test_what_was_never_said_has_no_figure():
    assert "sizes right" not in fact_figures([check("A red star.", SCENE)])
    assert fact_figures([]) == {}


@pytest.mark.parametrize(
    ("reply", "failed"),
    [
        (Reply("A red star. A blue ring."), False),
        (Reply(""), True),
        (Reply("A red star is", whole=False), True),
        (Reply("A red star. A red star."), True),
        (Reply("A blue dot. A blue dot."), False),  # its reference says so too
        (Reply("A blue dot. A blue dot. A blue dot."), True),
    ],
)
def test_captions_that_fail(reply, failed):
    assert fails(reply, ["A blue dot. A blue dot.", "A blue dot."]) is failed
