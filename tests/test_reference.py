"""The originals' own numbers, from their own files: converted, loaded and asked as anyone would.

A case is a folder with a `case.json`, below the folders that `MINICHAT_REFERENCE` names (separated by `os.pathsep`), or
else below `tests/reference` and a `shared/reference` beside the project. Float32 agrees to 1e-4, ids exactly.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minichat.data.dataset import Collator, Rows
from minichat.model.loss import ProcessGroup
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import IGNORED
from minichat.train.config import Config, DataConfig, ModelConfig, Source
from minichat.train.stages.finetune import Finetune
from minichat.weights.key_map import BLIP2_STAGE1
from tests.conftest import all_cases, reference_summary
from tests.reference_cases import (
    MiniGPT4Case,
    Stage1Case,
    cases_of,
    close,
    examples,
    kind_of,
    read_back,
    without_stop,
)


def test_every_case_is_of_a_kind_that_is_tested() -> None:
    assert [folder for folder in all_cases() if kind_of(folder) is None] == []


def test_the_summary_says_how_many_ran_or_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICHAT_REFERENCE", str(tmp_path))
    assert f"MINICHAT_REFERENCE names '{tmp_path}', where there are none" in reference_summary(set())
    assert "Put it below tests/reference" in reference_summary(set())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "case.json").write_text("{}")
    assert reference_summary(set()) == "None of 1 ran: their tests were not selected."
    assert reference_summary({"a"}) == "1 of 1 ran: a"


class TestMiniGPT4:
    """Picture → prompt → training and chat, with a Q-Former and without."""

    __test__ = bool(cases_of("minigpt4"))  # a kind that is absent makes no test

    @pytest.fixture(scope="class", params=cases_of("minigpt4"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MiniGPT4Case:
        folder = request.param
        return MiniGPT4Case(folder, tmp_path_factory.mktemp("converted") / folder.name)

    def test_pixels(self, case: MiniGPT4Case) -> None:
        pixels = case.bot.processor.image_processor(case.pictures, return_tensors="pt")["pixel_values"]
        close(pixels, case.expected["pixel_values"])

    @torch.no_grad()
    def test_vision_encoder(self, case: MiniGPT4Case) -> None:
        hidden = case.bot.model.vision_model(pixel_values=case.expected["pixel_values"]).last_hidden_state
        close(hidden, case.expected["vit_hidden"])

    @torch.no_grad()
    def test_ln_vision(self, case: MiniGPT4Case) -> None:
        close(case.bot.model.bridge.ln_vision(case.expected["vit_hidden"]), case.expected["ln_vision"])

    @torch.no_grad()
    def test_bridge(self, case: MiniGPT4Case) -> None:
        """The Q-Former's queries; without one, what the projection is given is four patches in a row."""
        features = case.bot.model.encode_features(case.expected["pixel_values"])
        if "qformer_out" in case.expected:
            close(features, case.expected["qformer_out"])
        else:
            pictures, patches, width = case.expected["ln_vision"][:, 1:].shape
            count = case.expected["image_embeds"].shape[1]
            close(features, case.expected["ln_vision"][:, 1:].reshape(pictures, count, patches * width // count))

    @torch.no_grad()
    def test_image_tokens(self, case: MiniGPT4Case) -> None:
        close(case.bot.model.encode_images(case.expected["pixel_values"]), case.expected["image_embeds"])

    @pytest.fixture(scope="class")
    @classmethod
    def stage(cls, case: MiniGPT4Case) -> Finetune:
        """The trainer's own stage, spelling prompts as the original's training did, and cutting replies as it did."""
        data = DataConfig(
            (Source("none"),), template=case.facts["training_template"], max_reply_length=case.facts["max_txt_len"]
        )
        config = Config(model=ModelConfig(str(case.out), device="cpu", dtype="float32"), data=data)
        return Finetune(config, torch.device("cpu"))

    @pytest.mark.parametrize("kind", ["caption", "conversation"])
    @torch.no_grad()
    def test_training_prompts(self, case: MiniGPT4Case, stage: Finetune, kind: str) -> None:
        """Embeddings and targets, row by row; the originals' embeddings leave out the leading BOS."""
        embeds, mask = case.expected[f"{kind}.inputs_embeds"], case.expected[f"{kind}.attention_mask"]
        targets = case.expected[f"{kind}.answer_targets"]
        for number, row in enumerate(map(stage.render, examples(case, kind))):
            # Ours end with the last id that is learned; theirs go on to the limit, or to the end of the last question.
            length = len(row.ids) - 1
            assert length <= int(mask[number].sum())
            batch = Collator(case.bot.processor)([row])
            ours = case.bot.model.embed(batch["input_ids"], batch["pixel_values"])  # (1, 1 + length, H)
            assert row.ids[0] == case.bot.processor.content_tokenizer.bos_id
            close(ours[0, 1:], embeds[number, :length])
            learned = row.labels.tolist()[int((row.labels != IGNORED).argmax()) :]
            assert learned + [IGNORED] * (targets.shape[1] - len(learned)) == targets[number].tolist()

    @pytest.mark.parametrize("kept", [False, True])
    @pytest.mark.parametrize("kind", ["caption", "conversation"])
    def test_training_loss_and_gradients(
        self, case: MiniGPT4Case, stage: Finetune, kind: str, kept: bool, tmp_path: Path
    ) -> None:
        """A step of the trainer: its renderer, collator and loss; with features computed before, and without."""
        rows = Rows(map(stage.render, examples(case, kind)))
        collate = stage.collate
        if kept:
            stage.see(list(rows.pictures()), str(tmp_path / "features"), 0, ProcessGroup(0, 1))
        stage.model.train()
        stage.model.zero_grad()
        batch = stage.collate(list(rows))
        assert ("image_features" in batch, "pixel_values" in batch) == (kept, not kept)
        loss = stage.loss(batch) / stage.count(batch)
        loss.backward()
        stage.collate = collate
        close(loss.reshape(1), case.expected[f"{kind}.loss"])
        close(stage.model.projection.weight.grad, case.expected[f"{kind}.grad_proj_weight"])
        close(stage.model.projection.bias.grad, case.expected[f"{kind}.grad_proj_bias"])
        trained = {name for name, weight in stage.model.named_parameters() if weight.grad is not None}
        assert trained == {"projection.weight", "projection.bias"}

    def test_chat_prompts(self, case: MiniGPT4Case) -> None:
        """Ids and embeddings of every prompt, after the replies that the original gave."""
        for number, chat in enumerate(case.facts["chats"]):
            conversation = Conversation()
            for turn, said in enumerate(chat):
                conversation = conversation.user(said["question"], [case.folder / "images" / f for f in said["images"]])
                prompt = case.bot.processor.render(conversation, add_generation_prompt=True, history="text")
                batch = case.bot.processor.batch([prompt])
                with torch.no_grad():
                    embeds = case.bot.model.embed(batch["input_ids"], batch.get("pixel_values"))
                theirs = case.expected[f"chat{number}.turn{turn}.prompt_embeds"]
                close(embeds, theirs)
                assert read_back(case, theirs) == prompt.ids
                conversation = conversation.assistant(said["answer"])

    def test_chats(self, case: MiniGPT4Case) -> None:
        """Every turn's generated ids, and its text, in sessions that go on from their own replies."""
        for chat in case.facts["chats"]:
            session = case.bot.chat(history="text", max_new_tokens=case.facts["max_new_tokens"])
            for said in chat:
                session.ask(said["question"], [case.folder / "images" / name for name in said["images"]])
                reply = session.conversation.messages[-1]
                assert list(reply.ids) == without_stop(said["token_ids"], case.facts["stop_ids"])
                # The original's Chat.answer, from the shown text to the next prompt's.
                assert reply.text.split("###")[0].split("Assistant:")[-1].strip() == said["answer"]


class TestBlip2Stage1:
    """The Q-Former's pre-training."""

    __test__ = bool(cases_of("blip2-stage1"))  # a kind that is absent makes no test

    @pytest.fixture(scope="class", params=cases_of("blip2-stage1"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest) -> Stage1Case:
        return Stage1Case(request.param)

    def test_word_pieces(self, case: Stage1Case) -> None:
        assert torch.equal(case.texts["input_ids"], case.expected["input_ids"])
        assert torch.equal(case.texts["attention_mask"], case.expected["text_attention_mask"])
        assert case.tokenizer.bos_token == case.facts["bos_token"]

    @torch.no_grad()
    def test_pictures(self, case: Stage1Case) -> None:
        """The vision encoder, `ln_vision`, and what the queries read."""
        close(case.model.bridge.ln_vision(case.patches), case.expected["image_embeds"])
        close(case.model.query_states(case.patches), case.expected["query_output"])

    @torch.no_grad()
    def test_texts(self, case: Stage1Case) -> None:
        close(case.model.text_states(**case.texts), case.expected["text_output"])

    @torch.no_grad()
    def test_similarity(self, case: Stage1Case) -> None:
        model = case.model
        close(
            model.similarity(model.image_embeddings(case.patches), model.text_embeddings(**case.texts)),
            case.expected["itc_similarity"],
        )

    @torch.no_grad()
    def test_matching_of_every_pair(self, case: Stage1Case) -> None:
        count = len(case.facts["texts"])
        logits = [case.model.match(picture.expand(count, -1, -1), **case.texts) for picture in case.patches[:, None]]
        close(torch.stack(logits), case.expected["itm_logits"])

    def test_losses_and_gradients(self, case: Stage1Case) -> None:
        """The three losses with the negatives that were drawn, and every gradient that the case gives."""
        case.model.zero_grad()
        losses = case.model(**case.batch())
        for name in ("loss", "itc", "itm", "itg"):
            theirs = case.expected["loss" if name == "loss" else f"loss_{name}"]
            close(losses[name].reshape(theirs.shape), theirs)
        losses.loss.backward()
        given = [name.removeprefix("grad.") for name in case.expected if name.startswith("grad.")]
        assert given
        for name in given:
            ours = BLIP2_STAGE1.target(name)
            assert ours is not None, name
            theirs, grad = case.expected[f"grad.{name}"], case.model.get_parameter(ours).grad
            assert grad is not None, name
            close(grad.reshape(theirs.shape), theirs)
        case.model.zero_grad()

    def test_masks_hide_the_same_under_either_attention(self, case: Stage1Case) -> None:
        case.model.bridge.qformer.set_attn_implementation("eager")
        try:
            with torch.no_grad():
                losses = case.model(**case.batch())
        finally:
            case.model.bridge.qformer.set_attn_implementation("sdpa")
        close(losses.loss.reshape(case.expected["loss"].shape), case.expected["loss"])
