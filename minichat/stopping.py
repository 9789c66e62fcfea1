"""Generated ids → the text that may be shown: whole characters only, and nothing of a stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

_UNFINISHED = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class Decoder(Protocol):
    """The half of a content tokenizer that is needed to read a reply: control ids decode to nothing."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Encoder(Protocol):
    """The other half, which spells a text as ids."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Stops:
    """What ends a reply: a text it may not contain, or ids it may not end with (one id is an end token)."""

    strings: tuple[str, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()
    #: False: a text only cuts what is shown, and ids alone end the reply, as in the original programs.
    strings_end: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "strings", tuple(dict.fromkeys(s for s in self.strings if s)))
        object.__setattr__(self, "sequences", tuple(dict.fromkeys(tuple(s) for s in self.sequences if s)))

    def ended_by(self, ids: Sequence[int]) -> int:
        """The length of the longest stop sequence that `ids` end with, or 0."""
        return max((len(s) for s in self.sequences if len(s) <= len(ids) and tuple(ids[-len(s) :]) == s), default=0)

    def ids_in_doubt(self, ids: Sequence[int]) -> int:
        """How many of the last ids may be the beginning of a stop sequence."""
        beginnings = (s[:n] for s in self.sequences for n in range(1, len(s)) if n <= len(ids))
        return max((len(b) for b in beginnings if tuple(ids[-len(b) :]) == b), default=0)

    def as_published(self, tokenizer: Encoder) -> Stops:
        """The original's stops: ids alone, in the two ways in which the tokenizer may spell each text.

        MiniGPT-4's `Chat.__init__` lists them for "###" and LLaMA's tokenizer: [835], as it begins a text, and
        [2277, 29937], the last two ids where it begins a line. What it leaves out ends no reply.
        """
        if not all(string == string.strip() for string in self.strings):
            return self
        spelled = [(tokenizer.encode(s), tokenizer.encode("\n" + s)[-2:]) for s in self.strings]
        return Stops(self.strings, (*self.sequences, *(tuple(ids) for pair in spelled for ids in pair)), False)

    def found_in(self, text: str) -> int:
        """Where the first stop string in `text` begins, or −1."""
        return min((at for s in self.strings if (at := text.find(s)) >= 0), default=-1)

    def text_in_doubt(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max((n for s in self.strings for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


class ReplyText:
    """A reply while it is generated: takes one id at a time and gives back the text that has become safe to show.

    All pieces joined are `text`: the decoded ids up to the first stop, without white space at either end. A piece
    never holds part of a character, part of a stop, or white space that may turn out to be the reply's end.
    Each step decodes a few ids, not the whole reply.
    """

    def __init__(self, tokenizer: Decoder, stops: Stops) -> None:
        self.generated: list[int] = []  # every id, the stop included
        self.finished = False  # a stop was met
        self._tokenizer = tokenizer
        self._stops = stops
        self._kept = 0  # how many of the ids are not part of a stop sequence
        # ids[window:read] give `_window_text`, which has been taken over. They are decoded again with what follows,
        # since a piece is spelled unlike in the middle (leading space) and as the first.
        self._window, self._read, self._window_text = 0, 0, ""
        self._pending = ""  # decoded, not yet safe to show
        self._pieces: list[str] = []
        self._cut = False  # a stop's text was met that does not end the reply: nothing more is shown

    @property
    def text(self) -> str:
        """What has been shown so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Take the next id. Returns the text that can be shown now, often none; sets `finished` at a stop."""
        if self.finished:
            return ""
        self.generated.append(token)
        if stop := self._stops.ended_by(self.generated):
            self.finished = True
            self._kept = len(self.generated) - stop
            return self.close()
        self._kept = len(self.generated)
        self._decode(self._kept - self._stops.ids_in_doubt(self.generated))
        return self._show()

    def read(self, ids: Iterable[int]) -> str:
        """Take all ids of a reply, up to its stop, and return `text`."""
        for token in ids:
            self.push(token)
            if self.finished:
                return self.text
        self.close()
        return self.text

    def close(self) -> str:
        """The rest of the text: nothing follows, so what looked like the beginning of something was text."""
        self._decode(self._kept, last=True)
        return self._show(last=True)

    def ids(self) -> tuple[int, ...] | None:
        """The generated ids that spell `text`: all up to the stop. None if a stop began in the middle of one id.

        Where texts do not end a reply, all ids before those that did, also those of text that was cut off.
        """
        if not self._stops.strings_end:
            return tuple(self.generated[: self._kept])
        text = self.text
        for end in range(self._kept, -1, -1):
            spelled = self._tokenizer.decode(self.generated[:end]).strip()
            if spelled == text:
                return tuple(self.generated[:end])
            if len(spelled) < len(text):
                break
        return None

    def _decode(self, upto: int, last: bool = False) -> None:
        """Move the text of ids[read:upto] to `_pending`, unless its end may be half a character."""
        if upto <= self._read:
            return
        text = self._tokenizer.decode(self.generated[self._window : upto])
        if text.endswith(_UNFINISHED) and not last:
            return
        self._pending += text[len(self._window_text) :]
        alone = self._tokenizer.decode(self.generated[self._read : upto])
        if alone.strip():
            # From here on these ids are context enough. Ids that decode to white space alone are not: as the first of
            # a text they lose it.
            self._window, self._window_text = self._read, alone
        else:
            self._window_text = text
        self._read = upto

    def _show(self, last: bool = False) -> str:
        """Move what is safe from `_pending` to the reply."""
        if self._cut:
            self._pending = ""
        stop = self._stops.found_in(self._pending)
        if stop >= 0:
            self._cut = last = True
            self.finished = self.finished or self._stops.strings_end
            self._pending = self._pending[:stop]
        doubt = 0 if last else self._stops.text_in_doubt(self._pending)
        piece = self._pending[: len(self._pending) - doubt].rstrip()
        self._pending = "" if last else self._pending[len(piece) :]
        if not self._pieces:
            piece = piece.lstrip()
        if piece:
            self._pieces.append(piece)
        return piece
