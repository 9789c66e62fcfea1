"""The stages that begin with nothing: a vision encoder, and a language model from text alone."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.errors import DataError, SettingsError
from minichat.prompt.processor import MODEL_FILE
from minichat.prompt.tokenizer import write_vocabulary
from minichat.toy import train_lm, train_vision
from minichat.toy.dataset import SyntheticStream
from minichat.toy.dialogues import ORDINALS
from minichat.toy.train_lm import Language, train_tokenizer
from minichat.toy.train_vision import Vision, VisionNetwork, labels
from minichat.train import optimizer as optimizers
from minichat.train.config import Config, NewVision, OptimizerConfig, Source, read_config
from minichat.train.data import _mixed, texts
from minichat.train.data_loader import Part
from minichat.train.optimizer import make_optimizer
from minichat.train.trainer import train
from minichat.weights.convert import convert
from minichat.weights.qformer import read_vision

CPU = torch.device("cpu")
ROAD = Path(__file__).parent.parent / "train_configs" / "tiny"
SMALL = {
    "0a_vision": ["vision.width=24", "vision.layers=1", "vision.heads=2"],
    "0b_language": ["language.width=24", "language.intermediate_size=48", "language.layers=1", "language.heads=2"],
}
STAGES = list(SMALL)
TRAINED = cache(train_tokenizer)


@pytest.fixture(autouse=True)
def tokenizers_are_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes more than a second; that it is the same each time is tested below."""
    for module in (train_lm, train_vision):
        monkeypatch.setattr(module, "train_tokenizer", TRAINED)


def test_a_tokenizer_is_the_same_each_time() -> None:
    assert train_tokenizer(1024, "minigpt-v2", 3).serialized == train_tokenizer(1024, "minigpt-v2", 3).serialized


def config(name: str, out: Path, *more: str) -> Config:
    always = [f"out={out}", "run.batch_size=4", "run.max_steps=4", "run.save_every=2", "model.dtype=float32"]
    return read_config(ROAD / f"{name}.yaml", [*always, *SMALL[name], *more])


@pytest.mark.parametrize("name", STAGES)
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(tmp_path: Path, name: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(name, whole))
    train(config(name, parts, "run.max_steps=4"))
    for file in [*parts.glob("*.safetensors"), parts / "config.json", *parts.glob("checkpoints/*4*")]:
        if file.is_dir():
            for inner in file.iterdir():
                inner.unlink()
            file.rmdir()
        else:
            file.unlink()
    assert train(config(name, parts), resume=True).step == 4
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_the_language_model_is_one_that_others_load_and_that_convert_takes(tmp_path: Path) -> None:
    train(config("0a_vision", tmp_path / "vision"))
    train(config("0b_language", tmp_path / "language"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "language").config.hidden_size == 24
    sizes, tensors = read_vision(str(tmp_path / "vision"))
    assert sizes["hidden_size"] == 24
    stored = load_file(tmp_path / "vision" / "model.safetensors")
    assert all(torch.equal(tensor, stored[f"vision_model.{key}"]) for key, tensor in tensors.items())
    llm = str(tmp_path / "language")
    out = convert(tmp_path / "m", llm=llm, template="minigpt-v2", blip2=str(tmp_path / "vision"), bridge="patch_merge")
    assert (out / "config.json").is_file()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the stage language, whose tokenizer is not the one that its seed would give."""
    out = tmp_path_factory.mktemp("spoken") / "language"
    train(config("0b_language", out, "seed=7", "run.max_steps=1"))
    return out


def test_a_language_model_begins_as_the_one_that_it_goes_on_from(
    spoken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its weights and its tokenizer, whatever sizes and seed are asked for; and what it leaves can be gone on from."""
    start = [f"language.initialize_from={spoken}", "language.width=48", "seed=3"]
    stage = Language(config("0b_language", tmp_path, *start), CPU)
    stored = load_file(spoken / "model.safetensors")
    held = stage.model.state_dict()
    assert all(torch.equal(held[name], tensor.float()) for name, tensor in stored.items())
    assert {weight.dtype for weight in held.values()} == {torch.float32}
    assert capfd.readouterr() == ("", "")  # no other program's progress bar
    train(config("0b_language", tmp_path / "on", *start))
    left = load_file(tmp_path / "on" / "model.safetensors")
    assert left.keys() == stored.keys()
    assert any(not torch.equal(left[name], stored[name]) for name in left)
    assert (tmp_path / "on" / MODEL_FILE).read_bytes() == (spoken / MODEL_FILE).read_bytes()


def test_pieces_that_nothing_used_are_told_apart_before_it_goes_on(spoken: Path, tmp_path: Path) -> None:
    """Never said, they were pushed until they had one vector; all else stays, and the next start changes nothing."""
    name, common = "model.embed_tokens.weight", slice(-40, None)
    stored = load_file(spoken / "model.safetensors")
    kept = stored[name].clone()
    stored[name][common] = stored[name][0] * torch.linspace(0.7, 1.3, 40)[:, None]
    shutil.copytree(spoken, tmp_path / "one")
    save_file(stored, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})

    def begun(folder: Path) -> torch.Tensor:
        stage = Language(config("0b_language", tmp_path, f"language.initialize_from={folder}"), CPU)
        return stage.model.get_input_embeddings().weight.detach().clone()

    apart = begun(tmp_path / "one")
    found = torch.nn.functional.normalize(apart[common], dim=1)
    assert (found @ found.T).triu(1).max() < 0.9
    assert torch.equal(apart[1:-40], kept[1:-40].float())
    stored[name] = apart
    save_file(stored, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(begun(tmp_path / "one"), apart)


@pytest.mark.parametrize("lacking", [MODEL_FILE, "training.json", "model.safetensors"])
def test_a_folder_that_the_stage_did_not_write_is_no_start(spoken: Path, tmp_path: Path, lacking: str) -> None:
    for name in ("cut", "other"):
        shutil.copytree(spoken, tmp_path / name)
    (tmp_path / "cut" / lacking).unlink()
    facts = (spoken / "training.json").read_text()
    (tmp_path / "other" / "training.json").write_text(facts.replace('"stage": "language"', '"stage": "finetune"'))
    for folder in (tmp_path / "cut", tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(
            SettingsError, match=f"language.initialize_from is {folder}, where the stage language has not writ"
        ):
            Language(config("0b_language", tmp_path, f"language.initialize_from={folder}"), CPU)


@pytest.mark.parametrize("name", STAGES)
def test_the_loss_is_a_sum_over_what_is_counted(tmp_path: Path, name: str) -> None:
    """Halves of a batch add up to the whole: the same whatever the parts in which gradients are accumulated."""
    settings = config(
        name, tmp_path, *(["vision.contrastive_weight=0"] if name == "0a_vision" else ["language.noise=0"])
    )
    stage: Any = (Vision if name == "0a_vision" else Language)(settings, CPU)
    stage.model.eval()
    stream = SyntheticStream({"questions": 1, "outside": 1} if name == "0b_language" else {"captions": 1}, batch_size=4)
    rows = [stage.render(stream.example(index)) for index in range(6)]
    batches = [stage.collate(some) for some in (rows, rows[:2], rows[2:])]
    whole, *halves = (stage.loss(batch).item() for batch in batches)
    assert whole == pytest.approx(sum(halves), rel=1e-5)
    assert stage.count(batches[0]) == stage.count(batches[1]) + stage.count(batches[2])


def test_the_language_model_learns_what_is_described_not_what_is_drawn(tmp_path: Path) -> None:
    """With other words in the places of a picture the loss is another; its pixels are never looked at."""
    stage = Language(config("0b_language", tmp_path, "language.noise=0"), CPU)
    stage.model.eval()
    stream = SyntheticStream({"readings": 1}, batch_size=1)
    batch, another = (stage.collate([stage.render(stream.example(index))]) for index in (0, 1))
    assert "pixel_values" not in batch
    other = batch | {"words": another["words"]}
    assert abs(stage.loss(batch).item() - stage.loss(other).item()) > 1e-3


def test_of_two_pictures_half_the_time_each_place_tells_which_it_is_in(tmp_path: Path) -> None:
    """With one word more, and all else as it is; of one picture, never."""
    stage = Language(config("0b_language", tmp_path), CPU)
    first, second = (stage._words[ordinal] for ordinal in ORDINALS)
    stream = SyntheticStream({"pairs": 1}, batch_size=1)
    marked = 0
    for index in range(60):
        words = stage.collate([stage.render(stream.example(index))])["words"].flatten(0, 1).tolist()
        numbers = [{first, second} & set(place) for place in words]
        if any(numbers):
            marked += 1
            assert numbers == [{first}] * 32 + [{second}] * 32
    assert 15 < marked < 45
    alone = stage.collate([stage.render(SyntheticStream({"questions": 1}, batch_size=1).example(i)) for i in range(20)])
    assert not (alone["words"] == first).any()


def test_no_place_of_more_pictures_than_there_are_words_for_is_marked(tmp_path: Path) -> None:
    stage = Language(config("0b_language", tmp_path), CPU)
    marks = {stage._words[ordinal] for ordinal in ORDINALS}
    stream = SyntheticStream({"albums": 1}, batch_size=1)
    albums = [example for example in map(stream.example, range(60)) if len(example.pictures) > len(ORDINALS)]
    for example in albums:
        words = stage.collate([stage.render(example)])["words"]
        assert not marks & set(words.flatten().tolist())
    assert albums


@pytest.mark.parametrize(("parts", "learns"), [((), True), (("model.layers", "model.norm"), False)])
def test_a_language_model_trains_what_is_asked_for(tmp_path: Path, parts: tuple[str, ...], learns: bool) -> None:
    stage = Language(replace(config("0b_language", tmp_path), trainable=parts), CPU)
    assert stage.model.get_input_embeddings().weight.requires_grad is learns
    assert stage.model.model.layers[0].mlp.up_proj.weight.requires_grad


def test_patches_tell_what_they_show() -> None:
    stream = SyntheticStream({"captions": 1}, batch_size=1, seed=2)
    scene = stream.example(3).pictures[0].scene  # type: ignore[attr-defined]
    told = labels(scene, 12)
    for thing in scene.things:
        patch = int(thing.y * 12) * 12 + int(thing.x * 12)
        here = (told["x"][patch], told["y"][patch])
        assert here == (int(thing.x * 30), int(thing.y * 30))
    assert told["count"] == len(scene.things)
    assert set(labels(None, 12)["shape"]) == {-100}


@pytest.mark.parametrize("name", STAGES)
def test_what_is_not_drawn_is_refused(tmp_path: Path, name: str) -> None:
    stage: Any = (Vision if name == "0a_vision" else Language)(config(name, tmp_path), CPU)
    picture = StoredPicture("a.png", b"")
    example = Example((Turn("user", (picture, "What is it?")), Turn("assistant", ("A star.",))), Where("a.jsonl", 1))
    with pytest.raises(DataError, match=r"a.jsonl:1: .*format: synthetic"):
        stage.collate([stage.render(example)])


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("0a_vision", "begin anew, in another out, and lower run.batch_size."),
        ("0b_language", "lower run.micro_batch_size, and the same command goes on; or .* lower data.max_length."),
    ],
)
def test_what_does_not_fit_is_said(name: str, ways: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Vision if name == "0a_vision" else Language, "loss", full)
    with pytest.raises(SettingsError, match=f"at once: {ways}$"):
        train(config(name, tmp_path))


def test_settings_that_would_change_nothing_or_the_loss_are_refused(tmp_path: Path) -> None:
    """Names of parts that the stage does not look at; a contrast within parts of a step, which is another loss."""
    with pytest.raises(SettingsError, match=r"trainable is .*nonsense.*: the stage vision trains its whole model"):
        train(config("0a_vision", tmp_path, "trainable=[nonsense]"))
    for name, setting in (("0a_vision", "data.max_length=9"), ("0b_language", "data.template=plain")):
        with pytest.raises(SettingsError, match=f"{setting.split('=')[0]} means nothing to the stage"):
            train(config(name, tmp_path, setting))
    with pytest.raises(SettingsError, match="The contrastive loss compares all captions of a step"):
        train(config("0a_vision", tmp_path, "run.micro_batch_size=2"))
    Vision(config("0a_vision", tmp_path, "run.micro_batch_size=2", "vision.contrastive_weight=0"), CPU)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"vision.width is 25.*heads \(2\)"):
        config("0a_vision", tmp_path, "vision.width=25")
    with pytest.raises(SettingsError, match="language is for the stage language"):
        config("0a_vision", tmp_path, "language.width=24")


def test_a_vocabulary_of_what_a_configuration_learns_from(tmp_path: Path) -> None:
    settings = read_config(ROAD / "1_qformer.yaml")
    write_vocabulary(tmp_path / "vocabulary", texts(settings, most=2000))
    pieces = set((tmp_path / "vocabulary" / "vocab.txt").read_text().splitlines())
    assert {"star", "red", "background", "x10", "y20"} <= pieces
    assert list(texts(settings, most=50)) == list(texts(settings, most=80))[:50]


def test_what_is_drawn_is_mixed_with_what_is_read_batch_by_batch(tmp_path: Path) -> None:
    said = tmp_path / "said.jsonl"
    records = [
        {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Reply {n}."}]}
        for n in range(20)
    ]
    said.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = config("0a_vision", tmp_path, "run.batch_size=4")
    sources = (*settings.data.train, Source(str(said), ratio=8, options={"shuffle": 5}))
    mixed = _mixed(replace(settings, data=replace(settings.data, train=sources)))

    whole = Part()

    def read(part: Part = whole, skip: int = 0, count: int = 80) -> list[str]:
        return [str(record.where) for record in itertools.islice(mixed.scan(part, skip), count)]

    all_of_it = read(count=160)
    is_read = ["said" in where for where in all_of_it]
    for start in range(0, 160, 4):
        assert len(set(is_read[start : start + 4])) == 1, "a batch is of one kind"
    assert 20 < sum(is_read) < 140
    for skip in (1, 4, 37):
        assert read(whole, skip) == all_of_it[skip : skip + 80], "a run that goes on reads what it would have read"
    assert [read(Part(0, 2)), read(Part(1, 2))] == [all_of_it[0::2], all_of_it[1::2]], "two processes share it"
    assert read(Part(1, 2), skip=5, count=30) == all_of_it[11:71:2]


def test_muon_where_layers_matrices_alone_train() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer({"model.layers.0.q_proj.weight": weight}, OptimizerConfig(name="muon", lr=0.1))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(2, 2))


def test_contrast_of_pictures_without_captions_is_none() -> None:
    """A batch may show no drawn shapes at all."""
    network = VisionNetwork(NewVision(image_size=32, patch_size=8, width=24, layers=1, heads=2))
    states = network.states(torch.rand(2, 3, 32, 32))
    nothing = torch.zeros(2, 1, dtype=torch.int64)
    assert float(network.contrast(states, nothing, nothing.bool(), nothing.nonzero()[:, 0])) == 0


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8)])
def test_muon_moves_weights_alike_where_bfloat16_is_emulated(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, momenta = [], []
    for native in (True, False):
        monkeypatch.setattr(optimizers, "computes_bfloat16", lambda native=native: native)
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(shape))
        muon = make_optimizer({"model.layers.0.q_proj.weight": weight}, OptimizerConfig(name="muon", lr=0.1))
        for _ in range(3):
            weight.grad = torch.randn(shape)
            muon.step()
        moved.append(weight.detach().clone())
        momenta.append(muon.state[weight]["momentum_buffer"].clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=0.02)  # bfloat16 has three digits
    assert not torch.equal(*moved)
    assert torch.equal(*momenta)


def test_muon_where_no_layers_matrix_trains_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"optimizer\.name is muon"):
        make_optimizer({"projection.weight": torch.nn.Parameter(torch.zeros(2, 2))}, OptimizerConfig(name="muon"))
