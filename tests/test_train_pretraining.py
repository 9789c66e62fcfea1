"""The stage `pretraining`: a step is the model's own loss, however many processes share it; from any beginning."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from minichat.data.dataset import shares
from minichat.errors import DataError, MiniChatError, SettingsError
from minichat.model.loss import ProcessGroup
from minichat.train.checkpoint import seed_of_all, seed_step
from minichat.train.config import check_unused
from minichat.train.data import read_data
from minichat.train.logging import read_metrics
from minichat.train.stages import qformer
from minichat.train.stages.qformer import Pretraining
from minichat.weights.qformer import read_stage1
from tests.pairs import caption, config_of, make_desk, run, write_pairs
from tests.published_files import vision_file
from tests.test_stage1_files import publish, random_model
from tests.test_train_loop import in_processes
from tests.tiny_stage1 import vocabulary
from tests.training import checkpoints, losses, same, steps_of, write_tar

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def whole(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(desk, f"out={out}")
    return out


def validations(out: Path) -> list[float]:
    return [line["validation_loss"] for line in read_metrics(out / "metrics.jsonl") if "validation_loss" in line]


def first_batch(stage: Pretraining, desk: Path, *settings: str) -> dict[str, Tensor]:
    """The first that is whole."""
    load = read_data(config_of(desk, *settings), stage, ProcessGroup(0, 1), print).loader.load()
    return next(batch for (batch,) in load if stage.count(batch) == 8)


class TestAStep:
    @pytest.mark.parametrize("objectives", ["itc", "itm, itg", "itc, itm, itg"])
    def test_is_the_models_own_loss(self, desk: Path, objectives: str) -> None:
        """Summed over the pairs, with the step's negatives; the chosen objectives' parts train, and no other."""
        settings = [f"qformer.objectives=[{objectives}]"]
        stage = Pretraining(config_of(desk, *settings), CPU)
        batch = first_batch(stage, desk, *settings)
        assert stage.count(batch) == 8
        stage.model.train()
        seed_step(0, 41, 0)
        found = stage.loss(batch)
        theirs = stage.model(
            batch["input_ids"],
            batch["attention_mask"],
            pixel_values=batch["pixel_values"],
            image_ids=batch["image_ids"],
            seed=41,
        )
        torch.testing.assert_close(found.sum(), 8 * theirs.loss, **CLOSE)
        assert list(stage.terms) == objectives.split(", ")
        for name, loss in zip(stage.terms, found, strict=True):
            torch.testing.assert_close(loss, 8 * theirs[name], **CLOSE)
        learned = {name.split(".")[0] for name, weight in stage.model.named_parameters() if weight.requires_grad}
        heads = {"vision_projection", "text_projection", "temp"} if "itc" in objectives else set()
        heads |= {"itm_head"} if "itm" in objectives else set()
        assert learned == {"bridge", "embeddings", *heads, *(["cls"] if "itg" in objectives else [])}

    def test_its_negatives_are_drawn_anew_and_those_of_a_validation_are_not(self, desk: Path) -> None:
        stage = Pretraining(config_of(desk, "qformer.objectives=[itm]"), CPU)
        batch = first_batch(stage, desk)

        def at(step: int) -> float:
            seed_step(0, step, 0)
            return stage.loss(batch).item()

        stage.model.train()
        assert len({at(step) for step in range(16)}) > 2
        assert at(3) == at(3)
        stage.model.eval()
        assert len({at(step) for step in range(8)}) == 1

    def test_its_seed_is_that_of_all_processes(self) -> None:
        def of(seed: int, step: int, rank: int) -> int:
            seed_step(seed, step, rank)
            return seed_of_all()

        assert of(5, 100, 0) == of(5, 100, 7)
        assert len({of(5, 100, 0), of(5, 101, 0), of(6, 100, 0)}) == 3

    def test_the_loss_goes_down(self, whole: Path, desk: Path, tmp_path: Path) -> None:
        assert len(validations(whole)) == 3
        run(desk, f"out={tmp_path / 'run'}", "optimizer.lr=1e-2", "run.epochs=4", "run.validate_every=1000")
        found = losses(tmp_path / "run")
        assert sum(found[-5:]) < 0.9 * sum(found[1:6])
        for line in steps_of(tmp_path / "run"):
            assert line["loss"] == pytest.approx(line["itc"] + line["itm"] + line["itg"])


def streamed(tar: Path, *more: str) -> list[str]:
    """Settings of three steps over a tar, in its order."""
    source = f"{{source: {tar}, options: {{shuffle: 1}}}}"
    return [
        f"data.train={source}",
        "data.streaming=true",
        "data.validation=null",
        "run.epochs=null",
        "run.max_steps=3",
        *more,
    ]


def test_a_pair_meets_others_of_any_length(desk: Path, tmp_path: Path) -> None:
    """All negatives are in the batch: those of like length must not be the only ones, nor again and again the same."""
    write_pairs(tmp_path / "many.csv", 60)  # a third of the texts are long
    config = config_of(desk, f"data.train={tmp_path / 'many.csv'}", f"data.validation={tmp_path / 'many.csv'}")
    data = read_data(config, Pretraining(config, CPU), ProcessGroup(0, 1), print)
    for loader in (data.loader, data.held_out):
        epoch = loader.epoch(0)
        alike = [batch for batch in epoch.batches if len(set(epoch.rows.lengths[batch].tolist())) == 1]
        assert len(alike) <= len(epoch.batches) // 2


def test_a_stream_without_a_text_ends_with_a_sentence(desk: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "web.tar", range(24), wordless=range(24))
    with pytest.raises(DataError, match="Nothing can be learned at step 1"):
        run(desk, f"out={tmp_path / 'run'}", *streamed(tmp_path / "web.tar"))


class TestProcesses:
    @pytest.mark.parametrize("settings", [[], ["run.batch_size=4", "data.train=held_out.csv", "run.epochs=3"]])
    def test_two_are_as_one(self, desk: Path, tmp_path: Path, settings: list[str], monkeypatch: Any) -> None:
        """Also where the last batch of an epoch, or of a validation, has a row for one of them alone."""
        monkeypatch.chdir(desk)
        alone, shared = tmp_path / "alone", tmp_path / "shared"
        run(desk, f"out={alone}", *settings)
        in_processes(2, partial(run, desk, f"out={shared}", *settings))
        for name in ("loss", "grad_norm", "items"):
            ours, theirs = (torch.tensor([line[name] for line in steps_of(out)]) for out in (shared, alone))
            torch.testing.assert_close(ours, theirs, **CLOSE)
        torch.testing.assert_close(*(torch.tensor(validations(out)) for out in (shared, alone)), **CLOSE)
        ours, theirs = (load_file(out / "model.safetensors") for out in (shared, alone))
        # As a whole: Adam moves a weight whose gradient is rounding alone as far as any other.
        one, other = (torch.cat([tensors[name].flatten() for name in theirs]) for tensors in (ours, theirs))
        assert (one - other).norm() <= 1e-3 * other.norm()
        items = [line["items"] for line in steps_of(alone)]
        assert (min(items) == 1) == bool(settings)

    def test_one_whose_whole_share_cannot_be_read_keeps_step(self, desk: Path, tmp_path: Path) -> None:
        """The first step's or a later one's; the step is that of the rows that can be read."""
        write_tar(tmp_path / "web.tar", range(12), broken={1, 3, 9, 11})  # all that the second reads of steps 1 and 3
        settings = streamed(tmp_path / "web.tar", "run.batch_size=4")
        alone, shared = tmp_path / "alone", tmp_path / "shared"
        run(desk, f"out={alone}", *settings)
        in_processes(2, partial(run, desk, f"out={shared}", *settings))
        assert [line["items"] for line in steps_of(shared)] == [2, 4, 2]
        torch.testing.assert_close(*(torch.tensor(losses(out)) for out in (shared, alone)), **CLOSE)
        assert sorted((shared / "left_out.txt").read_text().splitlines()) == sorted(
            (alone / "left_out.txt").read_text().splitlines()
        )
        assert len((alone / "left_out.txt").read_text().splitlines()) == 4  # each is named once

    def test_two_draw_as_one_from_a_stream(self, desk: Path, tmp_path: Path) -> None:
        """Hard negatives go by a pair's place in the stream, also where records are left out and lengths differ."""
        write_tar(tmp_path / "web.tar", range(24), broken={2, 9})
        settings = streamed(tmp_path / "web.tar", "run.batch_size=8", "optimizer.lr=1e-2")
        alone, shared = tmp_path / "alone", tmp_path / "shared"
        run(desk, f"out={alone}", *settings)
        in_processes(2, partial(run, desk, f"out={shared}", *settings))
        for term in ("itc", "itm", "itg"):
            ours, theirs = (torch.tensor([line[term] for line in steps_of(out)]) for out in (shared, alone))
            torch.testing.assert_close(ours, theirs, **CLOSE)

    def test_a_row_that_keeps_step_is_no_pair(self, desk: Path) -> None:
        stage = Pretraining(config_of(desk), CPU)
        rows = read_data(config_of(desk), stage, ProcessGroup(0, 1), print).loader.rows
        (share,) = shares([3], rank=1, processes=2)
        assert not share.learn
        assert stage.count(stage.collate([rows[place].masked() for place in share.rows])) == 0

    @pytest.mark.parametrize(
        ("settings", "advice"),
        [
            (
                [],
                "give data.feature_cache a folder, and the same command goes on; or begin anew, in another out, and lo",
            ),
            (
                ["data.feature_cache=kept"],
                "begin anew, in another out, and lower run.batch_size or lower data.max_length",
            ),
            (
                ["trainable=[bridge, vision_model]"],
                "begin anew, in another out, and set model.vision_gradient_checkpointing to tru",
            ),
        ],
    )
    def test_what_does_not_fit_is_said(
        self, desk: Path, tmp_path: Path, settings: list[str], advice: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of an LLM, and of a step in parts, there is no word."""

        def full(self: Pretraining, batch: Any) -> Tensor:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(Pretraining, "loss", full)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingsError, match=f"8 rows of .* fit into memory at once: {advice}") as caught:
            run(desk, f"out={tmp_path / 'run'}", *settings)
        assert not any(word in str(caught.value) for word in ("llm", "quantize", "micro_batch_size"))

    @pytest.mark.parametrize("settings", [["run.micro_batch_size=4"], ["run.batch_size=7", "run.micro_batch_size=6"]])
    def test_a_step_in_parts_is_refused(self, desk: Path, settings: list[str]) -> None:
        with pytest.raises(SettingsError, match=r"compares all pairs .* run.batch_size \(.\) must be run.micro"):
            Pretraining(config_of(desk, *settings), CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_resumed(desk: Path, tmp_path: Path, workers: int) -> None:
    """To the bit, with dropout and drawn negatives."""
    settings = ["qformer.new.dropout=0.2", "run.save_every=100"]
    run(desk, f"out={tmp_path / 'whole'}", *settings)
    given = [f"out={tmp_path / 'run'}", f"data.num_workers={workers}", *settings]
    assert run(desk, *given, stop=3).step == 3
    assert run(desk, *given).step == 5
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert validations(tmp_path / "run") == validations(tmp_path / "whole")
    assert same(checkpoints(tmp_path / "run")[5], checkpoints(tmp_path / "whole")[5])


class TestBeginnings:
    def test_random(self, desk: Path) -> None:
        """The frozen eyes are the model's that lent them; the seed decides the rest."""
        first, again, other = (
            Pretraining(config_of(desk, f"seed={seed}"), CPU).model.state_dict() for seed in (0, 0, 1)
        )
        lent = {
            k: v for k, v in load_file(desk / "model" / "model.safetensors").items() if k.startswith("vision_model.")
        }
        assert lent
        assert all(torch.equal(first[name], tensor) for name, tensor in lent.items())
        assert same(first, again)
        assert not torch.equal(first["bridge.query_tokens"], other["bridge.query_tokens"])

    def test_from_bert_and_evas_file(self, desk: Path, tmp_path: Path) -> None:
        from transformers import BertConfig, BertForPreTraining

        torch.manual_seed(0)
        words = vocabulary(tmp_path / "bert")
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
        bert = BertForPreTraining(BertConfig(**sizes, vocab_size=14, max_position_embeddings=16))
        bert.save_pretrained(words)
        eyes = random_model()
        torch.save(vision_file(eyes.state_dict()), tmp_path / "eva.pth")
        settings = [f"qformer.new={{vision: {tmp_path / 'eva.pth'}, vision_heads: 2, bert: {words}, num_queries: 3}}"]
        stage = Pretraining(config_of(desk, *settings), CPU)
        held = stage.model.state_dict()
        assert torch.equal(held["embeddings.word_embeddings.weight"][:14], bert.bert.embeddings.word_embeddings.weight)
        name = "vision_model.encoder.layers.1.mlp.fc1.weight"
        assert torch.equal(held[name], eyes.state_dict()[name])
        assert stage.longest == 16
        run(desk, f"out={tmp_path / 'run'}", *settings, "run.epochs=null", "run.max_steps=1")
        assert read_stage1(str(tmp_path / "run")).model.config.bridge_config.qformer.hidden_size == 12

    def test_from_a_stage_1(self, desk: Path, whole: Path, tmp_path: Path) -> None:
        """Whole, or its eyes alone."""
        settings = ["qformer={label_smoothing: 0}", f"model.name={whole}"]
        stage = Pretraining(config_of(desk, *settings), CPU)
        assert same(stage.model.state_dict(), read_stage1(str(whole)).model.state_dict())
        assert stage.model.config.label_smoothing == 0
        run(desk, f"out={tmp_path / 'run'}", *settings, "run.epochs=null", "run.max_steps=2")
        assert losses(tmp_path / "run")[1] != losses(whole)[1]
        eyes = Pretraining(config_of(desk, f"qformer.new.vision={whole}"), CPU).model.vision_model
        assert same(eyes.state_dict(), stage.model.vision_model.state_dict())

    def test_what_a_model_has_not_is_said_once(self, desk: Path, whole: Path, tmp_path: Path) -> None:
        """Hugging Face's has no head that predicts words, and no temperature; of what does not train none is missed."""
        theirs = shutil.copytree(whole, tmp_path / "theirs")
        (theirs / "stage1.safetensors").unlink()
        head, temperature = "the head that predicts words (cls) begins at random", "the temperature of the contrast"
        for name, objectives, parts in (
            (theirs, "itc, itm, itg", [head, temperature]),
            (theirs, "itg", [head]),
            (theirs, "itm", []),
            (whole, "itc, itm, itg", []),
        ):
            said: list[str] = []
            settings = [f"qformer={{objectives: [{objectives}]}}", f"model.name={name}", "data.validation=null"]
            out = f"out={tmp_path / str(len(list(tmp_path.iterdir())))}"
            run(desk, out, *settings, "run.epochs=null", "run.max_steps=1", say=said.append)
            notes = [line for line in said if "has no stage1.safetensors: " in line]
            assert len(notes) == bool(parts)
            assert all(part in notes[0] for part in parts)
            assert not any(part in note for note in notes for part in {head, temperature} - set(parts))

    def test_from_blip2s_own_file(self, desk: Path, tmp_path: Path) -> None:
        from minichat.weights.qformer import read_blip2, write_stage1

        stage1 = read_blip2(**publish(tmp_path, random_model()))
        write_stage1(tmp_path / "stage1", stage1.model, stage1.tokenizer)
        stage = Pretraining(config_of(desk, "qformer=null", f"model.name={tmp_path / 'stage1'}"), CPU)
        assert same(stage.model.state_dict(), stage1.model.state_dict())

    def test_with_larger_pictures(self, desk: Path) -> None:
        stage = Pretraining(config_of(desk, "qformer.new.image_size=56"), CPU)
        assert first_batch(stage, desk)["pixel_values"].shape == (8, 3, 56, 56)
        assert stage.model.vision_model.embeddings.position_embedding.shape[1] == 17

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (["stage=finetune"], "qformer is for the stage qformer, but stage is 'finetune'"),
            (["qformer=null"], "begins with nothing: give qformer.new"),
            (["model.name=somewhere"], "makes a new Q-Former, but model.name is 'somewhere'"),
            (["qformer.new.bert=words"], "names bert, which has its own tokenizer"),
            (["qformer.new.tokenizer=null"], "has no word pieces: name bert, or"),
            (["qformer.new.heads=3"], r"qformer.new.width is 16, which heads \(3\) does not divide"),
            (["qformer.objectives=[itx]"], r"objectives is \['itx'\]; it must be some of itc, itm, itg"),
            (["qformer.new.num_queries=0"], "num_queries is 0; it must be at least 1"),
            (["qformer.new.vision_heads=2"], "vision_heads is of an EVA file"),
            (["qformer.new.vision=nowhere"], "The vision encoder 'nowhere' is not there"),
            (["qformer.new.image_size=30"], "image_size is 30; it must be a multiple of the patch size 14"),
            (["data.template=plain"], "data.template means nothing to the stage qformer: drop it"),
            (["model.quantize=8bit"], "model.quantize means nothing to the stage qformer"),
            (["data.max_length=2"], "two control tokens and a word need 3"),
            (["trainable=[projection]"], "no part 'projection'"),
            (
                ["trainable=[vision_model]", "data.feature_cache=kept"],
                "data.feature_cache keeps what the frozen parts see",
            ),
        ],
    )
    def test_what_cannot_be(self, desk: Path, settings: list[str], message: str) -> None:
        with pytest.raises(MiniChatError, match=message):
            check_unused(config_of(desk, *settings), Pretraining.unused)
            first_batch(Pretraining(config_of(desk, *settings), CPU), desk, *settings)


class TestPairs:
    def test_captions_of_one_picture_know_each_other(self, desk: Path) -> None:
        """By the picture's content: a copy under another name is the same picture."""
        stage = Pretraining(config_of(desk), CPU)
        rows = read_data(config_of(desk), stage, ProcessGroup(0, 1), print).loader.rows
        ids = stage.collate([rows[place] for place in range(6)])["image_ids"].tolist()
        assert ids[0::2] == ids[1::2]
        assert len(set(ids)) == 3
        key = hashlib.sha256((desk / "pictures" / "0.png").read_bytes()).digest()
        assert ids[0] == int.from_bytes(key[:8], "big", signed=True)

    def test_a_long_text_is_cut_and_keeps_its_end(self, desk: Path) -> None:
        stage = Pretraining(config_of(desk, "data.max_length=6"), CPU)
        rows = read_data(config_of(desk), stage, ProcessGroup(0, 1), print).loader.rows
        row = rows[0]
        assert len(row.ids) == 6
        words = stage._tokenizer.convert_ids_to_tokens(row.ids.tolist())
        assert (words[0], words[-1]) == ("[CLS]", "[SEP]")
        assert row.cut
        assert row.supervised == 5

    @pytest.mark.parametrize("content", [[], ["pictures/0.png", "pictures/1.png"]])
    def test_a_record_that_is_no_pair(self, desk: Path, content: list[str]) -> None:
        shown = [{"type": "image", "image": name} for name in content]
        said = [{"role": "user", "content": [*shown, {"type": "text", "text": "What is it?"}]}]
        said.append({"role": "assistant", "content": "A star."})
        (desk / "talk.jsonl").write_text(json.dumps({"messages": said}) + "\n")
        stage = Pretraining(config_of(desk), CPU)
        with pytest.raises(DataError, match=rf"talk.jsonl:1: .* here are {len(content)} pictures and 1 replies"):
            read_data(config_of(desk, f"data.train={desk / 'talk.jsonl'}"), stage, ProcessGroup(0, 1), print)

    def test_kept_patches_give_the_same_curve(
        self, desk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And are computed once: the second run opens no picture."""
        kept = f"data.feature_cache={tmp_path / 'patches'}"
        run(desk, f"out={tmp_path / 'first'}", kept)
        monkeypatch.setattr(qformer, "to_pixels", lambda *of: pytest.fail("a picture was opened"))
        run(desk, f"out={tmp_path / 'second'}", kept)
        for name in ("first", "second"):
            torch.testing.assert_close(torch.tensor(losses(tmp_path / name)), torch.tensor(losses(whole)), **CLOSE)
        assert validations(tmp_path / "second") == pytest.approx(validations(whole), rel=1e-4)


class TestResult:
    def test_is_a_stage_1(self, desk: Path, whole: Path) -> None:
        """The weights of the best validation loss, in a folder that transformers reads, too."""
        found = read_stage1(str(whole))
        assert found.made == ()
        state, learned = found.model.state_dict(), load_file(whole / "checkpoints" / "best.safetensors")
        assert learned
        assert all(torch.equal(state[name], tensor) for name, tensor in learned.items())
        facts = json.loads((whole / "training.json").read_text())["training"]
        assert facts["config"]["stage"] == "qformer"
        _, account = Blip2ForImageTextRetrieval.from_pretrained(whole, output_loading_info=True)
        assert not any(account[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    def test_holds_the_eyes_as_they_were_stored(self, desk: Path, tmp_path: Path) -> None:
        settings = ["model.vision_dtype=bfloat16", "run.epochs=null", "run.max_steps=1"]
        run(desk, f"out={tmp_path / 'run'}", *settings)
        lent, left = (load_file(folder / "model.safetensors") for folder in (desk / "model", tmp_path / "run"))
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        assert torch.equal(left[name], lent[name])

    def test_says_which_text_it_finds(self, desk: Path) -> None:
        """Of the texts that are shown: by contrast where that is learned, else by matching."""
        settings = [f"data.validation={desk / 'pairs.csv'}", "report.samples=6"]
        stage = Pretraining(config_of(desk, *settings), CPU)
        shown = read_data(config_of(desk, *settings), stage, ProcessGroup(0, 1), print).shown[:6]
        texts = [example.replies[-1] for example in shown]
        model, batch = stage.model.eval(), stage.collate([stage.render(example) for example in shown])
        words = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            patches = model.encode_patches(batch["pixel_values"])
            near = model.similarity(model.image_embeddings(patches), model.text_embeddings(**words))  # (6, 6)
            fit = torch.stack([model.match(one.expand(6, -1, -1), **words)[:, 1] for one in patches])
        assert stage.answer(shown) == [texts[place] for place in near.argmax(1)]
        model.config.objectives = ("itm", "itg")
        assert stage.answer(shown) == [texts[place] for place in fit.argmax(1)]
        model.config.objectives = ("itg",)
        assert all(said.startswith("(nothing is looked for") for said in stage.answer(shown))

    @pytest.mark.long
    def test_finds_its_own_texts(self, desk: Path, tmp_path: Path) -> None:
        """Pictures learned by heart; the page shows what was found before and after."""
        write_pairs(tmp_path / "few.csv", 4)
        data = [f"data.train={tmp_path / 'few.csv'}", f"data.validation={tmp_path / 'few.csv'}", "report.samples=4"]
        more = ["optimizer.lr=3e-3", "run.epochs=150", "run.validate_every=150", "qformer.new.width=32"]
        run(desk, f"out={tmp_path / 'run'}", *data, *more)
        config = config_of(desk, *data, "qformer=null", f"model.name={tmp_path / 'run'}")
        stage = Pretraining(config, CPU)
        shown = read_data(config, stage, ProcessGroup(0, 1), print).shown
        assert sum(found == caption(number) for number, found in enumerate(stage.answer(shown))) >= 3
        assert (tmp_path / "run" / "report.html").read_text().count("<tr><td>") == 4
