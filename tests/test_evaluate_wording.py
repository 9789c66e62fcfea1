"""BLEU-4, ROUGE-L and CIDEr-D against values worked out by hand."""

from __future__ import annotations

import math
import random

import pytest

from minichat.errors import DataError
from minichat.evaluate.metrics import BETA, cider_d, rouge_l, tokens, wording
from minichat.toy.captions import detailed
from minichat.toy.world import random_scene


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


def test_words_are_lower_case_and_without_punctuation():
    assert tokens("A red star, two-tone; it's “small”.") == ["a", "red", "star", "two-tone", "it's", "small"]
    assert tokens("  ") == []


# --- CIDEr-D: two pictures, "a cat" and "a dog". ln 2 is the weight of "cat", "dog", "a cat", "a dog"; "a" weighs 0.


def test_the_reference_itself_has_the_full_score_for_the_lengths_that_it_has():
    """1-grams and 2-grams agree fully, and there are no 3-grams and 4-grams: 10 · (1 + 1 + 0 + 0) / 4."""
    assert cider_d(words("a cat", "a cat"), [words("a cat"), words("a dog")]) == pytest.approx([5.0, 0.0])


def test_repeating_a_word_gains_nothing():
    """1-grams: min(2, 1) · 1 / (2 · 1). 2-grams: 1 / √2, as "cat cat" weighs as much. One 2-gram more: e^(−1/72)."""
    score = cider_d(words("a cat cat", "a dog"), [words("a cat"), words("a dog")])[0]
    assert score == pytest.approx(10 * math.exp(-1 / 72) * (0.5 + 1 / math.sqrt(2)) / 4)


def test_the_score_is_a_mean_over_references():
    """ "a cat" against "a cat" and "a bird", of which 10 · 2/4 and nothing; "cat" and "a cat" stay in one picture."""
    score = cider_d(words("a cat", "a dog"), [words("a cat", "a bird"), words("a dog")])[0]
    assert score == pytest.approx(2.5)


def test_what_all_pictures_have_in_common_weighs_nothing():
    assert cider_d(words("the end", "the end"), [words("the end"), words("the end")]) == [0.0, 0.0]


def test_a_caption_of_four_words_or_more_that_is_its_reference_scores_ten():
    scores = cider_d(words("one two three four", "six"), [words("one two three four"), words("six seven")])
    assert scores[0] == pytest.approx(10)


def test_a_shorter_caption_is_punished_as_much_as_a_longer_one():
    references = [words("red star left of blue ring"), words("nothing at all")]
    short, long = ("red star left of blue", "red star left of blue ring here")
    scores = [cider_d(words(text, "x"), references)[0] for text in (short, long)]
    bare = [scores[i] / math.exp(-1 / 72) for i in range(2)]
    assert all(0 < score < value for score, value in zip(scores, bare, strict=True))


def test_equally_many_captions_and_references_are_needed():
    with pytest.raises(ValueError):
        cider_d(words("a"), [])
    with pytest.raises(ValueError):
        cider_d(words("a"), [[]])


# --- BLEU-4 and ROUGE-L


def test_bleu_of_a_corpus():
    """Lin's and Papineni's "the cat": 5 words, 4 right; pairs 3 of 4, triples 2 of 3, fours 1 of 2; no brevity."""
    found = wording(["the cat is on mat", "x y z w"], [["the cat is on rug"], ["x y z w"]])["BLEU-4"]
    # matches over both captions: 8 of 9, 6 of 7, 4 of 5, 2 of 3
    assert found == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25, rel=1e-5)


def test_bleu_punishes_brevity_by_the_closest_reference():
    found = wording(["a b c d"], [["a b c d e f", "a b c d e"]])["BLEU-4"]
    assert found == pytest.approx(math.exp(1 - 5 / 4), rel=1e-5)


def test_of_references_that_are_equally_near_in_length_the_shorter_counts_in_any_order() -> None:
    """The brevity penalty is that of sacrebleu and coco-caption: here there is none."""
    group = ["a b c d x y", "a b c d"]  # one word longer than the caption, and one shorter
    for references in (group, group[::-1]):
        found = wording(["a b c d e"], [references])["BLEU-4"]
        assert found == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_rouge_takes_the_best_precision_and_the_best_recall():
    """ "a b c d" with "a x" (1 of 4, 1 of 2) and "a b c y z w v" (3 of 4, 3 of 7)."""
    precision, recall = 3 / 4, 1 / 2
    wanted = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    assert rouge_l(["a", "b", "c", "d"], words("a x", "a b c y z w v")) == pytest.approx(wanted, rel=1e-5)


def test_rouge_counts_what_comes_in_order_with_gaps():
    assert rouge_l(["red", "big", "star"], words("red star")) == pytest.approx(
        (1 + BETA**2) * (2 / 3) / (1 + BETA**2 * (2 / 3)), rel=1e-5
    )
    assert rouge_l(["star", "red"], words("red star")) == pytest.approx(0.5, rel=1e-5)
    assert rouge_l([], words("red star")) == 0.0


def test_a_caption_that_is_its_reference_is_perfect_and_one_that_shares_no_word_is_nothing():
    captions = [detailed(random_scene(random.Random(i)), random.Random(i)) for i in range(6)]
    same = wording(captions, [[caption] for caption in captions])
    assert same == pytest.approx({"BLEU-4": 1, "ROUGE-L": 1, "CIDEr-D": 10}, rel=1e-5)
    other = wording(["quite unlike anything"] * 6, [[caption] for caption in captions])
    assert other == pytest.approx({"BLEU-4": 0, "ROUGE-L": 0, "CIDEr-D": 0})


def test_capitals_and_full_stops_do_not_count():
    assert wording(["A RED star!"] * 2, [["a red star."], ["A red, star"]])["ROUGE-L"] == pytest.approx(1)


def test_a_caption_without_a_reference_is_refused():
    with pytest.raises(DataError, match="no reference"):
        wording(["a"], [[]])
    assert wording([], []) == {}
