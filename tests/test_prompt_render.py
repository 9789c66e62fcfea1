"""One renderer for training and chat: what is supervised is what is generated, and a longer chat extends a shorter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_samples import BLUE, RED, SLOT_ID, SLOTS, conversations, tokenizer

from minichat.errors import PromptError
from minichat.prompt.conversation import Conversation, Message, Text
from minichat.prompt.render import Rendered, render
from minichat.prompt.template import BOS, EOS, TEMPLATES, Template, neutralise

ids_lists = st.lists(st.integers(0, 339), max_size=5).map(tuple)


def _render(conversation: Conversation, template: Template, **options: Any) -> Rendered:
    return render(conversation, template, tokenizer(), slot_id=SLOT_ID, slots_per_picture=SLOTS, **options)


def _ends(template: Template) -> list[int]:
    """What ends a reply that is spelled from text, as its last ids."""
    if template.reply_end == EOS:
        return [tokenizer().eos_id]
    return tokenizer().encode("A word" + template.reply_end)[len(tokenizer().encode("A word")) :]


@st.composite
def generated(draw: st.DrawFn) -> Conversation:
    """A conversation some of whose replies hold the ids that were generated."""
    spelled = draw(conversations())
    messages = [Message(m.role, m.parts, draw(st.none() | ids_lists)) if m.role == "assistant" else m for m in spelled]
    return Conversation(tuple(messages))


@given(conversation=generated())
@settings(max_examples=60, deadline=None)
def test_a_longer_chat_begins_with_the_prompt_and_the_reply_of_the_shorter(conversation: Conversation) -> None:
    """Law of `history="ids"`: the key–value cache of a prompt and its reply stays true in all later prompts."""
    for template in TEMPLATES.values():
        first = 0 if conversation.system is None else 1
        whole = _render(conversation, template)
        for length in range(first + 1, len(conversation), 2):  # up to and with a question
            asked = _render(Conversation(conversation.messages[:length]), template, add_generation_prompt=True).ids
            reply = conversation.messages[length].ids
            prefix = asked if reply is None else [*asked, *reply]
            assert whole.ids[: len(prefix)] == prefix
            told = _render(Conversation(conversation.messages[: length + 1]), template)
            assert whole.ids[: len(told.ids)] == told.ids
            assert whole.loss_mask[: len(told.ids)] == told.loss_mask


@given(conversation=generated())
@settings(max_examples=60, deadline=None)
def test_the_supervised_ids_are_the_replies_and_their_ends(conversation: Conversation) -> None:
    """Law 1, for every template, with many turns and pictures."""
    for template in TEMPLATES.values():
        rendered = _render(conversation, template)
        assert len(rendered.ids) == len(rendered.loss_mask) == len(rendered.labels)
        supervised = [i for i, learn in zip(rendered.ids, rendered.loss_mask, strict=True) if learn]
        assert [label for label in rendered.labels if label != -100] == supervised
        first = _nothing_asked(conversation, template)
        if first and len(conversation) > 1:  # as BLIP-2 learns captions before OPT
            assert supervised.pop(0) == tokenizer().eos_id
        for message in conversation:
            if message.role == "assistant":
                begin, first = "" if first else template.reply_begin, False
                words = list(message.ids) if message.ids is not None else _spelled(begin, message.text, template)
                assert supervised[: len(words)] == words
                assert supervised[len(words) :][: len(_ends(template))] == _ends(template) or message.ids is None
                supervised = supervised[len(words) + (len(_ends(template)) if _by_itself(message, template) else 0) :]
        assert supervised == []


def _by_itself(message: Message, template: Template) -> bool:
    """The end has ids of its own: it is a control id, or follows generated ids."""
    return message.ids is not None or template.reply_end == EOS


def _nothing_asked(conversation: Conversation, template: Template) -> bool:
    """Whether the first question, of a template that minds, has no words, and nothing else is before it."""
    return template.learns_begin and conversation.system is None and not any(m.text for m in conversation.messages[:1])


def _spelled(begin: str, text: str, template: Template) -> list[int]:
    """A reply's own ids; where its end is text, reply and end are one text, as the originals tokenise them."""
    kept = begin + neutralise(text, template)
    if template.reply_end == EOS:
        return tokenizer().encode(kept)
    return tokenizer().encode(kept + (" " if kept.endswith(template.reply_end[0]) else "") + template.reply_end)


@given(conversation=conversations())
@settings(max_examples=40, deadline=None)
def test_slots_are_counted_and_pictures_are_in_their_order(conversation: Conversation) -> None:
    for template in TEMPLATES.values():
        for history in ("ids", "text"):
            rendered = _render(conversation, template, history=history)
            assert rendered.ids.count(SLOT_ID) == SLOTS * len(conversation.pictures)
            assert rendered.pictures == conversation.pictures
            first = (
                rendered.ids[SLOTS * len(conversation.turns[0].pictures) :] if template.pictures_first else rendered.ids
            )
            begins = {"": None, BOS: tokenizer().bos_id, EOS: tokenizer().eos_id}[template.begin]
            assert begins is None or first[0] == begins


def test_generated_ids_and_the_text_they_spell_render_the_same() -> None:
    asked = Conversation().user("What is in the picture?", [RED])
    text = "A red circle and a blue star."
    for template in TEMPLATES.values():
        spelled = asked.assistant(text).user("Where is it?", [BLUE])
        kept = asked.assistant(text, tokenizer().encode(template.reply_begin + text)).user("Where is it?", [BLUE])
        assert _render(kept, template) == _render(spelled, template)


def test_the_next_question_is_spelled_as_in_the_middle_of_a_line() -> None:
    """As the originals' prompts have it: "###" and "Human" without a space between them."""
    conversation = Conversation().user("What is it?").assistant("A ring.").user("Where is it?")
    ids, text = (_render(conversation, TEMPLATES["vicuna-v0"], history=history).ids for history in ("ids", "text"))
    tail = len(tokenizer().encode("ring.###Human: Where is it?###")) - 2  # less the word before the end, and its space
    assert tail > 8
    assert ids[-tail:] == text[-tail:]


def test_a_delimiter_keeps_its_ids_beside_a_word_that_ends_alike() -> None:
    """ "C#" before "###" must not become "C####", in which no reader finds the turn."""
    template = TEMPLATES["vicuna-v0"]
    rendered = _render(Conversation().user("What is C#"), template, add_generation_prompt=True)
    plain = _render(Conversation().user("What is C#!"), template, add_generation_prompt=True)
    assert tokenizer().decode(rendered.ids).endswith("What is C# ###Assistant: ")
    shown = _render(Conversation().user("C#", [RED]), template, add_generation_prompt=True)
    assert shown.ids.count(SLOT_ID) == SLOTS
    after = shown.ids[len(shown.ids) - shown.ids[::-1].index(SLOT_ID) :]  # what follows the picture
    assert tokenizer().decode(after) == "</Img> C# ###Assistant: "
    assert rendered.ids[-4:] == plain.ids[-4:]


def test_a_history_spelled_as_text_supervises_nothing() -> None:
    conversation = Conversation().user("What is it?").assistant("A ring.", [5, 6, 7])
    rendered = _render(conversation, TEMPLATES["vicuna-v0"], history="text")
    assert not any(rendered.loss_mask)
    assert tokenizer().decode(rendered.ids).endswith("###Human: What is it?###Assistant: A ring.###")


def test_a_slot_that_is_not_its_own_id_is_refused() -> None:
    conversation = Conversation().user("Hi").assistant("Ho", [7, SLOT_ID])
    with pytest.raises(PromptError, match=str(SLOT_ID)):
        _render(conversation, TEMPLATES["llama2"])
    taken = tokenizer().encode("Hi")[0]
    with pytest.raises(PromptError, match=str(taken)):
        render(Conversation().user("Hi"), TEMPLATES["plain"], tokenizer(), slot_id=taken, slots_per_picture=1)


def test_a_reply_is_asked_for_after_a_question_alone() -> None:
    for conversation in (Conversation(), Conversation().user("a").assistant("b")):
        with pytest.raises(PromptError, match="after a user's message"):
            _render(conversation, TEMPLATES["llama2"], add_generation_prompt=True)
    with pytest.raises(PromptError, match="history"):
        _render(Conversation().user("a"), TEMPLATES["llama2"], history="none")


def test_text_parts_are_joined_before_they_are_spelled() -> None:
    parts = Conversation((Message("user", (Text("Wh"), Text("at is it?"))),))
    assert _render(parts, TEMPLATES["llama2"]) == _render(Conversation().user("What is it?"), TEMPLATES["llama2"])
