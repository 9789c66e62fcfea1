"""How a reply is generated and where it stops: settings, checked at birth, and ids → text that may be shown."""

from __future__ import annotations

import difflib
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from minichat.errors import SettingsError

# --- How a reply is generated: typed settings, checked at birth.


MAX_NEW_TOKENS = 32_768  # more is a slip of the keyboard; the model's context sets the real limit
_RANGES: dict[str, tuple[type, float, float, str]] = {
    "max_new_tokens": (Integral, 1, MAX_NEW_TOKENS, f"a whole number from 1 to {MAX_NEW_TOKENS}"),
    "temperature": (Real, 0, 10, "a number from 0 (greedy) to 10"),
    "top_p": (Real, math.ulp(0.0), 1, "a number above 0 and up to 1"),
    "num_beams": (Integral, 1, 32, "a whole number from 1 to 32"),
    "length_penalty": (Real, -10, 10, "a number from -10 to 10"),
    "repetition_penalty": (Real, 0.1, 10, "a number from 0.1 to 10 (1 = none)"),
    "seed": (Integral, 0, 2**63 - 1, "None or a whole number from 0 to 2**63 - 1"),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How a reply is generated. Greedy by default.

    Raises `SettingsError`, which names the field, for a value of the wrong type or out of range.
    """

    max_new_tokens: int = 200  # the reply is cut after so many ids
    temperature: float = 0.0  # 0: always the likeliest id; above: sampled, the higher the bolder
    top_p: float = 1.0  # sampling only: from the likeliest ids that together have this probability
    num_beams: int = 1  # above 1: beam search, which does not sample
    length_penalty: float = 1.0  # beam search only: a score is divided by length to this power; below 0 short ones win
    repetition_penalty: float = 1.0  # above 1: ids that the reply already holds become less likely
    seed: int | None = None  # sampling only: the same seed gives the same reply; None: another each time

    def __post_init__(self) -> None:
        for name, (kind, low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            # A NaN is not between any two numbers, so it fails here too.
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:  # type: ignore[operator]
                raise SettingsError(f"{name} is {value!r}; it must be {meaning}.")
        if self.num_beams > 1 and self.temperature > 0:
            raise SettingsError(
                f"num_beams is {self.num_beams} and temperature is {self.temperature}: beam search does not sample; "
                "set num_beams=1 or temperature=0."
            )

    def updated(self, **changes: Any) -> GenerationSettings:
        """These settings with some changed. Raises `SettingsError` for a name that does not exist, too."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
                raise SettingsError(f"There is no setting {name!r}: {hint}")
        return replace(self, **changes)


# --- Generated ids → the text that may be shown: whole characters only, and nothing of a stop.


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
        self.times: list[float] = []  # when each id came, in seconds on the clock `time.monotonic`
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
        self.times.append(time.monotonic())
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


# --- Logits → the next id of each of many rows, every row by settings of its own.
#
# Shapes: B rows, V the vocabulary.


def noise_generator(settings: GenerationSettings, device: torch.device) -> torch.Generator | None:
    """What a row's random numbers come from; None where it is greedy. Without a seed it is another each time."""
    if settings.temperature == 0:
        return None
    seed = secrets.randbits(63) if settings.seed is None else int(settings.seed)
    return torch.Generator(device).manual_seed(seed)


class Sampler:
    """Chooses for the same B rows, step after step. No row's ids depend on the others."""

    def __init__(
        self,
        settings: Sequence[GenerationSettings],
        generators: Sequence[torch.Generator | None],
        written: Sequence[Sequence[int]],
        vocabulary: int,
        device: torch.device,
        never: Sequence[int] = (),
        begin: int | None = None,
    ) -> None:
        """Make ready for rows that have `written` these ids so far; ids that are `never` chosen are the same for all.

        Args:
            begin: what a repetition penalty counts as said before each reply.
            generators: of each row, as `noise_generator` makes them; they are the rows' own and live as long.
        """
        self._never = torch.tensor(list(never), device=device) if never else None

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._penalties = self._seen = None
        if any(each.repetition_penalty != 1 for each in settings):
            self._penalties = column([each.repetition_penalty for each in settings])  # (B, 1)
            self._seen = torch.zeros(len(settings), vocabulary, dtype=torch.bool, device=device)
            said = set() if begin is None else {begin}
            pairs = [(row, token) for row, ids in enumerate(written) for token in said | set(ids)]
            if pairs:
                rows, tokens = torch.tensor(pairs, device=device).T
                self._seen[rows, tokens] = True
        sampled = [row for row, each in enumerate(settings) if each.temperature > 0]
        self._sampled = torch.tensor(sampled, device=device) if sampled else None  # (S,)
        self._generators = [generator for row in sampled if (generator := generators[row]) is not None]
        self._temperatures = column([settings[row].temperature for row in sampled])  # (S, 1)
        cut = [number for number, row in enumerate(sampled) if settings[row].top_p < 1]
        self._cut = torch.tensor(cut, device=device) if cut else None  # of the sampled rows
        self._unlikely = column([1 - settings[sampled[number]].top_p for number in cut])

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (B, V) in float32, which are used up → ids (B,), on their device."""
        if self._never is not None:
            logits.index_fill_(1, self._never, -math.inf)
        if self._penalties is not None and self._seen is not None:
            weaker = torch.where(logits < 0, logits * self._penalties, logits / self._penalties)
            logits = torch.where(self._seen, weaker, logits)
        if self._sampled is not None:
            logits[self._sampled] = self._with_noise(logits[self._sampled])
        ids = logits.argmax(-1)
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)
        return ids

    def _with_noise(self, scores: Tensor) -> Tensor:
        """Make the likeliest id of each sampled row (S, V) a sample.

        argmax(scores + Gumbel noise) is distributed as softmax(scores) (the Gumbel-max trick: Maddison, Tarlow and
        Minka, A* Sampling, 2014, section 2). The best is moved to 0 first: no temperature overflows.
        """
        scores = (scores - scores.amax(-1, keepdim=True)) / self._temperatures
        if self._cut is not None:
            scores[self._cut] = self._likeliest(scores[self._cut])
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()

    def _likeliest(self, scores: Tensor) -> Tensor:
        """Keep of each row the likeliest ids that together have the probability `top_p`, and at least one."""
        ordered, order = scores.sort(-1)  # the least likely first
        beyond = ordered.softmax(-1).cumsum(-1) <= self._unlikely
        beyond[:, -1] = False
        return scores.masked_fill(torch.zeros_like(beyond).scatter_(1, order, beyond), -math.inf)
