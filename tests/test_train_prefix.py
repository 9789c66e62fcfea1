"""What rows begin with is passed through the LLM once: losses and gradients are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minichat.data.dataset import Collator, Rows
from minichat.inference.bot import MiniChat
from minichat.model import set_trainable
from minichat.prompt.render import IGNORED
from minichat.prompt.template import TEMPLATES
from minichat.train.stages.finetune import Prefix, shared
from tests.data_samples import WORDS, example, rows_of
from tests.tiny import tiny_bot
from tests.tiny_network import KINDS


def some_rows(bot: MiniChat, counts: tuple[int, ...] = (1, 2, 1, 3)) -> Rows:
    samples = [
        example((WORDS[n], WORDS[(n + 2) % 5]), (WORDS[3], "A cat."), pictures=count, line=n + 1)
        for n, count in enumerate(counts)
    ]
    return rows_of(bot, samples)


def step(bot: MiniChat, rows: Rows, prefix: Prefix | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradients of what trains."""
    batch: dict = Collator(bot.processor)(rows)
    if prefix is not None:
        length = shared(prefix.ids, rows)
        batch["input_ids"], batch["labels"] = (batch[name][:, length:] for name in ("input_ids", "labels"))
        batch["past_key_values"] = prefix.cache(len(rows), length)
    bot.model.zero_grad()
    loss = bot.model(**batch, skip_logits=True).loss
    loss.backward()
    return loss.detach(), {n: w.grad.clone() for n, w in bot.model.named_parameters() if w.requires_grad}


def same_steps(bot: MiniChat, rows: Rows, prefix: Prefix) -> None:
    loss, gradients = step(bot, rows, None)
    for _ in range(2):  # a step leaves the prefix as it was
        again, others = step(bot, rows, prefix)
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
        assert others.keys() == gradients.keys() == {"projection.weight", "projection.bias"}
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "llm",
    [
        {},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
        {"model_type": "mistral", "sliding_window": 300, "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 1},
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_same_losses_and_gradients(kind: str, llm: dict, attention: str) -> None:
    bot = tiny_bot(kind=kind, text=llm)
    set_trainable(bot.model)
    bot.model.language_model.set_attn_implementation(attention)
    rows = some_rows(bot)
    prefix = Prefix(bot.model, bot.processor)
    assert shared(prefix.ids, rows) == len(prefix.ids) > 40  # the system prompt
    same_steps(bot, rows, prefix)
    some = some_rows(bot, (1, 0, 1))  # one without a picture
    assert 40 < shared(prefix.ids, some) < len(prefix.ids)
    same_steps(bot, some, prefix)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_rows_begin_with_it(name: str) -> None:
    bot = tiny_bot(name)
    set_trainable(bot.model)
    rows = some_rows(bot)
    prefix = Prefix(bot.model, bot.processor)
    assert all(row.ids[: len(prefix.ids)].tolist() == prefix.ids.tolist() for row in rows)
    assert rows[0].ids[len(prefix.ids)] == bot.processor.image_token_id
    assert shared(prefix.ids, rows) == (0 if name == "plain" else len(prefix.ids))


def test_the_first_learnt_id_is_still_predicted() -> None:
    """A row that is the beginning as far as its reply keeps the position that predicts the reply's first id."""
    bot = tiny_bot()
    set_trainable(bot.model)
    prefix = Prefix(bot.model, bot.processor)
    (row,) = some_rows(bot, (1,))
    early = row.masked()
    early.labels[10:] = row.ids[10:]
    assert shared(prefix.ids, [row]) == len(prefix.ids)
    assert shared(prefix.ids, [row, early]) == 9
    assert shared(prefix.ids, [row.masked()]) == len(prefix.ids)
    other = some_rows(tiny_bot("vicuna-v1.1"), (1,))[0]
    assert shared(prefix.ids, [row, other]) == 0
    short = row.masked()
    object.__setattr__(short, "ids", row.ids[:12])
    assert shared(prefix.ids, [row, short]) == 12
    assert (early.labels != IGNORED).argmax() == 10


def test_where_it_would_not_hold_there_is_none() -> None:
    bot = tiny_bot()
    rows = some_rows(bot)
    assert shared(Prefix(bot.model, bot.processor).ids, rows) == 0  # everything trains
    set_trainable(bot.model, ["projection", "language_model.model.norm"])
    assert shared(Prefix(bot.model, bot.processor).ids, rows) == 0
    set_trainable(bot.model)
    assert shared(Prefix(bot.model, bot.processor).ids, rows) > 40
    llm = bot.model.language_model
    getattr(llm, "activation_checkpointing_enable", None or llm.gradient_checkpointing_enable)({"use_reentrant": False})
    none = Prefix(bot.model, bot.processor)
    assert shared(none.ids, rows) == 0
    assert none.cache(2, 0) is None
    sliding = tiny_bot(text={"model_type": "mistral", "sliding_window": 24, "num_key_value_heads": 2})
    set_trainable(sliding.model)
    assert shared(Prefix(sliding.model, sliding.processor).ids, rows) == 0


def test_it_is_no_part_of_the_graph() -> None:
    bot = tiny_bot()
    set_trainable(bot.model)
    prefix = Prefix(bot.model, bot.processor)
    cache = prefix.cache(3, 5)
    assert cache is not None
    assert cache.get_seq_length() == 5
    assert all(layer.keys.shape[0] == 3 and not layer.keys.requires_grad for layer in cache.layers)
    assert np.issubdtype(prefix.ids.dtype, np.integer)
