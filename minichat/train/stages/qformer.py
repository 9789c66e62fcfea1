"""The stage `qformer`: a Q-Former learns to read pictures from pairs of a picture and a text, before any LLM."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from minichat.data.dataset import Row
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.fileio import write_json
from minichat.images import to_pixels
from minichat.model import loss as gathering
from minichat.model.config import PretrainingConfig
from minichat.model.loss import ProcessGroup, set_trainable
from minichat.model.qformer_pretrain import QFormerPretraining
from minichat.prompt.processor import MiniChatImageProcessor
from minichat.prompt.render import IGNORED
from minichat.prompt.tokenizer import read_wordpiece, tokenize
from minichat.train.checkpoint import TRAINING, seed_of_all
from minichat.train.config import Config, ModelConfig, NewQFormer, QFormerOptions
from minichat.train.data import division
from minichat.train.optimizer import trained
from minichat.train.setup import precision, save_memory, top
from minichat.train.stages import Batch, Stage, silent
from minichat.weights.hub import find_folder
from minichat.weights.projection import unpack
from minichat.weights.qformer import BESIDE, Stage1, init_stage1, read_bert, read_stage1, read_vision, write_stage1

if TYPE_CHECKING:
    from minichat.data.example import Example
    from minichat.data.feature_cache import FeatureCache
    from minichat.train.stages import Say, Seen, Told


# --- What a Q-Former's pre-training begins with: a new one, or the folder that an earlier run left.


def read_start(config: Config) -> Stage1:
    """The model as the run begins with it, in float32 on the CPU; the same whenever it is read.

    Raises `SettingsError` for a beginning that is none or two, and as reading the parts does.
    """
    options = config.qformer or QFormerOptions()
    named = config.model.name != ModelConfig.name
    if options.new is None and not named:
        raise SettingsError(
            "The stage qformer begins with nothing: give qformer.new for a new Q-Former, or as model.name the "
            "folder of a stage 1 to go on with."
        )
    if options.new is not None and named:
        raise SettingsError(
            f"qformer.new makes a new Q-Former, but model.name is {config.model.name!r}, to go on with: drop one."
        )
    stage1 = read_stage1(config.model.name) if options.new is None else _new(options.new, config.seed)
    stage1.model.config.objectives = options.objectives
    stage1.model.config.label_smoothing = options.label_smoothing
    return stage1


def open_start(config: Config, device: torch.device) -> Stage1:
    """The same on a device, ready to train: what trains in float32, the frozen vision encoder as it was asked for."""
    stage1 = read_start(config)
    model, asked = stage1.model, config.model
    trainable = config.trainable or model.config.trainable
    set_trainable(model, trainable)
    if "vision_model" not in map(top, trainable):
        model.vision_model.to(precision(asked.vision_dtype or asked.dtype, device))
    save_memory(model, asked)
    model.to(device)
    return stage1


def reinitialized(stage1: Stage1, config: Config) -> list[str]:
    """What begins as it was made although a model was named to go on with, in a sentence: its files lack it."""
    if config.qformer is not None and config.qformer.new is not None:
        return []
    objectives = stage1.model.config.objectives
    parts = []
    if "itg" in objectives and any(name.startswith("cls.") for name in stage1.made):
        parts.append("the head that predicts words (cls) begins at random")
    if "itc" in objectives and "temp" in stage1.made:
        parts.append(f"the temperature of the contrast begins at {stage1.model.config.temperature}")
    return [f"{config.model.name} has no {BESIDE}: {', and '.join(parts)}."] if parts else []


def _new(options: NewQFormer, seed: int) -> Stage1:
    vision_config, vision = read_vision(options.vision, options.vision_heads, options.image_size)
    sizes, bert = (options.sizes, None) if options.bert is None else read_bert(options.bert)
    tokenizer = _tokenizer(options)
    config = PretrainingConfig(
        vision_config=vision_config,
        bridge_config={
            "num_query_tokens": options.num_queries,
            "qformer": {
                "vocab_size": len(tokenizer),
                **sizes,
                "cross_attention_frequency": options.cross_attention_frequency,
                "hidden_dropout_prob": options.dropout,
                "attention_probs_dropout_prob": options.dropout,
            },
        },
        contrast_size=options.embed_dim,
        temperature=options.temperature,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    return init_stage1(config, tokenizer, vision=vision, bert=bert, seed=seed)


def _tokenizer(options: NewQFormer) -> PreTrainedTokenizerBase:
    """BERT's, or the one that is named."""
    name = options.bert or options.tokenizer or ""
    what = "The BERT model" if options.bert else "The tokenizer"
    patterns = ["*.json", "vocab.txt"] + (["*.safetensors"] if options.bert else [])
    return read_wordpiece(find_folder(name, what, patterns))


# --- The stage `qformer`: a Q-Former learns to read pictures from pairs of a picture and a text, before any LLM.
#
# BLIP-2's first stage (arXiv:2301.12597, section 3.2; `minichat.model.qformer_pretrain`). The pairs of a step are
# compared with each other, in all processes: so they must go through the model at once, and no gradients are
# accumulated.


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

    A row of which nothing is supervised keeps a process in step (`minichat.data.dataset.shares`), or the place of a
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
        """The pictures' contents, and what is to be learned from."""
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
        "data.feature_cache",
        "model.vision_gradient_checkpointing",
        "run.batch_size",
        "data.max_length",
    )
    unused: ClassVar[tuple[str, ...]] = (
        "model.quantize",
        "model.gradient_checkpointing",
        "data.template",
        "data.max_reply_length",
        "data.max_question_length",
    )
    joined: ClassVar[bool] = True

    def __init__(self, config: Config, device: torch.device) -> None:
        """Read or make the model. Raises what reading raises, and `SettingsError` for a step that is in parts."""
        _check_division(config)
        self._config = config
        stage1 = open_start(config, device)
        self.model: QFormerPretraining = stage1.model
        self.notes = reinitialized(stage1, config)
        self.terms = self.model.config.objectives
        self._tokenizer = stage1.tokenizer
        positions = self.model.embeddings.position_embeddings.num_embeddings
        self.longest = min(config.data.max_length or positions, positions)
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
        group: ProcessGroup,
        damaged: Told | None = None,
        say: Say = silent,
    ) -> None:
        """Let the vision encoder see every picture once; from then on batches hold its patches."""
        from minichat.data.feature_cache import FeatureCache, encode

        eyes: Any = _Eyes(self.model)
        pixels: Any = SimpleNamespace(
            image_processor=MiniChatImageProcessor(size=self._side),
            words=lambda questions: {},  # patches do not depend on what is asked
        )
        place: dict[str, Any] = {"rank": group.rank, "processes": group.count}
        cache = encode(eyes, pixels, pictures, folder, workers=workers, damaged=damaged, say=say, **place)
        group.wait()  # what the others have seen
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
            encoder = next(self.model.vision_model.parameters())
            patches = self.model.encode_patches(batch["pixel_values"].to(encoder.dtype))
        return patches.to(self.model.bridge.query_tokens.dtype)

    @torch.no_grad()
    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Of all these examples' texts the one that the model finds for each picture."""
        objectives = self.model.config.objectives
        if not {"itc", "itm"} & set(objectives):
            return ["(nothing is looked for: neither contrast nor matching is trained)"] * len(examples)
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
    """The vision encoder as `minichat.data.feature_cache` knows a model: what it keeps are patches."""

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

    def encode_features(self, pixel_values: Tensor, words: None) -> Tensor:
        """(I, 3, S, S) → (I, 1 + P, W); nothing reads words."""
        dtype = next(self.vision_model.parameters()).dtype
        patches: Tensor = self.vision_model(pixel_values=pixel_values.to(dtype)).last_hidden_state
        return patches


def _check_division(config: Config) -> None:
    """Raise `SettingsError` unless all pairs of a step go through at once, as many in each process."""
    count, batch_size = gathering.processes(), config.run.batch_size
    parts, at_once = division(config, count)
    if parts > 1 or batch_size % count:
        raise SettingsError(
            f"The stage qformer compares all pairs of a step with each other, so they go through at once: "
            f"run.batch_size ({batch_size}) must be run.micro_batch_size ({at_once}) × processes ({count}). Change "
            "one of them, or leave run.micro_batch_size out."
        )
