"""POPE: how replies are read, its figures, and its questions about scenes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minichat.evaluate.metrics import is_clear, says_yes, yes_no_figures
from minichat.evaluate.tasks import SETTINGS, Polls
from minichat.toy.captions import facts
from minichat.toy.evaluate_captions import EACH, scene_polls
from minichat.toy.world import random_scene
from tests.evaluate_tellers import Oracle

SCENES = [random_scene(random.Random(f"polls {i}")) for i in range(60)]
POLLS = scene_polls(SCENES)


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes, there is a red star.", True),
        ("No, there is no red star.", False),
        ("There is not. Yes, a blue one is.", False),
        ("Yes. It is not large.", True),
        ("no", False),
        ("I see nothing of the kind", True),
        ("", True),
    ],
)
def test_a_reply_is_read_as_pope_reads_it(reply, yes):
    """No where the first sentence says no or not, and else yes."""
    assert says_yes(reply) is yes


def test_what_says_neither_is_told():
    assert is_clear("Yes.") and is_clear("It is not there")
    assert not is_clear("A red star.")


def test_the_figures_of_a_table():
    """3 yes rightly, 1 yes wrongly, 2 no wrongly, 4 no rightly."""
    said = [True] * 3 + [True] + [False] * 2 + [False] * 4
    true = [True] * 3 + [False] + [True] * 2 + [False] * 4
    figures = {name: figure.value for name, figure in yes_no_figures(said, true).items()}
    assert figures == pytest.approx(
        {"accuracy": 0.7, "precision": 3 / 4, "recall": 3 / 5, "F1": 2 * 0.75 * 0.6 / 1.35, "says yes": 0.4}
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_f1_lies_between_precision_and_recall(pairs):
    figures = yes_no_figures([said for said, _ in pairs], [true for _, true in pairs])
    precision, recall, f1 = (figures[name].value for name in ("precision", "recall", "F1"))
    if precision is not None and recall is not None:
        assert f1 is not None
        assert min(precision, recall) - 1e-12 <= f1 <= max(precision, recall) + 1e-12


def test_who_always_says_yes_has_half_of_it_right():
    """And a recall of 1: half of the polls are of what is there."""
    figures = yes_no_figures([True] * len(POLLS), [poll.true for poll in POLLS])
    assert figures["accuracy"].value == figures["precision"].value == 0.5
    assert figures["recall"].value == figures["says yes"].value == 1


def test_polls_say_what_is_so():
    for poll in POLLS:
        ((name, number),) = facts(poll.text).things.items()
        there = Counter((thing.colour, thing.shape) for thing in poll.picture.scene.things)
        assert number == 1
        assert (there[name] > 0) == poll.true


def test_each_setting_asks_as_much_of_what_is_there_as_of_what_is_not():
    for index, scene in enumerate(SCENES):
        kinds = {(thing.colour, thing.shape) for thing in scene.things}
        for setting in SETTINGS:
            asked = [poll for poll in POLLS if poll.setting == setting and poll.name == str(index)]
            assert len({poll.text for poll in asked}) == len(asked) == 2 * min(EACH, len(kinds))
            assert sum(poll.true for poll in asked) == len(asked) // 2


def test_adversarial_polls_cross_what_is_there():
    """Where colours and shapes of a picture can be crossed often enough, every denied pair is such a cross."""
    crossed = 0
    for poll in POLLS:
        if poll.setting != "adversarial" or poll.true:
            continue
        things = poll.picture.scene.things
        there = {(thing.colour, thing.shape) for thing in things}
        colours, shapes = {c for c, _ in there}, {s for _, s in there}
        ((colour, shape),) = facts(poll.text).things
        possible = len(colours) * len(shapes) - len(there)
        if possible >= EACH:
            assert colour in colours and shape in shapes
            crossed += 1
        assert colour in colours or shape in shapes
    assert crossed > 50


def test_popular_polls_ask_for_the_most_frequent():
    frequent = Counter(pair for scene in SCENES for pair in {(t.colour, t.shape) for t in scene.things})
    denied = Counter(
        frequent[next(iter(facts(poll.text).things))] for poll in POLLS if poll.setting == "popular" and not poll.true
    )
    at_random = Counter(
        frequent[next(iter(facts(poll.text).things))] for poll in POLLS if poll.setting == "random" and not poll.true
    )
    assert min(denied) >= max(frequent.values()) - 3
    assert sum(k * v for k, v in denied.items()) > 2 * sum(k * v for k, v in at_random.items())


def test_an_oracle_is_right_and_its_opposite_is_wrong():
    polls = Polls(tuple(POLLS))
    truth = {(poll.text, poll.picture): poll.true for poll in POLLS}
    right = polls.take(Oracle(lambda ask: "Yes." if truth[ask.text, ask.pictures[0]] else "No."))
    wrong = polls.take(Oracle(lambda ask: "No." if truth[ask.text, ask.pictures[0]] else "Yes."))
    for setting in SETTINGS:
        assert right.figures[f"{setting}: F1"].value == 1
        assert wrong.figures[f"{setting}: accuracy"].value == 0
    assert right.figures["replies that say yes or no"].value == 1
    assert right.headline in right.figures
