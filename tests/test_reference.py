"""The originals' own numbers, from their own files: converted, loaded and asked as anyone would.

A case is a folder with a `case.json`, below the folders that `MINICHAT_REFERENCE` names (separated by `os.pathsep`), or
else below `tests/reference`, and `reference` and `reference-family` in a folder `shared` beside the project. Float32
agrees to 1e-4, ids exactly.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minichat.data.dataset import Collator, Rows
from minichat.model.loss import ProcessGroup
from minichat.model.minichat import words_of
from minichat.prompt.conversation import Conversation, Message
from minichat.prompt.render import IGNORED, History
from minichat.prompt.template import BOS, EOS, split_controls
from minichat.train.config import Config, DataConfig, LoraConfig, ModelConfig, Source
from minichat.train.stages.finetune import Finetune
from minichat.weights.key_map import BLIP2_STAGE1, LAVIS
from tests.conftest import all_cases, reference_summary
from tests.reference_cases import (
    LavisCase,
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


class TestMiniGPTv2(TestMiniGPT4):
    """All of that for MiniGPT-v2: a larger picture than the vision encoder was trained with, and LoRA on the LLM."""

    __test__ = bool(cases_of("minigpt-v2"))  # a kind that is absent makes no test

    @pytest.fixture(scope="class", params=cases_of("minigpt-v2"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MiniGPT4Case:
        folder = request.param
        return MiniGPT4Case(folder, tmp_path_factory.mktemp("converted") / folder.name)

    @pytest.fixture(scope="class")
    @classmethod
    def stage(cls, case: MiniGPT4Case) -> Finetune:
        """The trainer goes on with the adapter that the file holds."""
        data = DataConfig(
            (Source("none"),), template=case.facts["training_template"], max_reply_length=case.facts["max_txt_len"]
        )
        said = case.facts["lora"]
        lora = LoraConfig(rank=said["r"], alpha=said["alpha"], target_modules=tuple(said["target_modules"]))
        config = Config(model=ModelConfig(str(case.out), device="cpu", dtype="float32"), data=data, lora=lora)
        return Finetune(config, torch.device("cpu"))

    def test_positions_are_interpolated(self, case: MiniGPT4Case) -> None:
        close(case.bot.model.vision_model.embeddings.position_embedding, case.expected["pos_embed"])

    @pytest.mark.parametrize("kept", [False, True])
    @pytest.mark.parametrize("kind", ["caption", "conversation"])
    def test_training_loss_and_gradients(
        self, case: MiniGPT4Case, stage: Finetune, kind: str, kept: bool, tmp_path: Path
    ) -> None:
        """Of the projection, and of every LoRA matrix."""
        rows, collate = Rows(map(stage.render, examples(case, kind))), stage.collate
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
        trained = {name: w.grad for name, w in stage.model.named_parameters() if w.grad is not None}
        start = f"{kind}.grad.llama_model.base_model.model."
        given = [name for name in case.expected if name.startswith(start)]
        assert len(trained) == len(given) + 2 > 2
        for name in given:
            own = name.removeprefix(start).replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default")
            close(trained[f"language_model.{own}"], case.expected[name])

    @torch.no_grad()
    def test_first_logits(self, case: MiniGPT4Case) -> None:
        """Of every turn, also of the original's demo, which forgets each reply that it gave."""
        for kind in ("chat", "demo_chat"):
            for number, chat in enumerate(case.facts[f"{kind}s"]):
                conversation = Conversation()
                for turn, said in enumerate(chat):
                    images = [case.folder / "images" / f for f in said["images"]]
                    conversation = conversation.user(said["question"], images)
                    history: History = "ids" if kind == "demo_chat" else "text"
                    prompt = case.bot.processor.render(conversation, add_generation_prompt=True, history=history)
                    batch = case.bot.processor.batch([prompt])
                    embeds = case.bot.model.embed(batch["input_ids"], batch.get("pixel_values"))
                    close(embeds, case.expected[f"{kind}{number}.turn{turn}.prompt_embeds"])
                    logits = case.bot.model(inputs_embeds=embeds).logits[0, -1]
                    close(logits, case.expected[f"{kind}{number}.turn{turn}.first_logits"])
                    kept = Conversation((*conversation.messages, Message("assistant", (), ids=())))
                    conversation = kept if kind == "demo_chat" else conversation.assistant(said["answer"])

    def test_demo_chats(self, case: MiniGPT4Case) -> None:
        for chat in case.facts["demo_chats"]:
            before = Conversation()
            for said in chat:
                session = case.bot.chat(conversation=before, max_new_tokens=case.facts["max_new_tokens"])
                asked = before.user(said["question"], [case.folder / "images" / name for name in said["images"]])
                reply = session.ask(said["question"], [case.folder / "images" / name for name in said["images"]])
                assert reply == said["answer"].strip()
                before = Conversation((*asked.messages, Message("assistant", (), ids=())))

    def test_evaluation(self, case: MiniGPT4Case) -> None:
        """The original evaluates in batches, padded on the left."""
        asked = case.facts["evaluation"]
        start, end = "<s>[INST] <Img><ImageHere></Img> ", " [/INST]"
        questions = [prompt.removeprefix(start).removesuffix(end) for prompt in asked["prompts"]]
        names = asked["images"] * (len(questions) // len(asked["images"]))
        pictures = [case.folder / "images" / name for name in names]
        said = case.bot.caption(pictures, questions, max_new_tokens=asked["max_new_tokens"])
        assert [reply.replace("$$", "") for reply in said] == [answer.strip() for answer in asked["answers"]]

    def test_pieces(self, case: MiniGPT4Case) -> None:
        """Texts of prompts by the original's slow tokenizer; what stands between control tokens is read by itself."""
        tokenizer = case.bot.processor.content_tokenizer
        for piece in case.facts["pieces"]:
            ids = [
                one
                for text in split_controls(piece["text"])
                for one in ({BOS: [1], EOS: [2]}.get(text) or tokenizer.encode(text))
            ]
            assert ids == piece["ids"], piece["text"]

    @pytest.mark.parametrize("merge", [False, True])
    @pytest.mark.parametrize("trained", ["minigpt4.pth", "minigpt4_later_peft.pth"])
    def test_either_spelling_gives_the_same_model(
        self, case: MiniGPT4Case, trained: str, merge: bool, tmp_path: Path
    ) -> None:
        """Kept as an adapter, or merged into a copy of the LLM."""
        other = MiniGPT4Case(case.folder, tmp_path / "other", trained, merge)
        assert (other.out / "adapter").exists() != merge
        held = case.bot.model.state_dict()
        for name, tensor in other.bot.model.state_dict().items():
            torch.testing.assert_close(tensor, held[name], rtol=0, atol=1e-6)


class TestLavis:
    """BLIP-2 with OPT and FLAN-T5, InstructBLIP with Vicuna: what LAVIS saves, learns and writes."""

    __test__ = bool(cases_of("lavis"))  # a kind that is absent makes no test

    @pytest.fixture(scope="class", params=cases_of("lavis"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LavisCase:
        folder = request.param
        return LavisCase(folder, tmp_path_factory.mktemp("converted") / folder.name)

    def test_pixels(self, case: LavisCase) -> None:
        pixels = case.bot.processor.image_processor(case.pictures, return_tensors="pt")["pixel_values"]
        close(pixels, case.expected["pixel_values"])

    @torch.no_grad()
    def test_vision_side(self, case: LavisCase) -> None:
        model = case.bot.model
        patches = model.encode_patches(case.expected["pixel_values"])
        close(patches, case.expected["vit_hidden"])
        close(model.bridge.ln_vision(patches), case.expected["ln_vision"])
        if not case.instructed:  # what its queries read depends on what is asked
            close(model.read_patches(patches), case.expected["qformer_out"])
            close(model.encode_images(case.expected["pixel_values"]), case.expected["image_embeds"])

    @pytest.fixture(scope="class")
    @classmethod
    def stage(cls, case: LavisCase) -> Finetune:
        """The trainer's own stage, cutting questions and replies as the original does."""
        data = DataConfig((Source("none"),), template=case.bot.captioner.template, **case.limits())
        model = ModelConfig(str(case.out), device="cpu", dtype="float32")
        return Finetune(Config(model=model, data=data, trainable=("projection", "bridge")), torch.device("cpu"))

    def test_training_prompts(self, case: LavisCase, stage: Finetune) -> None:
        """Embeddings and targets, row by row, without their padding."""
        embeds, mask = case.expected["training.inputs_embeds"], case.expected["training.attention_mask"].bool()
        labels = case.expected["training.labels"]
        n = case.bot.model.config.num_image_tokens
        for number, row in enumerate(map(stage.render, case.examples())):
            batch = stage.collate([row])
            words = words_of(batch)
            if words is not None:
                theirs = [case.expected[f"training.qformer_{name}"][number] for name in ("input_ids", "attention_mask")]
                assert words[0][0].tolist() == theirs[0][theirs[1].bool()].tolist()
            with torch.no_grad():
                ours = case.bot.model.embed(
                    torch.tensor(row.ids[None].astype("int64")), batch["pixel_values"], words=words
                )
            wanted = embeds[number][mask[number]]
            if case.encodes:  # the reply is the decoder's
                ours = ours[:, : len(wanted)]
                assert [i for i in row.labels.tolist() if i >= 0] == [i for i in labels[number].tolist() if i >= 0]
            else:
                assert row.labels.tolist() == labels[number][mask[number]].tolist()
            close(ours[0, :n], wanted[:n])
            close(ours[0], wanted)

    @pytest.mark.parametrize("kept", [False, True])
    def test_training_loss_and_gradients(self, case: LavisCase, stage: Finetune, kept: bool, tmp_path: Path) -> None:
        """Of every tensor that the case gives; where features are kept, of the projection."""
        rows, collate = Rows(map(stage.render, case.examples())), stage.collate
        if kept:
            stage.see(list(rows.pictures()), str(tmp_path / "features"), 0, ProcessGroup(0, 1))
        stage.model.eval()
        stage.model.zero_grad()
        batch = stage.collate(list(rows))
        assert ("image_features" in batch, "pixel_values" in batch) == (kept, not kept)
        loss = stage.loss(batch) / stage.count(batch)
        loss.backward()
        stage.collate = collate
        close(loss.reshape(1), case.expected["training.loss"])
        given = [name for name in case.expected if name.startswith("training.grad.")]
        assert given
        for name in given:
            ours = LAVIS.target(name.removeprefix("training.grad."))
            assert ours is not None, name
            if not kept or ours.startswith("projection."):
                grad = stage.model.get_parameter(ours).grad
                close(torch.zeros_like(case.expected[name]) if grad is None else grad, case.expected[name])

    @torch.no_grad()
    def test_prompts(self, case: LavisCase) -> None:
        """What the LLM and the Q-Former are given, and the first logits, of every batch that is generated from."""
        model = case.bot.model
        for number, asked in enumerate(case.facts["generate"]):
            batch = case.prompts(asked)
            words = words_of(batch)
            if words is not None:
                assert torch.equal(words[0], case.expected[f"generate{number}.qformer_input_ids"])
                assert torch.equal(words[1], case.expected[f"generate{number}.qformer_attention_mask"])
            ours = model.embed(batch["input_ids"], batch["pixel_values"], words=words)
            theirs, mask = (case.expected[f"generate{number}.{name}"] for name in ("inputs_embeds", "attention_mask"))
            for row in range(len(ours)):
                close(ours[row][batch["attention_mask"][row].bool()], theirs[row][mask[row].bool()])
            begun = {"decoder_input_ids": torch.zeros(len(ours), 1, dtype=torch.long)} if case.encodes else {}
            logits = model(inputs_embeds=ours, attention_mask=batch["attention_mask"], **begun).logits[:, -1]
            close(logits, case.expected[f"generate{number}.first_logits"])

    def test_generated_ids(self, case: LavisCase) -> None:
        """Greedy and with beams, with the original's penalties, in its batches."""
        for asked in case.facts["generate"]:
            batch = case.prompts(asked)
            stop = case.facts.get("stop_id") or case.facts["llm_special_ids"]["eos"]
            rows = case.bot.model.generate(
                **batch,
                do_sample=False,
                num_beams=asked["num_beams"],
                max_new_tokens=asked["max_new_tokens"],
                repetition_penalty=float(asked["repetition_penalty"]),
                length_penalty=float(asked["length_penalty"]),
                eos_token_id=stop,
                pad_token_id=stop,
            )
            begun = 1 if case.encodes else batch["input_ids"].shape[1]
            for ours, theirs in zip(rows[:, begun:].tolist(), asked["token_ids"], strict=True):
                assert ours == theirs + [stop] * (len(ours) - len(theirs))

    def test_replies(self, case: LavisCase) -> None:
        """The same as anyone would ask for them; where a prompt is cut, or goes on behind `</s>`, it is another."""
        ends = {s[0] for s in case.bot.stops.sequences if len(s) == 1}
        for asked in case.facts["generate"]:
            whole = {**asked, "prompts": [*asked["prompts"]]}
            pictures = [case.folder / "images" / name for name in asked["images"]]
            uncut = case.bot.captioner(pictures, asked["prompts"], return_tensors="pt")["input_ids"].shape
            if uncut != case.prompts(whole)["input_ids"].shape:
                continue
            said = case.bot.caption(
                pictures,
                asked["prompts"],
                num_beams=asked["num_beams"],
                max_new_tokens=asked["max_new_tokens"],
                repetition_penalty=float(asked["repetition_penalty"]),
                length_penalty=float(asked["length_penalty"]),
            )
            for ours, text, ids in zip(said, asked["texts"], asked["token_ids"], strict=True):
                if not ends & set(ids[:-1]):
                    assert ours == text.strip()
                    assert ours.finish == ("stop" if ids[-1] in ends else "length")

    def test_ranks_of_given_answers(self, case: LavisCase) -> None:
        if "predict_class" not in case.facts:
            pytest.skip("this case ranks no answers")
        asked = case.facts["predict_class"]
        found = case.bot.rank(case.pictures, asked["prompts"], asked["candidates"])
        ranks = [[asked["candidates"].index(answer) for answer, _ in row] for row in found]
        assert ranks == asked["ranks"]


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
