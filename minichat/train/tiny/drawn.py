"""What the built-in model is trained on: drawn pictures with their labels, and dialogues about them.

Sample i is a function of the seed and i alone, so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from minichat import images
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import Rendered, render
from minichat.prompt.template import BOS, TEMPLATES
from minichat.prompt.tokenizer import SentencePieceTokenizer
from minichat.scenes.draw import Style, draw
from minichat.scenes.pairs import random_pair
from minichat.scenes.questions import ALL_KINDS, questions
from minichat.scenes.training import Turn, training_dialogue, vocabulary_corpus
from minichat.scenes.world import Scene, random_scene
from minichat.train.tiny.naming import WORDS, names
from minichat.train.tiny.sight import CELLS, IGNORE, QUERIES, labels
from minichat.train.tiny.steps import Stage

SIDE, PATCH = 96, 8  # pixels
VOCABULARY = 1024
TEMPLATE = "minigpt-v2"
HARD_KINDS = ("relation", "count") * 3 + ("existence", "position") * 2  # asked more often: slow to learn


def picture(scene: Scene, rng: random.Random) -> np.ndarray:
    """A scene as the model will meet it: drawn in any style, a third of the time larger and scaled down. (S, S, 3)"""
    side = rng.choice((128, 192, 320)) if rng.random() < 0.33 else SIDE
    drawn = draw(scene, side, rng.getrandbits(32), Style.random(rng))
    return np.asarray(drawn if side == SIDE else drawn.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


class Sights(IterableDataset[tuple[Tensor, dict[str, Tensor]]]):
    """Endless batches of pictures (B, S, S, 3) and their labels. The first 20,000 pictures are easy ones."""

    def __init__(self, stage: Stage, seed: int, step: int) -> None:
        self.stage, self.seed, self.step = stage, seed, step

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for start in count(self.step * self.stage.batch, self.stage.batch):
            batch = [self.sample(index) for index in range(start, start + self.stage.batch)]
            truth = {name: torch.from_numpy(np.stack([t[name] for _, t in batch])) for name in batch[0][1]}
            yield torch.from_numpy(np.stack([pixels for pixels, _ in batch])), truth

    def sample(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rng = random.Random(f"see {self.seed} {index}")
        easy = index < 20_000
        scene = random_scene(rng, things=rng.randint(1, 3), sizes=("large",)) if easy else random_scene(rng)
        return picture(scene, rng), labels(scene, SIDE // PATCH)


class Sample(NamedTuple):
    """One dialogue: its ids and labels, its pictures (S, S, 3) in slot order, and what each of them shows."""

    rendered: Rendered
    pixels: list[np.ndarray]
    names: list[np.ndarray]


class Dialogues(IterableDataset[dict[str, Tensor]]):
    """Endless batches of dialogues: ids and labels (B, T), padded on the right, and pictures (I, S, S, 3).

    Eight batches are drawn at a time and sorted by length, so that little is padded.
    """

    POOL = 8

    def __init__(self, stage: Stage, seed: int, step: int, tokenizer: SentencePieceTokenizer) -> None:
        self.stage, self.seed, self.step, self.tokenizer = stage, seed, step, tokenizer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = self.stage.batch * self.POOL
        for pool in count(self.step // self.POOL):
            drawn = [self.sample(index) for index in range(pool * size, (pool + 1) * size)]
            drawn.sort(key=lambda sample: len(sample.rendered.ids))
            batches = [drawn[i : i + self.stage.batch] for i in range(0, size, self.stage.batch)]
            random.Random(f"order {self.seed} {pool}").shuffle(batches)
            for batch in batches[self.step % self.POOL if pool == self.step // self.POOL else 0 :]:
                yield self.collate(batch)

    def sample(self, index: int) -> Sample:
        rng = random.Random(f"talk {self.seed} {index}")
        things = rng.choice((1, 2, 2, 3, 3, 4, 5, 6))
        scenes = random_pair(rng) if rng.random() < 0.15 else (random_scene(rng, things=things),)
        conversation = Conversation()
        shown: list[Scene] = []
        pixels: list[np.ndarray] = []
        for turn in self.turns(rng, scenes):
            new = [scenes[number] for number in turn.pictures]
            drawn = [picture(scene, rng) for scene in new]
            conversation = conversation.user(turn.question, map(Image.fromarray, drawn)).assistant(turn.reply)
            shown, pixels = shown + new, pixels + drawn
        rendered = render(
            conversation,
            TEMPLATES[TEMPLATE],
            self.tokenizer,
            slot_id=self.tokenizer.vocab_size,
            slots_per_picture=QUERIES,
        )
        return Sample(rendered, pixels, [names(scene) for scene in shown])

    @staticmethod
    def turns(rng: random.Random, scenes: Sequence[Scene]) -> list[Turn]:
        """Most are separate questions about one picture, each of which must be looked up; the rest are dialogues."""
        if len(scenes) > 1 or rng.random() < 0.3:
            return training_dialogue(rng, scenes, turns=rng.randint(3, 8), two=0.5 if len(scenes) > 1 else 0.0)
        asked = questions(scenes[0], rng, rng.randint(8, 12), ALL_KINDS + HARD_KINDS)
        return [Turn(question.text, () if number else (0,), question.reply) for number, question in enumerate(asked)]

    def collate(self, batch: list[Sample]) -> dict[str, Tensor]:
        """Few different shapes come out, T by 32 and I by 4: oneDNN compiles each product anew for each shape."""
        longest = _round_up(max(len(sample.rendered.ids) for sample in batch), 32)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        targets = torch.full((len(batch), longest), IGNORE)
        for row, (rendered, _, _) in enumerate(batch):
            ids[row, : len(rendered.ids)] = torch.tensor(rendered.ids)
            targets[row, : len(rendered.ids)] = torch.tensor(rendered.labels)
        shown = [pixels for sample in batch for pixels in sample.pixels]
        pixels = np.zeros((_round_up(len(shown), 4), SIDE, SIDE, 3), np.uint8)
        pixels[: len(shown)] = shown
        truth = np.array([cells for sample in batch for cells in sample.names]).reshape(-1, CELLS, len(WORDS))
        return {"ids": ids, "labels": targets, "pixels": torch.from_numpy(pixels), "names": torch.from_numpy(truth)}


def _round_up(number: int, step: int) -> int:
    return max(step, -(-number // step) * step)


def train_tokenizer(out: Path, seed: int) -> SentencePieceTokenizer:
    """LLaMA's kind of tokenizer for the drawn world's words; bytes spell what it has never read. Kept in `out`.

    The template's delimiters are part of what it reads, so that they cost few tokens.
    """
    path = out / "tokenizer.model"
    if not path.exists():
        model = io.BytesIO()
        template = TEMPLATES[TEMPLATE]
        question = template.user_prefix.removeprefix(BOS)
        delimiters = (question + template.picture_prefix, template.picture_suffix, question, template.user_suffix)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain(vocabulary_corpus(random.Random(seed), 60_000), delimiters * 2_000),
            model_writer=model,
            model_type="bpe",
            vocab_size=VOCABULARY,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            character_coverage=1.0,
            minloglevel=2,
        )
        path.write_bytes(model.getvalue())
    return SentencePieceTokenizer(path)


def normalize(pixels: Tensor) -> Tensor:
    """Bytes (B, S, S, 3) → pixels (B, 3, S, S), as `images.to_pixels` makes them."""
    mean, std = torch.tensor(images.CLIP_MEAN), torch.tensor(images.CLIP_STD)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
