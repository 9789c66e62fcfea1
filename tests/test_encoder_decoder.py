"""An encoder–decoder LLM: pictures and question to the encoder, the reply to the decoder."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, Blip2ForConditionalGeneration, T5ForConditionalGeneration

import minichat
from minichat.errors import ModelError, PromptError
from minichat.inference.bot import MiniChat
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration, set_trainable
from minichat.model.minichat import MiniChatEncoderDecoder
from minichat.prompt.conversation import Conversation
from minichat.weights.convert import convert
from minichat.weights.export import export
from tests.published_files import arguments, publish
from tests.tiny import noise_picture
from tests.tiny_network import tiny_config
from tests.tiny_t5 import publish_t5

PICTURES = [noise_picture(seed) for seed in range(3)]


def convert_t5(folder: Path, **changes: Any) -> Path:
    """A MiniChat folder with a tiny T5, from files as they are published."""
    publish(folder / "files")
    given = arguments(folder / "files") | {"llm": str(publish_t5(folder / "t5")), "template": "t5"}
    return convert(folder / "out", **given | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bot(folder: Path) -> MiniChat:
    return minichat.load(folder, device="cpu")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Blip2ForConditionalGeneration:
    """The same weights in plain transformers, with the originals' eps of ln_vision."""
    out = export(str(folder), "blip2", folder.parent / "blip2")
    model, told = Blip2ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    model.vision_model.post_layernorm.eps = 1e-5
    # Where its slot takes a row more, that is one more logit to choose from: let it be one that is there.
    own = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    if model.config.text_config.vocab_size > own:
        model.language_model.resize_token_embeddings(own)
        model.config.image_token_index = own - 1
    return model.eval()


def their_batch(batch: dict[str, Tensor], theirs: Blip2ForConditionalGeneration) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    return {**batch, "input_ids": ids.where(ids != ids.max(), theirs.config.image_token_index)}


def batch_of(bot: MiniChat, side: str = "right") -> dict[str, Tensor]:
    """Questions of unlike lengths, each with its picture."""
    asked = [
        Conversation().user(text, [picture])
        for text, picture in zip(("What colour is it?", "a star", "How many are there?"), PICTURES, strict=True)
    ]
    rendered = [bot.processor.render(one, add_generation_prompt=True) for one in asked]
    return dict(bot.processor.batch(rendered, padding_side=side))


def replies(bot: MiniChat) -> Tensor:
    rows = [bot.processor.content_tokenizer.encode(text) for text in ("It is yellow.", "Yes", "There are 3.")]
    longest = max(map(len, rows))
    return torch.tensor([[*row, 1, *[-100] * (longest - len(row))] for row in rows])


class TestAgreement:
    """With `transformers.Blip2ForConditionalGeneration`."""

    def test_loss_and_logits(self, bot: MiniChat, theirs: Blip2ForConditionalGeneration) -> None:
        batch, labels = batch_of(bot), replies(bot)
        with torch.no_grad():
            ours, other = bot.model(**batch, labels=labels), theirs(**their_batch(batch, theirs), labels=labels)
        torch.testing.assert_close(ours.loss, other.loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.logits, other.logits, rtol=0, atol=1e-4)

    def test_gradients_of_the_projection(self, bot: MiniChat, theirs: Blip2ForConditionalGeneration) -> None:
        batch, labels = batch_of(bot), replies(bot)
        ours = torch.autograd.grad(bot.model(**batch, labels=labels).loss, bot.model.projection.weight)[0]
        loss = theirs(**their_batch(batch, theirs), labels=labels).loss
        other = torch.autograd.grad(loss, theirs.language_projection.weight)[0]
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("beams", [1, 3])
    def test_ids(self, bot: MiniChat, theirs: Blip2ForConditionalGeneration, beams: int) -> None:
        batch = batch_of(bot, "left")
        # A few: among a random model's logits two are soon as near as rounding.
        settings = {"max_new_tokens": 3, "num_beams": beams, "do_sample": False}
        ours = bot.model.generate(**batch, **settings)
        other = theirs.generate(**their_batch(batch, theirs), **settings)
        assert ours.tolist() == other.tolist()


def test_features_in_the_place_of_pixels(bot: MiniChat) -> None:
    batch, labels = batch_of(bot), replies(bot)
    with torch.no_grad():
        whole = bot.model(**batch, labels=labels)
        kept = bot.model(
            batch["input_ids"], batch["attention_mask"], image_features=whole.image_features, labels=labels
        )
    assert torch.equal(kept.loss, whole.loss)


def test_only_the_loss(bot: MiniChat) -> None:
    """The same number and gradient from the supervised positions alone, and from a given number of items."""
    batch, labels = batch_of(bot), replies(bot)
    labels[0, 0] = -100
    weight = bot.model.projection.weight
    plain, lean = bot.model(**batch, labels=labels), bot.model(**batch, labels=labels, skip_logits=True)
    assert lean.logits is None
    torch.testing.assert_close(lean.loss, plain.loss)
    for one, other in zip(torch.autograd.grad(lean.loss, weight), torch.autograd.grad(plain.loss, weight), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    count = int((labels >= 0).sum())
    torch.testing.assert_close(bot.model(**batch, labels=labels, num_items_in_batch=2 * count).loss, plain.loss / 2)


def test_it_learns_through_its_projection(folder: Path) -> None:
    """All else frozen, to the bit."""
    bot = minichat.load(folder, device="cpu")
    set_trainable(bot.model)
    before = {name: weight.detach().clone() for name, weight in bot.model.named_parameters()}
    batch, labels = batch_of(bot), replies(bot)
    optimizer = torch.optim.AdamW(bot.model.projection.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = bot.model.train()(**batch, labels=labels, skip_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {name for name, weight in bot.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {"projection.weight", "projection.bias"}


def generated(bot: MiniChat, conversation: Conversation, count: int) -> list[int]:
    """The ids of a greedy reply, from one call of `generate`; never the start token, nothing after the end."""
    prompt = bot.processor.render(conversation, add_generation_prompt=True)
    batch = bot.processor.batch([prompt])
    ids = bot.model.generate(**batch, max_new_tokens=count, suppress_tokens=[0])[0].tolist()[1:]
    return ids[: ids.index(1)] if 1 in ids else ids


def first_logits(bot: MiniChat, conversation: Conversation) -> torch.Tensor:
    """Of the first token of a reply."""
    batch = bot.processor.batch([bot.processor.render(conversation, add_generation_prompt=True)])
    with torch.no_grad():
        return bot.model(**batch, labels=torch.tensor([[5]])).logits


class TestChat:
    def test_every_turn_reads_all_that_was_said(self, bot: MiniChat) -> None:
        """What a session streams is what one pass over its whole prompt gives, turn after turn, a picture in each."""
        session, said = bot.chat(max_new_tokens=8), Conversation()
        for turn, question in enumerate(("What colour is it?", "And this?", "How many stars?")):
            images = PICTURES[turn : turn + 1] if turn < 2 else []
            said = said.user(question, images)
            pieces = list(session.stream(question, images))
            reply = session.conversation.messages[-1]
            assert list(reply.ids or ()) == generated(bot, said, 8)
            assert "".join(pieces) == reply.text
            said = said.assistant(reply.text, reply.ids)
        alone = Conversation().user("How many stars?")
        assert not torch.allclose(first_logits(bot, said.user("And?")), first_logits(bot, alone), atol=1e-3)

    def test_a_picture_is_encoded_once_and_the_prompt_once_a_turn(self, bot: MiniChat) -> None:
        calls = []
        encoder = bot.model.language_model.get_encoder()
        hook = encoder.register_forward_hook(lambda *_: calls.append(1))
        try:
            session = bot.chat(max_new_tokens=5)
            with counting_pictures(bot) as pictures:
                session.ask("What is it?", PICTURES[:1])
                session.ask("And this?", PICTURES[1:2])
            assert len(pictures) == 2
            assert len(calls) == 2
        finally:
            hook.remove()

    def test_edited_regenerated_and_undone(self, bot: MiniChat) -> None:
        session = bot.chat(max_new_tokens=6)
        first = session.ask("What is it?", PICTURES[:1])
        session.ask("And now?")
        assert session.edit(turn=0, text="What is it?") == first
        assert session.regenerate() == first
        assert len(session.undo()) == 0

    def test_a_reply_that_goes_on_is_the_longer_reply(self, bot: MiniChat) -> None:
        whole, parts = bot.chat(), bot.chat()
        said = whole.ask("What is it?", PICTURES[:1], max_new_tokens=9)
        parts.ask("What is it?", PICTURES[:1], max_new_tokens=4)
        assert parts.go_on(max_new_tokens=5) == said
        assert parts.conversation == whole.conversation

    def test_sampling_repeats_and_beams_run(self, bot: MiniChat) -> None:
        settings = {"images": PICTURES[:1], "max_new_tokens": 8}
        drawn = [bot.chat().ask("What is it?", **settings, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1]
        assert len(set(drawn)) > 1
        assert isinstance(bot.chat().ask("What is it?", **settings, num_beams=3), str)
        penalised = bot.chat().ask("What is it?", **settings, repetition_penalty=5.0)
        assert penalised != bot.chat().ask("What is it?", **settings)

    def test_a_reply_that_is_stopped(self, bot: MiniChat) -> None:
        cancel, session = threading.Event(), bot.chat(max_new_tokens=50)
        stream = session.stream("What is it?", PICTURES[:1], cancel=cancel)
        next(stream)
        cancel.set()
        list(stream)
        assert len(session.conversation.messages[-1].ids or ()) < 10
        assert session.ask("And now?", max_new_tokens=3) is not None

    def test_text_alone(self, bot: MiniChat) -> None:
        assert isinstance(bot.chat(max_new_tokens=4).ask("How many stars are there?"), str)


def counting_pictures(bot: MiniChat) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def counted() -> Any:
        seen: list[int] = []
        hook = bot.model.vision_model.register_forward_hook(lambda *_: seen.append(1))
        try:
            yield seen
        finally:
            hook.remove()

    return counted()


class TestCaptions:
    def test_a_batch_is_its_rows(self, bot: MiniChat) -> None:
        prompts = ["What is it?", "Describe this image in detail.", "a star"]
        together = bot.caption(PICTURES, prompts, max_new_tokens=9)
        alone = [bot.caption([p], [t], max_new_tokens=9)[0] for p, t in zip(PICTURES, prompts, strict=True)]
        assert together == alone
        assert len(set(together)) > 1

    def test_a_caption_is_a_chats_first_reply(self, bot: MiniChat) -> None:
        asked = bot.chat(max_new_tokens=9).ask("What is it?", PICTURES[:1])
        assert bot.caption(PICTURES[:1], "What is it?", max_new_tokens=9) == [asked]

    def test_penalised_alike(self, bot: MiniChat) -> None:
        settings = {"max_new_tokens": 9, "repetition_penalty": 3.0}
        asked = bot.chat().ask("What is it?", PICTURES[:1], **settings)
        assert bot.caption(PICTURES[:1], "What is it?", **settings) == [asked]


class TestFolders:
    @pytest.mark.parametrize("merge", [True, False])
    def test_converted_and_loaded(self, tmp_path: Path, bot: MiniChat, merge: bool) -> None:
        out = convert_t5(tmp_path, merge=merge)
        loaded = minichat.load(out, device="cpu")
        assert loaded.caption(PICTURES, max_new_tokens=6) == bot.caption(PICTURES, max_new_tokens=6)
        assert loaded.model.config.is_encoder_decoder
        ids = loaded.model.generation_config
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (None, 1, 0)

    def test_saved_and_loaded(self, tmp_path: Path, bot: MiniChat) -> None:
        bot.model.save_pretrained(tmp_path)
        bot.processor.save_pretrained(tmp_path)
        loaded = minichat.load(tmp_path, device="cpu")
        assert loaded.caption(PICTURES, max_new_tokens=6) == bot.caption(PICTURES, max_new_tokens=6)

    @pytest.mark.parametrize("merge", [True, False])
    def test_its_llm_goes_out_as_it_came_in(self, tmp_path: Path, merge: bool) -> None:
        out = export(str(convert_t5(tmp_path, merge=merge)), "llm", tmp_path / "llm")
        ours, theirs = (T5ForConditionalGeneration.from_pretrained(f).state_dict() for f in (out, tmp_path / "t5"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_half_precision(self, folder: Path) -> None:
        """T5 overflows in float16 unless its feed-forward outputs stay in float32, as transformers keeps them."""
        model = minichat.load(folder, device="cpu", dtype="float16").model
        kept = {n for n, w in model.named_parameters() if w.dtype == torch.float32}
        assert kept >= {"projection.weight", "language_model.encoder.block.0.layer.1.DenseReluDense.wo.weight"}
        assert model.language_model.shared.weight.dtype == torch.float16

    def test_a_template_that_spells_a_begin(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="template 't5'"):
            convert_t5(tmp_path, template="vicuna-v0")

    def test_its_weights_are_looked_at(self, folder: Path, tmp_path: Path) -> None:
        """An LLM that was changed after it was referred to is refused."""
        publish_t5(folder.parent / "t5", seed=1)
        try:
            with pytest.raises(ModelError, match="fingerprint"):
                minichat.load(folder, device="cpu")
        finally:
            publish_t5(folder.parent / "t5")


def test_other_encoder_decoders() -> None:
    """Nothing is T5's alone."""
    text = BartConfig(
        vocab_size=50, d_model=40, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    given = tiny_config().to_dict() | {"text_config": text, "image_token_index": None}
    model = MiniChatForConditionalGeneration(MiniChatConfig(**given)).eval()
    assert isinstance(model, MiniChatEncoderDecoder)
    assert type(copy.deepcopy(model)) is MiniChatEncoderDecoder
    derived = type("Mine", (MiniChatForConditionalGeneration,), {})
    with pytest.raises(ModelError, match="derive Mine from MiniChatEncoderDecoder"):
        derived(model.config)
    ids = torch.tensor([[50] * 4 + [7, 8, 9]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=ids, pixel_values=pixels, labels=torch.tensor([[5, 6, 2]])).loss
    assert loss.isfinite()
    reply = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4)
    assert reply[0, 0] == 2
    with pytest.raises(PromptError):
        model.generate(input_ids=ids[:, :3], pixel_values=pixels)
