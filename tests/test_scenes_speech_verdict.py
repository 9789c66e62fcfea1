"""What counts as right, wrong, evasive and nonsense among replies in free words."""

from __future__ import annotations

import random

import pytest
from test_scenes_speech import asked

from minichat.toy.off_distribution import OUTSIDE
from minichat.toy.speech.chat import CANNOT, NOT_UNDERSTOOD
from minichat.toy.speech.nouns import Program, Things
from minichat.toy.speech.verdict import answer, judge
from minichat.toy.world import Background, Look, Scene, Thing

SCENE = Scene(
    (
        Thing("star", "red", "large", 0.2, 0.2, 0.15),
        Thing("ring", "blue", "small", 0.8, 0.8, 0.09),
        Thing("heart", "blue", "small", 0.8, 0.2, 0.09),
    ),
    Background("plain", ("white",)),
)
STAR, RING, CROSS, BLUE = Things(shape="star"), Things(shape="ring"), Things(shape="cross"), Things(colour="blue")
COLOUR, COUNT = Program("query", (STAR,), ("colour",)), Program("count", (BLUE,))
IS_RED, IS_BLUE = Program("verify", (STAR,), ("colour", "red")), Program("verify", (STAR,), ("colour", "blue"))
RINGS, CROSSES = Program("exists", (RING,)), Program("exists", (CROSS,))


@pytest.mark.parametrize(
    ("program", "reply", "verdict"),
    [
        (COLOUR, "It is red.", "right"), (COLOUR, "red", "right"), (COLOUR, "The star is RED!", "right"),
        (COLOUR, "It is blue.", "wrong"), (COLOUR, "It is red and blue.", "wrong"), (COLOUR, "The ring is red.",
        "wrong"),
        (COLOUR, "It is a star.", "nonsense"), (COLOUR, "", "nonsense"), (COLOUR, "<none><none> red", "nonsense"),
        (COLOUR, "You are welcome.", "nonsense"), (COLOUR, CANNOT, "evasive"), (COLOUR, NOT_UNDERSTOOD, "evasive"),
        (COLOUR, OUTSIDE, "evasive"), (COLOUR, "Yes, it is red.", "nonsense"), (COLOUR, "There is no star.", "wrong"),
        (COUNT, "There are two blue objects.", "right"), (COUNT, "2", "right"), (COUNT, "Two.", "right"),
        (COUNT, "There are three.", "wrong"), (COUNT, "Blue.", "nonsense"),
        (Program("count", (STAR,)), "There is a red star.", "right"),
        (Program("count", (CROSS,)), "None.", "right"), (Program("count", (CROSS,)), "There are no crosses.", "right"),
        (IS_RED, "Yes.", "right"), (IS_RED, "Yes, it is red.", "right"), (IS_RED, "It is red.", "right"),
        (IS_RED, "No, it is blue.", "wrong"), (IS_RED, "Yes, it is blue.", "wrong"), (IS_RED, "Hello!", "nonsense"),
        (IS_BLUE, "No, it is red.", "right"), (IS_BLUE, "no", "right"), (IS_BLUE, "No, it is not blue.", "right"),
        (IS_BLUE, "No, it is blue.", "wrong"), (IS_BLUE, "No, it is green.", "wrong"), (IS_BLUE, "Yes.", "wrong"),
        (RINGS, "Yes, there is a ring.", "right"), (RINGS, "Yes, there is a blue ring.", "right"),
        (RINGS, "Yes, there is a red ring.", "wrong"),
        (CROSSES, "No, there is no cross.", "right"), (CROSSES, "No, there is a cross.", "wrong"),
        (Program("query", (STAR,), ("place",)), "At the top left.", "right"),
        (Program("query", (STAR,), ("place",)), "In the upper left corner", "right"),
        (Program("query", (STAR,), ("place",)), "At the top.", "wrong"),
        (Program("query", (CROSS,), ("place",)), "There is no cross.", "right"),
        (Program("query", (CROSS,), ("place",)), "At the top.", "wrong"),
        (Program("list", (BLUE,)), "A blue heart and a blue ring.", "right"),
        (Program("list", (BLUE,)), "A ring and a heart", "right"), (Program("list", (BLUE,)), "A blue ring.", "wrong"),
        (Program("bigger", (STAR, RING), ("larger",)), "The star.", "right"),
        (Program("bigger", (STAR, RING), ("larger",)), "The ring is larger than the star.", "wrong"),
        (Program("which more", (STAR, BLUE), ("more",)), "Blue objects, there is one star and two blue objects.",
        "right"),
        (Program("names"), "A red star, a blue heart and a blue ring.", "right"),
        (Program("names"), "A red star and a blue ring.", "wrong"), (Program("names"), "It is nice.", "nonsense"),
        (Program("ground"), "It is plain white.", "right"), (Program("ground"), "It is noisy white.", "wrong"),
    ],
)  # fmt: skip
def test_a_reply_is_judged(program: Program, reply: str, verdict: str) -> None:
    found = answer(program, Look(SCENE))
    assert found is not None
    assert judge(program, found, SCENE, reply) == verdict


def test_true_replies_are_right_and_those_of_other_questions_are_not() -> None:
    rng = random.Random(0)
    every = [(scene, program, found) for scene, program, found, _ in asked(11, 40, held_out=None)]
    right = [judge(program, found, scene, found.reply) == "right" for scene, program, found in every]
    assert sum(right) / len(right) > 0.99
    others = [(one, rng.choice(every)[2].reply) for one in every]
    luck = [judge(one[1], one[2], one[0], other) == "right" for one, other in others if other != one[2].reply]
    assert sum(luck) / len(luck) < 0.05
