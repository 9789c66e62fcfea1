"""minichat-small: the eyes of minichat-tiny before an LLM of a package. Its LLM is used where it is on this machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import minichat
from minichat.errors import ModelError
from minichat.toy.evaluate import accuracy, held_out
from minichat.toy.world import draw, random_scene
from minichat.weights.known_models import llm_folder, llm_is_here
from minichat.weights.registry import ASSETS, SMALL, llm_of
from tests.conftest import REAL_HOME

FOLDER = ASSETS / SMALL


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_it_adds_at_most_25_megabytes() -> None:
    assert size(FOLDER) <= 25e6


def test_without_its_llm_it_says_the_one_command() -> None:
    """Tests have a home of their own, where nothing was fetched."""
    with pytest.raises(ModelError, match=r"minichat models fetch smollm2-135m-instruct"):
        minichat.load(SMALL)


@pytest.fixture(scope="module")
def bot() -> Iterator[minichat.MiniChat]:
    llm = llm_of(SMALL)
    assert llm is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINICHAT_HOME", str(REAL_HOME))
        if not llm_is_here(llm):
            pytest.skip("its LLM is not here: minichat models fetch minichat-small")
        yield minichat.load(SMALL, device="cpu")


def test_it_sees(bot: minichat.MiniChat) -> None:
    """Far more than without eyes."""
    seen, blank = accuracy(bot, held_out(8, seed=1)), accuracy(bot, held_out(4, seed=1), drawing=None)
    assert seen["overall"] >= blank["overall"] + 0.2, (seen, blank)


def test_it_talks_without_a_picture(bot: minichat.MiniChat) -> None:
    assert "paris" in bot.chat(max_new_tokens=30).ask("What is the capital of France?").lower()


def test_no_internal_token_is_shown(bot: minichat.MiniChat) -> None:
    draws = random.Random(1)
    for question in ("What do you see?", "see ya", "background colour pls"):
        reply = bot.chat(max_new_tokens=60).ask(question, [draw(random_scene(draws), seed=1)])
        assert "<" not in reply
        assert "|>" not in reply


def test_its_adapter_loads_in_plain_peft(bot: minichat.MiniChat) -> None:
    llm = llm_of(SMALL)
    assert llm is not None
    plain = AutoModelForCausalLM.from_pretrained(llm_folder(llm), dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, FOLDER / "adapter").eval()
    ids = torch.arange(100, 120)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, bot.model.language_model(ids).logits, atol=2e-3, rtol=1e-3)
