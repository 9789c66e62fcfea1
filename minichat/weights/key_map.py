"""The names of published tensors, and where each belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

# --- The names of published tensors, and where each belongs in `MiniChatForConditionalGeneration`. Data.
#
# In a name, `#` is one number, the same on both sides. A target that ends in `[i]` is the i-th third of a tensor;
# thirds that no tensor fills are zeros. `unused` are globs of what a published file is known to hold besides.


@dataclass(frozen=True)
class KeyMap:
    """What the tensors of one kind of file are for."""

    used: Mapping[str, str]
    unused: tuple[str, ...] = ()
    #: Beginnings of names that stand for a part whose names are otherwise ours.
    parts: Mapping[str, str] = field(default_factory=dict)
    _patterns: list[tuple[re.Pattern[str], str]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        for theirs, ours in self.used.items():
            self._patterns.append((re.compile(re.escape(theirs).replace(r"\#", r"(\d+)")), ours))

    def target(self, name: str) -> str | None:
        """Our name of a published tensor; None for one that has no place in the network."""
        for pattern, ours in self._patterns:
            if found := pattern.fullmatch(name):
                return ours.replace("#", found[1]) if pattern.groups else ours
        part = next((part for part in self.parts if name.startswith(part)), None)
        return None if part is None or self.known_unused(name) else self.parts[part] + name.removeprefix(part)

    def known_unused(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.unused)


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Modules with a weight and a bias."""
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for theirs, ours in names.items() for leaf in ("weight", "bias")}


# Buffers that transformers 4 saved and that follow from the configuration.
_BUFFERS = ("*.position_ids", "*.rotary_emb.inv_freq")

# EVA-CLIP's ViT-g as LAVIS and MiniGPT-4 load it (minigpt4/models/eva_vit.py). There the key has no bias.
_LAYER = "vision_model.encoder.layers.#"
EVA_VIT = KeyMap(
    used={
        "cls_token": "vision_model.embeddings.class_embedding",
        "pos_embed": "vision_model.embeddings.position_embedding",
        "blocks.#.attn.qkv.weight": f"{_LAYER}.self_attn.qkv.weight",
        "blocks.#.attn.q_bias": f"{_LAYER}.self_attn.qkv.bias[0]",
        "blocks.#.attn.v_bias": f"{_LAYER}.self_attn.qkv.bias[2]",
        **_modules(
            {
                "patch_embed.proj": "vision_model.embeddings.patch_embedding",
                "blocks.#.norm1": f"{_LAYER}.layer_norm1",
                "blocks.#.norm2": f"{_LAYER}.layer_norm2",
                "blocks.#.attn.proj": f"{_LAYER}.self_attn.projection",
                "blocks.#.mlp.fc1": f"{_LAYER}.mlp.fc1",
                "blocks.#.mlp.fc2": f"{_LAYER}.mlp.fc2",
            }
        ),
    },
    # The encoder's own end, which MiniGPT-4 and BLIP-2 leave out. So is the last block; see `published`.
    unused=("norm.*", "fc_norm.*", "head.*"),
)

_THEIRS, _OURS = "Qformer.bert.encoder.layer.#", "bridge.qformer.encoder.layer.#"
_BRIDGE = {
    "query_tokens": "bridge.query_tokens",
    **_modules(
        {
            "ln_vision": "bridge.ln_vision",
            "Qformer.bert.embeddings.LayerNorm": "bridge.qformer.layernorm",
            f"{_THEIRS}.attention.self.query": f"{_OURS}.attention.attention.query",
            f"{_THEIRS}.attention.self.key": f"{_OURS}.attention.attention.key",
            f"{_THEIRS}.attention.self.value": f"{_OURS}.attention.attention.value",
            f"{_THEIRS}.attention.output.dense": f"{_OURS}.attention.output.dense",
            f"{_THEIRS}.attention.output.LayerNorm": f"{_OURS}.attention.output.LayerNorm",
            f"{_THEIRS}.crossattention.self.query": f"{_OURS}.crossattention.attention.query",
            f"{_THEIRS}.crossattention.self.key": f"{_OURS}.crossattention.attention.key",
            f"{_THEIRS}.crossattention.self.value": f"{_OURS}.crossattention.attention.value",
            f"{_THEIRS}.crossattention.output.dense": f"{_OURS}.crossattention.output.dense",
            f"{_THEIRS}.crossattention.output.LayerNorm": f"{_OURS}.crossattention.output.LayerNorm",
            f"{_THEIRS}.intermediate_query.dense": f"{_OURS}.intermediate_query.dense",
            f"{_THEIRS}.output_query.dense": f"{_OURS}.output_query.dense",
            f"{_THEIRS}.output_query.LayerNorm": f"{_OURS}.output_query.LayerNorm",
        }
    ),
}

# The Q-Former's text branch, as far as a question is read with it (InstructBLIP).
_WORDS = {
    **{
        f"Qformer.bert.embeddings.{name}.weight": f"bridge.embeddings.{name}.weight"
        for name in ("word_embeddings", "position_embeddings")
    },
    **_modules(
        {
            f"{_THEIRS}.intermediate.dense": f"{_OURS}.intermediate.dense",
            f"{_THEIRS}.output.dense": f"{_OURS}.output.dense",
            f"{_THEIRS}.output.LayerNorm": f"{_OURS}.output.LayerNorm",
        }
    ),
}

# BLIP-2 as LAVIS saved it, after stage 1 or 2 (lavis/models/blip2_models).
BLIP2 = KeyMap(
    used=_BRIDGE,
    unused=(
        *_BUFFERS,
        # Another LLM's projection.
        *(f"{llm}_proj.*" for llm in ("t5", "opt", "llm", "llama")),
        # Stage 1: the Q-Former's text branch, its word prediction, and the heads of its losses.
        "Qformer.bert.embeddings.word_embeddings.*",
        "Qformer.bert.embeddings.position_embeddings.*",
        "Qformer.bert.encoder.layer.*.intermediate.*",
        "Qformer.bert.encoder.layer.*[0-9].output.*",
        "Qformer.cls.*",
        *(f"{head}.*" for head in ("vision_proj", "text_proj", "itm_head")),
        "temp",
    ),
)

# A training run of MiniGPT-4 (minigpt4/runners/runner_base.py, _save_checkpoint): what trained, and buffers. What
# else of the bridge trained is in it too, and comes after the Q-Former's file.
MINIGPT4 = KeyMap(used={**_BRIDGE, **_modules({"llama_proj": "projection"})}, unused=_BUFFERS)

#: What LAVIS calls the projection before each of its LLMs: OPT, FLAN-T5, and InstructBLIP's Vicuna.
LAVIS_PROJECTIONS = ("opt_proj", "t5_proj", "llm_proj")

# BLIP-2 or InstructBLIP before its LLM, as LAVIS saves it (lavis/runners/runner_base.py, _save_checkpoint): what
# trained, and what is tied to the LLM's own.
LAVIS = KeyMap(
    used={**_BRIDGE, **_WORDS, **_modules(dict.fromkeys(LAVIS_PROJECTIONS, "projection"))},
    unused=(
        *_BUFFERS,
        "opt_model.lm_head.weight",
        "t5_model.encoder.embed_tokens.weight",
        "t5_model.decoder.embed_tokens.weight",
    ),
)

# The vision side of a Hugging Face BLIP-2. Its vision encoder ends in what the originals call ln_vision.
HUGGING_FACE_BLIP2 = KeyMap(
    used={
        "query_tokens": "bridge.query_tokens",
        **_modules(
            {"vision_model.post_layernorm": "bridge.ln_vision", "qformer.layernorm": "bridge.qformer.layernorm"}
        ),
    },
    unused=(
        "language_model.*",
        "language_projection.*",
        # After stage 1 (Blip2ForImageTextRetrieval): the Q-Former's text branch, and the heads of its losses.
        "embeddings.*",
        "qformer.encoder.layer.*.intermediate.*",
        "qformer.encoder.layer.*[0-9].output.*",
        *(f"{head}.*" for head in ("vision_projection", "text_projection", "itm_head")),
        *_BUFFERS,
    ),
    parts={"vision_model.": "vision_model.", "qformer.": "bridge.qformer."},
)

# The same of an InstructBLIP, whose Q-Former has an embedding of words.
HUGGING_FACE_INSTRUCTBLIP = KeyMap(
    used={
        "query_tokens": "bridge.query_tokens",
        **{
            f"qformer.embeddings.{name}.weight": f"bridge.embeddings.{name}.weight"
            for name in ("word_embeddings", "position_embeddings")
        },
        **_modules(
            {
                "vision_model.post_layernorm": "bridge.ln_vision",
                "qformer.embeddings.layernorm": "bridge.qformer.layernorm",
            }
        ),
    },
    unused=("language_model.*", "language_projection.*", "*.position_ids"),
    parts={"vision_model.": "vision_model.", "qformer.encoder.": "bridge.qformer.encoder."},
)

# What a whole one has besides; its LLM is read as an LLM.
HUGGING_FACE_PROJECTION = _modules({"language_projection": "projection"})

# Its vision encoder alone, for patches that are joined: ln_vision is then an identity.
HUGGING_FACE_VIT = KeyMap(
    used={},
    unused=("vision_model.post_layernorm.*", "qformer.*", "query_tokens", *HUGGING_FACE_BLIP2.unused),
    parts={"vision_model.": "vision_model."},
)

# The vision encoder of a model of ours.
OUR_VIT = KeyMap(
    used={},
    unused=("bridge.*", "projection.*", "language_model.*"),
    parts={"vision_model.": "vision_model."},
)

# The whole vision side of one, where it has a Q-Former.
OUR_VISION_SIDE = KeyMap(
    used={},
    unused=("projection.*", "language_model.*"),
    parts={"vision_model.": "vision_model.", "bridge.": "bridge."},
)

# Vision encoders as transformers saves them, alone or with a text side; without what pools their patches.
_WITH_TEXT = KeyMap(
    used={},
    unused=(
        *_BUFFERS,
        *(f"{part}.*" for part in ("text_model", "text_projection", "visual_projection")),
        *(f"{start}{part}.*" for start in ("vision_model.", "") for part in ("head", "post_layernorm")),
        "logit_scale",
        "logit_bias",
    ),
    parts={"vision_model.": "vision_model.", "": "vision_model."},
)
_NORMED = KeyMap(
    used=_modules({f"{start}post_layernorm": "vision_model.post_layernorm" for start in ("vision_model.", "")}),
    unused=_WITH_TEXT.unused,
    parts=_WITH_TEXT.parts,
)
_DINOV2 = _modules(
    {
        f"encoder.layer.#.attention.{theirs}": f"vision_model.encoder.layer.#.attention.{ours}"
        for theirs, ours in {
            "attention.query": "q_proj",
            "attention.key": "k_proj",
            "attention.value": "v_proj",
            "output.dense": "o_proj",
        }.items()
    }
)
ENCODERS = {
    "clip_vision_model": _WITH_TEXT,
    "siglip_vision_model": _NORMED,
    "siglip2_vision_model": _NORMED,
    "dinov2": KeyMap(used=_DINOV2, unused=("embeddings.mask_token",), parts={"": "vision_model."}),
    "dinov2_with_registers": KeyMap(used=_DINOV2, parts={"": "vision_model."}),
    "dinov3_vit": KeyMap(used={}, parts={"layer.": "vision_model.model.layer.", "": "vision_model."}),
}

# BLIP-2 after stage 1, with all that stage 2 leaves out (lavis/models/blip2_models/blip2_qformer.py).
BLIP2_STAGE1 = KeyMap(
    used={
        **_BRIDGE,
        **{theirs: ours.removeprefix("bridge.") if "embeddings" in ours else ours for theirs, ours in _WORDS.items()},
        "Qformer.cls.predictions.bias": "cls.predictions.bias",
        "temp": "temp",
        **_modules(
            {
                "Qformer.cls.predictions.transform.dense": "cls.predictions.transform.dense",
                "Qformer.cls.predictions.transform.LayerNorm": "cls.predictions.transform.LayerNorm",
                "Qformer.cls.predictions.decoder": "cls.predictions.decoder",
                "vision_proj": "vision_projection",
                "text_proj": "text_projection",
                "itm_head": "itm_head",
            }
        ),
    },
    unused=_BUFFERS,
)

# A Hugging Face Blip2ForImageTextRetrieval, and what it has no place for, which we write beside it.
HUGGING_FACE_RETRIEVAL = KeyMap(
    used=HUGGING_FACE_BLIP2.used,
    unused=_BUFFERS,
    parts={
        **HUGGING_FACE_BLIP2.parts,
        **{f"{part}.": f"{part}." for part in ("embeddings", "vision_projection", "text_projection", "itm_head")},
    },
)
STAGE1_BESIDE = KeyMap(used={"temp": "temp"}, parts={"cls.": "cls."})

# BERT, from which a Q-Former's words and their self-attention start; queries start with the words' feed-forward parts.
_BERT_LAYER = "bert.encoder.layer.#"
BERT = KeyMap(
    used={
        "bert.embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
        "cls.predictions.bias": "cls.predictions.bias",
        **_modules(
            {
                "bert.embeddings.LayerNorm": "bridge.qformer.layernorm",
                f"{_BERT_LAYER}.attention.self.query": f"{_OURS}.attention.attention.query",
                f"{_BERT_LAYER}.attention.self.key": f"{_OURS}.attention.attention.key",
                f"{_BERT_LAYER}.attention.self.value": f"{_OURS}.attention.attention.value",
                f"{_BERT_LAYER}.attention.output.dense": f"{_OURS}.attention.output.dense",
                f"{_BERT_LAYER}.attention.output.LayerNorm": f"{_OURS}.attention.output.LayerNorm",
                f"{_BERT_LAYER}.intermediate.dense": f"{_OURS}.intermediate.dense",
                f"{_BERT_LAYER}.output.dense": f"{_OURS}.output.dense",
                f"{_BERT_LAYER}.output.LayerNorm": f"{_OURS}.output.LayerNorm",
                "cls.predictions.transform.dense": "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm": "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder": "cls.predictions.decoder",
            }
        ),
    },
    # What the Q-Former has none of: kinds of sentences, and BERT's second objective.
    unused=("bert.embeddings.token_type_embeddings.*", "bert.pooler.*", "cls.seq_relationship.*", *_BUFFERS),
)

#: An LLM's own file.
LLM_UNUSED = ("*.rotary_emb.inv_freq",)
