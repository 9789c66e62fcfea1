"""What all rows begin with is passed through the LLM once: losses and gradients are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minichat.chat import MiniChat
from minichat.data.batches import Collator
from minichat.data.rows import Rows, prepare
from minichat.model import set_trainable
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import IGNORED
from minichat.train.prefix import Prefix, common_prefix
from tests.data_samples import WORDS, example
from tests.tiny import tiny_bot
from tests.tiny_network import KINDS


def rows_of(bot: MiniChat, counts: tuple[int, ...] = (1, 2, 1, 3)) -> Rows:
    samples = [
        example((WORDS[n], WORDS[(n + 2) % 5]), (WORDS[3], "A cat."), pictures=count, line=n + 1)
        for n, count in enumerate(counts)
    ]
    return prepare(samples, bot.processor)


def step(bot: MiniChat, rows: Rows, prefix: Prefix | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradients of what trains."""
    batch: dict = Collator(bot.processor)(rows)
    if prefix is not None:
        batch["input_ids"], batch["labels"] = (batch[n][:, prefix.length :] for n in ("input_ids", "labels"))
        batch["past_key_values"] = prefix.cache(len(rows))
    bot.model.zero_grad()
    loss = bot.model(**batch, skip_logits=True).loss
    loss.backward()
    return loss.detach(), {n: w.grad.clone() for n, w in bot.model.named_parameters() if w.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "llm",
    [
        {},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
        {"model_type": "mistral", "sliding_window": 24, "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 1},
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_same_losses_and_gradients(kind: str, llm: dict, attention: str) -> None:
    bot = tiny_bot(kind=kind, text=llm)
    set_trainable(bot.model)
    bot.model.language_model.set_attn_implementation(attention)
    rows = rows_of(bot)
    prefix = Prefix(bot.model, common_prefix([rows], bot.processor.image_token_id))
    assert prefix.length > 20  # the system prompt
    loss, gradients = step(bot, rows, None)
    for _ in range(2):  # a step leaves the prefix as it was
        again, others = step(bot, rows, prefix)
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
        assert others.keys() == gradients.keys() == {"projection.weight", "projection.bias"}
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5)


def test_it_ends_before_the_first_picture_and_the_first_word_that_differs() -> None:
    bot = tiny_bot()
    slot = bot.processor.image_token_id
    with_pictures = rows_of(bot)
    asked = bot.processor.render(Conversation().user("?", [with_pictures[0].pictures[0].open()]))
    found = common_prefix([with_pictures], slot)
    assert found == asked.ids[: asked.ids.index(slot)]
    assert all(row.ids[: len(found)].tolist() == found for row in with_pictures)
    words_too = rows_of(bot, (1, 0, 1))
    shorter = common_prefix([words_too], slot)
    assert 20 < len(shorter) < len(found)
    assert shorter == found[: len(shorter)]
    assert common_prefix([with_pictures, words_too], slot) == shorter
    assert len({row.ids[len(shorter)] for row in words_too}) > 1


@pytest.mark.parametrize("same", [1, 3])
def test_the_first_learnt_id_is_still_predicted(same: int) -> None:
    """Rows that are the same as far as the reply leave the position that predicts its first id."""
    bot = tiny_bot("plain")
    rows = prepare([example(("What is it?", WORDS[0]))] * same, bot.processor)
    found = common_prefix([rows], bot.processor.image_token_id)
    first = int((rows[0].labels != IGNORED).argmax())
    assert found == rows[0].ids[: first - 1].tolist()
    set_trainable(bot.model, ["projection"])
    prefix = Prefix(bot.model, found)
    with torch.no_grad():
        batch = Collator(bot.processor)(rows)
        whole = bot.model(**batch, skip_logits=True).loss
        batch["input_ids"], batch["labels"] = (batch[n][:, prefix.length :] for n in ("input_ids", "labels"))
        part = bot.model(**batch, past_key_values=prefix.cache(same), skip_logits=True).loss
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


def test_where_it_would_not_hold_there_is_none() -> None:
    bot = tiny_bot()
    ids = list(range(3, 30))
    set_trainable(bot.model)
    assert Prefix(bot.model, ids).length == len(ids)
    assert Prefix(bot.model, ids[:2]).length == 0
    assert Prefix(bot.model, []).cache(3) is None
    set_trainable(bot.model, ["projection", "language_model.model.norm"])
    assert Prefix(bot.model, ids).length == 0
    set_trainable(bot.model)
    bot.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    assert Prefix(bot.model, ids).length == 0
    assert Prefix(bot.model, ids).cache(2) is None


def test_no_rows_share_nothing() -> None:
    assert Rows(iter(())).common_prefix(50) == []
    assert common_prefix([], 50) == []
    assert np.array_equal(Rows(iter(())).lengths, [])
