"""Logits → the next id of each of many rows, every row by settings of its own.

Shapes: B rows, V the vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from minichat.settings import GenerationSettings


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
    ) -> None:
        """Make ready for rows that have `written` these ids so far; ids that are `never` chosen are the same for all.

        Args:
            generators: of each row, as `noise_generator` makes them; they are the rows' own and live as long.
        """
        self._never = torch.tensor(list(never), device=device) if never else None

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._penalties = self._seen = None
        if any(each.repetition_penalty != 1 for each in settings):
            self._penalties = column([each.repetition_penalty for each in settings])  # (B, 1)
            self._seen = torch.zeros(len(settings), vocabulary, dtype=torch.bool, device=device)
            pairs = [(row, token) for row, ids in enumerate(written) for token in set(ids)]
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
