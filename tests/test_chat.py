"""Sessions and captions: what a person sees, what is computed for it, and what is left after an error."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.generation import SuppressTokensLogitsProcessor

import minichat
from minichat.errors import ContextError, ImageError, ModelError, PromptError, SettingsError
from minichat.inference import session
from minichat.inference.bot import MiniChat
from minichat.inference.generate import logits_processors
from minichat.inference.sampling import GenerationSettings, Stops
from minichat.inference.session import ChatSession, as_published, fit, without_oldest
from minichat.prompt.conversation import Conversation, Picture, Text
from minichat.prompt.template import TEMPLATES
from tests.tiny import counting, noise_picture, saying, spell, tensor_bytes, tiny_bot

QUESTIONS = ("What is it?", "And the boat?", "How many stars are there?", "Which is larger?", "Is it red?")


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot()


def texts(chat: ChatSession) -> list[str]:
    return [message.text for message in chat.conversation]


def fresh_reply(bot: MiniChat, chat: ChatSession, **settings: Any) -> str:
    """What a session without any cache replies to the last question of `chat`."""
    asked = Conversation(chat.conversation.messages[:-1])
    return bot.chat(conversation=asked, history=chat.history, **settings).regenerate()


# --- laws


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_cannot_be_copied_says_what_to_do(bot: MiniChat, copied: Callable[[object], object]) -> None:
    chat = bot.chat(max_new_tokens=4)
    chat.ask("What is it?")
    with pytest.raises(ModelError, match=r"any number of chats and threads may use one, .* \(minichat\.load\)\.$"):
        copied(bot)
    with pytest.raises(PromptError, match=r"bot\.chat\(conversation=chat\.conversation\) goes on from it\.$"):
        copied(chat)
    assert texts(bot.chat(conversation=copy.deepcopy(chat.conversation))) == texts(chat)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("history", ["ids", "text"])
def test_a_session_says_what_a_fresh_one_says(template: str, history: Any) -> None:
    bot = tiny_bot(template)
    chat = bot.chat(history=history, max_new_tokens=8)
    for number, question in enumerate(QUESTIONS):
        pictures = [noise_picture(10 * number + p) for p in range((1, 0, 2, 0, 0)[number])]
        pieces = list(chat.stream(question, pictures))
        assert "".join(pieces) == texts(chat)[-1] == fresh_reply(bot, chat, max_new_tokens=8)


def test_a_turn_computes_its_own_tokens_alone(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=8)
    chat.ask("What is it?", [noise_picture(1), noise_picture(2)])
    for question in QUESTIONS:
        before = bot.processor.render(chat.conversation)
        with counting(bot) as counts:
            chat.ask(question)
        after = bot.processor.render(chat.conversation)
        # The end of the reply before is not read when it is written, but with the next question.
        assert counts["tokens"] <= len(after.ids) - len(before.ids) + 3
        assert counts["pictures"] == 0
    with counting(bot) as counts:
        chat.ask("And this?", [noise_picture(3), noise_picture(1)])
    assert counts["pictures"] == 1  # the other is known


def test_edit_regenerate_undo(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=8)
    first = chat.ask("What is it?", noise_picture(1))
    second = chat.ask("And this?", noise_picture(2))
    third = chat.ask("Which is larger?")
    assert texts(chat) == ["What is it?", first, "And this?", second, "Which is larger?", third]
    assert chat.regenerate() == third
    assert len(chat.conversation) == 6
    # An edit drops what followed and keeps the turn's pictures, unless others are given.
    reply = chat.edit(1, "And that?")
    assert texts(chat) == ["What is it?", first, "And that?", reply]
    assert chat.conversation.messages[2].pictures == (noise_picture(2),)
    assert reply == fresh_reply(bot, chat, max_new_tokens=8)
    reply = chat.edit(1, "And that?", images=[noise_picture(3), noise_picture(4)])
    assert chat.conversation.messages[2].pictures == (noise_picture(3), noise_picture(4))
    assert reply == fresh_reply(bot, chat, max_new_tokens=8)
    chat.edit(1, "And that?", images=[])
    assert chat.conversation.messages[2].pictures == ()
    left = chat.undo()
    assert left is chat.conversation
    assert texts(chat) == ["What is it?", first]
    assert chat.ask("And this?", noise_picture(2)) == second
    assert len(chat.undo()) == 2
    assert len(chat.undo()) == 0
    assert chat.ask("What is it?", noise_picture(1)) == first


def test_edit_regenerate_undo_compute_what_is_new_alone(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=4)
    chat.ask("What is it?", [noise_picture(1), noise_picture(2)])
    chat.ask("How many stars are there?")
    with counting(bot) as counts:
        chat.regenerate()
    assert counts == {"steps": counts["steps"], "tokens": counts["steps"], "pictures": 0}
    chat.undo()
    with counting(bot) as counts:
        chat.edit(0, "What colour is it?")
    pictures = 2 * bot.processor.num_image_tokens
    assert counts["pictures"] == 0
    assert counts["tokens"] - counts["steps"] < len(spell(bot, " What colour is it?###Assistant: ")) + 4 < pictures + 30


def test_there_must_be_a_turn(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=2)
    for act in (chat.regenerate, chat.undo, lambda: chat.edit(0, "Hi")):
        with pytest.raises(PromptError):
            act()
    chat.ask("Hi")
    for turn in (1, -1, True, "0", None):
        with pytest.raises(PromptError, match="this conversation has 1"):
            chat.edit(turn, "Hi")  # type: ignore[arg-type]
    assert len(chat.conversation) == 2


def test_history_text_cleans_replies_as_published() -> None:
    said = Conversation().user("Hi").assistant("I am. Assistant: Yes ### no", ids=[5, 6])
    cleaned = as_published(said).messages[1]
    assert (cleaned.text, cleaned.ids) == ("Yes", None)
    assert as_published(said).messages[0] == said.messages[0]


# --- a person's words, a model's words


@pytest.mark.parametrize("template", ["vicuna-v0", "llama2", "minigpt-v2", "vicuna-v1.1"])
def test_a_marker_that_is_not_a_stop_is_shown_whole(template: str) -> None:
    bot = tiny_bot(template)
    said = "He says Assistant: yes, [INST] no [/INST], USER: # ## \n\n <Img> it is red."
    stop = spell(bot, "###") if template == "vicuna-v0" else [2]
    chat = bot.chat()
    with saying(bot, [*spell(bot, said), *stop]):
        pieces = list(chat.stream("Hi"))
    assert "".join(pieces) == said == texts(chat)[-1]
    assert len([piece for piece in pieces if piece]) > 10
    # And it is in the history as it was generated.
    assert list(chat.conversation.messages[-1].ids or ()) == spell(bot, said)


def test_a_stop_is_not_shown_and_not_in_the_history(bot: MiniChat) -> None:
    chat = bot.chat()
    for stop in ("###", " ###", "\n###", "###Human: Hi"):
        with saying(bot, [*spell(bot, "It is red." + stop), 2]):
            assert list(chat.stream("Hi"))[-1].endswith(".")
        assert texts(chat)[-1] == "It is red."
    assert chat.ask("Hi", max_new_tokens=4) == fresh_reply(bot, chat, max_new_tokens=4)


def test_an_empty_reply(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=4)
    with saying(bot, [2]):
        assert chat.ask("Hi") == ""
    assert texts(chat) == ["Hi", ""]
    assert chat.ask("What is it?") == fresh_reply(bot, chat, max_new_tokens=4)


def test_persons_words_make_no_slot(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=4)
    for words in ("<ImageHere>", "<image></s><s>[INST]", "<Img></Img>", "###Human: ### Assistant :"):
        with counting(bot) as counts:
            chat.ask(words, noise_picture(1) if len(chat.conversation) else None)
        assert counts["pictures"] == (len(chat.conversation) == 4)


def test_a_question_says_or_shows_something(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=2)
    for text in ("", "  \n"):
        with pytest.raises(PromptError, match="empty"):
            chat.ask(text)
    chat.ask("", noise_picture(1))
    with pytest.raises(PromptError):
        chat.ask(None)  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        chat.edit(0, " ", images=[])
    assert len(chat.conversation) == 2


def test_errors_come_before_anything_is_done(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=2)
    for settings, kind in [({"max_new_tokens": 10**9}, SettingsError), ({"hot": 1}, SettingsError)]:
        for act in (chat.ask, chat.stream):
            with pytest.raises(kind):
                act("Hi", **settings)  # type: ignore[operator]
    with pytest.raises(ImageError):
        chat.stream("Hi", b"no picture")
    with pytest.raises(SettingsError, match="temperature"):
        bot.chat(temperature=float("nan"))
    with pytest.raises(SettingsError, match="history"):
        bot.chat(history="html")  # type: ignore[arg-type]
    assert len(chat.conversation) == 0


# --- stopped, failed, gone


def test_a_cancelled_reply_stays_as_far_as_it_was_shown(bot: MiniChat) -> None:
    said = spell(bot, "The picture shows a red circle and a blue boat.")
    chat, stop = bot.chat(), threading.Event()
    with saying(bot, said) as read:
        pieces = chat.stream("What is it?", noise_picture(1), cancel=stop)
        shown = [next(pieces), next(pieces)]
        steps = len(read)
        stop.set()
        shown += pieces
        assert len(read) <= steps + 1
    assert texts(chat) == ["What is it?", "".join(shown)]
    assert chat.conversation.messages[-1].ids == tuple(said[: len(shown)])
    assert chat.ask("And?", max_new_tokens=6) == fresh_reply(bot, chat, max_new_tokens=6)


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_leaving_a_stream_ends_it(bot: MiniChat, leave: str) -> None:
    said = spell(bot, "The picture shows a red circle.")
    chat = bot.chat()
    threads = threading.active_count()
    with saying(bot, said) as read:
        pieces = chat.stream("What is it?")
        shown = next(pieces)
        steps = len(read)
        if leave == "close":
            pieces.close()  # type: ignore[attr-defined]
        else:
            del pieces
        assert len(read) == steps
    assert texts(chat) == ["What is it?", shown]
    assert threading.active_count() == threads
    assert chat.ask("And?", max_new_tokens=6) == fresh_reply(bot, chat, max_new_tokens=6)


def test_cancelled_before_anything_was_shown(bot: MiniChat) -> None:
    chat, stop = bot.chat(max_new_tokens=4), threading.Event()
    chat.ask("Hi")
    before = chat.conversation
    stop.set()
    with counting(bot) as counts:
        assert chat.ask("What is it?", cancel=stop, num_beams=2) == ""
        assert chat.regenerate(cancel=stop, num_beams=2) == ""
        with saying(bot, [35]):  # the first byte of a character
            assert chat.ask("What is it?", cancel=stop) == ""
    assert counts["steps"] <= 5
    assert chat.conversation is before
    never = chat.stream("What is it?")
    del never
    assert chat.conversation is before


def test_another_request_ends_a_reply_that_is_being_written(bot: MiniChat) -> None:
    said = spell(bot, "The picture shows a red circle.")
    chat = bot.chat(max_new_tokens=6)
    with saying(bot, said):
        old = chat.stream("What is it?")
        shown = next(old)
    new = chat.ask("And this?", noise_picture(1))
    assert texts(chat) == ["What is it?", shown, "And this?", new]
    assert list(old) == []
    with saying(bot, said):
        running = chat.stream("What is it?")
        next(running)
        chat.undo()  # the question that is being answered
    assert texts(chat) == ["What is it?", shown, "And this?", new]


def test_another_thread_ends_a_reply_that_is_being_written() -> None:
    bot = tiny_bot(context=4096)
    chat, shown = bot.chat(max_new_tokens=3000), []
    begun = threading.Event()

    def write() -> None:
        for piece in chat.stream("What is it?"):
            shown.append(piece)
            begun.set()

    endless = bot.model.language_model.register_forward_hook(
        lambda m, a, o: o.logits[:, -1].index_fill_(1, torch.tensor(spell(bot, " red")[-1:]), 1e6) is None or None
    )
    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert begun.wait(20)
        chat.ask("And this?", max_new_tokens=2)
    finally:
        thread.join(20)
        endless.remove()
    assert not thread.is_alive()
    assert texts(chat)[:2] == ["What is it?", "".join(shown)]
    assert len(shown) < 2999
    assert len(chat.conversation) == 4


@pytest.mark.parametrize("where", ["first step", "later step", "inside a step", "vision"])
@pytest.mark.parametrize(
    "error", [ValueError("boom"), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), KeyboardInterrupt()]
)
def test_after_an_error_the_next_request_succeeds(where: str, error: BaseException) -> None:
    bot = tiny_bot()
    chat = bot.chat(max_new_tokens=8)
    chat.ask("What is it?", noise_picture(1))
    before = chat.conversation
    module = {
        "vision": bot.model.vision_model,
        "inside a step": bot.model.language_model.model.layers[1],
    }.get(where, bot.model.language_model)
    at = 3 if where in ("later step", "inside a step") else 1
    calls = itertools.count(1)

    def fail(module: Any, args: Any) -> None:
        if next(calls) >= at:  # memory that runs out is taken from what is kept, and the step tried again
            raise error

    hook = module.register_forward_pre_hook(fail)
    shown = []
    expected: Any = ContextError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected) as caught:
        for piece in chat.stream("And this?", noise_picture(2)):
            shown.append(piece)
    hook.remove()
    if expected is ContextError:
        assert "memory" in str(caught.value)
    assert chat.conversation is before
    assert chat.ask("And this?", noise_picture(2)) == fresh_reply(bot, chat, max_new_tokens=8)


def leave_mid_reply(bot: MiniChat, times: int) -> None:
    threads = threading.active_count()
    level = None
    for number in range(times):
        chat = bot.chat(max_new_tokens=100)
        with counting(bot) as counts:
            pieces = chat.stream("What is in the picture?", noise_picture(number))
            next(pieces)
            steps = counts["steps"]
            if number % 2:
                pieces.close()  # type: ignore[attr-defined]
            del pieces, chat
            assert counts["steps"] == steps
        assert threading.active_count() == threads
        if number == times // 2:
            level = tensor_bytes()
    assert level is not None
    assert tensor_bytes() <= 1.05 * level


def test_a_visitor_who_leaves_mid_reply_leaves_nothing_behind(bot: MiniChat) -> None:
    leave_mid_reply(bot, 6)


@pytest.mark.long
def test_a_hundred_visitors_who_leave(bot: MiniChat) -> None:
    leave_mid_reply(bot, 100)


# --- many turns, many sessions


def test_the_oldest_words_go_and_the_pictures_stay() -> None:
    bot = tiny_bot(context=200)
    chat = bot.chat(max_new_tokens=8)
    pictures = [noise_picture(1), noise_picture(2)]
    chat.ask("What is it?", pictures[0])
    assert chat.notices == ()
    chat.ask("And this?", pictures[1])
    levels = []
    with counting(bot) as counts:
        for turn in range(24):
            chat.ask(QUESTIONS[turn % 5])
            prompt = bot.processor.render(shown_of(chat), add_generation_prompt=False)
            assert prompt.pictures == tuple(pictures)
            assert len(prompt.ids) <= bot.context
            if turn % 8 == 7:
                levels.append(tensor_bytes())
    assert counts["pictures"] == 0
    assert len(chat.conversation) == 52  # the person's view of it is whole
    assert chat.conversation.pictures == tuple(pictures)
    assert len(chat.notices) == 1
    assert re.search(r"200 tokens: the oldest \d+ questions", chat.notices[0])
    assert max(levels) - min(levels) < cache_bytes(bot)
    # After an edit further back there is room again.
    chat.edit(1, "And that?")
    assert chat.notices == ()
    while chat.conversation:
        chat.undo()


def test_a_notice_goes_with_the_turns_that_it_is_about() -> None:
    chat = tiny_bot(context=200).chat(max_new_tokens=8)
    for turn in range(12):
        chat.ask(QUESTIONS[turn % 5])
    assert chat._forgotten > 1
    for left in range(11, 0, -1):
        chat.undo()
        assert chat._forgotten < left  # the last question is always taken into account
    assert len(chat.conversation) == 2
    assert chat.notices == ()


def cache_bytes(bot: MiniChat) -> int:
    """A key–value cache of the whole context; within that, memory goes up and down with the prompt's length."""
    llm = bot.model.config.text_config
    return 2 * 4 * llm.num_hidden_layers * llm.hidden_size * llm.max_position_embeddings


def shown_of(chat: ChatSession) -> Conversation:
    return without_oldest(chat.conversation, chat._forgotten)


@pytest.mark.long
def test_five_hundred_turns() -> None:
    bot = tiny_bot(context=300)
    chat = bot.chat(max_new_tokens=8)
    chat.ask("What is it?")
    chat.ask("And this?", noise_picture(2))
    levels = []
    for turn in range(500):
        chat.ask(QUESTIONS[turn % 5])
        assert shown_of(chat).pictures == (noise_picture(2),)
        if turn % 50 == 49:
            levels.append(tensor_bytes())
    assert chat.notices
    assert max(levels) - min(levels) < cache_bytes(bot)


def test_forgetting_is_not_done_at_every_turn() -> None:
    """What goes changes the prompt from its beginning: most turns must still compute their own tokens alone."""
    bot = tiny_bot(context=640)
    chat = bot.chat(max_new_tokens=2)
    tokens = []
    for turn in range(40):
        with counting(bot) as counts:
            chat.ask(QUESTIONS[turn % 5])
        if chat.notices:
            tokens.append(counts["tokens"])
    assert len(tokens) > 10
    assert sum(count > 100 for count in tokens) <= len(tokens) / 3


def test_pictures_that_do_not_fit(bot: MiniChat) -> None:
    chat = bot.chat(max_new_tokens=8)
    with pytest.raises(ContextError, match=r"with 200 pictures takes \d{4} tokens and the reply up to 8; .* 512"):
        chat.ask("What are these?", [noise_picture(1, (8, 8))] * 200)
    with pytest.raises(ContextError, match="set max_new_tokens to at most"):
        chat.ask("Hi", max_new_tokens=511)
    with pytest.raises(ContextError, match="512"):
        bot.caption([noise_picture(1)], max_new_tokens=512)
    with pytest.raises(ContextError, match="ask more briefly"):
        chat.ask("x " * 2000)
    assert len(chat.conversation) == 0
    assert chat.ask("Hi")


def test_fit_forgets_no_more_than_it_must() -> None:
    conversation = Conversation()
    for number in range(20):
        conversation = conversation.user(f"{number}", [noise_picture(number, (2, 2))] if number == 1 else ())
        conversation = conversation.assistant("yes")
    conversation = conversation.user("last")

    def render(c: Conversation) -> Any:
        length = sum(10 for _ in c) + 5 * len(c.pictures)
        return type("Rendered", (), {"ids": [0] * length, "conversation": c})()

    everything = len(render(conversation).ids)
    assert fit(conversation, render, 100, everything + 100)[0] == 0
    assert fit(conversation, render, 100, None)[0] == 0
    assert fit(conversation, render, 100, everything + 100, forgotten=3)[0] == 3
    for context in range(120, everything + 100):
        forgotten, prompt = fit(conversation, render, 100, context)
        assert len(prompt.ids) + 100 <= context
        assert [p.size for p in prompt.conversation.pictures] == [(2, 2)]
        slack = context // 8 if 15 + 100 + context // 8 <= context else 0
        if forgotten > 1:  # one turn less would not leave the slack
            less = render(without_oldest(conversation, forgotten - 1))
            assert len(less.ids) + 100 + slack > context
    with pytest.raises(ContextError):
        fit(conversation, render, 100, 114)


def test_pictures_of_forgotten_turns_come_first() -> None:
    a, b, c = (noise_picture(i, (2, 2)) for i in range(3))
    whole = (
        Conversation.from_messages([{"role": "system", "content": "Be brief."}])
        .user("one", [a])
        .assistant("1")
        .user("two", [b])
        .assistant("2")
        .user("three", [c])
    )
    assert without_oldest(whole, 0) is whole
    short = without_oldest(whole, 2)
    assert [m.role for m in short] == ["system", "user"]
    assert short.messages[1].parts == (Picture(a), Picture(b), Picture(c), Text("three"))


def talk(bot: MiniChat, number: int) -> list[str]:
    """A conversation with its own words, pictures and settings."""
    chat = bot.chat(max_new_tokens=6 + number % 3)
    chat.ask(f"What is number {number}?", [noise_picture(number), noise_picture(1000 + number)][: 1 + number % 2])
    "".join(chat.stream(QUESTIONS[number % 5]))
    if number % 4 == 0:
        chat.undo()
    chat.ask("And this?", noise_picture(2000 + number), temperature=0.8, seed=number)
    return texts(chat)


def talk_at_once(sessions: int, threads: int) -> None:
    bot = tiny_bot()
    alone = [talk(bot, number) for number in range(sessions)]
    together: dict[int, list[str]] = {}
    numbers = iter(range(sessions))
    guard = threading.Lock()

    def work() -> None:
        while True:
            with guard:
                number = next(numbers, None)
            if number is None:
                return
            together[number] = talk(bot, number)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [together[number] for number in range(sessions)] == alone
    assert len({tuple(t) for t in alone}) == sessions


def test_sessions_at_once_do_not_cross() -> None:
    talk_at_once(sessions=8, threads=8)


@pytest.mark.long
def test_sixty_four_sessions_at_once_do_not_cross() -> None:
    talk_at_once(sessions=64, threads=64)


def test_interleaved_streams_do_not_cross(bot: MiniChat) -> None:
    settings = {"max_new_tokens": 10}
    alone = [bot.chat(**settings).ask(q, noise_picture(i)) for i, q in enumerate(QUESTIONS)]
    chats = [bot.chat(**settings) for _ in QUESTIONS]
    streams = [chat.stream(q, noise_picture(i)) for i, (chat, q) in enumerate(zip(chats, QUESTIONS, strict=True))]
    pieces: list[list[str]] = [[] for _ in streams]
    for row in itertools.zip_longest(*streams, fillvalue=""):
        for said, piece in zip(pieces, row, strict=True):
            said.append(piece)
    assert ["".join(said) for said in pieces] == alone


def open_and_close(bot: MiniChat, sessions: int) -> None:
    """Memory returns to where it was, without waiting for the garbage collector."""

    def one(number: int) -> weakref.ref[ChatSession]:
        chat = bot.chat(max_new_tokens=3)
        chat.ask("What is it?", noise_picture(number))
        next(chat.stream("And?"))
        return weakref.ref(chat)

    one(0)
    level = tensor_bytes()
    gc.disable()
    try:
        assert {one(number)() for number in range(sessions)} == {None}
    finally:
        gc.enable()
    assert tensor_bytes() <= 1.05 * level


def test_closed_sessions_leave_nothing(bot: MiniChat) -> None:
    open_and_close(bot, 4)


@pytest.mark.long
def test_a_thousand_sessions_leave_nothing(bot: MiniChat) -> None:
    open_and_close(bot, 1000)


# --- what is cached


def test_pictures_of_the_same_bytes_and_another_shape_are_others(bot: MiniChat) -> None:
    wide, high = noise_picture(1, (40, 20)), noise_picture(1, (20, 40))
    assert wide.tobytes() == high.tobytes()
    chat = bot.chat(max_new_tokens=6)
    chat.ask("What is it?", wide)
    with counting(bot) as counts:
        chat.edit(0, "What is it?", images=high)
    assert counts["pictures"] == 1
    with counting(bot) as counts:
        chat.edit(0, "What is it?", images=Image.frombytes("RGB", (20, 40), high.tobytes()))  # the same, another object
    assert counts["pictures"] == 0


def test_other_weights_or_preprocessing_make_what_was_cached_useless() -> None:
    bot = tiny_bot()
    chat = bot.chat(max_new_tokens=8)
    picture = noise_picture(1)
    first = chat.ask("What is it?", picture)
    with torch.no_grad():
        bot.model.vision_model.embeddings.position_embedding.mul_(3)
    with counting(bot) as counts:
        second = chat.regenerate()
    assert counts["pictures"] == 1
    assert second == fresh_reply(bot, chat, max_new_tokens=8)
    bot.processor.image_processor.image_mean = [0.9, 0.1, 0.5]
    with counting(bot) as counts:
        third = chat.regenerate()
    assert counts["pictures"] == 1
    assert third == fresh_reply(bot, chat, max_new_tokens=8)
    with torch.no_grad():
        bot.model.projection.weight.mul_(2)
        bot.model.projection.bias.add_(1)
    with counting(bot) as counts:
        fourth = chat.regenerate()
    assert counts["tokens"] > 30  # nothing of the prompt is taken from the cache
    assert fourth == fresh_reply(bot, chat, max_new_tokens=8)
    assert len({first, second, third, fourth}) > 1


# --- beams, captions


def test_beams_in_a_session(bot: MiniChat) -> None:
    chat, others = bot.chat(max_new_tokens=6), 0
    for number, question in enumerate(QUESTIONS):
        greedy = chat.ask(question, [noise_picture(1), noise_picture(2)] if number == 0 else [])
        beams = chat.regenerate(num_beams=4)
        assert beams == fresh_reply(bot, chat, max_new_tokens=6, num_beams=4)
        others += beams != greedy
    assert others  # in some turn they find another reply
    assert chat.ask("And?") == fresh_reply(bot, chat, max_new_tokens=6)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}]
)
def test_captions_in_batches_are_one_by_one(bot: MiniChat, settings: dict[str, Any]) -> None:
    images: list[Any] = [noise_picture(i, (8 + i, 30)) for i in range(6)]
    images += [[noise_picture(7), noise_picture(8)], [noise_picture(9), noise_picture(7)]]
    prompts = [f"{QUESTIONS[i % 5]} {'Please. ' * i}" for i in range(8)]
    settings = {"max_new_tokens": 9, **settings}
    alone = [bot.caption([image], prompt, **settings)[0] for image, prompt in zip(images, prompts, strict=True)]
    for size in (3, 8):
        assert bot.caption(images, prompts, batch_size=size, **settings) == alone
    sessions = [
        bot.chat(**settings).ask(prompt, image if isinstance(image, list) else [image])
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert sessions == alone
    assert len(set(alone)) > 4


def test_a_caption_says_whether_it_was_cut_off(bot: MiniChat) -> None:
    picture = noise_picture(1)
    (cut,) = bot.caption([picture], max_new_tokens=3)
    assert cut.finish == "length"
    said = bot.chat(max_new_tokens=3).ask("Describe this image in detail.", [picture])
    assert cut == said and type(said) is str
    other = tiny_bot()
    other.stops = Stops((), tuple((token,) for token in range(other.model.config.text_config.vocab_size)))
    assert other.caption([picture], max_new_tokens=3)[0].finish == "stop"  # whatever comes first ends it


def test_a_caption_may_be_asked_for_without_a_word(bot: MiniChat) -> None:
    """As what learned from pictures and texts alone is to be asked."""
    image = noise_picture(1)
    (caption,) = bot.caption([image], "", max_new_tokens=8)
    assert caption == bot.chat(max_new_tokens=8).ask("", [image])
    assert caption != bot.caption([image], max_new_tokens=8)[0]


def test_captions_take_what_images_take(bot: MiniChat, tmp_path: Any) -> None:
    picture = noise_picture(1)
    picture.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    one = bot.caption([picture], max_new_tokens=5)
    assert bot.caption([tmp_path / "a.png", str(tmp_path / "a.png"), data], max_new_tokens=5) == one * 3
    assert bot.caption(picture, max_new_tokens=5) == one  # type: ignore[arg-type]
    with open(tmp_path / "a.png", "rb") as file:
        assert bot.caption(file, max_new_tokens=5) == one  # type: ignore[arg-type]
    assert bot.caption([io.BytesIO(data)], max_new_tokens=5) == one
    assert bot.caption([]) == []


def test_a_program_may_end_within_a_reply(bot: MiniChat) -> None:
    """Whoever holds its iterator then sees no error of a module that is gone."""
    chat = bot.chat(max_new_tokens=5)
    begun = chat.stream("What is it?")
    first = next(begun)
    session._end_open()
    assert list(begun) == []
    assert [message.text for message in chat.conversation] == ["What is it?", first]


def test_no_caption_is_of_nothing(bot: MiniChat) -> None:
    """A missing value in a table is None: what a model says without a picture describes none."""
    picture = noise_picture(1)
    for images, number in ((None, 1), ([None], 1), ([picture, None], 2), ([picture, []], 2), ([[]], 1)):
        with pytest.raises(ImageError, match=f"Caption {number} has no picture"):
            bot.caption(images)  # type: ignore[arg-type]


def test_arguments_of_other_types_are_named(bot: MiniChat) -> None:
    for prompt in (5, b"x"):
        with pytest.raises(PromptError, match="it must be a text, or one for each caption"):
            bot.caption([noise_picture(1)], prompt)  # type: ignore[arg-type]
    for said in ([{"role": "user", "content": "x"}], "x"):
        with pytest.raises(PromptError, match="make it with minichat"):
            bot.chat(conversation=said)  # type: ignore[arg-type]
    for name in (None, b"minichat-tiny"):
        with pytest.raises(ModelError, match="it must be a name, a folder or a hub id"):
            minichat.load(name)  # type: ignore[arg-type]


def test_suppressed_ids_are_no_cause_for_a_warning() -> None:
    """transformers warns where a processor of ours has the type of one that it makes itself."""
    never = logits_processors(GenerationSettings(), 1, torch.device("cpu"), [3])
    assert [type(one) for one in never] != [SuppressTokensLogitsProcessor]
    scores = never(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 5))
    assert scores.isinf().nonzero().tolist() == [[0, 3]]


def test_captions_say_what_is_wrong(bot: MiniChat) -> None:
    picture = noise_picture(1)
    with pytest.raises(PromptError, match="2 prompts for 1"):
        bot.caption([picture], ["a", "b"])
    for size in (0, -1, True, 1.5, 10**9):
        with pytest.raises(SettingsError, match="batch_size"):
            bot.caption([picture], batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="max_new_tokens"):
        bot.caption([picture], max_new_tokens=-1)
    with pytest.raises(ImageError):
        bot.caption([b"nothing"])


# --- a reply that was cut, and what it took to write one


@pytest.mark.parametrize("history", ["ids", "text"])
@pytest.mark.parametrize("template", ["vicuna-v0", "llama2", "minigpt-v2"])
def test_a_reply_that_goes_on_is_the_longer_reply(template: str, history: Any) -> None:
    bot = tiny_bot(template)
    whole, parts = (bot.chat(history=history) for _ in range(2))
    for chat in (whole, parts):
        chat.ask("What is it?", noise_picture(1), max_new_tokens=3)
    said = whole.ask("And this?", noise_picture(2), max_new_tokens=12)
    parts.ask("And this?", noise_picture(2), max_new_tokens=2)
    while parts.cut and (left := 12 - len(parts.conversation.messages[-1].ids or ())) > 0:
        with counting(bot) as counts:
            grown = parts.go_on(max_new_tokens=min(4, left))
        assert counts["tokens"] == counts["steps"]  # nothing is read again
        assert counts["pictures"] == 0
    assert grown == said
    assert parts.conversation == whole.conversation
    assert parts.cut == whole.cut
    assert parts.ask("Is it red?", max_new_tokens=4) == whole.ask("Is it red?", max_new_tokens=4)


@pytest.mark.parametrize("sliding", [False, True])
def test_a_reply_goes_on_as_far_as_there_is_room(sliding: bool) -> None:
    text = {"model_type": "mistral", "sliding_window": 16, "num_key_value_heads": 2} if sliding else None
    bot = tiny_bot(context=128, text=text)
    chat = bot.chat()
    with saying(bot, spell(bot, "red blue " * 60)):
        chat.ask("What is it?", max_new_tokens=10)
        with pytest.raises(SettingsError, match="beams"):
            chat.go_on(num_beams=2)
        said = chat.go_on(max_new_tokens=1000)
    assert len(bot.processor.render(chat.conversation, continue_final_message=True).ids) == 128
    assert chat.cut and said.startswith("red blue red")
    with pytest.raises(ContextError, match="context of 128 is full"):
        chat.go_on()
    assert chat.conversation.messages[-1].text == said


def test_a_reply_that_was_stopped_or_has_ended_goes_on(bot: MiniChat) -> None:
    with pytest.raises(PromptError, match="no reply"):
        bot.chat().go_on()
    said = spell(bot, "The picture shows a red circle and a blue boat.")
    chat, stop = bot.chat(), threading.Event()
    with saying(bot, said, [bot.processor.end_id], [bot.processor.end_id]):
        pieces = chat.stream("What is it?", cancel=stop)
        next(pieces)
        stop.set()
        assert list(pieces) == [] and chat.cut
        before = chat.conversation
        gone_on = chat.stream_on(cancel=stop)
        assert list(gone_on) == []  # it was stopped before it began
        assert chat.conversation is before and chat.cut
        left = chat.stream_on()
        assert next(left) == texts(chat)[-1]
        left.close()  # type: ignore[attr-defined]
        assert chat.conversation is before and chat.cut
        assert chat.go_on() == "The picture shows a red circle and a blue boat."
        assert not chat.cut
        assert chat.go_on() == "The picture shows a red circle and a blue boat."
        assert not chat.cut
    other = bot.chat(conversation=before)
    assert not other.cut  # nobody knows
    from_words = Conversation((before.messages[0],)).assistant(texts(chat)[-1])
    with saying(bot, spell(bot, "It")):
        assert bot.chat(conversation=from_words).go_on(max_new_tokens=1).startswith(texts(chat)[-1])


def test_what_a_reply_took(bot: MiniChat) -> None:
    chat = bot.chat()
    assert chat.figures is None
    chat.ask("What is it?", noise_picture(1), max_new_tokens=5)
    for tokens in (5, 8):
        figures = chat.figures
        assert figures is not None and figures.tokens == tokens
        assert figures.first > 0 and figures.rate is not None and figures.rate > 0
        assert figures.used == len(bot.processor.render(chat.conversation, continue_final_message=True).ids)
        assert figures.context == bot.context
        chat.go_on(max_new_tokens=3)
    chat.ask("What is it?", max_new_tokens=5, num_beams=2)
    assert chat.figures is not None and chat.figures.tokens <= 5 and chat.figures.rate is None
