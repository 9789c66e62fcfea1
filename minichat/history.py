"""What a model is shown of a conversation: the oldest text goes when the context is full, pictures never do."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from minichat.errors import ContextError
from minichat.prompt.conversation import Conversation, Message, Picture, Text

if TYPE_CHECKING:
    from minichat.prompt.render import Rendered


def without_oldest(conversation: Conversation, turns: int) -> Conversation:
    """Forget the words of the first `turns` questions and replies; their pictures move to the next question.

    A system message stays. `turns` is less than the number of questions.
    """
    if turns == 0:
        return conversation
    system = () if conversation.system is None else (conversation.system,)
    cut = 2 * turns  # question and reply
    pictures = tuple(Picture(picture) for message in conversation.turns[:cut] for picture in message.pictures)
    question = conversation.turns[cut]
    first = replace(question, parts=(*pictures, *question.parts))
    return Conversation((*system, first, *conversation.turns[cut + 1 :]))


def fit(
    conversation: Conversation,
    render: Callable[[Conversation], Rendered],
    new_tokens: int,
    context: int | None,
    forgotten: int = 0,
) -> tuple[int, Rendered]:
    """Forget as many of the oldest turns as it takes to fit the prompt and `new_tokens` into `context` tokens.

    Args:
        conversation: ends with the question to be answered.
        render: a conversation's prompt.
        context: None where there is no limit.
        forgotten: turns that are forgotten already and stay so.

    Returns:
        How many turns are forgotten, and the prompt without them.

    Raises:
        ContextError: with the numbers, if the pictures, the question and `new_tokens` alone do not fit.
    """
    last = sum(m.role == "user" for m in conversation) - 1
    forgotten = min(forgotten, last)
    prompts: dict[int, Rendered] = {}

    def prompt(turns: int) -> Rendered:
        if turns not in prompts:
            prompts[turns] = render(without_oldest(conversation, turns))
        return prompts[turns]

    def fits(turns: int, spare: int = 0) -> bool:
        return context is None or len(prompt(turns).ids) + new_tokens + spare <= context

    if not fits(forgotten):
        check_fits(conversation, len(prompt(last).ids), new_tokens, context)
        # What goes changes the prompt from its beginning, so that all of it is read again: free an eighth at once, that
        # the next turns may add to what has been read.
        spare = (context or 0) // 8
        if not fits(last, spare):
            spare = 0
        forgotten += 1 + bisect_left(range(forgotten + 1, last), True, key=lambda turns: fits(turns, spare))
    return forgotten, prompt(forgotten)


def check_fits(conversation: Conversation, prompt: int, new_tokens: int, context: int | None) -> None:
    """Raise `ContextError` unless a prompt of `prompt` tokens, whose pictures are the conversation's, leaves room."""
    if context is None or prompt + new_tokens <= context:
        return
    pictures = len(conversation.pictures)
    what = f"The question with {pictures} picture{'s' * (pictures != 1)}" if pictures else "The question"
    mend = "ask more briefly" + (" or about fewer pictures" if pictures > 1 else "")
    if prompt < context:
        mend = f"set max_new_tokens to at most {context - prompt}, or {mend}"
    raise ContextError(
        f"{what} takes {prompt} tokens and the reply up to {new_tokens}; the model's context holds {context}: {mend}."
    )


def as_published(conversation: Conversation) -> Conversation:
    """Replies as the original programs put them into the next prompt, to be spelled from their text.

    MiniGPT-4, `conversation.py`, `Chat.answer`: cut at "###", all up to the last "Assistant:" dropped, stripped.
    """
    return Conversation(tuple(_cleaned(m) if m.role == "assistant" else m for m in conversation))


def _cleaned(reply: Message) -> Message:
    text = reply.text.split("###")[0].split("Assistant:")[-1].strip()
    return Message("assistant", (Text(text),))
