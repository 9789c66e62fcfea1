"""Keys of caches hold all that decides what is computed: the configuration, and every byte of every tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minichat.data.feature_cache import Origin
from minichat.search import Reader
from minichat.weights import checkpoint_io
from minichat.weights.checkpoint_io import identity
from minichat.weights.qformer import Stage1
from tests.tiny import tiny_bot
from tests.tiny_stage1 import tiny_pretraining


def features_key(**changes: Any) -> Origin:
    bot = tiny_bot()
    for name, value in changes.items():
        part, _, key = name.partition("__")
        setattr(
            bot.model.config.vision_config if part == "vision" else bot.model.config.bridge_config.qformer, key, value
        )
    return Origin.of(bot.model, bot.processor)


def search_key(**changes: Any) -> str:
    model = tiny_pretraining()
    for name, value in changes.items():
        part, _, key = name.partition("__")
        setattr(model.config.vision_config if part == "vision" else model.config.bridge_config.qformer, key, value)
    return Reader(Stage1(model, None)).origin()  # type: ignore[arg-type]


CHANGES: list[dict[str, Any]] = [
    {"vision__num_attention_heads": 4},
    {"vision__layer_norm_eps": 1e-3},
    {"vision__hidden_act": "relu"},
    {"qformer__num_attention_heads": 4},
    {"qformer__layer_norm_eps": 1e-3},
    {"qformer__hidden_act": "relu"},
]


def test_what_tensors_do_not_show_is_in_the_key() -> None:
    """Networks that differ in heads, eps or activation alone have the same tensors and see otherwise."""
    for key in (features_key, search_key):
        found = [key(), *(key(**change) for change in CHANGES)]
        assert len({repr(one) for one in found}) == len(found)
        assert key() == found[0]


def test_the_last_byte_of_a_large_tensor_is_in_the_key() -> None:
    def late(model: torch.nn.Module) -> None:
        weight = max(model.vision_model.parameters(), key=torch.Tensor.numel)  # type: ignore[operator, union-attr]
        assert weight.nbytes > 64 * 1024
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3

    large = {"intermediate_size": 1024}
    bots = [tiny_bot() for _ in range(2)]
    for bot in bots:
        layer = bot.model.vision_model.encoder.layers[0].mlp
        torch.manual_seed(0)
        layer.fc1, layer.fc2 = torch.nn.Linear(32, large["intermediate_size"]), torch.nn.Linear(1024, 32)
    keys = [Origin.of(bot.model, bot.processor) for bot in bots]
    assert keys[0] == keys[1]
    late(bots[1].model)
    assert Origin.of(bots[1].model, bots[1].processor).vision_model != keys[0].vision_model
    model = tiny_pretraining()
    model.vision_model.encoder.layers[0].mlp.fc1 = torch.nn.Linear(16, 2048)
    reader = Reader(Stage1(model, None))  # type: ignore[arg-type]
    before = reader.origin()
    late(model)
    assert reader.origin() != before


def test_tensors_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[bool] = []
    whole = checkpoint_io.fingerprint
    monkeypatch.setattr(checkpoint_io, "fingerprint", lambda *a, **k: counted.append(True) or whole(*a, **k))
    bot = tiny_bot()
    first = [identity(bot.model.vision_model, bot.model.config.vision_config) for _ in range(3)]
    assert len(set(first)) == len(counted) == 1
    with torch.no_grad():
        bot.model.vision_model.embeddings.class_embedding.add_(1)
    assert identity(bot.model.vision_model, bot.model.config.vision_config) != first[0]
    bot.model.bfloat16()
    identity(bot.model.vision_model, bot.model.config.vision_config)
    assert len(counted) == 3
