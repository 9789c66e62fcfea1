"""Tellers without a model, for tests of what is asked and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minichat.evaluate.replies import Ask, Reply, Teller


class Oracle(Teller):
    """Replies to each question what a function says; `asked` holds all questions."""

    def __init__(self, reply: Callable[[Ask], str | Reply], blind: bool = False) -> None:
        self.blind = blind
        self.asked: list[Ask] = []
        self._reply = reply

    def replies(self, asks: Sequence[Ask], max_new_tokens: int = 32) -> list[Reply]:
        self.asked += asks
        said = [self._reply(ask) for ask in asks]
        return [reply if isinstance(reply, Reply) else Reply(reply) for reply in said]
