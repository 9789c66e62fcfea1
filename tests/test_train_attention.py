"""Attention as matrix products gives what the fused kernel gives, and is left out where it does not suit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minichat.model import set_trainable
from minichat.train import setup
from minichat.train.setup import attend, use_products
from tests.tiny import tiny_bot
from tests.tiny_network import VOCABULARY, pictures, row, tiny_network

IDS = torch.tensor([row(1, 3, "picture", 5, 6, 7, 8), row(1, "picture", 9, 10, 11, 12, 13)])


def taught(model: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the projection's gradient."""
    model.zero_grad()
    labels = IDS.masked_fill(IDS == VOCABULARY, -100)
    loss = model(input_ids=IDS, pixel_values=pictures(2), labels=labels, **more).loss
    loss.backward()
    return loss.detach(), model.projection.weight.grad.clone()


class Counted:
    """Counts how often attention was two products."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.products = 0
        real = torch.baddbmm

        def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.products += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(setup.torch, "baddbmm", counting)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.mark.parametrize("llm", [{}, {"num_attention_heads": 4, "num_key_value_heads": 2}, {"model_type": "qwen2"}])
def test_as_near_the_truth_as_the_fused_kernel(llm: dict, counted: Counted) -> None:
    if llm:
        llm = {"num_key_value_heads": 2, **llm}
    model = tiny_network(text=llm)
    set_trainable(model)
    model.language_model.bfloat16().float()  # numbers that both precisions have
    _, exact = taught(model)
    model.language_model.bfloat16()
    _, fused = taught(model)
    use_products(model.language_model)
    _, products = taught(model)
    assert counted.products == 2  # layers
    assert 0 < (products - exact).norm() < 5 * (fused - exact).norm()  # both are bfloat16's own rounding
    with torch.no_grad():
        model(input_ids=IDS, pixel_values=pictures(2))
    assert counted.products == 2


def both(tokens: int, seen: int, mask: torch.Tensor | None, **more: Any) -> tuple[torch.Tensor, ...]:
    """Outputs and gradients in float32: products, then the fused kernel."""
    module: Any = tiny_bot().model.language_model.model.layers[0].self_attn
    found = []
    for attends in (attend, setup.sdpa_attention_forward):
        draw = torch.Generator().manual_seed(0)
        given = [torch.randn(3, heads, n, 8, generator=draw) for heads, n in ((4, tokens), (4, seen), (4, seen))]
        given = [tensor.requires_grad_() for tensor in given]
        output, _ = attends(module, *given, mask, scaling=0.3, **more)
        output.square().sum().backward()
        found.append(torch.cat([output.detach().flatten(), *(tensor.grad.flatten() for tensor in given)]))
    return tuple(found)


@pytest.mark.parametrize(("tokens", "seen"), [(9, 9), (5, 9)])
def test_exact_in_float32(tokens: int, seen: int, counted: Counted) -> None:
    causal = torch.ones(tokens, seen, dtype=torch.bool).tril(seen - tokens)
    masks = [causal.expand(3, 1, -1, -1), (causal & (torch.arange(seen) != 2)).expand(3, 1, -1, -1)]
    for mask in [*masks, None] if tokens == seen else masks:
        torch.testing.assert_close(*both(tokens, seen, mask), rtol=1e-5, atol=1e-5)
    assert counted.products == (3 if tokens == seen else 2)


@pytest.mark.parametrize(("tokens", "seen"), [(9, 9), (5, 9)])
def test_in_parts_it_is_the_same(tokens: int, seen: int, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_AT_ONCE", 2)
    causal = torch.ones(tokens, seen, dtype=torch.bool).tril(seen - tokens)
    for looks in (causal, causal & (torch.arange(seen) != 2), torch.ones_like(causal)):
        torch.testing.assert_close(*both(tokens, seen, looks.expand(3, 1, -1, -1)), rtol=1e-5, atol=1e-5)
    assert counted.products == 3 * -(-tokens // 2)


def test_what_it_does_not_suit_is_left_to_the_fused_kernel(counted: Counted, monkeypatch) -> None:
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, -1, -1)
    padded = causal.clone()
    padded[0, :, :, 0] = False
    torch.testing.assert_close(*both(9, 9, padded), rtol=1e-5, atol=1e-5, equal_nan=True)
    monkeypatch.setattr(setup, "_MOST", 100)
    torch.testing.assert_close(*both(9, 9, causal), rtol=1e-5, atol=1e-5)
    assert counted.products == 0


def test_other_precisions_are_left_alone() -> None:
    model = tiny_network()
    use_products(model.language_model)
    assert model.language_model.config._attn_implementation == "sdpa"
    model.language_model.bfloat16()
    model.language_model.set_attn_implementation("eager")
    use_products(model.language_model)
    assert model.language_model.config._attn_implementation == "eager"
