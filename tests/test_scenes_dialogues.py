"""Dialogues that refer back, questions about two pictures, small talk, and the training samples made of them."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest
from scene_reader import COLOUR, PHRASE, SHAPE, SIDES, article, described, simple, spot, truth

from minichat.errors import SettingsError
from minichat.toy.asking import Question
from minichat.toy.captions import facts
from minichat.toy.dialogues import MAX_TURNS, NEED, dialogue, follow, smalltalk, training_dialogue, vocabulary_corpus
from minichat.toy.pairs import pair_questions, questions_of_sides, random_pair, variation
from minichat.toy.world import Scene, Thing, random_scene

OPEN = {"colour": "what colour is it", "shape": "what form is it", "size": "how big is it", "position": "where is it"}


class Reader:
    """Follows a dialogue by its words alone: which thing "it" is, what was asked last, which is the other one."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.focus: Thing | None = None
        self.topic = ""
        self.leant: Counter[str] = Counter()

    def read(self, question: Question) -> None:
        """Check one answer and remember what was spoken of."""
        if question.kind in ("caption", "story"):
            self.focus = None
            return
        text = simple(question.text)
        how = self._leaning(re.sub(r"^is it true that|^which is it:|is there one$", "", text))
        if how:
            self.leant[how] += 1
            assert self._lean(text, how, question.kind) == question.answer, (question, self.focus)
        else:
            assert truth(self.scene, question) == question.answer, question
            self._look_for_focus(text)
        self.topic = question.kind

    def _leaning(self, text: str) -> str:
        if re.search("how many other|the other", text):
            return "count" if "how many" in text else "other"
        if re.search(r"\b(it|that one)\b", text):
            return "it"
        return "and" if re.match("and|what about", text) else ""

    def _lean(self, text: str, how: str, kind: str) -> str:
        scene, focus = self.scene, self.focus
        assert focus is not None, "it means nothing"
        if how == "count":
            key = "colour" if "colour" in text else "shape"
            return str(sum(getattr(t, key) == getattr(focus, key) for t in scene.things) - 1)
        if how == "other":
            match = re.search(rf"the other (?:one|object|({SHAPE}))", text)
            assert match is not None
            others = [t for t in scene.things if t is not focus and match[1] in (None, t.shape)]
            assert len(others) == 1, "the other one is not clear"
            focus = others[0]
        elif how == "and":
            match = PHRASE.search(text)
            assert match is not None
            (focus,) = described(scene, match)
        if re.match(r"(and|what about|and what about) the", text):
            text = OPEN[self.topic]
        self.focus = focus
        return self._of(focus, re.sub(r"^and ", "", text), kind)

    def _of(self, thing: Thing, text: str, kind: str) -> str:
        """The answer to a question about `thing` that calls it "it"."""
        words = re.findall(r"\b(left|right|above|over|higher|below|under|lower|top|bottom)\b", text)
        if kind == "relation":
            across, down = SIDES[words[0]]
            match = PHRASE.search(text)
            if match is None or match[0] == "object":
                steps = [((t.x - thing.x) * across + (t.y - thing.y) * down, t) for t in self.scene.things]
                there = [(step, t) for step, t in steps if t is not thing and step > -0.04]
                assert len(there) <= 1 and all(step >= 0.12 for step, _ in there)
                if not there:
                    return "nothing"
                self.focus = there[0][1]  # "that one"
                return f"{article(self.focus)} {self.focus.colour} {self.focus.shape}"
            (other,) = described(self.scene, match)
            step = (thing.x - other.x) * across + (thing.y - other.y) * down
            assert abs(step) >= 0.12
            return "yes" if step > 0 else "no"
        if kind == "position" and "half" in text:
            value = thing.x if words[0] in ("left", "right") else thing.y
            assert abs(value - 0.5) >= 0.04
            return "yes" if (value < 0.5) == (words[0] in ("left", "top")) else "no"
        if kind == "position":
            return spot(thing)
        assert kind in ("colour", "shape", "size")
        true = str(getattr(thing, kind))
        named = re.findall({"colour": COLOUR, "shape": rf"\ba ({SHAPE})", "size": "large|small"}[kind], text)
        return true if len(named) in (0, 2) else "yes" if named == [true] else "no"

    def _look_for_focus(self, text: str) -> None:
        for match in PHRASE.finditer(text):
            found = described(self.scene, match)
            if any(match[key] for key in ("size", "colour", "shape")) and len(found) == 1:
                self.focus = found[0]
                return
        self.focus = None


def check(dialogues: int, seed: int) -> Counter[str]:
    rng = random.Random(seed)
    leant: Counter[str] = Counter()
    for _ in range(dialogues):
        scene = random_scene(rng)
        reader = Reader(scene)
        for question in follow(scene, rng, 8):
            reader.read(question)
        leant += reader.leant
    return leant


def test_later_turns_are_true_of_what_they_refer_to() -> None:
    leant = check(600, seed=1)
    assert min(leant[how] for how in ("it", "and", "other", "count")) > 60, leant
    assert sum(leant.values()) > 600 * 8 * 0.3


@pytest.mark.long
def test_later_turns_are_true_of_what_they_refer_to_in_many() -> None:
    check(30_000, seed=2)


def test_a_dialogue_is_its_questions_and_replies() -> None:
    scene = random_scene(random.Random(3))
    questions = follow(scene, random.Random(4), 6)
    assert dialogue(scene, random.Random(4), 6) == [(question.text, question.reply) for question in questions]


def test_later_turns_say_yes_and_no_evenly() -> None:
    rng = random.Random(5)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _ in range(2500):
        for question in follow(random_scene(rng), rng, 6):
            if question.answer in ("yes", "no"):
                answers["all"][question.answer] += 1
                answers[question.kind][question.answer] += 1
    for kind, counts in answers.items():
        total = sum(counts.values())
        assert abs(counts["yes"] / total - 0.5) < 2.25 / total**0.5 + 0.005, (kind, counts)


def pair_truth(first: Scene, second: Scene, question: Question) -> str:
    """The answer to a question about two pictures, from its words and the scenes."""
    text = question.text.lower().replace("grey", "gray").strip("?.")
    scenes = (first, second)
    if "same" in text or "equally many" in text:
        if "number" in text or "equally" in text:
            same = len(first.things) == len(second.things)
        elif "kind" in text:
            same = first.background.kind == second.background.kind
        else:
            same = (first.background.kind, {*first.background.colours}) == (
                second.background.kind, {*second.background.colours})  # fmt: skip
        return "yes" if same else "no"
    if match := re.search(r"(first|second) picture (?:but not|have that)", text):
        here, there = scenes if match[1] == "first" else scenes[::-1]
        only = [t for t in here.things if not any((t.colour, t.shape) == (o.colour, o.shape) for o in there.things)]
        assert len(only) <= 1
        return f"{article(only[0])} {only[0].colour} {only[0].shape}" if only else "nothing"
    match = PHRASE.search(text)
    assert match is not None
    one, two = (len(described(scene, match)) for scene in scenes)
    if more := re.search(r"\b(more|fewer)\b", text):
        return "neither" if one == two else "the first" if (one > two) == (more[0] == "more") else "the second"
    if "both" in text:
        return "yes" if one and two else "no"
    return {(True, False): "the first", (False, True): "the second", (True, True): "both"}.get(
        (one > 0, two > 0), "neither"
    )


def test_what_is_said_of_two_pictures_is_true() -> None:
    rng = random.Random(6)
    answers: Counter[str] = Counter()
    for _ in range(1500):
        first, second = random_pair(rng)
        asked = pair_questions(first, second, rng, 3)
        assert len({question.text.lower() for question in asked}) == len(asked) > 0
        for question in asked:
            assert question.kind == "pair"
            assert pair_truth(first, second, question) == question.answer, (question, first, second)
            answers[question.answer if question.answer[:2] not in ("a ", "an") else "a thing"] += 1
    assert set(answers) == {"yes", "no", "the first", "the second", "both", "neither", "nothing", "a thing"}
    assert abs(answers["yes"] / (answers["yes"] + answers["no"]) - 0.5) < 0.06, answers
    assert abs(answers["the first"] / (answers["the first"] + answers["the second"]) - 0.5) < 0.06, answers


def test_of_two_pictures_what_is_in_one_alone_is_asked_for() -> None:
    """All of it, once; evenly in the first and in the second; nothing where the two hold the same."""
    rng = random.Random(12)
    answers: Counter[str] = Counter()
    for _ in range(500):
        first, second = random_pair(rng)
        asked = questions_of_sides(first, second, rng, 100)
        assert len({question.text.lower() for question in asked}) == len(asked)
        for question in asked:
            assert pair_truth(first, second, question) == question.answer, (question, first, second)
            assert question.reply == f"{question.answer.capitalize()}."
            answers[question.answer] += 1
        same = {(thing.colour, thing.shape) for thing in first.things} == {(t.colour, t.shape) for t in second.things}
        assert bool(asked) is not same
    assert set(answers) == {"the first", "the second"}
    assert abs(answers["the first"] / answers.total() - 0.5) < 0.03


def test_a_variation_keeps_the_laws_of_the_world() -> None:
    rng = random.Random(7)
    for _ in range(500):
        scene = random_scene(rng)
        changed = variation(scene, rng)
        assert changed != scene
        assert changed.things
        assert not {thing.colour for thing in changed.things} & set(changed.background.colours)
        kept = set(changed.things) & set(scene.things)
        assert len(kept) >= len(scene.things) - 1


def test_smalltalk_asks_for_a_picture_only_without_one() -> None:
    rng = random.Random(8)
    assert NEED in {smalltalk(rng)[1] for _ in range(100)}
    assert NEED not in {smalltalk(rng, picture=True)[1] for _ in range(300)}


def test_training_dialogues_are_well_formed() -> None:
    rng = random.Random(9)
    pictures: Counter[tuple[tuple[int, ...], ...]] = Counter()
    for _ in range(3000):
        turns = training_dialogue(rng, random_pair(rng))
        assert 1 <= len(turns) <= MAX_TURNS
        assert all(turn.question.strip() and turn.reply.strip() for turn in turns)
        shown = tuple(turn.pictures for turn in turns if turn.pictures)
        pictures[shown] += 1
        assert [index for indices in shown for index in indices] in ([], [0], [0, 1])
        before = next((number for number, turn in enumerate(turns) if turn.pictures), len(turns))
        for turn in turns[:before]:  # nothing is said of a picture that is not there
            assert not facts(turn.reply).things
    assert {(), ((0,),), ((0, 1),), ((0,), (1,))} == set(pictures)
    shares = {shown: count / 3000 for shown, count in pictures.items()}
    assert shares[(0,),] > 0.75
    assert 0.1 < shares[(0, 1),] + shares[(0,), (1,)] < 0.2


def test_once_there_are_two_pictures_every_question_says_which() -> None:
    rng = random.Random(10)
    for _ in range(400):
        shown: set[int] = set()
        for turn in training_dialogue(rng, random_pair(rng), two=1.0, none=0.0):
            shown.update(turn.pictures)
            if len(shown) == 2:
                assert re.search(
                    r"first|second|both|two pictures|which picture|same|equally|same kind", turn.question.lower()
                ), turn


def test_one_scene_makes_no_dialogue_about_two() -> None:
    rng = random.Random(11)
    for _ in range(300):
        turns = training_dialogue(rng, [random_scene(rng)], two=1.0, none=0.0)
        assert sorted(index for turn in turns for index in turn.pictures) == [0]


def test_wishes_out_of_range_are_refused() -> None:
    scene = random_scene(random.Random(0))
    with pytest.raises(SettingsError, match="scenes"):
        training_dialogue(random.Random(0), [])
    for turns in (0, 9, -1):
        with pytest.raises(SettingsError, match="turns"):
            training_dialogue(random.Random(0), [scene], turns=turns)


def test_equal_seeds_give_equal_training() -> None:
    def some(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [training_dialogue(rng, random_pair(rng)) for _ in range(50)]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_the_vocabulary_corpus_has_as_many_lines_as_asked_for_and_every_word_of_the_world() -> None:
    lines = list(vocabulary_corpus(random.Random(12), 4000))
    assert len(lines) == 4000
    assert all(line and "\n" not in line for line in lines)
    said = set(re.findall(r"[a-z]+", " ".join(lines).lower()))
    assert {*COLOUR.split("|"), *SHAPE.split("|"), "grey", "color", "picture", "welcome"} <= said
    assert list(vocabulary_corpus(random.Random(12), 0)) == []
