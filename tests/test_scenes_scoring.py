"""Scoring of free replies: any wording of the truth is right, anything else is wrong."""

from __future__ import annotations

import random

import pytest

from minichat.toy.asking import ALL_KINDS, Question, score
from minichat.toy.dialogues import follow
from minichat.toy.pairs import pair_questions, random_pair
from minichat.toy.questions import questions

IS_THERE = Question("existence", "Is there a red star?", "yes", "Yes, there is a red star.")
IS_NOT_THERE = Question("existence", "Is there a red star?", "no", "No, there is no red star.")
COLOUR = Question("colour", "What colour is the star?", "gray", "It is gray.")
IS_RED = Question("colour", "Is the star red?", "no", "No, it is blue.")
SHAPE = Question("shape", "What shape is the red object?", "cross", "It is a cross.")
IS_RING = Question("shape", "Is the red thing a ring?", "yes", "Yes, it is a ring.")
SIZE = Question("size", "Is the star large or small?", "small", "It is small.")
LARGER = Question("size", "Which is larger, the red star or the blue ring?", "the red star", "The red star.")
COUNT = Question("count", "How many stars are there?", "3", "There are three.")
ONE = Question("count", "How many stars are there?", "1", "There is one.")
ZERO = Question("count", "Count the red stars.", "0", "There are no red stars.")
EXACTLY = Question("count", "Are there exactly two stars?", "no", "No, there are three.")
WHERE = Question("position", "Where is the star?", "top left", "At the top left.")
MIDDLE = Question("position", "Where is the star?", "centre", "In the centre.")
TOP = Question("position", "Where is the star?", "top", "At the top.")
HALF = Question("position", "Is the star in the left half?", "no", "No, it is in the right half.")
WHAT_AT = Question("position", "What is at the top left?", "an orange star", "An orange star.")
NOTHING = Question("position", "What is at the top left?", "nothing", "Nothing.")
RELATIVE = Question("relation", "Where is the star relative to the ring?", "left", "Left of the ring.")
IS_ABOVE = Question("relation", "Is the star above the ring?", "yes", "Yes, it is above the ring.")
BESIDE = Question("relation", "What is left of the ring?", "a red star", "A red star.")
PLAIN = Question("background", "What is the background?", "plain white", "It is plain white.")
RAMP = Question(
    "background", "What is the background?", "a gradient from red to blue", "It is a gradient from red to blue."
)
RAMP_COLOURS = Question("background", "What colour is the background?", "red and blue", "It goes from red to blue.")
WHICH = Question("pair", "Which picture has a star?", "the first", "The first.")
MORE = Question("pair", "Which picture has more stars?", "neither", "Neither, the number is the same.")
BOTH = Question("pair", "Which picture has a star?", "both", "Both.")

RIGHT = [
    (IS_THERE, "Yes"), (IS_THERE, "YES!"), (IS_THERE, "yes, there is."), (IS_THERE, "Yeah, a large red star."),
    (IS_THERE, "There is a red star."), (IS_THERE, "There is a small red star at the top."),
    (IS_NOT_THERE, "No."), (IS_NOT_THERE, "no there isn't"), (IS_NOT_THERE, "There is no red star."),
    (IS_NOT_THERE, "I do not see one."), (IS_NOT_THERE, "No, there is a blue star."),
    (IS_NOT_THERE, "There aren't any."),
    (COLOUR, "gray"), (COLOUR, "Grey."), (COLOUR, "It's grey"), (COLOUR, "THE STAR IS GRAY."), (COLOUR, "A gray star."),
    (IS_RED, "No"), (IS_RED, "No, it's blue."), (IS_RED, "It is not red."), (IS_RED, "The star is blue."),
    (SHAPE, "cross"), (SHAPE, "A cross"), (SHAPE, "It is a red cross."), (SHAPE, "a plus"),
    (IS_RING, "yes"), (IS_RING, "It is a ring."), (IS_RING, "Yes, the red thing is a ring."),
    (SIZE, "Small."), (SIZE, "It's a little one."), (SIZE, "The star is small"),
    (LARGER, "the red star"), (LARGER, "The red star is larger."),
    (LARGER, "The red star is larger than the blue ring."),
    (COUNT, "3"), (COUNT, "Three."), (COUNT, "I see 3 stars"),
    (ONE, "one"), (ONE, "There is a star."), (ONE, "Only a single star"), (ONE, "1"),
    (ZERO, "0"), (ZERO, "zero"), (ZERO, "None."), (ZERO, "There are no red stars."),
    (ZERO, "There aren't any red stars."),
    (EXACTLY, "No"), (EXACTLY, "No, three."), (EXACTLY, "There are not."),
    (WHERE, "top left"), (WHERE, "In the upper-left corner."), (WHERE, "The star is at the top, on the left side."),
    (MIDDLE, "In the middle."), (MIDDLE, "center"), (MIDDLE, "At the centre of the picture"),
    (TOP, "At the top."), (TOP, "top centre"), (TOP, "in the upper middle part"),
    (HALF, "No"), (HALF, "No, in the right half."), (HALF, "It is in the right half."),
    (WHAT_AT, "an orange star"), (WHAT_AT, "The orange star."), (WHAT_AT, "A large orange star is at the top left."),
    (NOTHING, "Nothing."), (NOTHING, "There is nothing there."), (NOTHING, "No object."),
    (RELATIVE, "left"), (RELATIVE, "To the left of the ring."), (RELATIVE, "The star is left of the ring."),
    (RELATIVE, "The ring is right of the star."),
    (IS_ABOVE, "Yes"), (IS_ABOVE, "It is above the ring."), (IS_ABOVE, "Yes, it is above and left of the ring."),
    (BESIDE, "a red star"), (BESIDE, "A red star is left of the ring."), (BESIDE, "The small red star."),
    (PLAIN, "plain white"), (PLAIN, "It is a solid white."), (PLAIN, "White and plain."),
    (RAMP, "A gradient from blue to red."), (RAMP, "It fades from red to blue."), (RAMP_COLOURS, "Blue and red."),
    (WHICH, "the first"), (WHICH, "The first picture."), (WHICH, "First"),
    (MORE, "Neither."), (MORE, "They have the same number."), (MORE, "Both have the same number."),
    (BOTH, "Both."), (BOTH, "Both, the first and the second."),
]  # fmt: skip

WRONG = [
    (IS_THERE, ""), (IS_THERE, "   "), (IS_THERE, "No."), (IS_THERE, "yes and no"), (IS_THERE, "Yes. No."),
    (IS_THERE, "Maybe."), (IS_THERE, "Yes, maybe"), (IS_THERE, "A star"), (IS_THERE, "There is a blue star."),
    (IS_THERE, "Yes, there is a blue ring."), (IS_THERE, "Is there a red star?"), (IS_THERE, "Red star red star no"),
    (IS_THERE, "Yes, there is no red star."), (IS_THERE, "I need a picture for that."),
    (IS_THERE, "There is no red star."),
    (IS_NOT_THERE, "Yes."), (IS_NOT_THERE, "There is a red star."), (IS_NOT_THERE, "No, there is a red star."),
    (IS_NOT_THERE, "no yes"), (IS_NOT_THERE, "Two."), (IS_NOT_THERE, "red"),
    (COLOUR, "blue"), (COLOUR, "gray and blue"), (COLOUR, "It is gray or red."), (COLOUR, "not gray"), (COLOUR, "yes"),
    (COLOUR, "The circle is gray."), (COLOUR, "It is a star."), (COLOUR, "all colours"), (COLOUR, "Maybe gray"),
    (IS_RED, "Yes"), (IS_RED, "No, it is red."), (IS_RED, "It is red."), (IS_RED, "No, it is green."),
    (IS_RED, "blue yes"),
    (SHAPE, "star"), (SHAPE, "a cross or a star"), (SHAPE, "The blue cross."), (SHAPE, "red"), (SHAPE, "not a cross"),
    (IS_RING, "No"), (IS_RING, "Yes, it is a star."), (IS_RING, "It is a star."),
    (SIZE, "large"), (SIZE, "large and small"), (SIZE, "It is not small."), (SIZE, "The ring is small."),
    (LARGER, "the blue ring"), (LARGER, "Both."), (LARGER, "the red star and the blue ring"), (LARGER, "star"),
    (LARGER, "The blue ring is larger than the red star."), (LARGER, "not the red star"),
    (COUNT, "four"), (COUNT, "three or four"), (COUNT, "3 4"), (COUNT, "There are three rings."), (COUNT, "many"),
    (COUNT, "not three"), (COUNT, "yes"), (COUNT, "There are no stars."), (COUNT, "33"), (COUNT, "There is a star."),
    (ONE, "two"), (ONE, "No."), (ONE, "zero"), (ZERO, "one"), (ZERO, "There is a red star."), (ZERO, "10"),
    (ZERO, "yes"),
    (EXACTLY, "Yes"), (EXACTLY, "No, there are two."), (EXACTLY, "two"), (EXACTLY, "No, there are four."),
    (WHERE, "top"), (WHERE, "left"), (WHERE, "top right"), (WHERE, "top left or top right"),
    (WHERE, "not at the top left"),
    (WHERE, "In the centre."), (WHERE, "The ring is at the top left."), (WHERE, "here"),
    (MIDDLE, "middle left"), (MIDDLE, "top"), (TOP, "top left"), (TOP, "top and bottom"), (TOP, "centre"),
    (HALF, "Yes"), (HALF, "No, in the left half."), (HALF, "It is in the left half."),
    (WHAT_AT, "a star"), (WHAT_AT, "orange"), (WHAT_AT, "a red star"), (WHAT_AT, "an orange star and a red ring"),
    (WHAT_AT, "Nothing."), (WHAT_AT, "no orange star"), (NOTHING, "An orange star."),
    (NOTHING, "Nothing but a red star."),
    (RELATIVE, "right"), (RELATIVE, "above"), (RELATIVE, "left and above"), (RELATIVE, "not left"),
    (RELATIVE, "The ring is left of the star."), (RELATIVE, "The circle is left of the ring."), (RELATIVE, "beside it"),
    (IS_ABOVE, "No"), (IS_ABOVE, "Yes, it is below the ring."), (IS_ABOVE, "It is below the ring."),
    (BESIDE, "the ring"), (BESIDE, "a blue star"), (BESIDE, "a red star and a blue star"), (BESIDE, "left"),
    (PLAIN, "white"), (PLAIN, "noisy white"), (PLAIN, "plain red"), (PLAIN, "plain white and noisy"),
    (PLAIN, "not plain white"),
    (RAMP, "red and blue"), (RAMP, "a gradient from red to green"), (RAMP, "a gradient"), (RAMP, "plain red"),
    (RAMP_COLOURS, "red"), (RAMP_COLOURS, "red, blue and green"),
    (WHICH, "the second"), (WHICH, "both"), (WHICH, "the first or the second"), (WHICH, "not the first"),
    (WHICH, "yes"),
    (MORE, "the first"), (MORE, "both"), (BOTH, "neither"), (BOTH, "the first"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "reply"), RIGHT)
def test_right_in_any_wording(question: Question, reply: str) -> None:
    assert score(question, reply)


@pytest.mark.parametrize(("question", "reply"), WRONG)
def test_wrong_in_content(question: Question, reply: str) -> None:
    assert not score(question, reply)


def all_kinds(count: int) -> list[list[Question]]:
    rng = random.Random(12)
    drawn = []
    for _ in range(count):
        first, second = random_pair(rng)
        asked = questions(first, rng, 8, ALL_KINDS, rng.choice((None, "first")))
        asked += pair_questions(first, second, rng, 3)
        drawn.append(asked + [question for question in follow(first, rng, 5) if question.answer])
    return drawn


def test_what_the_assistant_says_is_right_however_it_is_spelled() -> None:
    for asked in all_kinds(300):
        for question in asked:
            for reply in (question.reply, question.answer, question.reply.upper(), question.reply.lower().rstrip(".")):
                assert score(question, reply.replace("gray", "grey").replace("centre", "center")), (question, reply)


def test_a_false_answer_in_the_same_form_is_wrong() -> None:
    """Colours, shapes, sizes, places, directions and numbers swapped for another one."""
    other = {
        "colour": ("red", "blue"), "shape": ("star", "ring"), "size": ("large", "small"), "count": ("two", "four"),
        "position": ("at the top left", "at the bottom"), "relation": ("left", "above"),
    }  # fmt: skip
    spoken = {"2": "two", "4": "four", "top left": "at the top left", "bottom": "at the bottom"}
    for asked in all_kinds(200):
        for question in asked:
            if question.answer in ("yes", "no"):
                flipped = {"yes": "no", "no": "yes"}[question.answer]
                assert not score(question, flipped)
                assert not score(question, f"{question.answer} {flipped}")
            elif question.kind in other:
                for word in other[question.kind]:
                    same = spoken.get(question.answer, question.answer) == word
                    assert score(question, word) == same, (question, word)


def test_a_reply_without_an_answer_is_never_right() -> None:
    replies = (
        "",
        ".",
        "I do not know.",
        "I need a picture for that. Please show me one.",
        "🙂",
        "the the the",
        "a" * 5000,
    )
    for asked in all_kinds(40):
        for question in asked:
            for reply in replies:
                assert not score(question, reply), (question, reply)


def test_captions_are_not_scored() -> None:
    assert not score(Question("caption", "Describe the picture.", "", "A red star."), "A red star.")
