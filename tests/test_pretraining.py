"""The three objectives by their definitions, one pair at a time; hard negatives; retrieval; training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minichat.errors import ImageError, ModelError, PromptError, SettingsError
from minichat.model import set_trainable
from minichat.model.config import OBJECTIVES
from minichat.model.qformer_pretrain import QFormerPretraining, hard_negatives, rerank
from tests.tiny_stage1 import SIDE, VOCABULARY, pairs, tiny_pretraining, tiny_sizes

COUNT = 5
NEGATIVES = (torch.tensor([3, 4, 0, 2, 1]), torch.tensor([4, 2, 0, 4, 2]))
TWICE = [7, 7, 3, 9, 3]  # which picture each pair has


def smoothed(target: Tensor) -> Tensor:
    return 0.9 * target + 0.1 / len(target)


def contrast_by_hand(model: QFormerPretraining, batch: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Each picture finds its texts, each text its pictures; whom it is compared with stands still."""
    pictures = [model.image_embeddings(patches[None])[0] for patches in batch["patches"]]  # each (n, E)
    texts = [
        model.text_embeddings(row[None], words[None])[0]
        for row, words in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    total = torch.zeros(())
    for row, own in enumerate(ids):
        target = torch.tensor([float(other == own) for other in ids])
        target = smoothed(target / target.sum())
        to_texts = torch.stack([max(query @ text.detach() for query in pictures[row]) for text in texts])
        to_pictures = torch.stack([max(query.detach() @ texts[row] for query in other) for other in pictures])
        for scores in (to_texts, to_pictures):
            total = total - (target * torch.log_softmax(scores / model.temp, 0)).sum()
    return total / (2 * len(ids))


def matching_by_hand(model: QFormerPretraining, batch: dict[str, Tensor], negatives: tuple[Tensor, Tensor]) -> Tensor:
    """Every pair, every text with its negative picture, every picture with its negative text."""
    asked = []
    for row in range(COUNT):
        asked += [(row, row, 1), (int(negatives[0][row]), row, 0), (row, int(negatives[1][row]), 0)]
    total = torch.zeros(())
    for picture, text, truth in asked:
        logits = model.match(
            batch["patches"][None, picture], batch["input_ids"][None, text], batch["attention_mask"][None, text]
        )
        total = total - torch.log_softmax(logits[0], 0)[truth]
    return total / len(asked)


def generation_by_hand(model: QFormerPretraining, batch: dict[str, Tensor]) -> Tensor:
    """Each word piece from a pass over what is before it alone, `[DEC]` first."""
    from minichat.model.qformer_pretrain import multimodal_causal

    losses = []
    for patches, ids, words in zip(batch["patches"], batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[: int(words.sum())].clone()
        ids[0] = model.config.decoder_start_token_id
        for place in range(1, len(ids)):
            before = ids[None, :place]
            _, states = model.joint_states(multimodal_causal, patches[None], before, torch.ones_like(before))
            target = torch.nn.functional.one_hot(ids[place], model.config.bridge_config.qformer.vocab_size).float()
            losses.append(-(smoothed(target) * torch.log_softmax(model.cls(states)[0, -1], 0)).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("image_ids", [None, TWICE], ids=["pairs", "several captions"])
def test_losses_are_their_definitions(objective: str, image_ids: list[int] | None) -> None:
    """The value, and the gradient of every parameter."""
    check_definition(tiny_pretraining(objectives=[objective]), objective, image_ids)


def test_what_is_compared_may_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contrast's whole gradient."""
    monkeypatch.setattr(Tensor, "detach", lambda tensor: tensor)
    check_definition(tiny_pretraining(objectives=["itc"], compared_learn=True), "itc", None)


def check_definition(model: QFormerPretraining, objective: str, image_ids: list[int] | None) -> None:
    batch = pairs(COUNT)
    given = None if image_ids is None else torch.tensor(image_ids)
    losses = model(**batch, image_ids=given, negatives=NEGATIVES)
    by_hand = {
        "itc": lambda: contrast_by_hand(model, batch, image_ids or list(range(COUNT))),
        "itm": lambda: matching_by_hand(model, batch, NEGATIVES),
        "itg": lambda: generation_by_hand(model, batch),
    }[objective]()
    torch.testing.assert_close(losses.loss, by_hand, rtol=0, atol=1e-5)
    assert [name for name in OBJECTIVES if getattr(losses, name) is not None] == [objective]
    ours = torch.autograd.grad(losses.loss, list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(by_hand, list(model.parameters()), allow_unused=True)
    for (name, _), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        # A part that the definition does not touch may still be passed through, to no effect.
        if other is None:
            assert one is None or not one.any(), name
        else:
            assert one is not None, name
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=name)


def test_several_captions_are_no_negatives_of_each_other() -> None:
    model, batch = tiny_pretraining(), pairs(COUNT)
    for seed in range(50):
        losses = model(**batch, image_ids=torch.tensor(TWICE), seed=seed)
        for row, (picture, text) in enumerate(zip(*losses.negatives, strict=True)):
            assert TWICE[picture] != TWICE[row]
            assert TWICE[text] != TWICE[row]


def test_a_picture_has_its_captions_in_any_order() -> None:
    """To the contrast they are all its own; told apart, each would have to find the view that it came with."""
    model, batch = tiny_pretraining(objectives=["itc"]), pairs(COUNT)
    order = [1, 0, 4, 3, 2]  # the captions of each picture change places
    swapped = {**batch, "input_ids": batch["input_ids"][order], "attention_mask": batch["attention_mask"][order]}
    shared, told_apart = ({"image_ids": torch.tensor(ids)} for ids in (TWICE, range(COUNT)))
    torch.testing.assert_close(model(**swapped, **shared).itc, model(**batch, **shared).itc, rtol=0, atol=1e-5)
    assert (model(**swapped, **told_apart).itc - model(**batch, **told_apart).itc).abs() > 1e-2


def test_distinct_image_ids_change_nothing() -> None:
    model, batch = tiny_pretraining(), pairs(COUNT)
    plain, named = model(**batch, seed=3), model(**batch, seed=3, image_ids=torch.tensor([5, 2, 9, 4, 0]))
    for name in ("loss", *OBJECTIVES):
        torch.testing.assert_close(named[name], plain[name], rtol=0, atol=1e-5)


def test_losses_are_summed_and_the_queries_shared() -> None:
    """The three together are what each is by itself."""
    batch = pairs(COUNT)
    together = tiny_pretraining()(**batch, negatives=NEGATIVES)
    for name in OBJECTIVES:
        alone = tiny_pretraining(objectives=[name])(**batch, negatives=NEGATIVES)
        torch.testing.assert_close(alone.loss, together[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.loss, together.itc + together.itm + together.itg)


def test_pixels_are_patches() -> None:
    model, batch = tiny_pretraining(), pairs(3)
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    batch["patches"] = model.encode_patches(pixels)
    kept = model(**batch).loss
    del batch["patches"]
    assert torch.equal(model(**batch, pixel_values=pixels).loss, kept)


def test_negatives_are_drawn_by_likeness() -> None:
    """As softmax draws them, never a pair's own, the same again from the same seed, and from no global numbers."""
    draw = torch.Generator().manual_seed(0)
    to_texts, to_images = 2 * torch.randn(2, 4, 4, generator=draw)
    own = torch.eye(4, dtype=torch.bool)
    own[0, 1] = own[1, 0] = True
    state = torch.get_rng_state()
    counts = torch.zeros(2, 4, 4)
    times = 4000
    for seed in range(times):
        for side, drawn in enumerate(hard_negatives(to_texts, to_images, own, seed)):
            counts[side, torch.arange(4), drawn] += 1
    assert torch.equal(torch.get_rng_state(), state)
    wanted = torch.stack([to_images, to_texts]).masked_fill(own, -torch.inf).softmax(-1)
    assert not counts[:, own].any()
    torch.testing.assert_close(counts / times, wanted, rtol=0, atol=0.04)
    again = [hard_negatives(to_texts, to_images, own, 5) for _ in range(2)]
    assert torch.equal(torch.stack(again[0]), torch.stack(again[1]))


@pytest.mark.parametrize("image_ids", [None, [4]])
def test_a_pair_by_itself_has_no_negative(image_ids: list[int] | None) -> None:
    """It is left out of matching's wrong pairs; nothing becomes infinite."""
    model, batch = tiny_pretraining(), pairs(1)
    losses = model(**batch, image_ids=None if image_ids is None else torch.tensor(image_ids))
    assert [drawn.tolist() for drawn in losses.negatives] == [[-1], [-1]]
    right = torch.log_softmax(model.match(**batch)[0], 0)[1]
    torch.testing.assert_close(losses.itm, -right)
    losses.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_retrieval_of_one_equals_retrieval_of_all() -> None:
    """Similarities and matches are of a picture and a text alone, whatever else is in the batch."""
    model, batch = tiny_pretraining(), pairs(COUNT)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        similarity = model.similarity(model.image_embeddings(batch["patches"]), model.text_embeddings(**texts))
        assert similarity.shape == (COUNT, COUNT)
        one = model.similarity(
            model.image_embeddings(batch["patches"][2:3]),
            model.text_embeddings(texts["input_ids"][3:4], texts["attention_mask"][3:4]),
        )
    torch.testing.assert_close(one[0, 0], similarity[2, 3], rtol=0, atol=1e-5)
    assert similarity.abs().max() <= 1 + 1e-6


def test_rerank() -> None:
    """The k most similar by similarity and match, then the rest by similarity; each candidate once."""
    draw = torch.Generator().manual_seed(0)
    similarity, logits = torch.rand(6, 9, generator=draw), torch.randn(6, 9, 2, generator=draw)
    asked: list[int] = []

    def match(queries: Tensor, candidates: Tensor) -> Tensor:
        asked.append(len(queries))
        return logits[queries, candidates]

    for k in (0, 1, 4, 9, 20):
        order = rerank(similarity, match, k, batch_size=5)
        for query in range(6):
            by_likeness = sorted(range(9), key=lambda candidate: -similarity[query, candidate])
            best = sorted(by_likeness[:k], key=lambda c: -(similarity[query, c] + logits[query, c, 1]))
            assert order[query].tolist() == best + by_likeness[k:]
    assert max(asked) == 5
    assert sum(asked) == 6 * (0 + 1 + 4 + 9 + 9)
    assert rerank(torch.zeros(0, 3), match, 2).shape == (0, 3)
    assert rerank(torch.zeros(3, 0), match, 2).shape == (3, 0)


@pytest.mark.parametrize("objectives", [OBJECTIVES, ("itc",), ("itc", "itm"), ("itm", "itg")])
def test_what_trains(objectives: tuple[str, ...]) -> None:
    """A gradient for every parameter of the parts that the objectives train, and for no other."""
    model = tiny_pretraining(objectives=objectives)
    counts = set_trainable(model, model.config.trainable)
    model.train()
    assert not model.vision_model.training
    assert model.bridge.training
    pixels = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    batch = pairs(COUNT)
    del batch["patches"]
    model(**batch, pixel_values=pixels).loss.backward()
    told = {name for name, weight in model.named_parameters() if weight.grad is not None}
    asked = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert told <= asked
    assert all(counts[part] for part in model.config.trainable)
    if objectives == OBJECTIVES:
        assert told == asked
        assert asked == {name for name, _ in model.named_parameters() if not name.startswith("vision_model.")}


def test_gradient_checkpointing_changes_nothing() -> None:
    model, batch = tiny_pretraining(), pairs(COUNT)
    model(**batch).loss.backward()
    plain = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.train()
    model(**batch).loss.backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, plain[name], rtol=0, atol=1e-5)


def test_the_temperature_stays_within_reason() -> None:
    model, batch = tiny_pretraining(), pairs(COUNT)
    for given, kept in ((-3.0, 0.001), (2.0, 0.5), (0.05, 0.05)):
        with torch.no_grad():
            model.temp.fill_(given)
        model.eval()(**batch)
        assert float(model.temp.detach()) == pytest.approx(given)  # reading changes nothing
        assert model.train()(**batch).loss.isfinite()
        assert float(model.temp.detach()) == pytest.approx(kept)


def test_words_are_predicted_with_their_own_embedding() -> None:
    tied, untied = tiny_pretraining(), tiny_pretraining(tie_word_embeddings=False)
    assert tied.cls.predictions.decoder.weight is tied.embeddings.word_embeddings.weight
    assert untied.cls.predictions.decoder.weight is not untied.embeddings.word_embeddings.weight


def test_it_learns() -> None:
    """A few pairs, learned by heart: each of the three losses falls far below what knowing nothing costs.

    That is ln 4 to find one of four by contrast, ln 2 to match, and the logarithm of the vocabulary's size to write.
    Label smoothing alone keeps contrast at 0.35 and writing at 0.63. No single pair has to be right: which one a short
    training leaves for last hangs on how a processor rounds.
    """
    count = 4
    torch.manual_seed(0)
    model = QFormerPretraining(tiny_sizes(compared_learn=True, qformer={"num_hidden_layers": 2}))
    batch = pairs(count, seed=2)
    set_trainable(model, [part for part in model.config.trainable if part != "temp"])
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=2e-2, foreach=True)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=200)  # so that it settles
    for step in range(200):
        losses = model.train()(**batch, seed=step)
        optimizer.zero_grad()
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # without it, matching is learned or not, as it rounds
        optimizer.step()
        slower.step()
    model.eval()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def match(queries: Tensor, candidates: Tensor) -> Tensor:
        return model.match(batch["patches"][queries], *(texts[name][candidates] for name in texts))

    with torch.no_grad():
        drawn = [model(**batch, seed=seed) for seed in range(4)]  # each draws its own negatives
        similarity = model.similarity(model.image_embeddings(batch["patches"]), model.text_embeddings(**texts))
        everyone = torch.arange(count)
        matched = torch.stack([match(everyone, everyone.roll(shift)).softmax(-1)[:, 1] for shift in range(count)])
    contrast, matching, writing = (
        sum(float(getattr(one, term)) for one in drawn) / len(drawn) for term in ("itc", "itm", "itg")
    )
    assert contrast < 0.75 * math.log(count)
    assert matching < 0.5 * math.log(2)
    assert writing < 0.5 * math.log(VOCABULARY)
    right = torch.eye(count, dtype=torch.bool)
    assert similarity[right].mean() > similarity[~right].mean() + 0.1
    assert matched[0].mean() > matched[1:].mean() + 0.4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pixel_values": torch.zeros(5, 3, 14, 14), "patches": None}, ImageError, r"\(pictures, 3, 28, 28\)"),
        ({"pixel_values": torch.zeros(5, 3, SIDE, SIDE)}, PromptError, "once"),
        ({"patches": None}, PromptError, "once"),
        ({"patches": torch.zeros(4, 5, 16)}, PromptError, "4 pictures and 5 texts"),
        (
            {"input_ids": torch.ones(5, 17, dtype=torch.long), "attention_mask": torch.ones(5, 17, dtype=torch.long)},
            PromptError,
            "17 word pieces.* at most 16",
        ),
    ],
)
def test_what_is_no_batch(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_pretraining()(**{**pairs(5), **changes})


def test_what_is_no_configuration() -> None:
    with pytest.raises(ModelError, match="patch_merge"):
        type(tiny_sizes())(bridge_config={"kind": "patch_merge"})
    with pytest.raises(ModelError, match="contrast_size is 0"):
        tiny_sizes(contrast_size=0)
    for objectives in ([], ["itc", "mlm"]):
        with pytest.raises(SettingsError, match="itc, itm, itg"):
            tiny_sizes(objectives=objectives)
