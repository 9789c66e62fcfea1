"""What the Q-Former's pre-training is made of: its sizes and its losses."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Blip2VisionConfig, PreTrainedConfig

from minichat.errors import ModelError, SettingsError
from minichat.model.configuration import BridgeConfig

#: Image–text contrast, image–text matching, image-grounded text generation.
OBJECTIVES = ("itc", "itm", "itg")


class PretrainingConfig(PreTrainedConfig):
    """The sizes of a Q-Former with its text branch, of its vision encoder and its heads, and how its losses are made.

    `bridge_config` must be of kind "qformer"; its `qformer.vocab_size` counts the word pieces, `[DEC]` included.

    Raises `ModelError` for another bridge and for sizes that cannot be, `SettingsError` for an unknown objective.
    """

    model_type = "minichat_pretraining"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": Blip2VisionConfig, "bridge_config": BridgeConfig}

    vision_config: Any = None  # a Blip2VisionConfig
    bridge_config: Any = None  # a BridgeConfig
    contrast_size: int = 256  # E
    decoder_start_token_id: Any = None  # [DEC]'s id; None at birth means the last word piece's
    tie_word_embeddings: bool = True  # words are predicted with the embedding's own rows, as in BERT
    temperature: float = 0.07  # of the contrast, before training
    label_smoothing: float = 0.1  # of contrast and generation
    objectives: Any = OBJECTIVES  # which of the three train
    compared_learn: bool = False  # contrast: also what a pair is compared with learns; not so in BLIP-2's program
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = Blip2VisionConfig(**{"initializer_range": 0.02, **(self.vision_config or {})})
        if not isinstance(self.bridge_config, PreTrainedConfig):
            self.bridge_config = BridgeConfig(**(self.bridge_config or {}))
        if self.bridge_config.kind != "qformer":
            raise ModelError(
                f"bridge_config.kind is {self.bridge_config.kind!r}; only a Q-Former ('qformer') is pre-trained."
            )
        qformer = self.bridge_config.qformer
        qformer.use_qformer_text_input = True
        qformer.encoder_hidden_size = self.vision_config.hidden_size
        if self.contrast_size < 1:
            raise ModelError(f"contrast_size is {self.contrast_size}; it must be at least 1.")
        self.objectives = tuple(self.objectives)
        if not self.objectives or not set(self.objectives) <= set(OBJECTIVES):
            raise SettingsError(f"objectives is {self.objectives!r}; it takes some of {', '.join(OBJECTIVES)}.")
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = qformer.vocab_size - 1
        super().__post_init__(**kwargs)

    @property
    def trainable(self) -> tuple[str, ...]:
        """The parts that the objectives train, as `set_trainable` takes them; the vision encoder is frozen."""
        heads = {"itc": ("vision_projection", "text_projection", "temp"), "itm": ("itm_head",), "itg": ("cls",)}
        chosen = [part for name in OBJECTIVES if name in self.objectives for part in heads[name]]
        return ("bridge", "embeddings", *chosen)
