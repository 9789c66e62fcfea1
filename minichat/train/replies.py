"""The replies of conversations, learnt before a frozen LLM: MiniGPT-4's two stages, and the second of BLIP-2's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from minichat.data.batches import Collator
from minichat.data.rows import Renderer
from minichat.errors import PromptError
from minichat.hardware.memory import CONTEXT, training_needs
from minichat.model.loss import learnt, only_at, token_loss
from minichat.prompt.render import IGNORED
from minichat.train.attention import use_products
from minichat.train.config import Config
from minichat.train.lora import adapter_of, lora_size, parted_weights, write_lora
from minichat.train.network import open_bot
from minichat.train.optimizer import trained
from minichat.train.parts import LastReply, parted
from minichat.train.prefix import Prefix, shared
from minichat.train.report import ask
from minichat.train.result import write_result
from minichat.train.stage import Batch, Stage, silent
from minichat.weights.adapter import copy_adapter

if TYPE_CHECKING:
    from minichat.chat import MiniChat
    from minichat.data.example import Example
    from minichat.data.features import FeatureCache
    from minichat.data.rows import Ids, Row
    from minichat.prompt.processing import MiniChatProcessor
    from minichat.train.stage import Say, Seen, Told
    from minichat.train.together import Together


_PROJECTION = {"projection.weight", "projection.bias"}
_MULTIPLE = 8  # lengths of rows: few shapes, each of which oneDNN compiles


class ReplyCollator:
    """Rows → `input_ids` (B, T), their pictures, and what is learnt: `targets` (N,) at `positions` (N,) of B · T,
    as `minichat.model.loss.learnt` tells them.

    Of the ids, those that all rows have in common with the model's `Prefix` are left out (`attention_mask` is of all),
    and so is the last, which is learnt and predicts nothing.

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
        positions, targets = learnt(after)
        slots = int(ids.eq(self._slot).sum())
        pictures = len(batch.get("pixel_values", batch.get("image_features", ())))
        if slots != pictures * self._slots:
            raise PromptError(
                f"{rows[0].where}: there are {slots} image slots and {pictures} pictures in a batch, which need "
                f"{pictures * self._slots}: an image slot's id is among a text's."
            )
        return batch | {"positions": positions, "targets": targets}


class Replies(Stage):
    """The next token of replies, as in both stages of MiniGPT-4 (arXiv:2304.10592, section 3)."""

    trainable: ClassVar[tuple[str, ...]] = ("projection",)
    lighter: ClassVar[tuple[str, ...]] = (
        "run.device_batch_size",
        "model.checkpoint_llm",
        "model.quantize",
        "model.vision_checkpoint",
        "data.max_tokens",
    )

    def __init__(self, config: Config, device: torch.device) -> None:
        """Load the model that the configuration names. Raises what loading raises."""
        trainable = config.trainable or self.trainable
        self.bot: MiniChat = open_bot(config.model, trainable, device, config.lora, config.seed)
        self.model = self.bot.model
        self._processor = self.bot.processor.with_template(config.data.template)
        limits = [limit for limit in (config.data.max_tokens, self.bot.context) if limit is not None]
        limit = min(limits, default=None)
        self.longest = limit or CONTEXT
        render = Renderer(self._processor, max_length=limit, max_reply_tokens=config.data.max_reply_tokens)
        parts = self.model.config.is_encoder_decoder
        self.render: Callable[[Example], Row] = LastReply(render) if parts else render
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
        together: Together,
        damaged: Told | None = None,
        say: Say = silent,
    ) -> None:
        """Let the frozen parts see every picture once; from then on batches hold what they saw."""
        from minichat.data.encoding import encode
        from minichat.data.features import FeatureCache

        place: dict[str, Any] = {"rank": together.rank, "processes": together.count}
        cache = encode(
            self.model, self._processor, pictures, folder, workers=workers, damaged=damaged, say=say, **place
        )
        together.wait()  # what the others have seen
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
            features = model.encode_features(batch["pixel_values"])
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
        adapter, others = parted_weights(trained(self.model))
        if set(others) != _PROJECTION or self.model.config.is_encoder_decoder:
            return None
        embedding = self.model.get_input_embeddings().weight
        return training_needs(
            self.model.config,
            rows,
            longest,
            self._settings.checkpoint_llm,
            dtype=str(embedding.dtype).removeprefix("torch."),
            quantize=self._settings.quantize,
            device=embedding.device.type,
            adapter=lora_size(self.model.language_model) if adapter else None,
        ).total

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Greedy replies to first questions, spelled as in chat."""
        training = self.model.training
        self.model.eval()
        try:
            return ask(self.bot, examples, self._max_new_tokens)
        finally:
            self.model.train(training)

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """A projection's folder, or a whole model's where other parts trained; an adapter beside it."""
        adapter, others = parted_weights(trained(self.model))
        if self._lora is None:
            beside = copy_adapter(adapter_of(base))
        else:
            beside = partial(write_lora, weights=adapter, lora=self._lora, model=self.model)
        write_result(out, base, others, facts, beside)
