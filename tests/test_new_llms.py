"""`minichat new` with ten families of LLMs: their tokenizers and chat templates, their networks, each behind a CLIP."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import minichat
from minichat.inference.bot import MiniChat
from minichat.prompt.chat_template import read_chat_template
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import Rendered, render
from minichat.prompt.template import Template
from minichat.prompt.tokenizer import FastTokenizer
from minichat.weights.convert import convert
from minichat.weights.export import export
from tests.families import LLMS, THINKING, step, tokenizer_of, vision_of, write_llm
from tests.tiny import noise_picture

ASK: dict[str, Any] = {"max_new_tokens": 8}
WORDS = ("What is it?", "It is a red star.", "Is it large? C#", "Yes, it is.", "And\n\n  this one 12?")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    vision_of("clip").save_pretrained(folder / "clip")
    return folder


@cache
def _joined(desk: Path, name: str) -> tuple[Path, MiniChat]:
    llm = write_llm(name, desk / f"{name}-llm")
    folder = convert(desk / name, blip2=str(desk / "clip"), llm=str(llm), bridge="pool")
    return folder, minichat.load(folder, device="cpu", dtype="float32")


@pytest.fixture(params=LLMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bot(desk: Path, name: str) -> MiniChat:
    return _joined(desk, name)[1]


@cache
def read(name: str) -> tuple[PreTrainedTokenizerBase, Template]:
    return read_chat_template(tokenizer_of(name))


def talk(*words: str, system: str | None = None) -> list[dict[str, str]]:
    said = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(words)]
    return [*([] if system is None else [{"role": "system", "content": system}]), *said]


def spelled(name: str, messages: list[dict[str, str]], **options: Any) -> Rendered:
    tokenizer, template = read(name)
    content = FastTokenizer(tokenizer, begins=False)
    conversation = Conversation.from_messages(messages)
    return render(conversation, template, content, slot_id=-1, slots_per_picture=1, **options)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_are_those_of_plain_transformers(name: str, system: str | None) -> None:
    """Id for id, in the first turn and in the third; an LLM that thinks keeps no thoughts of earlier turns there."""
    if system is not None and name == "mistral":
        assert not read(name)[1].takes_system  # it would put it into the last question
        return
    for turns in (1,) if name in THINKING else (1, 3, 5):
        messages = talk(*WORDS[:turns], system=system)
        theirs = tokenizer_of(name).apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
        )
        assert spelled(name, messages, add_generation_prompt=True).ids == list(theirs["input_ids"])


def test_what_is_typed_makes_no_control_token(name: str) -> None:
    """Each of the tokenizer's added tokens, typed by a person and said in a reply, is spelled in letters."""
    tokenizer, template = read(name)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    controls = {tokenizer.convert_tokens_to_ids(token) for token in (*added, *template.controls)}
    controls.discard(tokenizer.unk_token_id)
    plain = spelled(name, talk("a", "b", "c", "d"))
    hostile = " ".join(added) + "\n" + "".join(added)
    typed = spelled(name, talk(hostile, f"b {hostile}", hostile, "d"))
    assert [i for i in typed.ids if i in controls] == [i for i in plain.ids if i in controls]
    assert template.controls
    for marker in template.markers:  # where the roles' names are no tokens, as OLMo's
        asked = [spelled(name, talk(f"so {text} there"), add_generation_prompt=True).ids for text in (marker, "")]
        seen = [tokenizer.decode(ids, skip_special_tokens=False).count(marker) for ids in asked]
        assert seen[0] == seen[1], marker


def test_what_is_supervised_is_the_replies_and_their_ends(name: str) -> None:
    """And a longer conversation begins with the prompt that asked for its reply, then that reply: a cache holds."""
    tokenizer, template = read(name)
    content = FastTokenizer(tokenizer, begins=False)
    end = content.control_id(str(template.end[1]))
    messages = talk(*WORDS[:4])
    whole = spelled(name, messages)
    replies, reply = [], list[int]()
    for number, learn in zip(whole.ids, whole.loss_mask, strict=True):
        if learn and number == end:
            replies.append(content.decode(reply).strip())
            reply = []
        elif learn:
            reply.append(number)
    assert (replies, reply) == ([WORDS[1], WORDS[3]], [])
    asked = spelled(name, messages[:3], add_generation_prompt=True).ids
    assert whole.ids[: len(asked)] == asked
    assert whole.ids[len(asked) :] == [*content.encode(WORDS[3]), end] or template.joined


def test_batches_are_one_by_one(bot: MiniChat) -> None:
    images = [noise_picture(number) for number in range(3)]
    prompts = [f"What is it? {'Please. ' * (2 * number)}" for number in range(3)]
    alone = [bot.caption([i], p, **ASK)[0] for i, p in zip(images, prompts, strict=True)]
    assert bot.caption(images, prompts, batch_size=3, **ASK) == alone


def test_a_session_says_what_a_fresh_one_says(bot: MiniChat) -> None:
    """Three turns, a picture in the first and the third; with what was read before, and without."""
    chat = bot.chat(**ASK)
    for number, question in enumerate(("What is it?", "Is it red?", "And this one?")):
        chat.ask(question, [noise_picture(number)] * (number != 1))
        asked = Conversation(chat.conversation.messages[:-1])
        fresh = bot.chat(conversation=asked, **ASK)
        fresh.regenerate()
        assert fresh.conversation.messages[-1].ids == chat.conversation.messages[-1].ids


def test_a_step_teaches_the_projection(bot: MiniChat) -> None:
    before, after = step(bot)
    assert after < before


def test_what_is_written_says_the_same(desk: Path, name: str, bot: MiniChat) -> None:
    """The folder refers to its LLM; exported, it holds it. The LLM's own template is recorded in both."""
    folder, _ = _joined(desk, name)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["llm"]["path"] == str(desk / f"{name}-llm")
    assert stored["template"] == "tokenizer"
    whole = minichat.load(export(str(folder), "minichat", desk / f"{name}-whole"), device="cpu", dtype="float32")
    assert whole.processor.spelling == bot.processor.spelling
    picture = noise_picture(2)
    assert whole.caption([picture], **ASK) == bot.caption([picture], **ASK)
