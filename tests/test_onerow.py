"""One row in bfloat16 is computed by other code than many, and the setting for it is put back."""

from __future__ import annotations

import threading

import pytest
import torch

from minichat.inference.kv_cache import one_row
from tests.tiny import noise_picture, tiny_bot

ROW = torch.ones(1, 1, 64, dtype=torch.bfloat16)


def test_only_one_row_in_bfloat16_puts_onednn_aside() -> None:
    before = torch.backends.mkldnn.enabled
    for embeds, aside in [
        (ROW, True),
        (ROW.float(), False),
        (ROW.half(), False),
        (ROW.expand(1, 2, 64), False),
        (ROW.expand(2, 1, 64), False),
        (ROW.to("meta"), False),
    ]:
        with one_row(embeds):
            assert torch.backends.mkldnn.enabled == (before and not aside)
        assert torch.backends.mkldnn.enabled == before


def test_the_setting_is_put_back_when_the_last_one_is_done() -> None:
    before = torch.backends.mkldnn.enabled
    with pytest.raises(ValueError, match="boom"), one_row(ROW):
        raise ValueError("boom")
    assert torch.backends.mkldnn.enabled == before
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_row(ROW):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with one_row(ROW):
        thread.start()
        assert inside.wait(10)
    assert not torch.backends.mkldnn.enabled  # the other is still at it
    leave.set()
    thread.join(10)
    assert torch.backends.mkldnn.enabled == before


def test_a_user_who_turned_it_off_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with one_row(ROW):
        pass
    assert not torch.backends.mkldnn.enabled


def test_the_product_is_the_same() -> None:
    """To bfloat16's precision: both add up in float32. Measured: equal, or one rounding apart."""
    torch.manual_seed(0)
    for rows, columns in [(256, 2048), (2048, 256), (33, 70)]:
        matrix, row = torch.randn(rows, columns).bfloat16(), torch.randn(1, 1, columns).bfloat16()
        many = torch.nn.functional.linear(row, matrix)
        with one_row(row):
            one = torch.nn.functional.linear(row, matrix)
        exact = torch.nn.functional.linear(row.double(), matrix.double())
        for found in (many, one):
            assert ((found - exact).abs() <= 2**-8 * exact.abs() + 1e-4 * columns**0.5).all()


@pytest.mark.skipif(not torch.backends.mkldnn.enabled, reason="this PyTorch has no oneDNN")
def test_each_written_token_takes_it_and_the_prompt_does_not() -> None:
    bot = tiny_bot()
    bot.model.to(torch.bfloat16)
    seen = []
    hook = bot.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["inputs_embeds"].shape[1], torch.backends.mkldnn.enabled)),
        with_kwargs=True,
    )
    bot.chat(max_new_tokens=4).ask("What is it?", noise_picture(1))
    hook.remove()
    enabled = torch.backends.mkldnn.enabled
    assert len(seen) > 1
    assert [(length > 1) == (on == enabled) for length, on in seen] == [True] * len(seen)
