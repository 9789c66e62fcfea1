"""Dialogues in people's words: what leans on earlier turns, several pictures, what no picture answers, boxes."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
from test_scenes_speech import is_true

from minichat.errors import SettingsError
from minichat.prompt.boxes import parse
from minichat.toy.dataset import SyntheticStream
from minichat.toy.dialogues import NEED, Turn
from minichat.toy.off_distribution import OUTSIDE
from minichat.toy.pairs import random_pair
from minichat.toy.speech import chat, nouns
from minichat.toy.speech.chat import Box, box, referred, spelled, task
from minichat.toy.speech.lessons import LESSONS, Album, hastily
from minichat.toy.speech.nouns import Things
from minichat.toy.speech.talk import MOVES, Said, Talk, insisted
from minichat.toy.speech.verdict import PERTURBATIONS, typed
from minichat.toy.world import RGB, Background, Look, Scene, Style, Thing, draw, random_scene

STAR = Thing("star", "red", "large", 0.2, 0.2, 0.15)
RING = Thing("ring", "blue", "small", 0.8, 0.8, 0.09)


def talks(seed: int, count: int) -> list[tuple[Scene, list[Said]]]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        scene = random_scene(rng)
        talk = Talk(scene, rng)
        found.append((scene, [talk.turn() for _ in range(10)]))
    return found


def test_what_leans_on_earlier_turns_is_true_too() -> None:
    leaning = 0
    for scene, said in talks(1, 60):
        for turn in said:
            if turn.program is None or turn.answer is None:
                continue
            assert is_true(scene, turn.program, turn.answer) is not False, turn
            leaning += turn.leans
    assert leaning > 50


def test_every_way_to_go_on_comes() -> None:
    """Each kind of follow-up is heard by a wording that only it has."""
    texts = " | ".join(turn.text.lower() for _, said in talks(2, 150) for turn in said)
    for heard in (
        r"\bits (colou?r|size|shape)",
        r"the other (one|\w+)",
        r"are you sure|really",
        r"i meant|i mean",
        r"the (left|right|upper|lower|top|bottom|big|small|little) one",
        r"which ones|what are they|name them",
        r"\bno,? it|but it is|it's \w+, isn't it|isn't it \w+|looks \w+ to me",
        r"in more detail|short(er|en)|longer|too (long|short)|(more|fewer) words|expand on|elaborate|be brief",
        r"how do you know|why|guess|proof|prove|based on",
    ):
        assert re.search(heard, texts), heard


def test_who_asks_whether_it_is_sure_is_told_the_same() -> None:
    assert insisted("No, it is red.") == "Yes, I am sure: it is red."
    assert insisted("A red star and a blue ring.") == "Yes, I am sure: a red star and a blue ring."


_NAMES_A_PICTURE = re.compile(
    "first|second|third|new|last|latest|current|previous|earlier|other|old|both|two|they|share|common|picture|one|image"
)


def test_a_new_picture_is_the_one_that_is_spoken_of() -> None:
    """What names no picture is about the newest; of one that shows no drawn shapes nothing is told."""
    rng = random.Random(3)
    colours = Counter[bool]()
    for _ in range(60):
        first, second = (Scene((thing,), Background("plain", ("white",))) for thing in (STAR, RING))
        scenes: list[Scene | None] = [first, second]
        if rng.random() < 0.3:
            scenes.insert(1, None)
        turns = Album(scenes, rng).one_after_another(len(scenes) + 4)
        assert [p for turn in turns for p in turn.pictures] == list(range(len(scenes)))
        newest = -1
        for turn in turns:
            newest = turn.pictures[-1] if turn.pictures else newest
            if scenes[newest] is None:
                assert turn.reply == OUTSIDE
            elif not _NAMES_A_PICTURE.search(turn.question.lower()) and " no " not in turn.reply:
                wrong = "star" if scenes[newest] is second else "ring"
                colours[f" {wrong}" in turn.reply and wrong not in turn.question.lower()] += 1
    assert colours[False] > 50
    assert colours[True] == 0


def test_two_pictures_at_once_are_compared_truly() -> None:
    rng = random.Random(4)
    seen = 0
    for _ in range(80):
        pair = random_pair(rng)
        for turn in Album(pair, rng).at_once(5):
            counts = [len(scene.things) for scene in pair]
            asked = turn.question.lower()
            if (
                re.search(r"(more|fewer|less) (objects|things|items|elements|figures)\b(?! than)", asked)
                and "which" in asked
            ):
                if turn.reply not in ("The first.", "The second.", "Neither, the number is the same."):
                    continue  # a question about one of the two
                one = counts[0] > counts[1] if "more" in asked else counts[0] < counts[1]
                true = "Neither" if counts[0] == counts[1] else "The first" if one else "The second"
                assert turn.reply.startswith(true), (turn, counts)
                seen += 1
    assert seen > 3


# --- what no picture answers


def test_a_word_that_is_not_of_this_world_is_named_as_it_was_said() -> None:
    rng = random.Random(5)
    for _ in range(200):
        text, reply = chat.foreign(rng)
        named = re.search(r"no ([\w ]+)\.", reply)
        assert named is not None
        assert re.sub(r"object$", "", named[1]).strip() in text.lower(), (text, reply)


def test_replies_to_what_no_picture_answers_show_no_internal_token() -> None:
    rng = random.Random(6)
    for _ in range(300):
        text, reply = chat.aside(rng)
        assert text.strip() and reply
        assert "<" not in reply and "{" not in text + reply and "[" not in text + reply, (text, reply)


def test_without_a_picture_a_question_about_one_is_answered_by_asking_for_it() -> None:
    rng = random.Random(7)
    before = [turn for _ in range(60) for turn in LESSONS["without a picture"](rng, False)[0]]
    assert any(turn.reply == NEED for turn in before)


# --- how people type


def test_perturbations_keep_the_words() -> None:
    rng = random.Random(8)
    text = "What colour is the gray star?"
    changed = {name: change(text, rng) for name, change in PERTURBATIONS.items()}
    assert changed[", please"] == "What colour is the gray star, please?"
    assert changed["all upper"] == text.upper()
    assert changed["no mark at the end"] == text[:-1]
    assert changed["British spelling"] == "What colour is the grey star?"
    assert changed["American spelling"] == "What color is the gray star?"
    assert changed["doubled blanks"].split() == text.split()
    swapped = changed["two letters swapped"]
    assert swapped != text and sorted(swapped) == sorted(text)


def test_typing_changes_only_as_much_as_is_asked() -> None:
    rng = random.Random(9)
    texts = [f"Where is the {colour} star in the picture?" for colour in RGB] * 20
    assert all(typed(text, rng, 0) == text for text in texts)
    changed = sum(typed(text, rng, 0.5) != text for text in texts) / len(texts)
    assert 0.35 < changed < 0.6
    turns = [Turn(text, (), "At the top.") for text in texts[:5]]
    assert [turn.reply for turn in hastily(turns, rng, 1)] == [turn.reply for turn in turns]


# --- boxes


def read_boxes(text: str) -> list[Box]:
    """As a reply's boxes are read everywhere, in a picture of 100 × 100."""
    return [one.pixels(100, 100) for one in parse(text)]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    whole = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared / whole if whole else 0.0


def test_a_box_holds_the_thing_as_it_is_drawn() -> None:
    rng = random.Random(10)
    ious = []
    for _ in range(40):
        scene = random_scene(rng, things=1, backgrounds=("plain",))
        pixels = np.asarray(draw(scene, 200, style=Style(jitter=0, outline=False)), np.int16)
        rows, columns = np.nonzero(np.abs(pixels - np.array(RGB[scene.background.colours[0]])).sum(-1) > 40)
        drawn = (columns.min() / 2, rows.min() / 2, (columns.max() + 1) / 2, (rows.max() + 1) / 2)
        ious.append(overlap(box(scene.things[0]), tuple(round(side) for side in drawn)))  # type: ignore[arg-type]
    assert min(ious) > 0.85


def test_boxes_are_read_as_they_are_spelled() -> None:
    assert read_boxes(f"There: {spelled((1, 2, 30, 100))}.") == [(1, 2, 30, 100)]
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    scene = Scene((STAR, RING), Background("plain", ("white",)))
    assert read_boxes(referred(scene, Things(shape="ring"))) == [box(RING)]
    assert len(read_boxes(referred(scene, Things()))) == 2
    assert referred(scene, Things(shape="heart")) == "There is no heart."
    rng = random.Random(11)
    words = Counter(task(scene, rng)[0].split("]")[0] for _ in range(60))
    assert set(words) == {"[refer", "[identify", "[grounding"}


# --- lessons


@pytest.mark.parametrize("name", list(LESSONS))
def test_a_lesson_shows_its_pictures_and_follows_from_its_seed(name: str) -> None:
    for seed in range(12):
        turns, scenes = LESSONS[name](random.Random(seed), easy=seed % 2 == 0)
        assert turns
        assert sorted(p for turn in turns for p in turn.pictures) == list(range(len(scenes)))
        assert (turns, scenes) == LESSONS[name](random.Random(seed), easy=seed % 2 == 0)


def test_a_curriculum_changes_what_is_drawn_on_its_way() -> None:
    stages = [{"until": 32, "kinds": {"asked": 1}}, {"kinds": {"talks": 1, "albums": 1}}]
    stream = SyntheticStream({"curriculum": 1}, batch_size=2, stages=stages, noise=0)
    kinds = [str(stream.example(index).where) for index in range(64)]
    assert all("drawn asked" in kind for kind in kinds[:32])
    assert all("drawn talks" in kind or "drawn albums" in kind for kind in kinds[32:])


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (None, "called 'curriculum'"),
        ([], "not a list of stages"),
        ([{"kinds": {"asked": 1}}, {"kinds": {"talks": 1}}], "stage 1: until is None"),
        ([{"until": 5, "kinds": {"asked": 1}}], "stage 1: until is 5"),
        ([{"until": 5, "kinds": {"asked": 1}}] * 2 + [{"kinds": {"asked": 1}}], "stage 2"),
        ([{"kinds": {"asks": 1}}], "nothing is drawn of the kind 'asks'"),
        ([{"kinds": {"asked": 0}}], "a ratio must be"),
        ([{"kind": {"asked": 1}}], "must have kinds"),
    ],
)  # fmt: skip
def test_a_curriculum_that_cannot_be_is_refused(stages: object, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        SyntheticStream({"curriculum": 1}, batch_size=2, stages=stages)  # type: ignore[arg-type]


def test_moves_are_those_that_exist() -> None:
    talk = Talk(random_scene(random.Random(0)), random.Random(0), moves=dict.fromkeys(MOVES, 1.0))
    assert all(talk.turn().reply for _ in range(40))
    assert Look(talk.look.scene).things


def test_what_is_no_part_of_this_world_has_plurals_and_articles_of_english() -> None:
    said = {"puppy": "puppies", "man": "men", "knife": "knives", "boy": "boys", "bus": "buses", "sheep": "sheep"}
    assert {one: nouns.plural(one) for one in said} == said
    assert [nouns.article(one) for one in ("hourglass", "unicorn", "owl")] == ["an hourglass", "a unicorn", "an owl"]
