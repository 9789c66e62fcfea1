"""Generation: one by one = together, for greedy, beams and samples, with any number of pictures in a row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from minichat.errors import PromptError
from minichat.model import MiniChatForConditionalGeneration
from tests.tiny_network import KINDS, PICTURES_IN_ROW, ROWS, VOCABULARY, left_padded, pictures, row, tiny_network

WAYS: list[dict[str, Any]] = [
    {},
    {"num_beams": 4},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
    {"repetition_penalty": 1.5},
]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> MiniChatForConditionalGeneration:
    return tiny_network(request.param, seed=3)


def until_end(ids: list[int]) -> list[int]:
    """A reply without what follows its end token (2)."""
    return ids[: ids.index(2)] if 2 in ids else ids


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_together_is_one_by_one(model: MiniChatForConditionalGeneration, way: dict[str, Any]) -> None:
    ids, mask = left_padded(ROWS)
    pixels = pictures(6)
    per_row = way.get("num_return_sequences", 1)
    together = model.generate(ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=8, **way)
    assert torch.equal(together[:, : ids.shape[1]], ids.repeat_interleave(per_row, 0))
    replies = together[:, ids.shape[1] :].tolist()
    for r, own in enumerate(pixels.split(PICTURES_IN_ROW)):
        alone = model.generate(torch.tensor([ROWS[r]]), pixel_values=own if len(own) else None, max_new_tokens=8, **way)
        for k in range(per_row):
            assert until_end(replies[r * per_row + k]) == until_end(alone[k, len(ROWS[r]) :].tolist())
    assert len({tuple(reply) for reply in replies}) > 1  # rows that all said the same would prove nothing


def test_beams_see_their_own_pictures(model: MiniChatForConditionalGeneration) -> None:
    """The same words with two pictures a row: exchanging the rows' pictures exchanges the replies."""
    ids = torch.tensor([row(1, "picture", 5, "picture", 6)] * 2)
    one, other = pictures(2, seed=5), pictures(2, seed=6)
    ways: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 8, "num_return_sequences": 2}
    straight = model.generate(ids, pixel_values=torch.cat([one, other]), **ways)
    crossed = model.generate(ids, pixel_values=torch.cat([other, one]), **ways)
    assert torch.equal(straight[:2], crossed[2:])
    assert torch.equal(straight[2:], crossed[:2])
    assert not torch.equal(straight[:2], straight[2:])


def test_greedy_is_the_argmax_of_whole_passes(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([row(1, "picture", 5, "picture", 6)])
    pixels = pictures(2)
    whole = model.generate(ids, pixel_values=pixels, max_new_tokens=8, min_new_tokens=8)
    grown = ids
    with torch.no_grad():
        for _ in range(8):
            logits = model(input_ids=grown, pixel_values=pixels).logits[:, -1]
            logits[:, 2] = -torch.inf  # min_new_tokens
            grown = torch.cat([grown, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(whole, grown)


def test_prompt_and_reply_or_reply_alone(model: MiniChatForConditionalGeneration) -> None:
    """As in transformers: ids in, prompt and reply out; embeddings in, the reply out."""
    ids, mask = left_padded(ROWS)
    pixels = pictures(6)
    whole = model.generate(ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=5)
    assert torch.equal(whole[:, : ids.shape[1]], ids)
    replies = model.generate(inputs_embeds=model.embed(ids, pixels), attention_mask=mask, max_new_tokens=5)
    assert torch.equal(whole[:, ids.shape[1] :], replies)
    features = model.encode_features(pixels)
    assert torch.equal(model.generate(ids, attention_mask=mask, image_features=features, max_new_tokens=5), whole)
    out = model.generate(
        ids,
        attention_mask=mask,
        pixel_values=pixels,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(out.sequences, whole)
    assert len(out.scores) == whole.shape[1] - ids.shape[1]
    assert out.past_key_values.get_seq_length() == whole.shape[1] - 1
    by_length = model.generate(ids, attention_mask=mask, pixel_values=pixels, max_length=ids.shape[1] + 5)
    assert torch.equal(by_length, whole)


def test_without_pictures_it_is_the_language_model(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(model.generate(ids, max_new_tokens=8), model.language_model.generate(ids, max_new_tokens=8))


def test_sampling_follows_the_seed(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([row(1, "picture", 5)])
    ways: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 12, "num_return_sequences": 4}
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate(ids, pixel_values=pictures(1), **ways))
    assert draws[0].shape[0] == 4
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0][:, : draws[2].shape[1]], draws[2][:, : draws[0].shape[1]])
    assert (draws[0][:, ids.shape[1] :] < VOCABULARY).all()
    # So cold that only the likeliest is drawn.
    torch.manual_seed(0)
    cold = model.generate(ids, pixel_values=pictures(1), do_sample=True, temperature=1e-4, max_new_tokens=6)
    assert torch.equal(cold, model.generate(ids, pixel_values=pictures(1), max_new_tokens=6))


def test_repetition_penalty_is_of_the_reply(model: MiniChatForConditionalGeneration) -> None:
    """By keyword or by the generation's configuration.

    Of the prompt the begin token alone is penalised: in the originals' transformers 4.30 it stands for all of it.
    """
    begin = model.config.text_config.bos_token_id
    ids, mask = left_padded([row(1, "picture", 5), row(*range(3, 20))])
    given: dict[str, Any] = {"attention_mask": mask, "pixel_values": pictures(1)}
    grown, whole_mask = ids, mask
    with torch.no_grad():
        for _ in range(20):
            logits = model(input_ids=grown, attention_mask=whole_mask, pixel_values=pictures(1)).logits[:, -1]
            for scores, said in zip(logits, grown[:, ids.shape[1] :], strict=True):
                seen = torch.zeros_like(scores).index_fill(0, torch.cat([torch.tensor([begin]), said]), 1).bool()
                scores[seen] = torch.where(scores > 0, scores / 3, scores * 3)[seen]  # Keskar et al., arXiv:1909.05858
            grown = torch.cat([grown, logits.argmax(-1, keepdim=True)], 1)
            whole_mask = torch.nn.functional.pad(whole_mask, (0, 1), value=1)
    expected = [until_end(reply) for reply in grown[:, ids.shape[1] :].tolist()]
    config = GenerationConfig(repetition_penalty=3.0, max_new_tokens=20, eos_token_id=2, pad_token_id=0)
    for penalty in ({"repetition_penalty": 3.0, "max_new_tokens": 20}, {"generation_config": config}):
        replies = model.generate(ids, **given, **penalty)[:, ids.shape[1] :].tolist()
        assert [until_end(reply) for reply in replies] == expected
    plain = model.generate(ids, **given, max_new_tokens=20)[:, ids.shape[1] :].tolist()
    assert [until_end(reply) for reply in plain] != expected


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streamed_is_whole(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([row(1, "picture", 5)])
    streamer = Collected()
    whole = model.generate(ids, pixel_values=pictures(1), max_new_tokens=6, streamer=streamer)
    assert streamer.ended
    assert streamer.ids == whole[0, ids.shape[1] :].tolist()


def test_a_second_turn_continues_the_cache(model: MiniChatForConditionalGeneration) -> None:
    """With the whole conversation's ids and the first turn's cache, only what is new is computed."""
    first = torch.tensor([row(1, "picture", 5)])
    cache = DynamicCache(config=model.config.text_config)
    turn = model.generate(first, pixel_values=pictures(1), max_new_tokens=4, past_key_values=cache)
    second = torch.cat([turn, torch.tensor([row(7, "picture", 8)])], 1)
    both = torch.cat([pictures(1), pictures(1, seed=9)])
    fresh = model.generate(second, pixel_values=both, max_new_tokens=6)
    assert cache.get_seq_length() == turn.shape[1] - 1
    assert torch.equal(model.generate(second, pixel_values=both, max_new_tokens=6, past_key_values=cache), fresh)


def cached(model: MiniChatForConditionalGeneration) -> tuple[torch.Tensor, DynamicCache]:
    """A first turn with a picture: its prompt and reply, and the cache, which lacks the reply's last token."""
    cache = DynamicCache(config=model.config.text_config)
    first = torch.tensor([row(1, "picture", 5)])
    # Never said, so that a next turn that begins with one of them cannot be taken for one that begins with the reply.
    ways: dict[str, Any] = {"max_new_tokens": 4, "suppress_tokens": [7, 9]}
    return model.generate(first, pixel_values=pictures(1), past_key_values=cache, **ways), cache


@pytest.mark.parametrize("masked", [None, "given", "whole"])
@pytest.mark.parametrize("from_cache", [True, False], ids=["from where the cache ends", "the next turn alone"])
@pytest.mark.parametrize("next_turn", [row(7, "picture", 8), row(7, 8), row(9, *range(20, 40), "picture")], ids=len)
def test_what_is_new_continues_the_cache(
    model: MiniChatForConditionalGeneration, next_turn: list[int], from_cache: bool, masked: str | None
) -> None:
    """Generating from what is new is generating from the whole, shorter and longer than the cache."""
    turn, cache = cached(model)
    asked = torch.tensor([next_turn])
    own = pictures(1, seed=9) if VOCABULARY in next_turn else None
    both = pictures(1) if own is None else torch.cat([pictures(1), own])
    whole = torch.cat([turn, asked], 1)
    new = whole[:, cache.get_seq_length() :] if from_cache else asked
    if masked == "whole" and not from_cache:
        whole = torch.cat([turn[:, :-1], asked], 1)  # the mask says that nothing is between cache and ids
    wanted = model.generate(whole, pixel_values=both, max_new_tokens=6)[:, whole.shape[1] :]
    mask = {None: None, "given": torch.ones_like(new), "whole": torch.ones_like(whole)}[masked]
    out = model.generate(new, attention_mask=mask, pixel_values=own, max_new_tokens=6, past_key_values=cache)
    assert torch.equal(out[:, : new.shape[1]], new)
    assert torch.equal(out[:, new.shape[1] :], wanted)


def test_three_turns_of_one_cache(model: MiniChatForConditionalGeneration) -> None:
    """Returned in the output, copied, and gone on with; a second picture in the second turn."""
    ways: dict[str, Any] = {"max_new_tokens": 3, "return_dict_in_generate": True, "suppress_tokens": [7, 11]}
    first = torch.tensor([row(1, "picture", 5)])
    out = model.generate(first, pixel_values=pictures(1), **ways)
    whole, seen = out.sequences, pictures(1)
    for asked, pixels in ((row(7, "picture", 8), pictures(1, seed=9)), (row(11, 12, 13), None)):
        new = torch.tensor([asked])
        whole = torch.cat([whole, new], 1)
        seen = seen if pixels is None else torch.cat([seen, pixels])
        out = model.generate(new, pixel_values=pixels, past_key_values=copy.deepcopy(out.past_key_values), **ways)
        fresh = model.generate(whole, pixel_values=seen, max_new_tokens=3, suppress_tokens=[7, 11])
        whole = torch.cat([whole, out.sequences[:, new.shape[1] :]], 1)
        assert torch.equal(whole, fresh)


def test_padded_rows_continue_their_cache(model: MiniChatForConditionalGeneration) -> None:
    """Without a mask, too: what was padding in the first turn is not seen in the next."""
    ids, mask = left_padded([row(1, "picture", 5), row(1, *range(3, 12))])
    ways: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [7, 9]}
    first = model.generate(ids, attention_mask=mask, pixel_values=pictures(1), return_dict_in_generate=True, **ways)
    asked = torch.tensor([row(7, 8), row(9, 6)])
    whole = torch.cat([first.sequences, asked], 1)
    covered = torch.nn.functional.pad(mask, (0, whole.shape[1] - mask.shape[1]), value=1)
    wanted = model.generate(whole, attention_mask=covered, pixel_values=pictures(1), max_new_tokens=4)
    out = model.generate(asked, max_new_tokens=4, past_key_values=first.past_key_values)
    assert torch.equal(out[:, 2:], wanted[:, whole.shape[1] :])


def test_a_cache_of_forward_continues(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([row(1, "picture", 5, 6, 7, 8, 9)])
    wanted = model.generate(ids, pixel_values=pictures(1), max_new_tokens=5)
    for new in (ids[:, 8:], ids):
        cache = model(input_ids=ids[:, :8], pixel_values=pictures(1), use_cache=True).past_key_values
        pixels = pictures(1) if new is ids else None
        out = model.generate(new, pixel_values=pixels, max_new_tokens=5, past_key_values=cache)
        assert torch.equal(out[:, new.shape[1] :], wanted[:, ids.shape[1] :])


def test_a_mask_that_fits_nothing_is_refused(model: MiniChatForConditionalGeneration) -> None:
    _, cache = cached(model)
    with pytest.raises(PromptError, match="covers 5 positions; 3 are given and 9 are in past_key_values"):
        model.generate(torch.tensor([[7, 8, 9]]), attention_mask=torch.ones(1, 5), past_key_values=cache)
