"""Stage 1's files: BLIP-2's own, Hugging Face's folders, BERT's to begin with, and the bridge that comes out."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

import minichat
from minichat.cli import app
from minichat.errors import ModelError, PromptError, SettingsError
from minichat.images import to_pixels
from minichat.model.config import PretrainingConfig
from minichat.model.qformer_pretrain import QFormerPretraining
from minichat.prompt.tokenizer import read_wordpiece, tokenize
from minichat.weights import account
from minichat.weights.convert import convert
from minichat.weights.key_map import BLIP2_STAGE1
from minichat.weights.qformer import (
    BESIDE,
    init_stage1,
    read_bert,
    read_blip2,
    read_stage1,
    read_vit,
    shapes,
    write_stage1,
)
from tests.conftest import ROOT, reference_folders
from tests.published_files import their_names, vision_file
from tests.tiny import noise_picture, tiny_bot, tokenizer_model
from tests.tiny_stage1 import QUERIES, SIDE, WORDS, tiny_pretraining, vocabulary
from tests.tiny_t5 import publish_t5

VOCABULARY = len(WORDS) + 1  # with [DEC]
TEXTS = ["a red circle", "blue squares left of a star", "a star"]


def random_model(**changes: Any) -> QFormerPretraining:
    """In no parameter as it was made; the keys of the vision encoder's attention have no bias, as in EVA's."""
    model = tiny_pretraining(qformer={"vocab_size": VOCABULARY}, **changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.normal_(float(".weight" in name), 0.3)
            if name.endswith("qkv.bias"):
                weight[16:32] = 0
        model.temp.fill_(0.05)
    return model


def publish(folder: Path, model: QFormerPretraining) -> dict[str, Any]:
    """Write a model's files as EVA and BLIP-2 publish theirs; what `read_blip2` takes for them."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(vision_file(state), folder / "eva_vit.pth")
    theirs = their_names(BLIP2_STAGE1, state)
    theirs["Qformer.bert.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save({"model": theirs}, folder / "blip2.pth")
    return {
        "checkpoint": folder / "blip2.pth",
        "vit": folder / "eva_vit.pth",
        "tokenizer": vocabulary(folder / "words"),
        "vision_heads": 2,
        "qformer_heads": 2,
    }


def publish_as_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what BLIP-2 published, under its names, in `folder`, which becomes the working one."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(account, "VISION_HEADS", {16: 2})
    monkeypatch.setattr(account, "QFORMER_HEADS", {12: 2})
    files = publish(folder, random_model())
    files["checkpoint"].rename("blip2_pretrained.pth")
    files["vit"].rename("eva_vit_g.pth")
    files["tokenizer"].rename("bert-base-uncased")


def repack(file: Path, change: Any) -> None:
    content = torch.load(file, weights_only=True)
    change(content["model"])
    torch.save(content, file)


def equal(one: QFormerPretraining, other: QFormerPretraining) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Without the precision that transformers notes in what it loaded."""
    return {n: plain(v) if isinstance(v, dict) else v for n, v in config.items() if n != "dtype"}


def pixels() -> Tensor:
    return to_pixels([noise_picture(seed) for seed in range(3)], SIDE)


@torch.no_grad()
def answers(model: QFormerPretraining, texts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Similarities (3, 3), and the matching logits (3, 2) of each picture with its text."""
    patches = model.encode_patches(pixels())
    similarity = model.similarity(model.image_embeddings(patches), model.text_embeddings(**texts))
    return similarity, model.match(patches, **texts)


@torch.no_grad()
def their_answers(model: Blip2ForImageTextRetrieval, texts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    similarity = model(pixel_values=pixels(), **texts).logits_per_image
    return similarity, model(pixel_values=pixels(), **texts, use_image_text_matching_head=True).logits_per_image


class TestPublished:
    @pytest.mark.parametrize("tied", [True, False])
    def test_all_comes_back(self, tmp_path: Path, tied: bool) -> None:
        model = random_model(tie_word_embeddings=tied)
        stage1 = read_blip2(**publish(tmp_path, model))
        equal(stage1.model, model)
        assert stage1.made == ()
        assert stage1.model.config.tie_word_embeddings == tied
        assert stage1.model.config.decoder_start_token_id == stage1.tokenizer.bos_token_id == VOCABULARY - 1
        assert not stage1.model.training

    def test_with_the_vision_encoder_inside(self, tmp_path: Path) -> None:
        """As in BLIP-2's file for COCO retrieval: all its blocks are used."""
        model = random_model()
        files = publish(tmp_path, model)
        vision = torch.load(files.pop("vit"), weights_only=True)
        inside = {
            f"visual_encoder.{n}": t for n, t in vision.items() if not n.startswith(("blocks.2.", "norm", "head"))
        }
        repack(files["checkpoint"], lambda held: held.update(inside))
        equal(read_blip2(**files).model, model)

    def test_the_vision_encoder_is_asked_for(self, tmp_path: Path) -> None:
        files = publish(tmp_path, random_model())
        del files["vit"]
        with pytest.raises(SettingsError, match=r"blip2\.pth holds no vision encoder: give EVA's"):
            read_blip2(**files)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda held: held.update(surprise=torch.ones(2)), r"blip2\.pth holds surprise, which"),
            (lambda held: held.pop("Qformer.cls.predictions.transform.dense.bias"), "gives cls.predictions.transform"),
            (lambda held: held.pop("temp"), "gives temp"),
            (lambda held: held.pop("itm_head.weight"), "no tensor itm_head.weight"),
            (lambda held: held.update({"itm_head.weight": torch.ones(3, 12)}), r"itm_head.weight in blip2\.pth has"),
            (lambda held: held.update({"temp": torch.tensor(torch.nan)}), r"temp in blip2\.pth holds values"),
            (lambda held: held.update({"ln_vision.bias": torch.ones(4)}), r"ln_vision.bias in blip2\.pth has"),
        ],
    )
    def test_every_tensor_is_accounted_for(self, tmp_path: Path, change: Any, message: str) -> None:
        files = publish(tmp_path, random_model())
        repack(files["checkpoint"], change)
        with pytest.raises(ModelError, match=message):
            read_blip2(**files)

    def test_a_tokenizer_of_more_words(self, tmp_path: Path) -> None:
        files = publish(tmp_path, random_model())
        with (files["tokenizer"] / "vocab.txt").open("a") as file:
            file.write("more\n")
        with pytest.raises(ModelError, match=r"word piece 15, but the Q-Former's vocabulary has 15"):
            read_blip2(**files)


class TestFolder:
    def test_transformers_loads_it_and_agrees(self, tmp_path: Path) -> None:
        model, words = random_model(), read_wordpiece(vocabulary(tmp_path / "words"))
        out = write_stage1(tmp_path / "out", model, words)
        theirs, told = Blip2ForImageTextRetrieval.from_pretrained(out, output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        assert not told["mismatched_keys"]
        texts = tokenize(words, TEXTS)
        ours, exactly = answers(model, texts), 1e-6
        for one, other in zip(ours, their_answers(theirs.eval(), texts), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-4)
        theirs.vision_model.post_layernorm.eps = model.config.bridge_config.ln_vision_eps
        for one, other in zip(ours, their_answers(theirs, texts), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=exactly * 5)

    def test_transformers_prepares_the_same_inputs(self, tmp_path: Path) -> None:
        from transformers import Blip2Processor

        words = read_wordpiece(vocabulary(tmp_path / "words"))
        processor = Blip2Processor.from_pretrained(write_stage1(tmp_path / "out", random_model(), words))
        batch = processor(
            images=[noise_picture(seed) for seed in range(3)], text=TEXTS, padding=True, return_tensors="pt"
        )
        torch.testing.assert_close(batch["pixel_values"], pixels(), rtol=0, atol=1e-5)
        for name, tensor in tokenize(words, TEXTS).items():
            assert torch.equal(batch[name], tensor)

    @pytest.mark.parametrize("tied", [True, False])
    def test_it_comes_back_to_the_bit(self, tmp_path: Path, tied: bool) -> None:
        model, words = random_model(tie_word_embeddings=tied), read_wordpiece(vocabulary(tmp_path / "words"))
        back = read_stage1(str(write_stage1(tmp_path / "out", model, words)))
        equal(back.model, model)
        assert back.made == ()
        assert back.tokenizer.get_vocab() == words.get_vocab()
        assert back.model.config.tie_word_embeddings == tied
        assert plain(back.model.config.to_dict()) == plain(model.config.to_dict())
        assert set(load_file(tmp_path / "out" / BESIDE)) == {
            name for name in model.state_dict() if name == "temp" or name.startswith("cls.")
        }

    def test_without_what_hugging_face_has_not(self, tmp_path: Path) -> None:
        """It is read, and what is made up is told; the words' head begins with their embedding."""
        model, words = random_model(), read_wordpiece(vocabulary(tmp_path / "words"))
        out = write_stage1(tmp_path / "out", model, words)
        (out / BESIDE).unlink()
        back = read_stage1(str(out))
        assert "temp" in back.made
        assert "cls.predictions.transform.dense.weight" in back.made
        assert all(name == "temp" or name.startswith("cls.") for name in back.made)
        assert float(back.model.temp.detach()) == pytest.approx(0.07)
        assert back.model.cls.predictions.decoder.weight is back.model.embeddings.word_embeddings.weight
        assert not back.model.cls.predictions.bias.any()
        texts = tokenize(words, TEXTS)
        for one, other in zip(answers(model, texts), answers(back.model, texts), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda out: (out / "model.safetensors").unlink(), "has no model.safetensors"),
            (lambda out: (out / "config.json").write_text('{"model_type": "llama"}'), "holds a llama, not a Blip2For"),
            (lambda out: (out / "tokenizer.json").unlink(), "holds no BERT tokenizer"),
            (lambda out: save_file({"cls.more": torch.ones(1)}, out / BESIDE), "is not a whole one|has no place"),
            (
                lambda out: (out / "config.json").write_text(
                    (out / "config.json").read_text().replace('"num_query_tokens": 3', '"num_query_tokens": 4')
                ),
                r"query_tokens in model.safetensors has the shape \(1, 3, 12\).*\(1, 4, 12\)",
            ),
        ],
    )
    def test_a_folder_that_is_not_one(self, tmp_path: Path, spoil: Any, message: str) -> None:
        words = read_wordpiece(vocabulary(tmp_path / "words"))
        out = write_stage1(tmp_path / "out", random_model(), words)
        spoil(out)
        with pytest.raises(ModelError, match=message) as error:
            read_stage1(str(out))
        assert str(tmp_path) not in str(error.value)

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        words = read_wordpiece(vocabulary(tmp_path / "words"))
        with pytest.raises(ModelError, match="'words' exists already"):
            write_stage1(tmp_path / "words", random_model(), words)


class TestBeginning:
    @pytest.mark.parametrize("layout", ["today", "gamma and beta", "without heads"])
    def test_from_bert(self, tmp_path: Path, layout: str) -> None:
        """Words start as BERT's, queries with its self-attention and feed-forward parts; all else is random."""
        from transformers import BertConfig, BertForPreTraining

        torch.manual_seed(1)
        sizes = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
        bert = BertForPreTraining(BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=16)).eval()
        (bert.bert if layout == "without heads" else bert).save_pretrained(tmp_path / "bert")
        vocabulary(tmp_path / "bert")
        if layout == "gamma and beta":
            file = tmp_path / "bert" / "model.safetensors"
            renamed = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in load_file(file).items()}
            renamed = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in renamed.items()}
            save_file(renamed, file, metadata={"format": "pt"})
        found, tensors = read_bert(str(tmp_path / "bert"))
        assert found["vocab_size"] == VOCABULARY
        config = PretrainingConfig(
            vision_config=random_model().config.vision_config,
            bridge_config={"num_query_tokens": QUERIES, "qformer": found},
            contrast_size=8,
        )
        words = read_wordpiece(tmp_path / "bert")
        stage1 = init_stage1(config, words, bert=tensors)
        model = stage1.model
        texts = tokenize(words, TEXTS)
        with torch.no_grad():
            kinds = bert.bert.embeddings.token_type_embeddings
            kinds.weight.zero_()  # of which a Q-Former has none
            theirs = bert.bert(**texts)[0]
            torch.testing.assert_close(model.text_states(**texts), theirs, rtol=0, atol=1e-5)
            if layout != "without heads":
                predicted = bert.cls.predictions(theirs)
                torch.testing.assert_close(model.cls(theirs)[..., : len(WORDS)], predicted, rtol=0, atol=1e-5)
        for layer in model.bridge.qformer.encoder.layer:
            assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
            assert torch.equal(layer.output_query.LayerNorm.weight, layer.output.LayerNorm.weight)
        assert any("crossattention" in name for name in stage1.made)
        assert any("cls.predictions.transform" in name for name in stage1.made) == (layout == "without heads")
        assert not any("layer.0.attention" in name or "intermediate" in name for name in stage1.made)
        queries = model.bridge.query_tokens
        assert queries.std() > 0.01
        assert not torch.equal(model.embeddings.word_embeddings.weight[-1], torch.zeros(12))

    def test_from_a_vision_encoder(self, tmp_path: Path) -> None:
        model = random_model()
        files = publish(tmp_path, model)
        config, tensors = read_vit(files["vit"], heads=2)
        assert config["num_hidden_layers"] == 2
        stage1 = init_stage1(model.config, read_wordpiece(files["tokenizer"]), vision=tensors)
        assert torch.equal(stage1.model.encode_patches(pixels()), model.encode_patches(pixels()))
        assert not any(name.startswith("vision_model.") for name in stage1.made)
        assert "bridge.query_tokens" in stage1.made

    def test_random_but_repeatable(self, tmp_path: Path) -> None:
        words, config = read_wordpiece(vocabulary(tmp_path)), random_model().config
        state = torch.get_rng_state()
        models = [init_stage1(config, words, seed=seed).model for seed in (1, 1, 2)]
        assert torch.equal(torch.get_rng_state(), state)
        equal(models[0], models[1])
        assert not torch.equal(models[0].bridge.query_tokens, models[2].bridge.query_tokens)
        assert float(models[0].temp.detach()) == pytest.approx(0.07)

    def test_parts_that_do_not_fit(self, tmp_path: Path) -> None:
        words, config = read_wordpiece(vocabulary(tmp_path)), random_model().config
        wrong = {"embeddings.class_embedding": torch.zeros(1, 1, 17)}
        with pytest.raises(ModelError, match=r"class_embedding has the shape \(1, 1, 17\).* needs \(1, 1, 16\)"):
            init_stage1(config, words, vision=wrong)
        with pytest.raises(ModelError, match=r"vision_model\.surprise has no place"):
            init_stage1(config, words, vision={"surprise": torch.zeros(1)})
        with pytest.raises(ModelError, match=r"has 15 word pieces, but qformer\.vocab_size is 14"):
            init_stage1(tiny_pretraining(qformer={"vocab_size": 14}).config, words)

    def test_a_folder_that_is_no_bert(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(ModelError, match="a model of type 'llama', not 'bert'"):
            read_bert(str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(ModelError, match=r"has no model\.safetensors"):
            read_bert(str(tmp_path))


FULL_SIZE = [file for folder in reference_folders() if (file := folder / "full_size_keys.json").is_file()]


@pytest.mark.skipif(not FULL_SIZE, reason="no list of the full size's tensors")
def test_every_tensor_of_the_full_size() -> None:
    """Each published name has its place in a model of that size, in its shape, and no place is left empty."""
    published = json.loads(FULL_SIZE[0].read_text())
    held = {name: tuple(shape) for name, shape in published["blip2_stage1.Qformer"].items()}
    config = PretrainingConfig(
        vision_config={},
        bridge_config={"qformer": {"vocab_size": held["Qformer.bert.embeddings.word_embeddings.weight"][0]}},
    )
    wanted = shapes(config)
    placed = {}
    for name, shape in held.items():
        ours = BLIP2_STAGE1.target(name)
        if ours is None:
            assert BLIP2_STAGE1.known_unused(name), name
        else:
            assert wanted[ours] == shape, name
            placed[ours] = name
    assert len(placed) == len(held) - 1  # position_ids follow from the configuration
    assert wanted.keys() - placed.keys() == {name for name in wanted if name.startswith("vision_model.")}


class TestWordPieces:
    def test_a_person_writes_no_control_token(self, tmp_path: Path) -> None:
        words = read_wordpiece(vocabulary(tmp_path))
        texts = ["a [SEP] star", "[DEC]", "[PAD] [CLS]", "[MASK]", "<image> [dec]"]
        for text, ids in zip(texts, tokenize(words, texts)["input_ids"].tolist(), strict=True):
            ids = [number for number in ids if number != 0]
            assert ids[0] == words.cls_token_id, text
            assert ids[-1] == words.sep_token_id, text
            control = {words.cls_token_id, words.sep_token_id, words.mask_token_id, words.bos_token_id}
            assert not control & set(ids[1:-1]), text

    def test_layout(self, tmp_path: Path) -> None:
        words = read_wordpiece(vocabulary(tmp_path))
        batch = tokenize(words, ["A red circle", "stars " * 9], 6)
        assert batch["input_ids"].tolist() == [[2, 5, 6, 8, 3, 0], [2, 10, 13, 10, 13, 3]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
        assert tokenize(words, ["a"], 9, pad="max_length")["input_ids"].shape == (1, 9)
        with pytest.raises(PromptError, match="max_length is 2"):
            tokenize(words, ["a"], 2)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "has no vocab.txt or tokenizer.json"), (b"", r"has no \[CLS\]"), (b"\xff\xfe\x00", "cannot be read")],
    )
    def test_a_folder_without_one(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        if content is not None:
            (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read_wordpiece(tmp_path)


class TestStage2:
    """What the next stage begins with: the pre-trained Q-Former before an LLM, joined by a projection yet to train."""

    @pytest.mark.parametrize("source", ["folder", "original"])
    def test_it_begins_where_stage_1_ended(self, tmp_path: Path, source: str) -> None:
        model, bot = random_model(), tiny_bot()
        llm = tmp_path / "llm"
        bot.model.language_model.save_pretrained(llm)
        (llm / "tokenizer.model").write_bytes(tokenizer_model())
        files = publish(tmp_path / "published", model)
        sizes: dict[str, Any] = {"vit": files["vit"], "qformer": files["checkpoint"], "vision_heads": 2}
        if source == "folder":
            words = read_wordpiece(files["tokenizer"])
            sizes = {"blip2": str(write_stage1(tmp_path / "stage1", model, words))}
        sizes["qformer_heads"] = 2
        out = convert(tmp_path / "out", llm=str(llm), template="plain", **sizes)
        loaded = minichat.load(out, device="cpu")
        with torch.no_grad():
            features = loaded.model.encode_features(pixels())
            ours = model.query_states(model.encode_patches(pixels()))
        torch.testing.assert_close(features, ours, rtol=0, atol=1e-5)
        projection = loaded.model.projection.weight.detach()
        assert float(projection.std()) == pytest.approx(12**-0.5 / 3**0.5, rel=0.1)
        again = convert(tmp_path / "again", llm=str(llm), template="plain", **sizes)
        assert torch.equal(minichat.load(again, device="cpu").model.projection.weight, projection)
        assert json.loads((out / "conversion.json").read_text())["projection"] == "random"
        assert loaded.caption([noise_picture()], max_new_tokens=3)


def test_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program and the command of docs/PRETRAINING.md, with small files in the place of the published ones."""
    page = (ROOT / "docs" / "PRETRAINING.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    page = page.split("## Your own pictures and texts")[0]  # test_train_own_pairs.py
    commands = re.findall(r"```bash\nminichat (.*?)\n```", page, re.DOTALL)
    assert len(commands) == 2
    publish_as_named(tmp_path, monkeypatch)
    tiny_bot().model.language_model.save_pretrained("vicuna-7b")
    Path("vicuna-7b/tokenizer.model").write_bytes(tokenizer_model())
    names: dict[str, Any] = {"pixels": pixels()[:2]}
    exec(program, names)
    assert names["losses"].loss.isfinite()
    publish_t5(Path("flan-t5-xl"))
    for command in commands:
        with pytest.raises(SystemExit) as end:
            app(shlex.split(command))
        assert not end.value.code
    for out in ("stage2", "stage2-t5"):
        assert minichat.load(out, device="cpu").caption([noise_picture()], max_new_tokens=3)
