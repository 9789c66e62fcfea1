"""Examples of a data set that are made in a moment, their pictures held as bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache

from minichat.data.dataset import Renderer, Rows
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.inference.bot import MiniChat
from tests.tiny import noise_picture

WORDS = (
    "The picture shows a red circle and a blue boat.",
    "How many stars are there? There are 3 small stars, and 12 dots near the door of the tall house.",
    "What colour is it? It is yellow. Is it left of the cat? Yes, it is; no, it is not!",
    "Describe this image in detail.",
    "Which is larger, the green square or the purple triangle? The green one is larger than the other.",
)


@cache
def stored(number: int) -> StoredPicture:
    """Picture `number`, unlike every other."""
    written = io.BytesIO()
    noise_picture(number).save(written, "PNG")
    return StoredPicture(f"{number}.png", written.getvalue())


def example(*turns: tuple[str, str], pictures: int = 0, line: int = 1) -> Example:
    """Questions with their replies; `pictures` are in the first question, the last of them behind its words."""
    shown = [stored(100 * line + number) for number in range(pictures)]
    messages = []
    for number, (question, reply) in enumerate(turns):
        before, after = (shown[:-1] or shown, shown[1:][-1:]) if number == 0 else ([], [])
        messages += [Turn("user", (*before, question, *after)), Turn("assistant", (reply,))]
    return Example(tuple(messages), Where("talk.jsonl", line))


def rows_of(bot: MiniChat, samples: Iterable[Example], **limits: int) -> Rows:
    """The samples as the bot's model is to see them."""
    return Rows(map(Renderer(bot.processor, **limits), samples))
