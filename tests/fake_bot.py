"""A bot with a script: it says what it was told to say, word by word, and fails when it was told to fail."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from minichat.inference.bot import Caption
from minichat.inference.looked import Looked
from minichat.inference.request import Figures
from minichat.prompt.conversation import Conversation

Line = str | Exception | list["str | Exception"]


class FakeBot:
    """Stands in for `MiniChat`: `name`, `context`, `chat()` and `look_ahead()`.

    `enqueue` sets what the next replies are: a text, an error, or a list of words in which an error may stand. A text
    that ends in “…” is cut. Without
    a script it echoes the question and the number of pictures that the conversation holds.
    """

    def __init__(self, name: str = "fake", pause: float = 0.0) -> None:
        self.name = name
        self.context: int | None = None
        self.caption_prompt = "Describe the picture."
        self.takes_system = self.names_boxes = True
        self.pause = pause  # seconds before each word
        self.script: deque[Line] = deque()
        self.running = 0  # streams begun and not ended
        self.words = 0  # words ever said
        self.settings: list[dict[str, Any]] = []
        self.asked = Conversation()  # the last, with its question
        self.lock = threading.Lock()

    def enqueue(self, *lines: Line) -> None:
        self.script.extend(lines)

    def chat(self, conversation: Conversation | None = None, **defaults: Any) -> FakeSession:
        return FakeSession(self, conversation or Conversation())

    def caption(self, images: list[Any], prompt: str, batch_size: int, **settings: Any) -> list[Caption]:
        """A line of the script for each picture, or else the prompt and the picture's width; “…” is cut."""
        self.settings.append(settings)
        said = []
        for image in images:
            line = self.script.popleft() if self.script else f"{prompt or self.caption_prompt} {image.width} wide."
            if isinstance(line, Exception):
                raise line
            threading.Event().wait(self.pause)
            said.append(Caption(str(line), "length" if str(line).endswith("…") else "stop"))
        return said

    def look_ahead(self, opened: Any) -> None:
        """Nothing: it never looks."""

    def looked(self, conversation: Conversation) -> Looked:
        """Of two queries the first sees the corner at the top left; the reply's last word owes all to the other."""
        words = tuple(conversation.messages[-1].text.replace(" ", "\n ").split("\n"))
        maps = torch.zeros(len(conversation.pictures), 2, 4, 4)
        maps[:, 0, 0, 0] = maps[:, 1, 3, 3] = 1
        weights = torch.zeros(len(words), len(maps), 2)
        weights[:-1, 0, 0] = weights[-1, 0, 1] = 1
        return Looked(words, weights, maps, conversation.pictures, ((0.0, 0.0, 1.0, 1.0),) * len(maps))


class FakeSession:
    """Stands in for `ChatSession`: an error leaves it as it was, a stopped reply stays as far as it was shown."""

    def __init__(self, bot: FakeBot, conversation: Conversation) -> None:
        self.bot = bot
        self.conversation = conversation
        self.notices: tuple[str, ...] = ()
        self.cut = False
        self.figures: Figures | None = None

    def stream(
        self, text: str, images: Any = None, *, cancel: threading.Event | None = None, pace: Any = None, **settings: Any
    ) -> Iterator[str]:
        asked = self.conversation.user(text, images or ())
        self.bot.settings.append(settings)
        return self._reply(asked, cancel or threading.Event())

    def stream_on(self, *, cancel: threading.Event | None = None, pace: Any = None, **settings: Any) -> Iterator[str]:
        *before, begun = self.conversation.messages
        self.bot.settings.append(settings)
        return self._reply(Conversation(tuple(before)), cancel or threading.Event(), begun.text)

    def _reply(self, asked: Conversation, cancel: threading.Event, said: str = "") -> Iterator[str]:
        bot = self.bot
        bot.asked = asked
        line = (
            bot.script.popleft()
            if bot.script
            else f"You asked “{asked.messages[-1].text}”, pictures: {len(asked.pictures)}."
        )
        words = [line] if isinstance(line, Exception) else line.split(" ") if isinstance(line, str) else line
        with bot.lock:
            bot.running += 1
        try:
            if said:
                yield said
            for word in words:
                if cancel.wait(bot.pause) or cancel.is_set():
                    break
                if isinstance(word, Exception):
                    raise word
                piece = " " + word if said else word
                said += piece
                bot.words += 1
                yield piece
            if said or not cancel.is_set():
                self.conversation = asked.assistant(said)
                self.cut = cancel.is_set() or said.endswith("…")
                self.figures = Figures(len(words), 0.25, 20.5, 1234, 4096)
        except GeneratorExit:
            if said:
                self.conversation = asked.assistant(said)
            raise
        finally:
            with bot.lock:
                bot.running -= 1

    def undo(self) -> Conversation:
        self.conversation = Conversation(self.conversation.messages[:-2])
        return self.conversation
