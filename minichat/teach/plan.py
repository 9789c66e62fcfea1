"""How to train: what, how long, on what; chosen by the size of the LLM and of what is to be learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minichat.data import formats
from minichat.data.example import Example, Turn, Where
from minichat.evaluate.replies import Ask, Teller
from minichat.teach.measure import FEW_SCENES, SCENES
from minichat.toy.dataset import SyntheticPicture, SyntheticStream
from minichat.toy.evaluate import held_out_scene
from minichat.toy.questions import questions
from minichat.train.checkpoint import LESSONS
from minichat.train.config import (
    Config,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ReportConfig,
    RunConfig,
    Source,
)
from minichat.weights.registry import find

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat

TAUGHT, KNOWN, VALIDATION = "taught.jsonl", "known.jsonl", "validation.jsonl"  # in the folder `LESSONS`
FEATURES = ".features"  # what the frozen parts see, while it is needed


# --- How to train, chosen by the size of the LLM and of what is to be learnt.


SMALL = 100e6  # parameters: so small an LLM trains in full, and its bridge; a larger one beside LoRA's matrices
LARGE = 1e9  # one as large takes its time for an answer, and has little room for many rows
BATCH = 16
_SEEN = 1200  # pictures in all, at which few are learnt …
_PASSES = (2, 60)  # … each so many times


@dataclass(frozen=True)
class Plan:
    """What trains, how fast, and for how long."""

    trainable: tuple[str, ...]
    lora: LoraConfig | None
    lr: float
    passes: int  # over what is taught
    known: int  # records of what the model knew
    scenes: int  # asked about before and after
    rows: int  # at once on the device

    @classmethod
    def of(cls, parameters: int, taught: int, bridged: bool = True) -> Plan:
        """For an LLM of so many parameters and so many records. `bridged`: the bridge has weights that can train."""
        passes = max(_PASSES[0], min(_PASSES[1], _SEEN // max(1, taught)))
        small, large = parameters <= SMALL, parameters > LARGE
        return cls(
            trainable=("bridge",) * (small and bridged) + ("projection",) + ("language_model",) * small,
            lora=None if small else LoraConfig(),
            lr=5e-4 if parameters <= SMALL / 5 else 2e-4,
            passes=passes,
            known=max(200, passes * taught) if small else max(100, passes * taught // 4),
            scenes=FEW_SCENES if large else SCENES,
            rows=BATCH // 8 if large else BATCH,
        )

    def steps(self, taught: int) -> int:
        return -(-(self.passes * taught + self.known) // BATCH)

    def config(self, model: str, out: Path, device: str, steps: int) -> Config:
        """As `minichat train` would be told it. The data sets are there, save that it may have known nothing."""
        folder = out / LESSONS
        every = max(1, steps // 8)
        return Config(
            out=str(out),
            trainable=self.trainable,
            lora=self.lora,
            model=ModelConfig(name=model, device=device),  # type: ignore[arg-type]
            data=DataConfig(
                train=tuple(Source(str(folder / name)) for name in (TAUGHT, KNOWN) if (folder / name).is_file()),
                validation=(Source(str(folder / VALIDATION)),),
                feature_cache=None if "bridge" in self.trainable else str(out / FEATURES),
            ),
            optimizer=OptimizerConfig(
                lr=self.lr,
                # As LLaVA-1.5's finetune_lora.sh has it. At the adapter's rate, the projection leaves the LLM's words.
                lr_by_part={"projection": self.lr / 10} if self.lora else {},
                min_lr=self.lr / 20,
                warmup_steps=min(10, steps // 5),
            ),
            run=RunConfig(
                epochs=1,
                batch_size=BATCH,
                micro_batch_size=self.rows,
                validate_every=every,
                patience=3,
                save_every=every,
            ),
            report=ReportConfig(samples=0, tensorboard=False),
        )


# --- What the model knew, to be learnt again beside what is new: of drawn scenes the truth, where it knows them, or
# else its own words; and what it was taught before.


KNOWS = 0.8  # of the questions about drawn scenes: who answers so many rightly was trained on them
_KINDS = {"questions": 3.0, "dialogues": 2.0, "tellings": 1.0}
_PLAIN = (
    "Hello!", "Who are you?", "What can you do?", "How are you today?", "What is the capital of Italy?",
    "Why is the sky blue?", "Count from one to ten.", "Name three fruits.", "What is two plus three?",
    "Write a sentence about the sea.", "What is a bicycle?", "Tell me a short story about a cat.",
)  # fmt: skip
_LONGEST = 96  # tokens of its own words


def what_it_knew(bot: MiniChat, model: str, share: float, count: int) -> Iterator[Example]:
    """So many records, or fewer where its own words come to no end. `share`: of right answers about drawn scenes."""
    earlier = find(model) / LESSONS / TAUGHT
    if earlier.is_file():
        before = list(formats.read(earlier))
        random.Random("earlier").shuffle(before)
        before = before[: count // 2]
        count -= len(before)
        yield from before
    if share >= KNOWS:
        drawn = SyntheticStream(_KINDS, batch_size=BATCH, seed=1)
        yield from map(drawn.example, range(count))
    else:
        yield from _own_words(bot, count)


def _own_words(bot: MiniChat, count: int) -> Iterator[Example]:
    asks = [Ask(text) for text in _PLAIN]
    for number in range(count - len(asks)):
        scene, rng = held_out_scene(number, seed=2)
        shown = SyntheticPicture(f"scene {number}", scene=scene, seed=number)
        asks += [Ask(one.text, (shown,)) for one in questions(scene, rng, 1)]
    for ask, reply in zip(asks, Teller(bot).replies(asks, _LONGEST), strict=True):
        if reply.whole and reply.text.strip() and "\0" not in reply.text:
            turns = Turn("user", (*ask.pictures, ask.text)), Turn("assistant", (reply.text,))  # type: ignore[arg-type]
            yield Example(turns, Where("own words"))
