"""What vLLM finds when it starts: `vllm serve FOLDER` and `vllm.LLM(FOLDER)` then know models of ours.

vLLM loads the entry points `vllm.general_plugins` in each of its processes. Nothing of vLLM is imported before it asks
for the network.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from minichat.errors import ModelError
from minichat.model import MiniChatConfig
from minichat.model.vision import EVA


class ServedConfig(MiniChatConfig):
    """The configuration as vLLM is given it: its vocabulary holds the image slot, which vLLM would refuse in a prompt.

    Raises `ModelError` for a model that vLLM cannot write with.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if getattr(self, "llm", None):
            raise ModelError(
                "This folder refers to its LLM: export it whole first (minichat export --format minichat)."
            )
        if self.is_encoder_decoder:
            raise ModelError("Its LLM is an encoder-decoder, which vLLM does not serve: use minichat chat or demo.")
        if self.bridge_config.instructed:
            raise ModelError(
                "Its Q-Former reads the question with each picture, which vLLM does not hand over: use minichat serve."
            )
        if self.vision_config.model_type != EVA:
            raise ModelError(
                f"Its vision encoder is of type {self.vision_config.model_type!r}, which the plug-in does not have: "
                "use minichat serve."
            )
        self.tie_word_embeddings = self.text_config.tie_word_embeddings  # vLLM takes the whole model's for the LLM's
        self.stored_vocabulary = getattr(self, "stored_vocabulary", None) or self.text_config.vocab_size
        self.text_config.vocab_size = max(self.stored_vocabulary, self.image_token_index + 1)


def register() -> None:
    """Tell vLLM of the network, by its name in `config.json`. Does nothing twice."""
    from vllm import ModelRegistry

    AutoConfig.register(ServedConfig.model_type, ServedConfig, exist_ok=True)
    name = "MiniChatForConditionalGeneration"
    if name not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(name, f"minichat.serve.vllm_model:{name}")
