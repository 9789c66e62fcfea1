"""What one page may cost its host, and what one visitor may take of that: sizes, counts and lifetimes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from minichat.errors import SettingsError


@dataclass(frozen=True)
class Limits:
    """Bounds of the chat page; each is a number greater than 0.

    Raises:
        SettingsError: for a bound that is no positive number; the message names it.
    """

    upload_bytes: int = 20 * 2**20  # one picture file
    waiting_bytes: int = 512 * 2**20  # all uploads together that no message has used yet
    pictures_per_message: int = 6
    pictures_per_chat: int = 24
    picture_side: int = 1024  # pictures are kept no larger than this; no model here sees more
    characters: int = 250_000  # of one message, some 60,000 tokens; the model's context is mostly the closer bound
    new_tokens: int = 1000  # the longest reply that can be asked for
    sessions: int = 64  # open chats; the one idle longest goes first
    sessions_per_visitor: int = 8  # of them; beyond, the visitor's own oldest goes
    session_life: float = 30 * 60  # seconds without a sign of life
    queue: int = 32  # messages that wait for an answer
    queue_per_visitor: int = 4  # messages of one visitor that wait or are being answered
    concurrent: int = 4  # answers at a time; more wait in the queue

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            wanted = (int, float) if limit.name == "session_life" else int
            if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value < float("inf"):
                raise SettingsError(f"{limit.name} must be a number greater than 0, not {value!r}.")
