"""A projection that learns its LLM's words: what stands in each place of a picture is to sum to its description.

The LLaMA of the stage `language` has read descriptions where a picture's tokens will be. Where what is drawn is known,
Q-Former and projection can be told place by place what to write there, before the replies' loss asks for it through the
whole LLM. For an LLM that others trained, it is a beginning in its own words (`described.word_vectors`). No LLM runs
here, its embeddings alone are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from minichat.data.rows import Row
from minichat.errors import DataError, SettingsError
from minichat.scenes.description import LEVELS, NONE, OUTSIDE, PLACES, TOKENS, WORDS, description, outside_description
from minichat.scenes.truth import NUMBERS
from minichat.scenes.world import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, SIZES
from minichat.train.config import Config
from minichat.train.described import drawn, in_numbers, summed, word_vectors
from minichat.train.network import open_bot
from minichat.train.optimizer import trained
from minichat.train.result import write_result
from minichat.train.stage import Batch, Stage

if TYPE_CHECKING:
    from minichat.data.example import Example

#: Of the words of a kind, one is true: of a thing's size (or that there is none), its colour, its shape, …
KINDS = (
    (*SIZES, NONE, OUTSIDE),
    COLOURS,
    SHAPES,
    PLACES[:LEVELS],
    PLACES[LEVELS:],
    BACKGROUNDS,
    NUMBERS[1 : MAX_THINGS + 1],
)
_SPREAD = 0.2  # variance that an image token may have around its description, over a word's mean square
_NONE_WEIGHS = 0.1  # most places show nothing, which would be the answer everywhere for a long time
_NUMBER = {word: number for number, word in enumerate(WORDS)}


class Naming(Stage):
    """What each of the 32 places of a drawn picture should come to mean, in the embeddings of an LLM."""

    trainable: ClassVar[tuple[str, ...]] = ("bridge", "projection")
    unused: ClassVar[tuple[str, ...]] = (
        "model.checkpoint_llm",
        "data.template",
        "data.max_tokens",
        "data.max_reply_tokens",
        "data.features",
    )

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises what loading raises, and `SettingsError` for a model with another number of image tokens."""
        self.bot = open_bot(config.model, config.trainable or self.trainable, device)
        self.model: Any = self.bot.model
        self._processor = self.bot.processor
        if (tokens := self.model.config.num_image_tokens) != TOKENS:
            raise SettingsError(
                f"A picture has {tokens} tokens in the model {config.model.name!r}, but the stage naming has words for "
                f"{TOKENS} places of one: use a model with a Q-Former of so many queries."
            )
        embeddings = self.model.get_input_embeddings().weight.detach().float()
        self._words = word_vectors(self._processor.content_tokenizer, embeddings)  # (W, H)
        self._apart = torch.cdist(self._words, self._words).square()  # (W, W)
        self._unit = _SPREAD * self._words.square().sum(-1).mean()
        alike = torch.zeros(len(WORDS), len(WORDS), dtype=torch.bool)
        for kind in KINDS:
            of = torch.tensor([_NUMBER[word] for word in kind])
            alike[of[:, None], of] = True
        self._other_kind = ~alike.to(device)
        self.longest = TOKENS

    def render(self, example: Example) -> Row:
        """Its pictures alone."""
        none = np.zeros(1, np.int32)
        return Row(none, none, tuple(example.pictures), example.where)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows → `pixel_values` (I, 3, S, S), `words` (I, 32, 6): numbers of `WORDS`, and a mask of all places."""
        pictures = [drawn(picture, row.where, "naming") for row in rows for picture in row.pictures]
        if not pictures:
            raise DataError(f"{rows[0].where}: there is no picture to be named.")
        told = [outside_description() if p.scene is None else description(p.scene) for p in pictures]
        pixels = self._processor.image_processor([p.open() for p in pictures], return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixels,
            "words": in_numbers(told, _NUMBER),
            "attention_mask": torch.ones(len(pictures), TOKENS, dtype=torch.long),
        }

    def count(self, batch: Batch) -> int:
        """Pictures."""
        return len(batch["pixel_values"])

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the pictures' losses.

        Image tokens are taken as a normal distribution around their descriptions' sums. A place's loss is how far it is
        from its own, and for each of its words how likely the others of its kind would be instead, all else as it is.
        """
        tokens = self.model.encode_images(batch["pixel_values"]).float()  # (I, 32, H)
        words = batch["words"]  # (I, 32, 6)
        off = tokens - summed(self._words, words)  # (I, 32, H)
        distance = off.square().sum(-1) / self._unit  # (I, 32)
        likely = (2 * off @ self._words.T).unsqueeze(2) - self._apart[words.clamp(min=0)]  # (I, 32, 6, W)
        logits = (likely / self._unit).masked_fill(self._other_kind[words.clamp(min=0)], -torch.inf)
        named = cross_entropy(logits.flatten(0, 2), words.flatten(), ignore_index=-1, reduction="none")
        weight = torch.where(words[..., 0] == _NUMBER[NONE], _NONE_WEIGHS, 1.0)  # (I, 32)
        loss: Tensor = ((named.view(words.shape).sum(-1) + distance) * weight).sum()
        return loss / TOKENS

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """The model's folder, with what was trained."""
        write_result(out, base, trained(self.model), facts)
