"""Where a model looked: what the weights are, and that they find what a colour answer names."""

from __future__ import annotations

import pytest
import torch

import minichat
from benchmarks.looked import measure
from minichat.errors import PromptError
from minichat.inference.looked import HEADS, MEASURED, Head, attended, looked
from minichat.prompt.conversation import Conversation
from tests.tiny import noise_picture, tiny_bot


@pytest.mark.parametrize("kind", ["qformer", "patch_merge", "pool"])
def test_a_reply_owes_all_of_itself_to_the_queries_and_they_look_at_all_patches(kind: str) -> None:
    bot = tiny_bot(kind=kind)
    chat = bot.chat(max_new_tokens=5)
    chat.ask("What is it?", [noise_picture(1), noise_picture(2)])
    chat.ask("And this?", noise_picture(3))
    found = bot.looked(chat.conversation)
    n = bot.model.config.num_image_tokens
    assert found.weights.shape == (5, 3, n) and found.maps.shape[:2] == (3, n)
    assert found.pictures == chat.conversation.pictures and found.boxes == ((0.0, 0.0, 1.0, 1.0),) * 3
    assert "".join(found.words).strip() == chat.conversation.messages[-1].text
    torch.testing.assert_close(found.weights.sum((1, 2)), torch.ones(5))
    each = found.maps.sum((2, 3))
    assert (each > 0.5).all() and (each <= 1 + 1e-5).all()
    if kind != "qformer":  # each patch is in one token
        assert torch.equal(found.maps.gt(0).sum(1), torch.ones(3, *found.maps.shape[2:], dtype=torch.long))
    assert found.together().sum() <= 1 + 1e-5
    torch.testing.assert_close(found.together([1, 1]), found.together([1]))


def test_the_weights_are_those_of_the_network_and_it_stays_as_it_was() -> None:
    bot = tiny_bot()
    chat = bot.chat(max_new_tokens=4)
    said = chat.ask("What is it?", noise_picture(1))
    _, _, maps, attention = attended(bot, chat.conversation)
    ways = (bot.model.language_model.config, bot.model.bridge.qformer.config)
    assert [way._attn_implementation for way in ways] == ["sdpa", "sdpa"]
    assert bot.chat(max_new_tokens=4).ask("What is it?", noise_picture(1)) == said
    prompt = bot.processor.render(chat.conversation, continue_final_message=True)
    for way in ways:
        way._attn_implementation = "eager"
    pixels = bot.processor.image_processor([noise_picture(1)], return_tensors="pt")["pixel_values"]
    patches = bot.model.bridge.ln_vision(bot.model.encode_patches(pixels))
    queries = bot.model.bridge.query_tokens
    with torch.no_grad():
        whole = bot.model(input_ids=torch.tensor([prompt.ids]), pixel_values=pixels, output_attentions=True)
        seen = bot.model.bridge.qformer(query_embeds=queries, encoder_hidden_states=patches, output_attentions=True)
    slots = [place for place, token in enumerate(prompt.ids) if token == bot.model.config.image_token_index]
    own = torch.stack(whole.attentions)[:, 0, :, -5:][..., slots]
    torch.testing.assert_close(attention, own)
    torch.testing.assert_close(maps.flatten(2), seen.cross_attentions[-1].mean(1)[..., 1:])
    # Two heads: what both give weight to.
    found = looked(bot, chat.conversation, [Head(0, 0, True), Head(1, 1, False)]).weights.flatten(1)
    both = (attention[0, 0, :-1] * attention[1, 1, 1:]).sqrt()
    torch.testing.assert_close(found, both / both.sum(-1, keepdim=True))


def test_there_is_nothing_to_look_behind() -> None:
    bot = tiny_bot()
    chat = bot.chat(max_new_tokens=2)
    with pytest.raises(PromptError, match="no reply"):
        bot.looked(Conversation().user("What is it?", [noise_picture(1)]))
    chat.ask("Hi")
    with pytest.raises(PromptError, match="no picture"):
        bot.looked(chat.conversation)


def test_a_colour_answer_is_found_where_its_thing_is() -> None:
    """On 20 of the scenes' kind; `python -m benchmarks.looked` measures on 200."""
    bot = minichat.load("minichat-tiny", device="cpu")
    hits, total, chance = measure(bot, 20, "tested on")
    assert total >= 18 and hits >= 0.8 * total > 2 * chance * total
    assert set(MEASURED) == set(HEADS)
