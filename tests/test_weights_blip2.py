"""BLIP-2 and InstructBLIP as the hub has them: taken in, asked, taught and given back, beside plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

import minichat
from minichat.errors import ModelError, PromptError, SettingsError
from minichat.inference.bot import MiniChat
from minichat.model.minichat import words_of
from minichat.prompt.conversation import Conversation
from minichat.prompt.processor import MODEL_FILE
from minichat.train.yaml_config import write_yaml
from minichat.weights.convert import convert
from minichat.weights.export import export
from minichat.weights.key_map import LAVIS
from minichat.weights.registry import find
from tests.published_files import VIT, their_names, vision_file
from tests.tiny import counting, noise_picture
from tests.tiny_blip2 import KINDS, publish_whole
from tests.training import run, steps_of, write_talks

PICTURES = [noise_picture(seed) for seed in range(3)]
QUESTIONS = ["What is it?", "How many stars are there, and is it yellow?", "a star"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: publish_whole(tmp_path_factory.mktemp("whole") / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bot(folders: dict[str, Path], kind: str) -> MiniChat:
    return minichat.load(folders[kind], device="cpu", dtype="float32")


def plain(folder: Path) -> Any:
    """In plain transformers, with the originals' eps of what they call ln_vision."""
    instructed = json.loads((folder / "config.json").read_text())["model_type"] == "instructblip"
    kind = InstructBlipForConditionalGeneration if instructed else Blip2ForConditionalGeneration
    model, told = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(told.values())
    model.vision_model.post_layernorm.eps = 1e-5
    return model.eval()


def batch_of(bot: MiniChat) -> dict[str, torch.Tensor]:
    batch = dict(bot.captioner(PICTURES, QUESTIONS, return_tensors="pt"))
    if bot.model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.zeros(len(QUESTIONS), 1, dtype=torch.long)
    return batch


def logits(model: Any, batch: dict[str, torch.Tensor], slot: int, rows: int) -> torch.Tensor:
    """Of what is no padding, without the slot's column."""
    ours = batch["input_ids"].max()
    ids = batch["input_ids"].where(batch["input_ids"] != ours, slot)
    with torch.no_grad():
        found = model(**{**batch, "input_ids": ids}).logits[..., :rows]
    return found[batch["attention_mask"].bool()] if "decoder_input_ids" not in batch else found


def test_it_is_transformers_network(folders: dict[str, Path], kind: str, bot: MiniChat) -> None:
    """Its template is known by its kind, its LLM stays where it is, and its logits are those of plain transformers."""
    assert bot.processor.template == KINDS[kind]
    folder = find(folders[kind])
    assert not any(name.startswith("language_model") for name in load_file(folder / "model.safetensors"))
    theirs, batch = plain(folders[kind]), batch_of(bot)
    slot = theirs.config.image_token_index
    ours = logits(bot.model, batch, bot.model.config.image_token_index, slot)
    torch.testing.assert_close(ours, logits(theirs, batch, slot, slot), rtol=0, atol=1e-4)
    assert find(folders[kind]) == folder  # made once


def test_it_goes_back_as_it_came(folders: dict[str, Path], kind: str, bot: MiniChat, tmp_path: Path) -> None:
    """Every tensor is what it was, save for the slot's row; prompts, pixels and logits are plain transformers' own."""
    out = export(str(folders[kind]), "blip2", tmp_path / "out")
    before, after = load_file(folders[kind] / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor), name
    theirs, batch = plain(out), batch_of(bot)
    own, slot = bot.model.config.image_token_index, theirs.config.image_token_index
    rows = min(slot, bot.model.config.text_config.vocab_size)
    ours = logits(bot.model, batch, own, rows)
    torch.testing.assert_close(logits(theirs, batch, slot, rows), ours, rtol=0, atol=1e-4)
    theirs.vision_model.post_layernorm.eps = 1e-6  # transformers' own
    torch.testing.assert_close(logits(theirs, batch, slot, rows), ours, rtol=0, atol=1e-3)
    for picture, question in zip(PICTURES, QUESTIONS, strict=True):
        spelled = AutoProcessor.from_pretrained(out)(images=picture, text=question, return_tensors="pt")
        one = bot.captioner(picture, question, return_tensors="pt")
        assert spelled["input_ids"].where(spelled["input_ids"] != slot, own).tolist() == one["input_ids"].tolist()
        torch.testing.assert_close(spelled["pixel_values"], one["pixel_values"], rtol=0, atol=1e-6)
        if "qformer_input_ids" in one:
            assert spelled["qformer_input_ids"].tolist() == one["qformer_input_ids"].tolist()


def test_captions_do_not_depend_on_their_company(bot: MiniChat) -> None:
    settings = {"max_new_tokens": 9}
    together = bot.caption(PICTURES, QUESTIONS, **settings)
    assert together == [bot.caption([p], q, **settings)[0] for p, q in zip(PICTURES, QUESTIONS, strict=True)]
    assert len(set(together)) == 3
    searched = bot.caption(PICTURES, QUESTIONS, num_beams=3, length_penalty=-1, **settings)
    assert searched == [
        bot.caption([p], q, num_beams=3, length_penalty=-1, **settings)[0]
        for p, q in zip(PICTURES, QUESTIONS, strict=True)
    ]
    assert bot.caption(PICTURES[:1], **settings) == bot.caption(PICTURES[:1], bot.caption_prompt, **settings)


def test_a_conversation_is_what_it_would_be_anew(bot: MiniChat) -> None:
    """Cached = uncached; the vision encoder sees a picture once, however often the Q-Former reads it."""
    one, other = (noise_picture(seed) for seed in (10, 11))  # which no other test has had encoded
    with counting(bot) as counts:
        chat = bot.chat(max_new_tokens=7)
        replies = [chat.ask(QUESTIONS[0], one), chat.ask(QUESTIONS[1]), chat.ask(QUESTIONS[2], other)]
        chat.regenerate()
    assert counts["pictures"] == 2
    for turns in range(3):
        anew = bot.chat(conversation=Conversation(chat.conversation.messages[: 2 * turns]), max_new_tokens=7)
        again = anew.ask(QUESTIONS[turns], [one, None, other][turns])
        assert again == replies[turns]


def test_an_instructed_qformer_reads_the_question(bot: MiniChat) -> None:
    one, other = (bot.encode(PICTURES[:1], [question]) for question in QUESTIONS[:2])
    assert torch.equal(one, other) != bot.processor.instructed
    with pytest.raises(PromptError, match="qformer_input_ids"):
        words = None if bot.processor.instructed else (torch.ones(1, 2, dtype=torch.long),) * 2
        bot.model.read_patches(bot.encode_patches(PICTURES[:1]), words)


def test_ranks_are_sums_of_log_probabilities(bot: MiniChat) -> None:
    """As a forward pass over question and answer has them, the end not counted unless a decoder writes it alone."""
    candidates = ["yellow", "a red circle and a blue boat", "3"]
    (found,) = bot.rank([PICTURES[0]], QUESTIONS[0], candidates)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    for answer, score in found:
        talk = Conversation().user(QUESTIONS[0], [PICTURES[0]]).assistant(answer)
        whole = bot.captioner.render(talk, continue_final_message=not bot.model.config.is_encoder_decoder)
        batch = bot.processor.batch([whole], labels=True)
        labels = batch.pop("labels")
        if bot.model.config.is_encoder_decoder:
            start = int((labels[0] >= 0).nonzero()[0])
            batch |= {name: batch[name][:, :start] for name in ("input_ids", "attention_mask")}
            labels = labels[:, start:]
        with torch.no_grad():
            loss = bot.model(**batch, labels=labels).loss
        count = int((labels >= 0).sum())
        assert score == pytest.approx(-float(loss) * count, abs=1e-3)
    with pytest.raises(PromptError, match="candidates"):
        bot.rank([PICTURES[0]], "What?", ["yes", " "])


def desk(folder: Path, model: Path) -> Path:
    """A data set, and `train.yaml` for this model."""
    folder.mkdir(exist_ok=True)
    write_talks(folder / "talks.jsonl", 8)
    content = {
        "out": str(folder / "run"),
        "model": {"name": str(model), "device": "cpu"},
        "data": {"train": str(folder / "talks.jsonl")},
        "optimizer": {"lr": 1e-2},
        "run": {"max_steps": 2, "batch_size": 4},
        "report": {"log_every": 1, "samples": 0, "tensorboard": False},
    }
    (folder / "train.yaml").write_text(write_yaml(content))
    return folder


@pytest.mark.parametrize("kind", ["opt", "vicuna"])
def test_its_projection_is_taught(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """With features that are computed once, and without: the same losses, and nothing else changes."""
    desk(tmp_path, folders[kind])
    run(tmp_path)
    run(tmp_path, f"out={tmp_path / 'kept'}", f"data.feature_cache={tmp_path / 'features'}")
    one, other = ([line["loss"] for line in steps_of(tmp_path / name)] for name in ("run", "kept"))
    assert one == pytest.approx(other, abs=1e-4)
    taught, before = (minichat.load(name, device="cpu", dtype="float32") for name in (tmp_path / "run", folders[kind]))
    assert taught.caption(PICTURES[:1], max_new_tokens=4) is not None
    held = before.model.state_dict()
    changed = {name for name, tensor in taught.model.state_dict().items() if not torch.equal(tensor, held[name])}
    assert changed == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("kind", ["opt", "instructed t5"])
def test_its_qformer_and_an_adapter_are_taught(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """What comes of it is a whole model, which goes back to transformers with the same logits."""
    desk(tmp_path, folders[kind])
    run(tmp_path, "trainable=[projection,bridge]", "lora.rank=2")
    taught = minichat.load(tmp_path / "run", device="cpu", dtype="float32")
    out = export(str(tmp_path / "run"), "blip2", tmp_path / "out")
    batch, theirs = batch_of(taught), plain(out)
    own, slot = taught.model.config.image_token_index, theirs.config.image_token_index
    rows = min(slot, taught.model.config.text_config.vocab_size)
    ours = logits(taught.model, batch, own, rows)
    torch.testing.assert_close(logits(theirs, batch, slot, rows), ours, rtol=0, atol=1e-4)
    merged = export(str(tmp_path / "run"), "minichat", tmp_path / "merged")
    again = minichat.load(merged, device="cpu", dtype="float32")
    assert again.caption(PICTURES, QUESTIONS, max_new_tokens=5) == taught.caption(PICTURES, QUESTIONS, max_new_tokens=5)


def test_laviss_file_gives_the_same_network(folders: dict[str, Path], kind: str, bot: MiniChat, tmp_path: Path) -> None:
    """From EVA's encoder, what LAVIS saves, and an LLM; InstructBLIP's Vicuna gets a row of zeros for `[PAD]`."""
    state = {name: tensor.detach().clone() for name, tensor in bot.model.state_dict().items()}
    for name in [name for name in state if name.endswith("qkv.bias")]:
        width = len(state[name]) // 3
        state[name][width : 2 * width] = 0
    torch.save(vision_file(state), tmp_path / VIT)
    asks = {"opt": "opt_proj", "vicuna": "llm_proj"}.get(kind, "t5_proj")
    used = {theirs: ours for theirs, ours in LAVIS.used.items() if ours != "projection" or theirs.startswith(asks)}
    trained = their_names(
        type(LAVIS)({n: o for n, o in used.items() if "_proj." not in n or n.startswith(asks)}), state
    )
    torch.save({"model": trained}, tmp_path / "lavis.pth")
    llm = export(str(folders[kind]), "llm", tmp_path / "llm")
    given: dict[str, Any] = {"vit": tmp_path / VIT, "projection": tmp_path / "lavis.pth", "llm": str(llm)}
    given |= {"vision_heads": 2, "qformer_heads": 2}
    if bot.processor.instructed:
        with pytest.raises(SettingsError, match="--tokenizer"):
            convert(tmp_path / "out", **given)
        given |= {"tokenizer": folders[kind] / "qformer_tokenizer"}
    with pytest.raises(SettingsError, match="--llm"):
        convert(tmp_path / "out", **{**given, "llm": None})
    other = minichat.load(convert(tmp_path / "out", **given), device="cpu", dtype="float32")
    assert other.processor.template == KINDS[kind]
    batch = batch_of(bot)
    bot.model.load_state_dict(state)
    rows = min(model.config.text_config.vocab_size for model in (bot.model, other.model))
    ours, theirs = (logits(m, batch, m.config.image_token_index, rows) for m in (bot.model, other.model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_padding_row_is_added_where_the_llm_has_none(folders: dict[str, Path], tmp_path: Path) -> None:
    bot = minichat.load(folders["vicuna"], device="cpu")
    llm = bot.model.language_model
    words = bot.processor.content_tokenizer.vocab_size
    llm.resize_token_embeddings(words)
    llm.save_pretrained(tmp_path / "llm")
    (tmp_path / "llm" / MODEL_FILE).write_bytes((folders["vicuna"] / MODEL_FILE).read_bytes())
    state = {name: tensor.detach() for name, tensor in bot.model.state_dict().items()}
    torch.save(vision_file(state), tmp_path / VIT)
    keys = type(LAVIS)({n: o for n, o in LAVIS.used.items() if "_proj." not in n or n.startswith("llm_proj")})
    torch.save({"model": their_names(keys, state)}, tmp_path / "lavis.pth")
    for merge in (False, True):
        out = convert(
            tmp_path / f"out{merge}",
            vit=tmp_path / VIT,
            projection=tmp_path / "lavis.pth",
            llm=str(tmp_path / "llm"),
            tokenizer=folders["vicuna"] / "qformer_tokenizer",
            vision_heads=2,
            qformer_heads=2,
            merge=merge,
        )
        made = minichat.load(out, device="cpu").model
        assert made.config.text_config.vocab_size == made.config.image_token_index == words + 1
        for table in (made.get_input_embeddings().weight, made.get_output_embeddings().weight):
            assert len(table) == words + 1
            assert not table[-1].any() and table[-2].any()


def test_what_cannot_be_taken_in_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of type 'minichat', not 'blip-2', 'instructblip'"):
        convert(tmp_path / "out", blip2=str(find("minichat-tiny")))
    with pytest.raises(SettingsError, match="from 3 to 40"):
        convert(tmp_path / "out", blip2=str(folders["vicuna"]), instruction_tokens=41)
    for given in ({"instruction_tokens": 8}, {"tokenizer": folders["vicuna"] / "qformer_tokenizer"}):
        with pytest.raises(SettingsError, match="reads none"):
            convert(tmp_path / "out", blip2=str(folders["opt"]), **given)
    (folders["vicuna"] / "qformer_tokenizer" / "tokenizer.json").rename(tmp_path / "gone.json")
    try:
        with pytest.raises(ModelError, match="qformer_tokenizer"):
            convert(tmp_path / "out", blip2=str(folders["vicuna"]))
    finally:
        (tmp_path / "gone.json").rename(folders["vicuna"] / "qformer_tokenizer" / "tokenizer.json")


def test_words_of_a_batch(bot: MiniChat) -> None:
    batch = batch_of(bot)
    words = words_of(batch)
    assert (words is not None) == bot.processor.instructed
    if words is not None:
        assert len(words[0]) == len(PICTURES)
        long = bot.captioner(PICTURES[0], " ".join(QUESTIONS * 9), return_tensors="pt")
        assert long["qformer_input_ids"].shape[1] == bot.processor.max_instruction_tokens
        end = bot.captioner(PICTURES[0], " ".join(QUESTIONS), return_tensors="pt")["qformer_input_ids"][0]
        assert long["qformer_input_ids"][0][-5:].tolist() == end[-5:].tolist()  # what is cut is the beginning
