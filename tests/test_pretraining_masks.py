"""Who sees whom: the masks by their definition, and the network under them, where nothing may leak."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minichat.model import qformer_pretrain
from minichat.model.qformer_pretrain import QFormerPretraining
from tests.conftest import ROOT
from tests.tiny_stage1 import QUERIES, pairs, tiny_pretraining

Mask = Callable[[int, Tensor], Tensor]
RULES: dict[str, tuple[Mask, Callable[[str, str, bool], bool]]] = {
    "unimodal": (qformer_pretrain.unimodal, lambda row, column, later: row == column),
    "bidirectional": (qformer_pretrain.bidirectional, lambda row, column, later: True),
    "multimodal_causal": (
        qformer_pretrain.multimodal_causal,
        lambda row, column, later: column == "query" or (row == "word" and not later),
    ),
}

FIGURE = ("unimodal", "bidirectional", "multimodal_causal")


@given(st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(sorted(RULES)))
def test_masks_are_what_they_say(queries: int, lengths: list[int], name: str) -> None:
    mask, rule = RULES[name]
    width = max(lengths)
    words = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    sees = mask(queries, words)
    assert sees.dtype == torch.bool
    assert sees.shape == (len(lengths), 1, queries + width, queries + width)
    kinds = ["query"] * queries + ["word"] * width
    for row, length in enumerate(lengths):
        for here, kind in enumerate(kinds):
            for there, other in enumerate(kinds):
                there_is = other == "query" or there - queries < length
                assert sees[row, 0, here, there] == (there_is and rule(kind, other, there > here))


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_additive(dtype: torch.dtype) -> None:
    sees = torch.tensor([[True, False]])
    added = qformer_pretrain.additive(sees, dtype)
    assert added.dtype == dtype
    assert added.tolist() == [[0.0, torch.finfo(dtype).min]]
    assert torch.softmax(added.float(), -1).tolist() == [[1.0, 0.0]]


ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def states(model: QFormerPretraining, mask: Mask, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        queries, words = model.joint_states(mask, **batch)
    return queries, words


def other_word(batch: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    ids = batch["input_ids"].clone()
    ids[:, place] = ids[:, place] % 15 + 5
    assert not torch.equal(ids[:, place], batch["input_ids"][:, place])
    return {**batch, "input_ids": ids}


def other_picture(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "patches": batch["patches"] + torch.linspace(-3, 3, 16)}


def whole(count: int = 2, length: int = 6) -> dict[str, Tensor]:
    """Pairs whose texts have no padding."""
    batch = pairs(count, length)
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other)


@ATTENTION
def test_contrast_sees_one_side(attention: str) -> None:
    """Queries do not change with a text, nor words with a picture; each is what it is without the other side."""
    model, batch = tiny_pretraining(attention=attention), pairs(4)
    queries, words = states(model, qformer_pretrain.unimodal, batch)
    reworded, _ = states(model, qformer_pretrain.unimodal, other_word(batch, 1))
    _, repainted = states(model, qformer_pretrain.unimodal, other_picture(batch))
    assert same(reworded, queries)
    assert same(repainted, words)
    with torch.no_grad():
        torch.testing.assert_close(model.query_states(batch["patches"]), queries, rtol=0, atol=1e-5)
        alone = model.text_states(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(alone, words, rtol=0, atol=1e-5)


@ATTENTION
def test_matching_sees_everything(attention: str) -> None:
    model, batch = tiny_pretraining(attention=attention), whole()
    queries, words = states(model, qformer_pretrain.bidirectional, batch)
    for place in range(1, 6):
        changed, _ = states(model, qformer_pretrain.bidirectional, other_word(batch, place))
        assert (changed - queries).abs().amax((1, 2)).min() > 1e-4
    _, repainted = states(model, qformer_pretrain.bidirectional, other_picture(batch))
    assert (repainted - words).abs().amax(2).min() > 1e-4


@ATTENTION
@pytest.mark.parametrize("place", range(1, 6))
def test_generation_sees_what_came_before(attention: str, place: int) -> None:
    """A word changes neither the queries nor an earlier word, and does change itself and what comes after it."""
    model, batch = tiny_pretraining(attention=attention), whole()
    queries, words = states(model, qformer_pretrain.multimodal_causal, batch)
    changed_queries, changed = states(model, qformer_pretrain.multimodal_causal, other_word(batch, place))
    assert same(changed_queries, queries)
    assert same(changed[:, :place], words[:, :place])
    assert (changed - words)[:, place:].abs().amax(2).min() > 1e-4
    _, repainted = states(model, qformer_pretrain.multimodal_causal, other_picture(batch))
    assert (repainted - words).abs().amax(2).min() > 1e-4


@ATTENTION
def test_generation_is_a_word_at_a_time(attention: str) -> None:
    """One pass equals the original's: queries first, by themselves, then each word after what is known by then."""
    model, batch = tiny_pretraining(attention=attention), whole()
    queries, words = states(model, qformer_pretrain.multimodal_causal, batch)
    with torch.no_grad():
        torch.testing.assert_close(model.query_states(batch["patches"]), queries, rtol=0, atol=1e-5)
    for length in range(1, 6):
        prefix = {name: value if name == "patches" else value[:, :length] for name, value in batch.items()}
        _, so_far = states(model, qformer_pretrain.multimodal_causal, prefix)
        torch.testing.assert_close(so_far, words[:, :length], rtol=0, atol=1e-5)


@ATTENTION
@pytest.mark.parametrize("name", sorted(RULES))
def test_padding_is_not_seen(attention: str, name: str) -> None:
    """What stands at padding changes nothing, to the bit; how much there is of it, nothing to 1e-5."""
    model, batch, mask = tiny_pretraining(attention=attention), pairs(4), RULES[name][0]
    real = batch["attention_mask"].bool()
    queries, words = states(model, mask, batch)
    scribbled = {**batch, "input_ids": batch["input_ids"].masked_fill(~real, 9)}
    queries_then, words_then = states(model, mask, scribbled)
    assert same(queries_then, queries)
    assert same(words_then[real], words[real])
    longer = {
        key: value if key == "patches" else torch.nn.functional.pad(value, (0, 5)) for key, value in batch.items()
    }
    queries_then, words_then = states(model, mask, longer)
    torch.testing.assert_close(queries_then, queries, rtol=0, atol=1e-5)
    torch.testing.assert_close(words_then[:, :7][real], words[real], rtol=0, atol=1e-5)


def test_a_boolean_mask_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why masks are additive, and that the tests above would find a leak."""
    monkeypatch.setattr(qformer_pretrain, "additive", lambda sees, dtype: sees)
    model, batch = tiny_pretraining(attention="eager"), whole()
    queries, _ = states(model, qformer_pretrain.multimodal_causal, batch)
    changed, _ = states(model, qformer_pretrain.multimodal_causal, other_word(batch, 3))
    assert not same(changed, queries)


@ATTENTION
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_does_not_leak(attention: str, how: str) -> None:
    model, batch = tiny_pretraining(attention=attention), pairs(4)
    if how == "weights":
        model, batch = model.bfloat16(), {**batch, "patches": batch["patches"].bfloat16()}
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        queries, words = states(model, qformer_pretrain.multimodal_causal, batch)
        changed_queries, changed = states(model, qformer_pretrain.multimodal_causal, other_word(batch, 2))
        losses = model(**batch)
    assert same(changed_queries, queries)
    assert same(changed[:, :2], words[:, :2])
    assert not same(changed[:, 2:], words[:, 2:])
    assert losses.loss.isfinite()
    assert queries.shape[1] == QUERIES


def test_the_figure_in_the_documentation() -> None:
    """It is what the masks are."""
    text = ["[CLS]", "a", "red", "star", "[SEP]"]
    seen = [RULES[name][0](3, torch.tensor([[1, 1, 1, 1, 1, 0]]))[0, 0] for name in FIGURE]
    head = " ".join([*"qqq", *"12345", "."])
    lines = [f"{'':14}{head:23}{head:23}{head}"]
    names = ["query"] * 3 + [f"{place} {word}" for place, word in enumerate(text, start=1)]
    for row, name in enumerate(names):
        parts = [" ".join("#" if mark else "-" for mark in sees[row].tolist()) for sees in seen]
        lines.append(f"{name:14}" + "".join(f"{part:23}" for part in parts).rstrip())
    page = (ROOT / "docs" / "PRETRAINING.md").read_text()
    assert "\n".join(lines) in page
    assert f"{'':14}" + "".join(f"{name:23}" for name in FIGURE).rstrip() in page
