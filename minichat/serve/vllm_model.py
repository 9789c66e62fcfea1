"""The network in vLLM: our vision encoder, bridge and projection before vLLM's own LLM.

A prompt of ids holds its slots as our renderer makes them; in a text each picture's `<ImageHere>`, which the chat
template spells, becomes them. Pictures may stand anywhere, and there may be any number of them.

Shapes: I pictures, S input side, n image tokens of a picture, H the LLM's width, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature, Blip2VisionModel
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.sequence import IntermediateTensors

from minichat.model.minichat import build_bridge
from minichat.prompt.processor import MiniChatProcessor
from minichat.prompt.template import SLOT
from minichat.serve.vllm_plugin import ServedConfig

# --- Prompts and pictures → ids and pixels.


class _Info(BaseProcessingInfo):
    def get_hf_config(self) -> ServedConfig:
        return self.ctx.get_hf_config(ServedConfig)

    def get_hf_processor(self, **kwargs: object) -> MiniChatProcessor:
        return self.ctx.get_hf_processor(MiniChatProcessor, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    @property
    def slots(self) -> list[int]:
        """Those of one picture."""
        config = self.get_hf_config()
        return [config.image_token_index] * config.num_image_tokens


class _Dummies(BaseDummyInputsBuilder[_Info]):
    """What vLLM measures its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return SLOT * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        side, count = self.info.get_hf_config().vision_config.image_size, mm_counts.get("image", 0)
        return {"image": self._get_dummy_images(width=side, height=side, num_images=count)}


class _Processor(BaseMultiModalProcessor[_Info]):
    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Pictures → `pixel_values` (I, 3, S, S)."""
        return self.info.get_hf_processor().image_processor(list(hf_data["images"]), return_tensors="pt")

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """The ids of a text in which pictures are still words: the tokenizer has no id for them."""
        tokenizer, slots = self.info.get_tokenizer(), self.info.slots
        if slots[0] in prompt or SLOT not in (text := tokenizer.decode(prompt)):
            return prompt
        run = SLOT * len(slots)  # as a chat template of ours spells one picture
        ids: list[int] = []
        for number, piece in enumerate(text.split(run if run in text else SLOT)):
            ids += slots if number else []
            ids += tokenizer.encode(piece, add_special_tokens=False) if piece else []
        return ids

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        return [PromptReplacement(modality="image", target=self.info.slots, replacement=self.info.slots)]


# --- The network.


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=_Dummies)
class MiniChatForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """Under the name that `config.json` gives it. The vision side is whole on each of the LLM's devices."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return SLOT

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: ServedConfig = vllm_config.model_config.hf_config
        self.config = config
        mine: Any = self  # to a type checker without vLLM a module's methods are tensors
        with mine._mark_tower_model(vllm_config, "image"):
            self.vision_model = Blip2VisionModel(config.vision_config)
            self.vision_model.post_layernorm = nn.Identity()  # the one norm that follows is the bridge's
            self.bridge = build_bridge(config)
            width = config.text_config.hidden_size
            self.projection = nn.Linear(config.image_feature_size, width, dtype=torch.float32)
        with mine._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Pixels (I, 3, S, S) → image tokens, (n, H) for each picture."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return []
        pixels = pixels if isinstance(pixels, Tensor) else torch.stack(list(pixels))
        here = self.vision_model.embeddings.class_embedding
        patches = self.vision_model(pixel_values=pixels.flatten(0, -4).to(here)).last_hidden_state
        tokens = self.projection(self.bridge(patches).to(self.projection.weight.dtype))  # (I, n, H)
        return tuple(tokens.to(here.dtype))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        """vLLM's contract: the hidden states (T, H) of all rows' tokens, one behind the other."""
        embeds = None if intermediate_tensors is not None else inputs_embeds
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.config.image_token_index] = float("-inf")  # no reply holds a picture
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(self._grown(name, tensor) for name, tensor in weights)

    def _grown(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """What has a row for each id gets one for the slot, which is never looked at."""
        config = self.config
        if name.startswith("language_model.") and tensor.shape[0] == config.stored_vocabulary:
            more = config.text_config.vocab_size - config.stored_vocabulary
            if more and name.rpartition(".")[0].endswith(("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")):
                tensor = torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])
        return name, tensor
