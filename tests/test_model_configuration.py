"""The configuration: what follows from it, what it refuses, how it is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from minichat.errors import ModelError
from minichat.model import BridgeConfig, MiniChatConfig
from tests.tiny_network import KINDS, tiny_config


def test_published_sizes_are_the_defaults() -> None:
    config = MiniChatConfig()
    assert (config.num_patches, config.num_image_tokens, config.image_feature_size) == (256, 32, 768)
    assert config.bridge_config.qformer.encoder_hidden_size == config.vision_config.hidden_size == 1408
    assert (config.bridge_config.ln_vision_eps, config.vision_config.layer_norm_eps) == (1e-5, 1e-6)
    merged = MiniChatConfig(bridge_config={"kind": "patch_merge"})
    assert (merged.num_image_tokens, merged.image_feature_size) == (64, 5632)


def test_parts_may_be_objects_or_dicts() -> None:
    objects = MiniChatConfig(
        vision_config=Blip2VisionConfig(hidden_size=32, initializer_range=0.02),
        bridge_config=BridgeConfig(qformer=Blip2QFormerConfig(hidden_size=24)),
        text_config=LlamaConfig(vocab_size=77),
    )
    dicts = MiniChatConfig(
        vision_config={"hidden_size": 32},
        bridge_config={"qformer": {"hidden_size": 24}},
        text_config={"model_type": "llama", "vocab_size": 77},
    )
    assert objects.to_dict() == dicts.to_dict()


def test_a_slot_is_the_first_id_beyond_the_vocabulary() -> None:
    assert tiny_config().image_token_index == 50
    assert tiny_config().image_token_id == 50
    assert tiny_config(image_token_index=3).image_token_index == 3


@pytest.mark.parametrize("kind", KINDS)
def test_stored_is_loaded(kind: str, tmp_path: Path) -> None:
    config = tiny_config(kind, template="llama2")
    config.save_pretrained(tmp_path)
    assert MiniChatConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "minichat"


def test_what_came_later_is_not_stored_where_it_changes_nothing() -> None:
    """So the hash of an older model's configuration, by which its indexes and records are known, stays what it was."""
    kept = {"kind", "num_query_tokens", "merge", "ln_vision", "ln_vision_eps", "qformer"}
    for kind in ("qformer", "patch_merge"):
        said = BridgeConfig(kind=kind).to_dict()
        assert kept <= said.keys() and not {"instructed", "pool_side"} & said.keys()
    assert BridgeConfig(instructed=True).to_dict()["instructed"] is True
    assert BridgeConfig(**BridgeConfig(kind="pool", pool_side=3).to_dict()).pool_side == 3


def test_attention_reaches_every_part() -> None:
    config = tiny_config()
    config._attn_implementation = {"": "sdpa", "text_config": "eager"}
    assert config.text_config._attn_implementation == "eager"
    config._attn_implementation = "eager"
    assert config.bridge_config.qformer._attn_implementation == "eager"
    assert config.vision_config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bridge_config": {"kind": "resampler"}}, ("resampler", "qformer", "patch_merge")),
        ({"bridge_config": {"num_query_tokens": 0}}, ("num_query_tokens", "0")),
        ({"bridge_config": {"kind": "patch_merge", "merge": -4}}, ("merge", "-4")),
        ({"bridge_config": {"kind": "patch_merge", "merge": 3}}, ("256", "3")),
        ({"bridge_config": {"kind": "patch_merge", "qformer": {"hidden_size": 8}}}, ("qformer", "patch_merge")),
    ],
)
def test_what_cannot_be_joined_is_refused(changes: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as error:
        MiniChatConfig(**changes)
    for word in words:
        assert word in str(error.value)
