"""The loss of replies: the same numbers as the textbook's, from the logits of supervised positions alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from minichat.model import loss as losses
from minichat.model import set_trainable
from minichat.model.loss import only_at, token_loss
from tests.tiny_network import KINDS, ROWS, VOCABULARY, left_padded, pictures, tiny_network


def textbook(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 100, 2**24])
@pytest.mark.parametrize("count", [None, 1, 37, torch.tensor(37)])
def test_a_few_rows_at_a_time_give_the_whole(dtype, at_once: int, count, monkeypatch) -> None:
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", at_once)
    draw = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(11, 29, generator=draw)).to(dtype)
    targets = torch.randint(29, (11,), generator=draw)
    targets[[0, 4, 10]] = -100
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = token_loss(ours, targets, count)
    wanted = textbook(theirs, targets) / (8 if count is None else count)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    (3 * loss).backward()
    (3 * wanted).backward()
    assert ours.grad.dtype == dtype
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]  # the gradient is rounded once more
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=rounding, atol=1e-6)
    assert not ours.grad[[0, 4, 10]].any()


def test_the_scale_of_a_gradient_is_not_rounded() -> None:
    """In bfloat16, 1/37 is 0.2 % off; what all gradients have in common must not be."""
    logits = torch.randn(37, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(37)
    ours, exact = logits.clone().requires_grad_(), logits.float().requires_grad_()
    token_loss(ours, targets).backward()
    (textbook(exact, targets) / 37).backward()
    assert abs((ours.grad.float() / exact.grad).mean().item() - 1) < 2e-4


def test_nothing_to_learn_is_no_loss() -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    loss = token_loss(logits, torch.empty(0, dtype=torch.long), 1)
    loss.backward()
    assert loss.item() == 0
    with torch.no_grad():
        assert torch.equal(token_loss(torch.ones(2, 5), torch.tensor([1, -100])), torch.tensor(5.0).log())


LLMS = [{}, {"model_type": "gemma2", "head_dim": 20, "num_key_value_heads": 2}, {"model_type": "qwen2"}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("llm", LLMS)
def test_only_supervised_positions_have_logits(kind: str, llm: dict) -> None:
    """Loss and gradients are those of all logits, also where the LLM bends its logits after the head (Gemma 2)."""
    if llm:
        llm = {"num_key_value_heads": 2, **llm}
    model = tiny_network(kind, text=llm)
    set_trainable(model)
    ids, mask = left_padded(ROWS)
    labels = ids.masked_fill((ids == VOCABULARY) | (mask == 0), -100)
    labels[:, ::3] = -100
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(6), "labels": labels}
    seen: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    whole = model(**given, num_items_in_batch=5)
    whole.loss.backward()
    gradient = model.projection.weight.grad.clone()
    model.zero_grad()
    part = model(**given, num_items_in_batch=5, skip_logits=True)
    part.loss.backward()
    hook.remove()
    assert part.logits is None
    assert seen == [(*ids.shape, VOCABULARY), (1, int((labels[:, 1:] != -100).sum()), VOCABULARY)]
    torch.testing.assert_close(part.loss, whole.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.projection.weight.grad, gradient, rtol=1e-4, atol=1e-5)
    assert {n for n, w in model.named_parameters() if w.grad is not None} == {"projection.weight", "projection.bias"}


def test_positions_are_a_mask_or_places() -> None:
    head, hidden = torch.nn.Linear(4, 3), torch.randn(2, 5, 4)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = True
    with only_at(head, mask):
        by_mask = head(hidden)
    with only_at(head, mask.flatten().nonzero()[:, 0]):
        by_place = head(hidden)
    assert torch.equal(by_mask, by_place)
    torch.testing.assert_close(by_mask, head(hidden)[mask][None])
    with only_at(head, None):
        assert head(hidden).shape == (2, 5, 3)


def test_a_head_is_left_as_it_was() -> None:
    head = torch.nn.Linear(4, 3)

    def fail() -> None:
        with only_at(head, torch.ones(1, 2, dtype=torch.bool)):
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert head(torch.randn(1, 2, 4)).shape == (1, 2, 3)
