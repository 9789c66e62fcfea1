"""What the networks are made of: MiniChat's four parts, and the Q-Former's pre-training with its losses."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import Blip2QFormerConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from minichat.errors import ModelError, SettingsError
from minichat.model.vision import EVA, grid_side, vision_config

# --- What the network is made of: the sizes of its four parts and how they join.
#
# `MiniChatConfig` holds the vision encoder's, the bridge's and the LLM's configuration; everything else (number of
# image tokens, widths at the joints) follows from them and is computed, never stored twice.


BRIDGE_KINDS = ("qformer", "patch_merge", "pool")


class BridgeConfig(PreTrainedConfig):
    """How patches become image tokens.

    `kind="qformer"`: `ln_vision`, then `num_query_tokens` learned queries read the patches through a Q-Former
    (BLIP-2, arXiv:2301.12597; MiniGPT-4 with Vicuna).
    With `instructed` the Q-Former reads the question beside the queries (InstructBLIP, arXiv:2305.06500, section 2.3).
    `kind="patch_merge"`: `ln_vision`, the class token dropped, then `merge` neighbours of the raster order joined into
    one token (MiniGPT-4 with Llama-2, MiniGPT-v2).
    `kind="pool"`: `ln_vision`, the class token dropped, then the mean of each square of `pool_side` × `pool_side`
    patches; with 1 each patch is a token, as in LLaVA (arXiv:2304.08485).

    Raises `ModelError` for a kind that does not exist and for counts below one.
    """

    model_type = "minichat_bridge"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"qformer": Blip2QFormerConfig}

    kind: str = "qformer"
    num_query_tokens: int = 32  # queries per picture (`qformer` only)
    merge: int = 4  # patches joined into one token (`patch_merge` only)
    pool_side: int = 2  # patches wide and high that one token is the mean of (`pool` only)
    ln_vision: bool = True  # False: the patches reach the bridge as the vision encoder left them
    ln_vision_eps: float = 1e-5  # the originals' `ln_vision`; a Hugging Face BLIP-2 uses its vision encoder's 1e-6
    qformer: Any = None  # a Blip2QFormerConfig; stays None for the other kinds
    instructed: bool = False  # what is asked of a picture goes into the Q-Former, too

    def __post_init__(self, **kwargs: Any) -> None:
        if self.kind not in BRIDGE_KINDS:
            raise ModelError(f"bridge_config.kind is {self.kind!r}; it must be one of {', '.join(BRIDGE_KINDS)}.")
        for field in ("num_query_tokens", "merge", "pool_side"):
            if getattr(self, field) < 1:
                raise ModelError(f"bridge_config.{field} is {getattr(self, field)}; it must be at least 1.")
        if self.kind != "qformer" and self.qformer is not None:
            raise ModelError(
                f"bridge_config.qformer is given, but bridge_config.kind is {self.kind!r}: drop one of them."
            )
        if self.kind == "qformer" and not isinstance(self.qformer, PreTrainedConfig):
            self.qformer = Blip2QFormerConfig(**(self.qformer or {}))
        if self.instructed:
            if self.kind != "qformer":
                raise ModelError(f"bridge_config.instructed is true, but bridge_config.kind is {self.kind!r}.")
            self.qformer.use_qformer_text_input = True
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in `config.json`.

        Fields that came later are left out where they change nothing: indexes, kept features and records of captions,
        which know a model by the hash of its configuration, stay good.
        """
        said: dict[str, Any] = super().to_dict()
        if not self.instructed:
            said.pop("instructed", None)
        if self.kind != "pool":
            said.pop("pool_side", None)
        return said


class MiniChatConfig(PreTrainedConfig):
    """The whole network: vision encoder, bridge, projection and LLM.

    Each part may be given as a configuration object or as a dict (as in `config.json`). `image_token_index` is the id
    that marks an image slot in `input_ids`; by default it is the LLM's vocabulary size, an id that no tokenizer can
    make and that needs no row in the embedding. `template` names the prompt template the weights were trained with.

    Raises `ModelError` where the parts cannot be joined.
    """

    model_type = "minichat"
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": AutoConfig,
        "bridge_config": BridgeConfig,
        "text_config": AutoConfig,
    }

    vision_config: Any = None  # of one of the types `minichat.model.vision.KINDS`, by default a Blip2VisionConfig
    bridge_config: Any = None  # a BridgeConfig
    text_config: Any = None  # any LLM's, decoder-only or encoder–decoder; LLaMA where no model_type is given
    image_token_index: Any = None  # an int; None at birth means text_config.vocab_size
    template: str = "vicuna-v0"
    #: Where the LLM's weights are, if not in this folder: {"path", "name" or "id" and "revision", "fingerprint"}.
    llm: Any = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False  # of this level; the LLM's own setting is in text_config

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = vision_config(self.vision_config)
        if not isinstance(self.bridge_config, PreTrainedConfig):
            self.bridge_config = BridgeConfig(**(self.bridge_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            text = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(text.pop("model_type", "llama"), **text)
        if self.bridge_config.kind == "qformer":
            self.bridge_config.qformer.encoder_hidden_size = self.vision_config.hidden_size
        elif self.bridge_config.kind == "patch_merge" and self.num_patches % self.bridge_config.merge:
            raise ModelError(
                f"{self.num_patches} patches cannot be joined by {self.bridge_config.merge}: "
                "choose vision_config.image_size or bridge_config.merge so that it divides."
            )
        if self.image_token_index is None:
            self.image_token_index = self.text_config.vocab_size
        super().__post_init__(**kwargs)
        self.is_encoder_decoder = self.text_config.is_encoder_decoder

    @property
    def num_patches(self) -> int:
        """Patches of one picture, without the class token."""
        return grid_side(self.vision_config) ** 2

    @property
    def num_image_tokens(self) -> int:
        """n: image tokens, and so image slots, of one picture."""
        bridge = self.bridge_config
        if bridge.kind == "pool":
            return math.ceil(grid_side(self.vision_config) / bridge.pool_side) ** 2
        return bridge.num_query_tokens if bridge.kind == "qformer" else self.num_patches // bridge.merge

    @property
    def image_feature_size(self) -> int:
        """D: the width of the bridge's output, before the projection."""
        bridge, width = self.bridge_config, int(self.vision_config.hidden_size)
        if bridge.kind == "qformer":
            return int(bridge.qformer.hidden_size)
        return width * bridge.merge if bridge.kind == "patch_merge" else width


# --- What the Q-Former's pre-training is made of: its sizes and its losses.


#: Image–text contrast, image–text matching, image-grounded text generation.
OBJECTIVES = ("itc", "itm", "itg")


class PretrainingConfig(PreTrainedConfig):
    """The sizes of a Q-Former with its text branch, of its vision encoder and its heads, and how its losses are made.

    `bridge_config` must be of kind "qformer"; its `qformer.vocab_size` counts the word pieces, `[DEC]` included.

    Raises `ModelError` for another bridge and for sizes that cannot be, `SettingsError` for an unknown objective.
    """

    model_type = "minichat_pretraining"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "bridge_config": BridgeConfig}

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
        self.vision_config = vision_config(self.vision_config)
        if self.vision_config.model_type != EVA:
            raise ModelError(f"vision_config.model_type is {self.vision_config.model_type!r}; it must be {EVA!r} here.")
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
