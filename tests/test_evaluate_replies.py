"""Asking a bot in batches: the same replies as one by one, and no picture encoded twice."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from minichat.errors import ContextError, DataError, SettingsError
from minichat.evaluate import replies
from minichat.evaluate.replies import Ask, Blank, Reply, Said, Teller
from tests.tiny import tiny_bot

BOT = tiny_bot()


@dataclass(frozen=True)
class Noise:
    """A picture of a seed."""

    seed: int

    def open(self) -> Image.Image:
        return Image.frombytes("RGB", (30, 20), random.Random(self.seed).randbytes(1800))


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures were encoded."""
    counted: list[int] = []
    encode = BOT.encode

    def counting(pictures, questions=None):
        counted.append(len(pictures))
        return encode(pictures, questions)

    monkeypatch.setattr(BOT, "encode", counting)
    return counted


def asks() -> list[Ask]:
    texts = ("What is it?", "How many stars are there?", "Describe this image in detail.", "Is it left of the cat?")
    return [Ask(text, tuple(Noise(n) for n in shown)) for text in texts for shown in ((1,), (2,), (1, 2), ())]


def test_a_batch_gives_what_a_chat_gives():
    said = Teller(BOT, batch_size=5).replies(asks(), 8)
    for ask, reply in zip(asks(), said, strict=True):
        session = BOT.chat(max_new_tokens=8)
        assert session.ask(ask.text, images=[shown.open() for shown in ask.pictures]) == reply.text


def test_the_batch_size_changes_no_reply():
    assert Teller(BOT, batch_size=1).replies(asks(), 6) == Teller(BOT, batch_size=16).replies(asks(), 6)


def test_a_dialogue_goes_on_as_a_chat_does():
    teller, session = Teller(BOT), BOT.chat(max_new_tokens=6)
    ask = Ask("What is it?", (Noise(1),))
    for text, shown in (("And now?", ()), ("Which is larger?", (Noise(2),)), ("Why?", ())):
        (reply,) = teller.replies([ask], 6)
        assert session.ask(ask.text, images=[picture.open() for picture in ask.pictures]) == reply.text
        ask = ask.then(reply, text, shown)
    (last,) = teller.replies([ask], 6)
    assert session.ask("Why?") == last.text
    assert ask.all_pictures() == (Noise(1), Noise(2))


def test_a_picture_is_encoded_once_however_much_is_asked(encoded):
    teller = Teller(BOT, batch_size=3)
    teller.replies(asks(), 2)
    teller.replies([Ask("Once more?", (Noise(2),))], 2)
    assert sum(encoded) == 2


def test_few_features_are_kept(encoded, monkeypatch):
    monkeypatch.setattr(replies, "KEPT", 2)
    teller = Teller(BOT, batch_size=1)
    teller.replies([Ask("What?", (Noise(n),)) for n in (1, 2, 3)], 2)
    assert sum(encoded) == 3
    teller.replies([Ask("Why?", (Noise(3),)), Ask("Why?", (Noise(2),))], 2)
    assert sum(encoded) == 3
    teller.replies([Ask("Why?", (Noise(1),))], 2)  # one that was dropped; now 3 is, which was used before 2
    assert sum(encoded) == 4
    teller.replies([Ask("Who?", (Noise(2),))], 2)
    assert sum(encoded) == 4


def test_equal_questions_are_answered_once():
    teller = Teller(BOT, batch_size=2)
    said = teller.replies([Ask("What is it?", (Noise(1),))] * 5 + [Ask("Why?", (Noise(1),))], 4)
    assert said[:5] == [said[0]] * 5
    assert teller.answered == 2


def test_who_is_blind_sees_a_blank_picture_in_every_turn():
    before = (Said("What?", (Noise(1),), Reply("A star.")),)
    ask = Ask("And now?", (Noise(2), Noise(3)), before, "Be brief.")
    blank = Ask("And now?", (Blank(), Blank()), (Said("What?", (Blank(),), Reply("A star.")),), "Be brief.")
    assert Teller(BOT, blind=True).replies([ask], 5) == Teller(BOT).replies([blank], 5)
    blind = Teller(BOT, blind=True)
    blind.replies([Ask("What?", (Noise(n),)) for n in range(6)], 2)
    assert blind.answered == 1


def test_a_reply_that_is_cut_says_so():
    (cut,) = Teller(BOT).replies([Ask("Describe this image in detail.", (Noise(1),))], 2)
    assert not cut.whole
    assert len(cut.ids or ()) <= 2


def test_progress_is_told_after_each_batch():
    told: list[int] = []
    Teller(BOT, batch_size=6, progress=told.append).replies(asks(), 2)
    assert told == [6, 12, 16]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ContextError):
        Teller(BOT).replies([Ask("word " * 600, (Noise(1),))], 5)
    for size in (0, True, 5000):
        with pytest.raises(SettingsError, match="batch_size"):
            Teller(BOT, batch_size=size)


def test_a_batch_that_does_not_fit_into_memory(monkeypatch):
    def full(*arguments, **settings):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(BOT, "encode", full)
    with pytest.raises(SettingsError, match=r"batch_size is 4, .* lower it"):
        Teller(BOT, batch_size=4).replies(asks())

    def broken(*arguments, **settings):
        raise RuntimeError("a defect")

    monkeypatch.setattr(BOT, "encode", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        Teller(BOT).replies(asks())


def test_a_picture_that_is_missing_is_an_error_that_names_it(tmp_path):
    from minichat.data.example import StoredPicture

    with pytest.raises(DataError, match=r"gone\.png"):
        Teller(BOT).replies([Ask("What?", (StoredPicture("gone.png", tmp_path / "gone.png"),))])


def test_nothing_of_the_model_is_changed():
    before = BOT.state()
    Teller(BOT).replies(asks()[:3], 3)
    assert BOT.state() == before
    assert not torch.is_inference_mode_enabled()
