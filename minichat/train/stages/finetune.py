"""Supervised fine-tuning before a frozen LLM: MiniGPT-4's two stages, and the second of BLIP-2's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from minichat.data.dataset import Collator, Ids, Renderer, Row
from minichat.device.memory import CONTEXT, kept_in_qformer, training_needs
from minichat.errors import PromptError
from minichat.model.loss import ProcessGroup, only_at, supervised, token_loss
from minichat.model.minichat import words_of
from minichat.model.vision import leading_tokens
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import IGNORED
from minichat.train.config import Config
from minichat.train.logging import ask
from minichat.train.optimizer import trained
from minichat.train.setup import (
    adapters_of,
    lora_size,
    open_bot,
    parted_weights,
    use_products,
    write_lora,
    write_result,
)
from minichat.train.stages import Batch, Stage, silent
from minichat.weights.adapter import PLACES, copy_adapters

if TYPE_CHECKING:
    from minichat.data.example import Example
    from minichat.data.feature_cache import FeatureCache
    from minichat.inference.bot import MiniChat
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processor import MiniChatProcessor
    from minichat.train.stages import Say, Seen, Told


# --- Rows for an encoder–decoder: what comes before a reply for its encoder, the reply for its decoder.


class LastReply:
    """Renders as `render` does, but only a row's last reply is supervised; the encoder reads those before it."""

    def __init__(self, render: Callable[[Example], Row]) -> None:
        self._render = render

    def __call__(self, example: Example) -> Row:
        row = self._render(example)
        labels = np.full_like(row.labels, IGNORED)
        start = _start(row)
        labels[start:] = row.labels[start:]
        return replace(row, labels=labels)


def parted(rows: Sequence[Row]) -> tuple[list[Row], Tensor]:
    """B rows, each with one reply that is supervised → what is before them, and the replies (B, R), −100 where none is.

    Of a row that learns nothing all is before.
    """
    starts = [_start(row) for row in rows]
    replies = [row.labels[start:] for row, start in zip(rows, starts, strict=True)]
    labels = np.full((len(rows), max(1, *map(len, replies))), IGNORED, np.int64)
    for number, reply in enumerate(replies):
        labels[number, : len(reply)] = reply
    before = [
        replace(row, ids=row.ids[:start], labels=row.labels[:start]) for row, start in zip(rows, starts, strict=True)
    ]
    return before, torch.from_numpy(labels)


def _start(row: Row) -> int:
    """Where the last ids that are supervised begin; a row ends with them."""
    supervised = np.flatnonzero(row.labels != IGNORED)
    if not len(supervised):
        return len(row.labels)
    others = np.flatnonzero(row.labels[: supervised[-1]] == IGNORED)
    return int(others[-1]) + 1 if len(others) else 0


# --- What rows begin with, such as a system prompt, passed through the frozen LLM once instead of at every step.
#
# No position before the first picture depends on anything that trains, and in a causal LLM none sees what comes after
# it. So its keys and values are the same at every step, and nothing is lost if its gradients are never computed.


_WORTHWHILE = 4  # ids: for fewer, attention over two pieces costs what is saved


class Prefix:
    """The keys and values of the ids (P,) with which a conversation about a picture begins.

    Rows may begin with fewer of them: then with as many as they do. There are none (P = 0) where they would not hold:
    a part of the LLM that trains changes them, gradient checkpointing runs its layers again without them, a layer whose
    attention slides keeps only the last of them, and an encoder sees both ways.
    """

    def __init__(self, model: MiniChatForConditionalGeneration, processor: MiniChatProcessor) -> None:
        self._config = model.config.text_config
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values (1, heads, P, size of a head) of each layer
        llm: Any = model.language_model
        trains = any(weight.requires_grad for weight in llm.parameters())
        checkpoints = any(getattr(part, "gradient_checkpointing", False) for part in llm.modules())
        #: (P,)
        self.ids: Ids = np.empty(0, np.int32)
        if not (trains or checkpoints or self._config.is_encoder_decoder):
            self.ids = _beginning(processor)
        if len(self.ids) >= _WORTHWHILE:
            self._compute(model)

    def _compute(self, model: MiniChatForConditionalGeneration) -> None:
        embedding: Any = model.get_input_embeddings()
        cache = DynamicCache(config=self._config)
        ids = torch.tensor(self.ids[None], dtype=torch.long, device=embedding.weight.device)
        with torch.no_grad():
            model.language_model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        if any(keys.shape[-2] != len(self.ids) for keys, _ in self._layers):
            self.ids = self.ids[:0]

    def cache(self, rows: int, length: int) -> DynamicCache | None:
        """For a batch of so many rows without their first `length` ids: what the LLM takes as `past_key_values`."""
        if length == 0:
            return None
        cache = DynamicCache(config=self._config)
        for number, layer in enumerate(self._layers):
            cache.update(*(held[:, :, :length].expand(rows, -1, -1, -1) for held in layer), number)
        return cache


def shared(ids: Ids, rows: Sequence[Row]) -> int:
    """How many of the ids (P,) all rows begin with, short of what predicts an id that is supervised."""
    found = len(ids)
    for row in rows:
        head = row.ids[:found]
        differ = (head != ids[: len(head)]).nonzero()[0]
        supervised = (row.labels != IGNORED).nonzero()[0]
        found = max(0, min([len(head), *differ[:1].tolist(), *(supervised[:1] - 1).tolist()]))
    return found if found >= _WORTHWHILE else 0


def _beginning(processor: MiniChatProcessor) -> Ids:
    """The ids before the slots of a picture with which a conversation begins."""
    rendered = processor.render(Conversation().user("", [Image.new("RGB", (1, 1))]))
    return np.array(rendered.ids[: rendered.ids.index(processor.image_token_id)], np.int32)


# --- The replies of conversations, learned before a frozen LLM: MiniGPT-4's two stages, and the second of BLIP-2's.


_PROJECTION = {"projection.weight", "projection.bias"}
_MULTIPLE = 8  # lengths of rows: few shapes, each of which oneDNN compiles


class ReplyCollator:
    """Rows → `input_ids` (B, T), their pictures, and what is supervised: `targets` (N,) at `positions` (N,) of B · T,
    as `minichat.model.loss.supervised` tells them.

    Of the ids, those that all rows have in common with the model's `Prefix` are left out (`attention_mask` is of all),
    and so is the last, which is supervised and predicts nothing.

    For an encoder–decoder, `input_ids` are what is before the replies, `labels` (B, R) the replies, and `positions`
    those of B · R.

    Raises `DataError` for a picture that cannot be opened, `PromptError` where slots and pictures do not match.
    """

    def __init__(
        self,
        processor: MiniChatProcessor,
        features: FeatureCache | None = None,
        *,
        prefix: Ids | None = None,
        encoder_decoder: bool = False,
    ) -> None:
        self._prefix, self._encoder_decoder = prefix, encoder_decoder
        self._slot, self._slots = processor.image_token_id, processor.num_image_tokens
        self._collator = Collator(processor, features, multiple=_MULTIPLE)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        rows, replies = parted(rows) if self._encoder_decoder else (rows, None)
        batch = self._collator(rows)
        ids, labels = batch["input_ids"], batch.pop("labels")
        if replies is None:
            passed = 0 if self._prefix is None else shared(self._prefix, rows)
            batch["input_ids"], after = ids[:, passed:-1].contiguous(), labels[:, passed + 1 :].flatten()
        else:
            batch["labels"], after = replies, replies.flatten()
        positions, targets = supervised(after)
        slots = int(ids.eq(self._slot).sum())
        pictures = len(batch.get("pixel_values", batch.get("image_features", ())))
        if slots != pictures * self._slots:
            raise PromptError(
                f"{rows[0].where}: there are {slots} image slots and {pictures} pictures in a batch, which need "
                f"{pictures * self._slots}: an image slot's id is among a text's."
            )
        return batch | {"positions": positions, "targets": targets}


class Finetune(Stage):
    """The next token of replies, as in both stages of MiniGPT-4 (arXiv:2304.10592, section 3)."""

    trainable: ClassVar[tuple[str, ...]] = ("projection",)
    lighter: ClassVar[tuple[str, ...]] = (
        "run.micro_batch_size",
        "model.gradient_checkpointing",
        "model.quantize",
        "model.vision_gradient_checkpointing",
        "data.max_length",
    )

    def __init__(self, config: Config, device: torch.device) -> None:
        """Load the model that the configuration names. Raises what loading raises."""
        trainable = config.trainable or self.trainable
        self.bot: MiniChat = open_bot(config.model, trainable, device, config.lora, config.seed)
        self.model = self.bot.model
        self._processor = self.bot.processor.with_template(config.data.template)
        limits = [limit for limit in (config.data.max_length, self.bot.context) if limit is not None]
        limit = min(limits, default=None)
        self.longest = limit or CONTEXT
        render = Renderer(
            self._processor,
            max_length=limit,
            max_reply_tokens=config.data.max_reply_length,
            max_question_tokens=config.data.max_question_length,
        )
        parts = self.model.config.is_encoder_decoder
        # An encoder reads all that is before a reply, and an instructed Q-Former the question that it answers.
        self.render: Callable[[Example], Row] = LastReply(render) if parts or self._processor.instructed else render
        if not parts:
            use_products(self.model.language_model)
        self.prefix = Prefix(self.model, self._processor)
        self.collate = self._collator()
        self._settings, self._lora = config.model, config.lora
        self._max_new_tokens = config.report.max_new_tokens

    def see(
        self,
        pictures: Sequence[Seen],
        folder: str,
        workers: int,
        group: ProcessGroup,
        damaged: Told | None = None,
        say: Say = silent,
    ) -> None:
        """Let the frozen parts see every picture once; from then on batches hold what they saw."""
        from minichat.data.feature_cache import FeatureCache, encode

        place: dict[str, Any] = {"rank": group.rank, "processes": group.count}
        cache = encode(
            self.model, self._processor, pictures, folder, workers=workers, damaged=damaged, say=say, **place
        )
        group.wait()  # what the others have seen
        self.collate = self._collator(FeatureCache(folder, cache.origin))

    def _collator(self, features: FeatureCache | None = None) -> ReplyCollator:
        parts = self.model.config.is_encoder_decoder
        return ReplyCollator(self._processor, features, prefix=self.prefix.ids, encoder_decoder=parts)

    def count(self, batch: Batch) -> int:
        """The tokens of replies and their ends."""
        return int(batch["targets"].ne(IGNORED).sum())

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the next-token cross-entropies of the targets. No other position's logits are computed.

        Rows are padded on the right, where a causal model needs no mask: no token sees what comes after it. An
        encoder does.
        """
        model, ids = self.model, batch["input_ids"]  # (B, T)
        features = batch.get("image_features")  # (I, n, D)
        if "pixel_values" in batch:
            features = model.encode_features(batch["pixel_values"], words_of(batch))
        embeds = model.splice(ids, features)  # (B, T, H)
        more: dict[str, Any] = {}
        if model.config.is_encoder_decoder:
            written = model.language_model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])  # (B, R)
            more = {"attention_mask": batch["attention_mask"], "decoder_input_ids": written}
        else:
            passed = batch["attention_mask"].shape[1] - ids.shape[1] - 1  # ids that the prefix stands for
            more = {"past_key_values": self.prefix.cache(len(ids), passed)}
        with only_at(model.get_output_embeddings(), batch["positions"]):
            logits = model.language_model(inputs_embeds=embeds, use_cache=False, **more).logits  # (1, N, V)
        return token_loss(logits, batch["targets"], 1)

    def memory(self, rows: int, longest: int) -> int | None:
        """By the model's configuration, where the projection of a decoder-only LLM alone trains, or LoRA beside it."""
        adapters, others = parted_weights(trained(self.model))
        if set(others) != _PROJECTION or self.model.config.is_encoder_decoder:
            return None
        embedding = self.model.get_input_embeddings().weight
        return training_needs(
            self.model.config,
            rows,
            longest,
            self._settings.gradient_checkpointing,
            dtype=str(embedding.dtype).removeprefix("torch."),
            quantize=self._settings.quantize,
            device=embedding.device.type,
            adapter=lora_size(self.model.language_model) if "language_model" in adapters else None,
            qformer=self._qformer_lora() if "bridge" in adapters else None,
        ).total

    def _qformer_lora(self) -> tuple[int, int]:
        """The parameters of the Q-Former's adapter, and the bytes that a picture keeps for their gradients."""
        model, config = self.model, self.model.config
        asked = config.bridge_config.qformer.max_position_embeddings if self._processor.instructed else 0
        tokens = config.num_image_tokens + asked
        patches = leading_tokens(config.vision_config) + config.num_patches

        def reads(name: str) -> int:
            return patches if ".crossattention.attention." in name and ".query." not in name else tokens

        count, kept = lora_size(model.get_submodule("bridge.qformer"), reads)
        size = model.get_submodule("bridge").qformer.dtype.itemsize
        return count, kept + kept_in_qformer(config, tokens, patches, size)

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Greedy replies to first questions, spelled as in chat."""
        training = self.model.training
        self.model.eval()
        try:
            return ask(self.bot, examples, self._max_new_tokens)
        finally:
            self.model.train(training)

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """A projection's folder, or a whole model's where other parts trained; adapters beside it."""
        adapters, others = parted_weights(trained(self.model))
        earlier = {PLACES[part][0]: place for part, place in adapters_of(base).items() if part not in adapters}

        def beside(folder: Path) -> None:
            copy_adapters(earlier)(folder)
            if self._lora is not None:
                write_lora(folder, adapters, self._lora, self.model)

        write_result(out, base, others, facts, beside)
