"""The hand-written questions: no training form spells one of them, and each has a true answer that is judged right."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

import pytest
from own_questions import Own, own_questions
from test_scenes_speech import asked

from minichat.toy.speech import grammar, nouns, speaker
from minichat.toy.speech.grammar import CONFIRM, INDIRECT, LEADS, TAILS, parsed, pattern
from minichat.toy.speech.speaker import WORDINGS, topic
from minichat.toy.speech.verdict import PERTURBATIONS, judge
from minichat.toy.world import COLOURS, NUMBERS


@cache
def _phrase_words() -> frozenset[str]:
    """All words that phrases in slots are made of: a row of them may be a phrase, so nothing trained is missed."""
    words = {word for text in _texts() for word in re.findall(r"[a-z]+", text.lower())}
    words |= set(COLOURS) | set(NUMBERS) | {"grey", "an", "the", "not", "and", "or", "is", "isn", "t", "aren", "are"}
    words |= {"that", "which", "this", "other", "than", "besides", "apart", "from", "coloured", "shaped", "shape", "a"}
    words |= set("0123456789s") | {"colour", "size", "in", "one", "thing"}
    return frozenset(words | {noun + "s" for noun in words} | {noun + "es" for noun in words})


def _texts() -> Iterator[str]:
    forms = {*vars(grammar), "AMERICAN", *(name for name in vars(speaker) if "WORDINGS" in name or "TOPIC" in name)}
    found = {**vars(nouns), **vars(speaker)}
    values: list[object] = [value for name, value in found.items() if name not in forms]
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value if len(value) < 60 else ""
        elif isinstance(value, tuple | list | frozenset):
            values += value
        elif isinstance(value, dict):
            values += value.values()


class _AnySlot(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return r"\b([a-z0-9' \-]+)\b"


@cache
def _cores() -> list[tuple[frozenset[str], re.Pattern[str]]]:
    """Each core with the words that it cannot do without, which are looked at first."""
    cores = {
        core.partition("@")[0]
        for wording in WORDINGS.values()
        for group in vars(wording).values()
        for core in ((group,) if isinstance(group, str) else group)
        if core
    }
    return [(_needed(core), re.compile(pattern(core, _AnySlot()))) for core in sorted(cores)]


def _needed(core: str) -> frozenset[str]:
    literal = (node for node in parsed(core) if isinstance(node, str) and not node.startswith("{"))
    return frozenset(
        word for text in literal for word in re.findall(r"[^\s,:]+", text)[1:-1]
    )  # those at its ends may be parts of words


@cache
def _frames() -> list[re.Pattern[str]]:
    frames = [*INDIRECT.values(), *CONFIRM.values(), *LEADS.values(), *TAILS.values()]
    return [re.compile(pattern(frame, dict.fromkeys("csq", "(.+)"))) for frame in frames]


_HERE = re.compile(rf" (here|(in|on) (the|this|that) ({'|'.join(nouns.PICTURES)}))$")


def spelled_by_training(text: str) -> bool:
    """Whether a core with any phrases in it, in any frame, spells the text; case and marks at the end are free."""
    text = re.sub(r"[?.!]+$", "", " ".join(text.lower().split())).strip()
    every = [text, *(re.sub(r"[?.!]+$", "", inner).strip() for inner in _inside(text + "?"))]
    every = [PERTURBATIONS["British spelling"](inner, random.Random(0)) for inner in every]
    every += [_HERE.sub("", inner) for inner in every]
    for inner in dict.fromkeys(every):
        words = frozenset(re.findall(r"[^\s,:]+", inner))
        for needed, core in _cores():
            if needed <= words and (match := core.fullmatch(inner)) is not None:
                phrases = " ".join(group for group in match.groups() if group)
                if set(re.findall(r"[a-z0-9]+", phrases)) <= _phrase_words():
                    return True
    return False


def _inside(text: str) -> Iterator[str]:
    """What frames may stand round, two deep."""
    for mark in ("", "?", "."):
        for frame in _frames():
            if (match := frame.fullmatch(text[:-1] + mark)) is not None:
                inner = next(group for group in match.groups() if group)
                yield inner
                for other in _frames():
                    if (again := other.fullmatch(inner)) is not None:
                        yield next(group for group in again.groups() if group)


def test_what_is_trained_is_known_to_be() -> None:
    """The test below would mean nothing if it took what the grammar spells for something else."""
    said = [utterance.text for *_, utterance in asked(21, 6, held_out=None)]
    known = [spelled_by_training(text) for text in said]
    assert sum(known) / len(known) > 0.97, [text for text, found in zip(said, known, strict=True) if not found][:5]


@pytest.fixture(scope="module")
def own() -> list[Own]:
    return own_questions()


def test_no_training_form_spells_one_of_the_own_questions(own: list[Own]) -> None:
    assert len(own) >= 200
    assert len({one.text for one in own}) == len(own)
    spelled = [one.text for one in own if spelled_by_training(one.text)]
    assert not spelled


def test_each_has_an_answer_and_the_topics_are_all_there(own: list[Own]) -> None:
    assert all(judge(one.program, one.answer, one.scene, one.answer.reply) == "right" for one in own)
    topics = [topic(one.program) for one in own]
    assert min(topics.count(name) for name in set(topics)) >= 4
    truths = [one.answer.yes for one in own if one.answer.yes is not None]
    assert 0.35 < sum(truths) / len(truths) < 0.65
