"""Questions about a scene: true, even over their kinds, and never answered by their own wording."""

from __future__ import annotations

import math
import random
import re
import time
from collections import Counter, defaultdict

import pytest
from scene_reader import COLOUR, NUMBER_WORDS, PHRASE, SHAPE, simple, truth

from minichat.errors import SettingsError
from minichat.toy.asking import ALL_KINDS, KINDS, Question
from minichat.toy.captions import detailed
from minichat.toy.questions import questions
from minichat.toy.world import Background, Scene, Thing, random_scene


def many(count: int, seed: int = 0, each: int = 8, kinds: tuple[str, ...] = KINDS) -> list[tuple[Scene, Question]]:
    rng = random.Random(seed)
    drawn = []
    for _ in range(count):
        scene = random_scene(rng)
        drawn += [(scene, question) for question in questions(scene, rng, each, kinds)]
    return drawn


def check(drawn: list[tuple[Scene, Question]]) -> None:
    for scene, question in drawn:
        assert truth(scene, question) == question.answer, (question, scene)


def test_every_answer_is_true_by_an_independent_reading() -> None:
    check(many(1000, kinds=ALL_KINDS))


@pytest.mark.long
def test_every_answer_is_true_by_an_independent_reading_of_many() -> None:
    check(many(60_000, seed=9, kinds=ALL_KINDS))


def test_the_picture_that_is_meant_is_named() -> None:
    rng = random.Random(4)
    for _ in range(300):
        scene = random_scene(rng)
        for question in questions(scene, rng, 8, ALL_KINDS, picture="second"):
            assert "second picture" in question.text.lower()
            assert truth(scene, question) == question.answer, question


def test_replies_begin_with_the_answer_and_say_nothing_else() -> None:
    for scene, question in many(600, seed=2, kinds=ALL_KINDS):
        reply = question.reply.lower()
        if question.answer in ("yes", "no"):
            assert reply.startswith(question.answer + ",")
        elif question.answer.isdigit():
            words = {"0": "no|none"}.get(question.answer, NUMBER_WORDS[int(question.answer)])
            assert re.search(rf"\b({words})\b", reply)
        else:
            assert all(word in reply for word in question.answer.split() if word != "and")
        if question.kind in ("colour", "shape") and question.answer in ("yes", "no"):  # what is so is told with it
            thing_words = set(re.findall(COLOUR if question.kind == "colour" else SHAPE, reply))
            assert len(thing_words) == 1
            stated = thing_words.pop()
            asked = re.findall(rf"\b{stated}\b", simple(question.text))
            assert bool(asked) == (question.answer == "yes")
            assert any(getattr(thing, question.kind) == stated for thing in scene.things)


def test_equal_seeds_give_equal_questions() -> None:
    assert many(50, seed=3) == many(50, seed=3)
    assert many(50, seed=3) != many(50, seed=4)


def test_kinds_come_evenly() -> None:
    kinds = Counter(question.kind for _, question in many(1200, each=7))
    assert set(kinds) == set(KINDS)
    for kind, count in kinds.items():  # a lone thing has no relations
        assert (0.7 if kind == "relation" else 0.93) <= count / 1200 <= 1.15, kinds


def test_questions_about_a_scene_differ() -> None:
    rng = random.Random(6)
    for _ in range(200):
        texts = [question.text.lower() for question in questions(random_scene(rng), rng, 12)]
        assert len(set(texts)) == len(texts)


def test_a_scene_that_allows_few_questions_gives_few() -> None:
    scene = Scene((Thing("star", "red", "large", 0.5, 0.5, 0.2),), Background("plain", ("white",)))
    assert questions(scene, random.Random(0), 5, ("relation",)) == []
    assert len(questions(scene, random.Random(0), 200, ("size",))) < 200


def test_unknown_kinds_are_refused_by_name() -> None:
    scene = random_scene(random.Random(0))
    with pytest.raises(SettingsError, match="smell"):
        questions(scene, random.Random(0), 3, ("smell",))
    with pytest.raises(SettingsError, match="kinds"):
        questions(scene, random.Random(0), 3, ())


def test_half_of_the_denied_pairs_are_there_apart() -> None:
    """ "Is there a red star?" is denied half the time of a scene with something red and with a star."""
    apart: Counter[bool] = Counter()
    for scene, question in many(2500, seed=5, each=2, kinds=("existence",)):
        match = PHRASE.search(simple(question.text))
        assert match is not None
        if question.answer == "no" and match["colour"] and match["shape"] and len(scene.things) > 2:
            there = {t.colour for t in scene.things}, {t.shape for t in scene.things}
            apart[match["colour"] in there[0] and match["shape"] in there[1]] += 1
    share = apart[True] / sum(apart.values())
    assert 0.42 < share < 0.58


def wording(text: str) -> str:
    """The simple text with its content masked."""
    text = re.sub(rf"\b({COLOUR})\b", "C", text)
    text = re.sub(rf"\b({SHAPE})(e?s)?\b", "S", text)
    return re.sub(r"\b(objects?|things?|shapes?)\b", "O", re.sub(r"\b(small|large)\b", "Z", text))


@pytest.fixture(scope="module")
def asked() -> list[tuple[str, str, str, str]]:
    """Kind, answer, simple text and wording of the questions about 5,000 scenes."""
    drawn = [question for _, question in many(5000, seed=7, kinds=ALL_KINDS)]
    texts = [simple(question.text) for question in drawn]
    return [(q.kind, q.answer, text, wording(text)) for q, text in zip(drawn, texts, strict=True)]


def test_yes_and_no_are_even_in_every_wording_and_for_every_word(asked: list[tuple[str, str, str, str]]) -> None:
    """The share of yes is within what chance allows (4.5 standard deviations), never lopsided where there are many."""
    yes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for kind, answer, text, worded in asked:
        if answer in ("yes", "no"):
            for key in {worded, *text.split(), "all"}:
                yes[kind, key][answer] += 1
    assert len(yes) > 100
    for key, answers in yes.items():
        total = answers["yes"] + answers["no"]
        assert abs(answers["yes"] - total / 2) <= 4.5 * math.sqrt(total) / 2, (key, answers)
        if total > 2000:
            assert 0.45 < answers["yes"] / total < 0.55, (key, answers)


def test_words_alone_do_not_tell_yes_from_no(asked: list[tuple[str, str, str, str]]) -> None:
    """Naive Bayes over words and wordings, learned on four fifths of the questions, is no better than a coin."""
    closed = [
        (answer, {worded, *(f"{kind} {word}" for word in text.split())})
        for kind, answer, text, worded in asked
        if answer in ("yes", "no")
    ]
    cut = len(closed) * 4 // 5
    seen: dict[str, Counter[str]] = {"yes": Counter(), "no": Counter()}
    for answer, features in closed[:cut]:
        seen[answer].update(features)

    def guess(features: set[str]) -> str:
        return "yes" if sum(math.log((seen["yes"][f] + 1) / (seen["no"][f] + 1)) for f in features) > 0 else "no"

    right = sum(guess(features) == answer for answer, features in closed[cut:]) / (len(closed) - cut)
    assert right < 0.55


def test_the_commonest_answer_to_a_wording_is_seldom_right(asked: list[tuple[str, str, str, str]]) -> None:
    """What a model without eyes could reach at best, kind by kind."""
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for kind, answer, _, worded in asked:
        answers[kind, worded][answer] += 1
    best: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (kind, _), counts in answers.items():
        if sum(counts.values()) >= 25:
            best[kind] += max(counts.values())
            total[kind] += sum(counts.values())
    most = {"existence": 0.58, "colour": 0.3, "shape": 0.34, "count": 0.46, "position": 0.36, "relation": 0.58,
            "background": 0.28, "size": 0.62}  # fmt: skip
    shares = {kind: round(best[kind] / total[kind], 3) for kind in ALL_KINDS}
    assert all(shares[kind] < most[kind] for kind in ALL_KINDS), shares


def test_three_thousand_scenes_a_second() -> None:
    """With a caption and eight questions each; a fifth of that is let pass on a machine that is busy otherwise."""
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(300)]
    start = time.process_time()
    for scene in scenes:
        detailed(scene, rng)
        questions(scene, rng, 8)
    assert len(scenes) / (time.process_time() - start) > 600
