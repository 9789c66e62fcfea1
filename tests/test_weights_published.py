"""The published files at their full size, by names and shapes: each tensor has its place or is known to have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.weights.account import Account, Sizes, add_bridge, add_vision, bridge_sizes
from minichat.weights.checkpoint_io import Checkpoint


@pytest.fixture(scope="module")
def published(reference: Path) -> dict[str, Any]:
    path = reference / "full_size_keys.json"
    if not path.is_file():
        pytest.skip("full_size_keys.json is not among the reference cases")
    return json.loads(path.read_text())


class Meta(Checkpoint):
    """A file of tensors that have shapes and no values."""

    def __init__(self, file: str, shapes: dict[str, list[int]]) -> None:
        super().__init__(file, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, {})

    def plain(self, name: str) -> torch.Tensor:
        return self.raw[name]


@pytest.mark.parametrize(
    ("qformer", "projection"),
    [
        ("minigpt4.Qformer", "vicuna-7b"),
        ("minigpt4.Qformer", "vicuna-13b"),
        ("blip2_stage1.Qformer", "vicuna-7b"),
        (None, "llama2-7b-no-qformer"),
    ],
)
def test_every_published_tensor_has_its_place(published: dict[str, Any], qformer: str | None, projection: str) -> None:
    account = Account()
    with torch.device("meta"):
        vision = add_vision(account, Meta("eva_vit_g.pth", published["eva_vit_g.pth"]), Sizes())
        bridge_file = Meta(qformer, published[qformer]) if qformer else None
        add_bridge(account, bridge_file, Meta("minigpt4.pth", published["llama_proj"][projection]))
        bridge = bridge_sizes(account, vision, Sizes())
        width = published["llama_proj"][projection]["llama_proj.bias"][0]
        llm = {"hidden_size": width, "num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 8}
        config = MiniChatConfig(vision_config=vision, bridge_config=bridge, text_config=llm)
        model = MiniChatForConditionalGeneration(config)
        ours = {n: tuple(t.shape) for n, t in model.state_dict().items() if not n.startswith("language_model.")}
        account.check(ours)  # none missing, none too many, none of another shape
    assert account.left_over == {}
    assert config.vision_config.num_hidden_layers == 39
    assert (config.vision_config.num_attention_heads, config.vision_config.image_size) == (16, 224)
    assert config.num_image_tokens == (32 if qformer else 64)
    assert account.unused.pop("eva_vit_g.pth") == [n for n in published["eva_vit_g.pth"] if n.startswith("blocks.39.")]
    text_branch = ("word_embeddings", "position_embeddings", "position_ids", ".intermediate.", ".cls.")
    heads = ("vision_proj.", "text_proj.", "itm_head.", "temp")
    unused = [
        name
        for name in published.get(qformer or "", {})
        if name.startswith(heads)
        or any(part in name for part in text_branch)
        or (".output." in name and "attention" not in name)
    ]
    assert account.unused == ({qformer: unused} if qformer else {})
    if qformer:
        expected = {"minigpt4.Qformer": 1, "blip2_stage1.Qformer": 346 - 258 + 1}[qformer]
        assert len(unused) == expected
        layers, every = bridge["qformer"]["num_hidden_layers"], bridge["qformer"]["cross_attention_frequency"]
        assert (layers, every, bridge["qformer"]["num_attention_heads"]) == (12, 2, 12)


def test_a_tensor_that_nothing_is_known_of_is_named(published: dict[str, Any]) -> None:
    shapes = {**published["eva_vit_g.pth"], "blocks.0.attn.k_bias": [1408]}
    with pytest.raises(Exception, match=r"blocks\.0\.attn\.k_bias"):
        add_vision(Account(), Meta("eva.pth", shapes), Sizes())
    account = Account(["*.k_bias"])
    with torch.device("meta"):
        add_vision(account, Meta("eva.pth", shapes), Sizes())
    assert account.left_over == {"eva.pth": ["blocks.0.attn.k_bias"]}
