"""Frozen is frozen: no gradient, no change of a bit, no dropout after `train()`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minichat.errors import SettingsError
from minichat.model import MiniChatForConditionalGeneration, set_trainable
from minichat.model.minichat import QFormerBridge
from tests.tiny_network import VOCABULARY, pictures, row, tiny_network

IDS = torch.tensor([row(1, "picture", 5, 6, "picture", 7, 8)])
LABELS = IDS.masked_fill(IDS == VOCABULARY, -100)


def training_loss(model: MiniChatForConditionalGeneration) -> torch.Tensor:
    return model(input_ids=IDS, pixel_values=pictures(2), labels=LABELS).loss


def noisy_network() -> MiniChatForConditionalGeneration:
    """With dropout in every part that can have some; the Q-Former has 0.1 anyway."""
    model = tiny_network(text={"attention_dropout": 0.5})
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.attention_dropout = 0.5
    return model


@pytest.mark.parametrize(
    "parts", [("projection",), ("projection", "bridge.query_tokens"), ("bridge", "language_model")]
)
def test_only_the_named_parts_change(parts: tuple[str, ...]) -> None:
    model = tiny_network()
    counts = set_trainable(model, parts)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD((weight for weight in model.parameters() if weight.requires_grad), lr=0.1)
    model.train()
    training_loss(model).backward()
    optimizer.step()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    named = {name for name in before if name.startswith(parts)}
    assert changed <= named
    for part in parts:
        assert any(name.startswith(part) for name in changed)
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} <= named
    assert list(counts) == [*parts, "frozen"]
    assert sum(counts[part] for part in parts) == sum(before[name].numel() for name in named)
    assert sum(counts.values()) == sum(weight.numel() for weight in before.values())


def test_the_projection_trains_by_default() -> None:
    model = tiny_network()
    counts = set_trainable(model)
    assert counts["projection"] == 24 * 40 + 40
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "projection.weight",
        "projection.bias",
    }
    assert set_trainable(model, ())["frozen"] == sum(counts.values())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_tied_weight_trains_under_either_name() -> None:
    for name in ("language_model.lm_head", "language_model.model.embed_tokens"):
        model = tiny_network(text={"tie_word_embeddings": True})
        assert set_trainable(model, (name,))[name] == VOCABULARY * 40
        assert model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("name", ["projektion", "project", "bridge.query", ""])
def test_unknown_parts_are_refused(name: str) -> None:
    model = tiny_network()
    with pytest.raises(SettingsError, match="language_model"):
        set_trainable(model, (name,))
    assert all(weight.requires_grad for weight in model.parameters())


def test_frozen_parts_have_no_dropout() -> None:
    model = noisy_network()
    still = training_loss(model)
    model.train()
    assert not torch.equal(training_loss(model), still)  # there is dropout to switch off
    set_trainable(model)
    for _ in range(2):
        model.train()
        assert model.training
        assert model.projection.training
        assert not any(module.training for module in model.vision_model.modules())
        assert torch.equal(training_loss(model), still)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_what_trains_keeps_its_dropout() -> None:
    model = noisy_network()
    set_trainable(model, ("bridge.qformer",))
    assert isinstance(model.bridge, QFormerBridge)
    model.train()
    assert model.bridge.qformer.training
    assert all(m.training for m in model.bridge.qformer.modules() if isinstance(m, nn.Dropout))
    assert not model.bridge.ln_vision.training
    assert not model.language_model.training


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("freeze", [True, False])
def test_gradient_checkpointing_gives_the_same_gradient(freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a frozen LLM, whose layers transformers would otherwise not checkpoint."""
    model = tiny_network() if not freeze else noisy_network()
    if freeze:
        set_trainable(model)
    else:
        model.bridge.eval()
    gradients = []
    computed = 0
    layer = type(model.language_model.model.layers[0].mlp)
    forward = layer.forward

    def counted(self: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return forward(self, hidden)

    monkeypatch.setattr(layer, "forward", counted)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        if not freeze:
            model.bridge.eval()  # the Q-Former's dropout differs from run to run
        model.zero_grad()
        computed = 0
        training_loss(model).backward()
        assert computed == (4 if checkpointing else 2)  # two layers; each is computed again on the way back
        gradients.append([weight.grad for weight in model.projection.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
