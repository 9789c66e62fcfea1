"""The network: vision encoder → bridge (Q-Former or merged patches) → projection → LLM."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2QFormerModel,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings
from transformers.utils import ModelOutput, can_return_tuple

from minichat.errors import ImageError, ModelError, PromptError
from minichat.model.config import BridgeConfig, MiniChatConfig
from minichat.model.generation import generate_from_encoder, generation_start, penalising_replies, remember
from minichat.model.loss import encode_and_decode, only_at, rest_frozen_parts, seen_by, token_loss
from minichat.model.vision import build_vision, encode_pixels, grid_side, leading_tokens, picture_side
from minichat.prompt.render import IGNORED

# --- From patches to image tokens, before the projection: (I, R + P, W) → (I, n, D).
#
# Shapes: I pictures, P patches and R tokens before them (the class token, and a DINO's registers), W the vision
# encoder's width, n image tokens, D the bridge's width, L word pieces of a question.


Words = tuple[Tensor, Tensor]  # ids and mask (I, L), padded on the right: what an instructed Q-Former reads


def words_of(batch: Mapping[str, Tensor], device: torch.device | None = None) -> Words | None:
    """The words in a batch as a processor makes it, on the device; None where it has none."""
    if "qformer_input_ids" not in batch:
        return None
    return batch["qformer_input_ids"].to(device), batch["qformer_attention_mask"].to(device)


def build_bridge(config: MiniChatConfig) -> QFormerBridge | PatchMergeBridge | PoolBridge:
    """The bridge that `config.bridge_config.kind` names."""
    bridge, vision = config.bridge_config, config.vision_config
    if bridge.kind == "qformer":
        return QFormerBridge(bridge, vision.hidden_size)
    if bridge.kind == "pool":
        return PoolBridge(bridge, vision.hidden_size, leading_tokens(vision), grid_side(vision))
    return PatchMergeBridge(bridge, vision.hidden_size, leading_tokens(vision))


def _ln_vision(config: BridgeConfig, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.ln_vision_eps) if config.ln_vision else nn.Identity()


class QFormerBridge(nn.Module):
    """`ln_vision`, then learned queries that read the patches through the Q-Former (arXiv:2301.12597, section 3.1).

    An instructed one has an embedding of words, which the queries attend to as well (InstructBLIP).
    """

    def __init__(self, config: BridgeConfig, vision_width: int) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.qformer.hidden_size))
        if config.instructed:
            self.embeddings = Blip2TextEmbeddings(config.qformer)
        self.qformer = Blip2QFormerModel(config.qformer)

    def forward(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """(I, R + P, W) → (I, n, D). `words`: of an instructed one, what is asked of each picture."""
        patches = self.ln_vision(patches)
        queries = self.query_tokens.expand(patches.shape[0], -1, -1)  # (I, n, D)
        if words is None:
            return self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        ids, mask = words
        n = queries.shape[1]
        places = torch.arange(ids.shape[1], device=ids.device)[None]  # transformers' own are left empty by a load
        return self.qformer(
            query_embeds=self.embeddings(input_ids=ids, position_ids=places, query_embeds=queries),  # (I, n + L, D)
            query_length=n,
            attention_mask=torch.cat([mask.new_ones(len(mask), n), mask], dim=1),
            encoder_hidden_states=patches,
        ).last_hidden_state[:, :n]


class PatchMergeBridge(nn.Module):
    """`ln_vision`, then neighbours joined: MiniGPT-4 with Llama-2 (its `minigpt4/models/minigpt4.py::encode_img`)."""

    def __init__(self, config: BridgeConfig, vision_width: int, leading: int = 1) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.merge, self.leading = config.merge, leading

    def forward(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """(I, R + P, W) → (I, P / merge, merge · W): each token is a row of `merge` patches, not a square."""
        patches = self.ln_vision(patches)[:, self.leading :]  # without the class token: (I, P, W)
        pictures, count, width = patches.shape
        return patches.reshape(pictures, count // self.merge, self.merge * width)


class PoolBridge(nn.Module):
    """`ln_vision`, then the mean of each square of patches: tokens as they lie in the picture."""

    def __init__(self, config: BridgeConfig, vision_width: int, leading: int, side: int) -> None:
        super().__init__()
        self.ln_vision = _ln_vision(config, vision_width)
        self.pool_side, self.leading, self.side = config.pool_side, leading, side

    def forward(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """(I, R + P, W) → (I, ⌈√P / pool_side⌉², W). Squares at the right and at the foot may be smaller."""
        grid = self.ln_vision(patches)[:, self.leading :].unflatten(1, (self.side, self.side))  # (I, √P, √P, W)
        means = nn.functional.avg_pool2d(grid.permute(0, 3, 1, 2), self.pool_side, ceil_mode=True)
        return means.flatten(2).transpose(1, 2)


# --- The network: vision encoder → bridge → projection → LLM.
#
# Shapes: I pictures, S input side, P patches, n image tokens of a picture, D the bridge's width, H the LLM's width, B
# rows, T tokens, V the vocabulary. Pictures are flat: row by row, in the order of their slots.


@dataclass
class MiniChatOutput(ModelOutput):
    """What `forward` returns."""

    loss: Tensor | None = None  # () where labels were given
    logits: Tensor | None = None  # (B, T, V), or the positions that `logits_to_keep` asked for
    past_key_values: Cache | None = None  # the LLM's cache, pictures and text alike
    hidden_states: tuple[Tensor, ...] | None = None  # the LLM's, where asked for
    attentions: tuple[Tensor, ...] | None = None  # the LLM's, where asked for
    image_features: Tensor | None = None  # (I, n, D), the bridge's output: give it back to skip the vision encoder
    last_hidden_state: Tensor | None = None  # (B, T, H) without labels: what the output layer is given


class MiniChatForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A MiniGPT-4 (arXiv:2304.10592): pictures enter a chat LLM through one linear projection.

    The parts are transformers' own. In float16 and bfloat16 the projection alone stays in float32.
    """

    config: MiniChatConfig
    config_class = MiniChatConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _supports_flash_attn = False  # the Q-Former has none; {"text_config": "flash_attention_2"} reaches the LLM alone
    _no_split_modules = ["Blip2VisionEmbeddings", "Blip2EncoderLayer", "QFormerBridge"]  # and the parts' own
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = [r"^projection\."]  # a pattern: attention has projections, too

    def __new__(cls, config: MiniChatConfig | None = None, *args: Any, **kwargs: Any) -> Any:
        """Of the class that the LLM asks for: who opens a model need know this one alone. A copy has no `config`."""
        plain = cls is not MiniChatForConditionalGeneration or config is None or not config.is_encoder_decoder
        if plain and config is not None and config.is_encoder_decoder and not issubclass(cls, MiniChatEncoderDecoder):
            raise ModelError(f"The LLM is an encoder–decoder: derive {cls.__name__} from MiniChatEncoderDecoder.")
        return super().__new__(cls if plain else MiniChatEncoderDecoder)

    def __init__(self, config: MiniChatConfig) -> None:
        super().__init__(config)
        # MiniGPT-4 takes the last block's output as it is; the one norm that follows is the bridge's ln_vision.
        self.vision_model = build_vision(config.vision_config)
        self.bridge = build_bridge(config)
        self.projection = nn.Linear(config.image_feature_size, config.text_config.hidden_size, dtype=torch.float32)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        # A dtype left in text_config must not decide for one part alone.
        self.language_model = kind.from_config(config.text_config, dtype=torch.get_default_dtype())
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormerBridge):  # equal queries would stay equal for ever
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As with any Hugging Face model.

        Raises `ModelError` for a folder that refers to its LLM: transformers would make random weights in its place.
        """
        if kwargs.get("state_dict") is None:
            config = kwargs.get("config") or cls.config_class.from_pretrained(pretrained_model_name_or_path)
            if getattr(config, "llm", None):
                raise ModelError("This folder refers to its LLM: open it with minichat.load, or convert with --merge.")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # A trainer that puts a forward of its own in place of ours, as TRL does to spare logits, reads labels itself.
        super().__setattr__(name, self._with_targets(value) if name == "forward" else value)

    def _with_targets(self, forward: Any) -> Any:
        """A method that is given labels without image slots and padding, whoever copied them from the ids."""
        plain = getattr(forward, "__func__", None)

        @functools.wraps(forward if plain is None else plain)
        def given_targets(model: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("labels") is not None:
                kwargs["labels"] = model._targets(kwargs["labels"], kwargs.get("attention_mask"))
            return forward(*args, **kwargs) if plain is None else plain(model, *args, **kwargs)

        return types.MethodType(given_targets, self)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def train(self, mode: bool = True) -> MiniChatForConditionalGeneration:
        """Train mode for what trains; frozen parts (see `set_trainable`) stay in eval mode."""
        super().train(mode)
        if mode:
            rest_frozen_parts(self)
        return self

    def encode_features(self, pixel_values: Tensor, words: Words | None = None) -> Tensor:
        """Pictures (I, 3, S, S) → `image_features` (I, n, D), the bridge's output before the projection.

        `words`: what is asked of each picture, of a model whose Q-Former reads that (`encode_patches`, then
        `read_patches`). Raises as those do.
        """
        return self.read_patches(self.encode_patches(pixel_values), words)

    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """Pictures (I, 3, S, S) → patches (I, R + P, W), which depend on nothing but the pictures.

        Raises `ImageError` for pixels of another shape than the vision encoder's.
        """
        vision = self.config.vision_config
        side = picture_side(vision)
        if pixel_values.shape[1:] != (3, side, side):
            raise ImageError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; "
                f"this model needs (pictures, 3, {side}, {side}): use its own image processor."
            )
        if pixel_values.shape[0] == 0:
            return pixel_values.new_zeros(0, leading_tokens(vision) + self.config.num_patches, vision.hidden_size)
        return encode_pixels(self.vision_model, vision, pixel_values)

    def read_patches(self, patches: Tensor, words: Words | None = None) -> Tensor:
        """Patches (I, R + P, W), and for an instructed Q-Former its `words` → `image_features` (I, n, D).

        Raises `PromptError` where words are missing or nothing reads them, and unless each picture has its own.
        """
        instructed = self.config.bridge_config.instructed
        if (words is not None) != instructed:
            said = "needs what is asked of each picture: give" if instructed else "reads no question: leave out"
            raise PromptError(f"This model's bridge {said} qformer_input_ids and qformer_attention_mask.")
        if words is not None and len(words[0]) != len(patches):
            raise PromptError(f"There are {len(words[0])} rows of qformer_input_ids for {len(patches)} pictures.")
        if not len(patches):
            return patches.new_zeros(0, self.config.num_image_tokens, self.config.image_feature_size)
        return self.bridge(patches, words)

    def encode_images(self, pixel_values: Tensor, words: Words | None = None) -> Tensor:
        """Pictures (I, 3, S, S) → image tokens (I, n, H), in the LLM's embedding space."""
        return self._project(self.encode_features(pixel_values, words))

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        words: Words | None = None,
    ) -> Tensor:
        """Token ids (B, T) and pictures → embeddings (B, T, H), each picture's n tokens in its n slots.

        A slot is an id equal to `config.image_token_index`. Pictures come as `pixel_values` (I, 3, S, S) or as
        `image_features` (I, n, D), flat. Raises `PromptError`, with both numbers, unless slots and pictures match.
        """
        return self._embed(input_ids, None, pixel_values, image_features, words)[0]

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
        words: Words | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`embed`, with the features that went in; embeddings that are there already pass through."""
        if inputs_embeds is not None and input_ids is None:
            if pixel_values is not None or image_features is not None:
                raise PromptError("inputs_embeds already hold the pictures: give pictures with input_ids only.")
            return inputs_embeds, None
        if input_ids is None or inputs_embeds is not None:
            raise PromptError("Give either input_ids or inputs_embeds.")
        self._count(torch.eq(input_ids, self.config.image_token_index), pixel_values, image_features)
        if pixel_values is not None:
            image_features = self.encode_features(pixel_values, words)  # (I, n, D)
        return self.splice(input_ids, image_features), image_features

    def splice(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """`embed` for slots and pictures that were counted on the host before: it waits for no device.

        Ids (B, T) and features (I, n, D) → embeddings (B, T, H).
        """
        slots = torch.eq(input_ids, self.config.image_token_index)  # (B, T)
        # A slot's id need not have a row in the embedding: look up another and overwrite it.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(slots, 0))  # (B, T, H)
        if image_features is None:
            return embeds
        image_tokens = self._project(image_features).to(embeds)  # (I, n, H)
        return embeds.masked_scatter(slots.unsqueeze(-1).to(embeds.device), image_tokens)

    def _project(self, image_features: Tensor) -> Tensor:
        """(I, n, D) → (I, n, H), computed in the projection's own precision, also under autocast."""
        with torch.autocast(image_features.device.type, enabled=False):
            return self.projection(image_features.to(self.projection.weight.dtype))

    def _count(self, slots: Tensor, pixel_values: Tensor | None, image_features: Tensor | None) -> None:
        """Raise `PromptError` unless every picture has its n slots, all in one row."""
        n, width = self.config.num_image_tokens, self.config.image_feature_size
        if pixel_values is not None and image_features is not None:
            raise PromptError("pixel_values and image_features are the same pictures twice: give one of the two.")
        if image_features is not None and image_features.shape[1:] != (n, width):
            raise PromptError(
                f"image_features has the shape {tuple(image_features.shape)}; it must be (pictures, {n}, {width})."
            )
        pictures = next((len(given) for given in (pixel_values, image_features) if given is not None), 0)
        per_row = slots.sum(-1).tolist()
        if sum(per_row) != pictures * n:
            raise PromptError(
                f"There are {sum(per_row)} image slots and {pictures} pictures, which need {pictures * n}: "
                f"put {n} slots (the id {self.config.image_token_index}) where each picture belongs."
            )
        for row, count in enumerate(per_row):
            if count % n:
                raise PromptError(f"Row {row} has {count} image slots; a picture needs {n}, all of them in one row.")

    def _targets(self, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Labels (B, T) without image slots, which no logit stands for, and without what is padding in the prompt."""
        labels = labels.masked_fill(torch.eq(labels, self.config.image_token_index), IGNORED)
        if attention_mask is None or attention_mask.shape != labels.shape:
            return labels
        return labels.masked_fill(torch.eq(attention_mask, 0).to(labels.device), IGNORED)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> MiniChatOutput:
        """One pass: pictures and ids → embeddings → the LLM → logits, and the loss where there are labels.

        1. `input_ids` (B, T) with slots and `pixel_values` (I, 3, S, S) or `image_features` (I, n, D), or
           `inputs_embeds` (B, T, H) with the pictures already in place. With pixels an instructed Q-Former needs what
           is asked of each picture, `qformer_input_ids` and `qformer_attention_mask` (I, L).
        2. With `past_key_values`, ids are the new tokens alone; `attention_mask` then covers old and new (B, P + T).
        3. `labels` (B, T), −100 = no loss: the next-token cross-entropy, a mean over the supervised tokens or a sum
           divided by `num_items_in_batch`. They may be a copy of `input_ids`: slots and padding are never supervised.
        4. `skip_logits`: only the loss is wanted. The logits (N, V) of the N supervised positions are computed, and
           none is returned.

        Raises `PromptError` where slots and pictures do not match, or embeddings come with pictures.
        """
        if labels is not None:
            labels = self._targets(labels, attention_mask)
        words = _words(qformer_input_ids, qformer_attention_mask)
        inputs_embeds, image_features = self._embed(input_ids, inputs_embeds, pixel_values, image_features, words)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            # Padding on the left must not move a row's positions.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        targets = supervised = None
        if labels is not None:
            targets = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]  # the position that predicts each label
            if skip_logits:
                supervised = targets.ne(IGNORED)  # (B, T)
                targets = targets[supervised]  # (N,)
            else:
                targets = targets[:, _kept(logits_to_keep)]
        with only_at(self.get_output_embeddings(), supervised), seen_by(self.get_output_embeddings()) as hidden:
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=False if use_cache is None and labels is not None else use_cache,
                logits_to_keep=logits_to_keep if supervised is None else 0,
                **kwargs,
            )
        loss = None if targets is None else token_loss(outputs.logits, targets, num_items_in_batch)
        return MiniChatOutput(
            loss=loss,
            logits=None if skip_logits else outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
            last_hidden_state=hidden[0] if labels is None and hidden else None,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers' `generate` does, with pictures in any row.

        The pictures are put in place before anything is expanded for beams or several samples. With `input_ids` the
        result is prompt and reply, as with any Hugging Face model; with `inputs_embeds` it is the reply alone. Like the
        original MiniGPT-4, penalties and processors see the reply's ids only (a slot's id has no column in the logits).

        With `past_key_values`, of an earlier `generate` or `forward`, `input_ids` are the whole conversation, or what
        is new in it, with the pictures of what is given; the reply is the same (`minichat.model.minichat`).

        Raises `PromptError` where slots and pictures, or mask and cache, do not match.
        """
        words = _words(qformer_input_ids, qformer_attention_mask)
        inputs_embeds, _ = self._embed(input_ids, inputs_embeds, pixel_values, image_features, words)  # (B, T, H)
        cache = kwargs.get("past_key_values")
        rows, given, width = inputs_embeds.shape
        start = generation_start(cache, input_ids, (rows, given), attention_mask)
        if start.unread is not None:
            inputs_embeds = torch.cat([self.get_input_embeddings()(start.unread), inputs_embeds], 1)
        if start.before:  # transformers takes embeddings for the whole, and never looks at those that the cache holds
            inputs_embeds = torch.cat([inputs_embeds.new_zeros(rows, start.before, width), inputs_embeds], 1)
        kwargs = penalising_replies(kwargs, self.generation_config, self.config.text_config.bos_token_id)
        mask = start.mask.to(inputs_embeds.device)
        result = super().generate(inputs_embeds=inputs_embeds, attention_mask=mask, **kwargs)
        replies = result if isinstance(result, Tensor) else result.sequences  # (B · sequences a row, new tokens)
        if start.ids is not None and replies.shape[0] == rows:
            filled = cache if isinstance(result, Tensor) else result.past_key_values
            remember(filled, torch.cat([start.ids.to(replies), replies], 1), start.mask)
        if input_ids is None:
            return result
        prompts = input_ids.repeat_interleave(replies.shape[0] // input_ids.shape[0], dim=0).to(replies.device)
        whole = torch.cat([prompts, replies], dim=1)
        if isinstance(result, Tensor):
            return whole
        result.sequences = whole
        return result


class MiniChatEncoderDecoder(MiniChatForConditionalGeneration):
    """The same before a T5: the encoder reads pictures and question, the decoder writes a reply of R tokens."""

    def _targets(self, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Labels (B, R) without image slots. The mask is the prompt's."""
        return super()._targets(labels, None)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> MiniChatOutput:
        """One pass: what is given as the prompt is read by the encoder; `labels` (B, R) are what the decoder writes.

        Logits are (B, R, V). `decoder_input_ids`, if not given, are the labels behind a start token. All else, and
        what is raised, as for a decoder alone.
        """
        if labels is not None:
            labels = self._targets(labels, None)
        words = _words(qformer_input_ids, qformer_attention_mask)
        inputs_embeds, image_features = self._embed(input_ids, inputs_embeds, pixel_values, image_features, words)
        loss, outputs = encode_and_decode(
            self.language_model, inputs_embeds, attention_mask, labels, num_items_in_batch, skip_logits, **kwargs
        )
        return MiniChatOutput(
            loss=loss,
            logits=None if skip_logits else outputs.logits[:, _kept(logits_to_keep)],
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.decoder_hidden_states,
            attentions=outputs.decoder_attentions,
            image_features=image_features,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Replies alone, a start token first, as with Hugging Face's encoder–decoders.

        Raises `PromptError` where slots and pictures do not match, and for a cache: each conversation is read anew.
        """
        if kwargs.get("past_key_values") is not None:
            raise PromptError(
                "An encoder–decoder reads the whole conversation anew: leave past_key_values out, and give all of "
                "it as input_ids."
            )
        words = _words(qformer_input_ids, qformer_attention_mask)
        inputs_embeds, _ = self._embed(input_ids, inputs_embeds, pixel_values, image_features, words)  # (B, T, H)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        kwargs |= {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        return generate_from_encoder(self.language_model, self.generation_config, **kwargs)


def _words(ids: Tensor | None, mask: Tensor | None) -> Words | None:
    """Word pieces (I, L) for an instructed Q-Former; without a mask all of them are words."""
    return None if ids is None else (ids, torch.ones_like(ids) if mask is None else mask)


def _kept(logits_to_keep: int | Tensor) -> slice | Tensor:
    """The positions that `logits_to_keep` names, as transformers' models read it."""
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
