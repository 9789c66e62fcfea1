"""VQA accuracy with the normalisation that its server applies (https://visualqa.org/evaluation.html).

An answer is right as far as people gave it: with ten answers, min(those equal to it / 3, 1), averaged over the ten ways
to leave one of them out (Antol et al., arXiv:1505.00468, section 3). Both sides are normalised first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_GROUPED = re.compile(r"\d,\d")  # 1,000

# Words that are written with apostrophes; an answer that lacks some of them gets them back.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _lacking(word: str) -> set[str]:
    """The word with one or more of its apostrophes left out."""
    forms = {""}
    for letter in word:
        forms = {form + kept for form in forms for kept in (("'", "") if letter == "'" else (letter,))}
    return forms - {word}


_RESTORED = {form: word for word in _CONTRACTIONS.split() for form in _lacking(word)}


def normal(answer: str) -> str:
    """Lower case, no articles, no punctuation, digits for number words, contractions with their apostrophes."""
    text = re.sub(r"\s+", " ", answer).strip()
    bare = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_space or _GROUPED.search(text) else " ")
    bare = _PERIOD.sub("", bare).replace("’", "'")
    words = [_DIGITS.get(word, word) for word in bare.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(reply: str, answers: Sequence[str]) -> float:
    """From 0 to 1: how far the reply is one of people's answers.

    With fewer than four answers three can never agree when one is left out: then each of them is right.
    """
    mine, theirs = normal(reply), [normal(answer) for answer in answers]
    same = sum(answer == mine for answer in theirs)
    if len(theirs) < 4:
        return float(same > 0)
    # Leaving out one that is equal leaves `same - 1`; leaving out another leaves `same`.
    return (same * min((same - 1) / 3, 1) + (len(theirs) - same) * min(same / 3, 1)) / len(theirs)


def within(reply: str, answers: Sequence[str]) -> bool:
    """Whether the commonest answer stands in the reply as words: a reply in sentences says more than its answer."""
    theirs = [normal(answer) for answer in answers]
    commonest = max(theirs, key=theirs.count, default="")
    return bool(commonest) and f" {commonest} " in f" {normal(reply)} "
