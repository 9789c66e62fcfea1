"""VQA accuracy and its normalisation."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minichat.evaluate.metrics import accuracy, normal, within


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Red Star.", "red star"),
        ("a, an, the", ""),
        ("two", "2"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldn't've"),
        ("o’clock", "o'clock"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
        ("red / blue", "red blue"),
        ("red/blue", "red blue"),
        ("what?!\nno", "what no"),
        ("  it \t is  ", "it is"),
    ],
)
def test_normal(answer, wanted):
    """Articles go, number words become digits, contractions get their apostrophes, punctuation goes."""
    assert normal(answer) == wanted


@given(st.text("abc ,.'-019", max_size=20))
def test_normal_text_stays_as_it_is(text):
    once = normal(text)
    assert normal(once) == once


def leave_one_out(reply: str, answers: list[str]) -> float:
    """The definition: over all choices of nine of ten answers, min(how many of them are the reply / 3, 1)."""
    nines = list(combinations(answers, len(answers) - 1))
    return sum(min(nine.count(reply) / 3, 1) for nine in nines) / len(nines)


@given(st.lists(st.sampled_from(["red", "blue", "pink"]), min_size=4, max_size=10))
def test_accuracy_is_its_definition(answers):
    assert accuracy("Red.", answers) == pytest.approx(leave_one_out("red", answers))


@pytest.mark.parametrize(("same", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_how_many_of_ten_say_so(same, wanted):
    assert accuracy("yes", ["yes"] * same + ["no"] * (10 - same)) == pytest.approx(wanted)


def test_a_few_answers_are_alternatives():
    assert accuracy("a red one", ["blue", "Red one."]) == 1
    assert accuracy("green", ["blue", "red"]) == 0
    assert accuracy("red", []) == 0


def test_an_answer_within_a_sentence():
    assert within("It is a red star.", ["red", "red", "blue"])
    assert not within("It is reddish.", ["red"])
    assert not within("It is blue.", ["red", "red", "blue"])  # the commonest answer counts
    assert not within("", [])
