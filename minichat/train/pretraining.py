"""The stage `pretraining`: a Q-Former learns to read pictures from pairs of a picture and a text, before any LLM.

BLIP-2's first stage (arXiv:2301.12597, section 3.2; `minichat.model.pretraining`). The pairs of a step are compared
with each other, in all processes: so they must go through the model at once, and no gradients are accumulated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from minichat.data.rows import Row
from minichat.disk import write_json
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.images import to_pixels
from minichat.model import gathering
from minichat.model.pretraining import QFormerPretraining
from minichat.model.pretraining_config import PretrainingConfig
from minichat.prompt.pixels import MiniChatImageProcessor
from minichat.prompt.render import IGNORED
from minichat.prompt.wordpiece import tokenize
from minichat.train.data import division
from minichat.train.files import TRAINING
from minichat.train.optimizer import trained
from minichat.train.pretraining_start import begun_anew, open_start, read_start
from minichat.train.seeding import seed_of_all
from minichat.train.stage import Stage, silent
from minichat.weights.projection import unpack
from minichat.weights.stage1 import write_stage1

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from minichat.data.example import Example
    from minichat.data.features import FeatureCache
    from minichat.train.config import Config
    from minichat.train.stage import Batch, Say, Seen, Told
    from minichat.train.together import Together

_PARCEL = ".stage1"
_UNLIMITED = 10**6  # word pieces


class PairRenderer:
    """Examples → rows: the picture, and `[CLS]`, the last reply's word pieces, `[SEP]`; of a text that is too long the
    first `max_length - 1` ids and `[SEP]`, as in BLIP-2."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length

    def __call__(self, example: Example) -> Row:
        """Raises `DataError`, with file and line, unless there is one picture and a text."""
        if len(example.pictures) != 1 or not example.replies:
            raise DataError(
                f"{example.where}: pre-training learns from pairs of one picture and a text; here are "
                f"{len(example.pictures)} pictures and {len(example.replies)} replies."
            )
        whole, kept = (
            tokenize(self._tokenizer, example.replies[-1:], limit)["input_ids"][0].numpy().astype(np.int32)
            for limit in (_UNLIMITED, self._max_length)
        )
        labels = kept.copy()
        labels[0] = IGNORED  # what a text begins with is given
        return Row(kept, labels, example.pictures, example.where, cut=len(kept) < len(whole))


class PairCollator:
    """B rows → `input_ids`, `attention_mask` (B, T), `image_ids` (B,), equal for equal pictures, `numbers` (B,) of the
    rows in their share, and the pictures: `pixel_values` (B, 3, S, S), or `patches` (B, 1 + P, W) where they are kept.

    A row of which nothing is learnt keeps a process in step (`minichat.data.batches.shares`), or the place of a
    stream's record that could not be read, and is no pair; so B may be 0. Raises `DataError` for a picture that cannot
    be opened or is not among the kept ones.
    """

    def __init__(self, side: int, pad: int, features: FeatureCache | None = None) -> None:
        self._side, self._pad, self._features = side, pad, features

    def __call__(self, rows: Sequence[Row]) -> Batch:
        numbers = [number for number, row in enumerate(rows) if row.supervised]
        rows = [rows[number] for number in numbers]
        length = max([2, *(len(row.ids) for row in rows)])
        ids = np.full((len(rows), length), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], mask[number, : len(row.ids)] = row.ids, 1
        keys, seen = self._look(rows)
        image_ids = [int.from_bytes(key[:8], "big", signed=True) for key in keys]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        told = {"image_ids": image_ids, "numbers": numbers}
        return batch | {name: torch.tensor(values, dtype=torch.int64) for name, values in told.items()} | seen

    def _look(self, rows: Sequence[Row]) -> tuple[list[bytes], Batch]:
        """The pictures' contents, and what is to be learnt from."""
        keys, found = list[bytes](), list[Any]()
        for row in rows:
            (picture,) = row.pictures
            try:
                if self._features is None:
                    keys.append(bytes.fromhex(picture.key()))
                    found.append(picture.open())
                else:
                    keys.append(self._features.key(picture))
                    found.append(self._features[picture])
            except MiniChatError as error:
                raise DataError(f"{row.where}: {error}") from None
        if self._features is None:
            pixels = to_pixels(found, self._side) if found else torch.empty(0, 3, self._side, self._side)
            return keys, {"pixel_values": pixels}
        return keys, {"patches": torch.stack(found) if found else torch.empty(0, *self._features.origin.shape)}


class Pretraining(Stage):
    """Contrast, matching and generation, with a frozen vision encoder."""

    trainable: ClassVar[tuple[str, ...]] = PretrainingConfig().trainable
    lighter: ClassVar[tuple[str, ...]] = (
        "data.features",
        "model.vision_checkpoint",
        "run.batch_size",
        "data.max_tokens",
    )
    unused: ClassVar[tuple[str, ...]] = (
        "model.quantize",
        "model.checkpoint_llm",
        "data.template",
        "data.max_reply_tokens",
    )
    joined: ClassVar[bool] = True

    def __init__(self, config: Config, device: torch.device) -> None:
        """Read or make the model. Raises what reading raises, and `SettingsError` for a step that is in parts."""
        _check_division(config)
        self._config = config
        stage1 = open_start(config, device)
        self.model: QFormerPretraining = stage1.model
        self.notes = begun_anew(stage1, config)
        self.terms = self.model.config.objectives
        self._tokenizer = stage1.tokenizer
        positions = self.model.embeddings.position_embeddings.num_embeddings
        self.longest = min(config.data.max_tokens or positions, positions)
        self.render: Callable[[Example], Row] = PairRenderer(self._tokenizer, self.longest)
        self._side = self.model.config.vision_config.image_size
        self.collate = self._collator()

    def _collator(self, features: FeatureCache | None = None) -> PairCollator:
        return PairCollator(self._side, self.model.config.bridge_config.qformer.pad_token_id, features)

    def see(
        self,
        pictures: Sequence[Seen],
        folder: str,
        workers: int,
        together: Together,
        damaged: Told | None = None,
        say: Say = silent,
    ) -> None:
        """Let the vision encoder see every picture once; from then on batches hold its patches."""
        from minichat.data.encoding import encode
        from minichat.data.features import FeatureCache

        eyes: Any = _Eyes(self.model)
        pixels: Any = SimpleNamespace(image_processor=MiniChatImageProcessor(size=self._side))
        place: dict[str, Any] = {"rank": together.rank, "processes": together.count}
        cache = encode(eyes, pixels, pictures, folder, workers=workers, damaged=damaged, say=say, **place)
        together.wait()  # what the others have seen
        self.collate = self._collator(FeatureCache(folder, cache.origin))

    def count(self, batch: Batch) -> int:
        """The pairs."""
        return len(batch["input_ids"])

    def loss(self, batch: Batch) -> Tensor:
        """The joined batch's losses (objectives,), means, times its pairs: this process's share of them.

        What is drawn follows from the step; for validation it is always the same.
        """
        pairs, device = len(batch["input_ids"]), batch["input_ids"].device
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            patches=self._patches(batch),
            image_ids=batch["image_ids"],
            seed=seed_of_all() if self.model.training else self._config.seed,
            # A global batch's rows are dealt out to the processes one by one, as are a stream's records.
            places=gathering.rank() + gathering.processes() * batch["numbers"],
        )
        losses = torch.stack([output[name] for name in self.terms])
        return losses * gathering.everyones(pairs, device) / gathering.processes()

    def _patches(self, batch: Batch) -> Tensor:
        """(B, 1 + P, W), in the Q-Former's precision."""
        patches = batch.get("patches")
        if patches is None:
            sight = next(self.model.vision_model.parameters())
            patches = self.model.encode_patches(batch["pixel_values"].to(sight.dtype))
        return patches.to(self.model.bridge.query_tokens.dtype)

    @torch.no_grad()
    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Of all these examples' texts the one that the model finds for each picture."""
        objectives = self.model.config.objectives
        if not {"itc", "itm"} & set(objectives):
            return ["(nothing is looked for: neither contrast nor matching is learnt)"] * len(examples)
        training = self.model.training
        self.model.eval()
        try:
            chosen = self._found(examples, by_contrast="itc" in objectives)
        except MiniChatError as error:
            return [f"({error})"] * len(examples)
        finally:
            self.model.train(training)
        return [examples[place].replies[-1] for place in chosen]

    def _found(self, examples: Sequence[Example], by_contrast: bool) -> list[int]:
        collate, device = self._collator(), self.model.bridge.query_tokens.device
        words = collate([self.render(example) for example in examples])
        texts = {name: words[name].to(device) for name in ("input_ids", "attention_mask")}
        chosen = []
        for number in range(len(examples)):
            patches = self._patches({"pixel_values": words["pixel_values"][number : number + 1].to(device)})
            if by_contrast:
                images = self.model.image_embeddings(patches)
                scores = self.model.similarity(images, self.model.text_embeddings(**texts))[0]
            else:
                scores = self.model.match(patches.expand(len(examples), -1, -1), **texts)[:, 1]
            chosen.append(int(scores.argmax()))
        return chosen

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """A stage-1 folder; what did not train is as the files have it, whatever precision it was held in."""
        stage1 = read_start(self._config)
        held = dict(stage1.model.named_parameters())
        with torch.no_grad():
            for name, weight in trained(self.model).items():
                held[name].copy_(weight)
        shutil.rmtree(out / _PARCEL, ignore_errors=True)  # left by a run that was killed here
        write_stage1(out / _PARCEL, stage1.model, stage1.tokenizer)
        write_json(out / _PARCEL / TRAINING, dict(facts))
        unpack(out / _PARCEL, out, last="config.json")


class _Eyes(nn.Module):
    """The vision encoder as `minichat.data.encoding` knows a model: what it keeps are patches."""

    def __init__(self, model: QFormerPretraining) -> None:
        super().__init__()
        self.vision_model, self.bridge = model.vision_model, nn.Identity()
        vision = model.config.vision_config
        patches = 1 + (vision.image_size // vision.patch_size) ** 2
        self.config = SimpleNamespace(
            vision_config=vision,
            bridge_config=PreTrainedConfig(),  # there is no bridge, and nothing to say of it
            num_image_tokens=patches,
            image_feature_size=vision.hidden_size,
        )
        self.eval()

    def encode_features(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, S, S) → (I, 1 + P, W)."""
        dtype = next(self.vision_model.parameters()).dtype
        patches: Tensor = self.vision_model(pixel_values=pixel_values.to(dtype)).last_hidden_state
        return patches


def _check_division(config: Config) -> None:
    """Raise `SettingsError` unless all pairs of a step go through at once, as many in each process."""
    count, batch_size = gathering.processes(), config.run.batch_size
    parts, at_once = division(config, count)
    if parts > 1 or batch_size % count:
        raise SettingsError(
            f"The stage pretraining compares all pairs of a step with each other, so they go through at once: "
            f"run.batch_size ({batch_size}) must be run.device_batch_size ({at_once}) × processes ({count}). Change "
            "one of them, or leave run.device_batch_size out."
        )
