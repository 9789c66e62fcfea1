"""The stage that teaches image tokens the words of what is in their places."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import log_softmax

from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.errors import DataError, SettingsError
from minichat.inference.load import load
from minichat.model.qformer_pretrain import QFormerPretraining
from minichat.prompt.tokenizer import read_wordpiece
from minichat.toy.captions import CELLS, LEVELS, NONE, SYMBOLS, TOKENS, WORDS, description
from minichat.toy.dataset import SyntheticStream
from minichat.toy.train_lm import word_vectors
from minichat.toy.train_vision import KINDS, WordAlignment
from minichat.toy.world import random_scene
from minichat.train.config import Config, read_config
from minichat.train.stages import Batch
from minichat.train.trainer import train
from minichat.weights.convert import convert
from minichat.weights.qformer import write_stage1
from tests.tiny_stage1 import WORDS as PIECES
from tests.tiny_stage1 import tiny_sizes, vocabulary

CPU = torch.device("cpu")
ROAD = Path(__file__).parent.parent / "train_configs" / "tiny"
ALWAYS = ("run.batch_size=4", "run.max_steps=4", "run.save_every=2", "model.dtype=float32")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Q-Former with random weights before a small LLaMA that has read descriptions."""
    folder = tmp_path_factory.mktemp("begun")
    sizes = ["language.width=24", "language.intermediate_size=48", "language.layers=1", "language.heads=2"]
    train(read_config(ROAD / "0b_language.yaml", [*ALWAYS, *sizes, f"out={folder / 'llm'}"]))
    config = tiny_sizes(qformer={"vocab_size": len(PIECES) + 1})
    config.bridge_config.num_query_tokens = TOKENS
    torch.manual_seed(0)
    qformer = QFormerPretraining(config)
    write_stage1(folder / "qformer", qformer, read_wordpiece(vocabulary(folder / "words")))
    return convert(
        folder / "model", blip2=str(folder / "qformer"), llm=str(folder / "llm"), template="minigpt-v2", merge=True
    )


def config(model: Path, out: Path, *more: str) -> Config:
    return read_config(ROAD / "2a_word_alignment.yaml", [*ALWAYS, f"model.name={model}", f"out={out}", *more])


@pytest.fixture(scope="module")
def stage(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> WordAlignment:
    stage = WordAlignment(config(begun, tmp_path_factory.mktemp("out")), CPU)
    stage.model.eval()
    return stage


def batch_of(stage: WordAlignment, kinds: dict[str, float], count: int) -> Batch:
    stream = SyntheticStream(kinds, batch_size=count)
    return stage.collate([stage.render(stream.example(index)) for index in range(count)])


def embeddings(stage: WordAlignment) -> dict[str, Tensor]:
    tokenizer = stage.bot.processor.content_tokenizer
    pieces = {piece.removeprefix("▁"): number for number, (piece, _) in enumerate(tokenizer.pieces())}
    weight = stage.model.get_input_embeddings().weight.detach()
    return {word: weight[pieces[word]] for word in WORDS}


def test_a_worker_of_another_process_is_sent_no_network(stage: WordAlignment) -> None:
    """As spawn and forkserver send it: a bot has locks, which cannot be sent, and a network is large."""
    sent = pickle.dumps(stage)
    assert len(sent) < sum(weight.nbytes for weight in stage.model.parameters())
    here, there = (batch_of(some, {"captions": 1}, 3) for some in (stage, pickle.loads(sent)))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def loss_of(stage: WordAlignment, batch: Batch, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """Where the picture's tokens are these."""
    monkeypatch.setattr(stage.model, "encode_images", lambda pixels: tokens)
    return stage.loss(batch).item()


def told(stage: WordAlignment, batch: Batch) -> Tensor:
    """Tokens that say what is true: (I, 32, H)."""
    vectors = embeddings(stage)
    places = [[[WORDS[word] for word in place if word >= 0] for place in picture] for picture in batch["words"]]
    sums = [torch.stack([torch.stack([vectors[w] for w in place]).sum(0) for place in picture]) for picture in places]
    return torch.stack(sums)


def test_every_word_is_of_one_kind() -> None:
    assert Counter(chain.from_iterable(KINDS)) == Counter(WORDS)


def test_the_loss_is_what_its_docstring_says(stage: WordAlignment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word by word, from distances: -log p(word | all else as it is) and how far the token is from its place's sum."""
    batch = batch_of(stage, {"readings": 3, "outside": 1}, 4)
    vectors = embeddings(stage)
    unit = 0.2 * torch.stack([vector.square().sum() for vector in vectors.values()]).mean()
    torch.manual_seed(0)
    true = told(stage, batch)
    tokens = true + 0.3 * torch.randn_like(true) * true.std()
    wanted = 0.0
    for picture, places in enumerate(batch["words"].tolist()):
        for place, numbers in enumerate(places):
            token, whole = tokens[picture, place], true[picture, place]
            loss = (token - whole).square().sum() / unit
            words = [WORDS[number] for number in numbers if number >= 0]
            for word in words:
                (kind,) = (kind for kind in KINDS if word in kind)
                far = [(token - whole + vectors[word] - vectors[other]).square().sum() for other in kind]
                loss -= log_softmax(-torch.stack(far) / unit, 0)[kind.index(word)]
            wanted += loss.item() * (0.1 if words == [NONE] else 1.0) / TOKENS
    assert loss_of(stage, batch, tokens, monkeypatch) == pytest.approx(wanted, rel=1e-4)


def test_the_truth_has_the_least_loss(stage: WordAlignment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than another picture's truth, than a place's with another's, and than nothing."""
    batch = batch_of(stage, {"readings": 1}, 2)
    true = told(stage, batch)
    least = loss_of(stage, batch, true, monkeypatch)
    for wrong in (true.flip(0), true.roll(1, 1), torch.zeros_like(true)):
        assert loss_of(stage, batch, wrong, monkeypatch) > 2 * least


def test_the_loss_is_a_sum_over_pictures(stage: WordAlignment) -> None:
    """Halves of a batch add up to the whole, two pictures of a row and one that is of no scene among them."""
    stream = SyntheticStream({"pairs": 1, "outside": 1}, batch_size=4)
    rows = [stage.render(stream.example(index)) for index in range(6)]
    whole, *halves = [stage.collate(some) for some in (rows, rows[:2], rows[2:])]
    assert stage.loss(whole).item() == pytest.approx(sum(stage.loss(half).item() for half in halves), rel=1e-5)
    assert stage.count(whole) == sum(stage.count(half) for half in halves) == sum(len(row.pictures) for row in rows)


def test_places_are_told_as_they_are(stage: WordAlignment) -> None:
    picture = SyntheticStream({"readings": 1}, batch_size=1).example(0).pictures[0]
    (words,) = batch_of(stage, {"readings": 1}, 1)["words"].tolist()
    scene = picture.scene  # type: ignore[attr-defined]
    assert [[WORDS[word] for word in place if word >= 0] for place in words] == [list(b) for b in description(scene)]


def test_bridge_and_projection_train_and_a_run_goes_on(begun: Path, tmp_path: Path) -> None:
    """To the bit; what is frozen comes out as it went in, and the result opens."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(begun, whole))
    train(config(begun, parts))
    for file in (*parts.glob("*.safetensors"), parts / "config.json", *parts.glob("checkpoints/*4*")):
        file.unlink()
    assert train(config(begun, parts), resume=True).step == 4
    before, after, again = (load_file(folder / "model.safetensors") for folder in (begun, whole, parts))
    assert all(torch.equal(after[name], again[name]) for name in after)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {"bridge", "projection"}
    assert load(whole).model.config.num_image_tokens == TOKENS


def test_a_run_from_a_runs_folder_keeps_its_own_record(begun: Path, tmp_path: Path) -> None:
    """Nothing that the earlier run told of itself takes its place, and what the model needs comes along."""
    first, second = tmp_path / "first", tmp_path / "second"
    train(config(begun, first, "seed=1"))
    train(config(first, second, "seed=2", "run.max_steps=2"))
    of_a_run = {file.name for file in first.iterdir()} - {file.name for file in begun.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "curve.png", "training.json"} <= of_a_run
    assert {file.name for file in second.iterdir()} == {file.name for file in first.iterdir()}
    assert read_config(second / "config.yaml").seed == 2
    assert len((second / "metrics.jsonl").read_text().splitlines()) == 2
    for name in of_a_run - {".lock", "checkpoints"}:
        assert (first / name).read_bytes() != (second / name).read_bytes(), name


def test_a_model_with_other_image_tokens_is_refused(begun: Path, tmp_path: Path) -> None:
    llm = str(begun.parent / "llm")
    joined = convert(
        tmp_path / "joined", blip2=str(begun.parent / "qformer"), bridge="patch_merge", llm=llm, template="minigpt-v2"
    )
    with pytest.raises(SettingsError, match=r"has 1 tokens .* for 32 places"):
        WordAlignment(config(joined, tmp_path / "out"), CPU)


def test_what_is_not_drawn_is_refused(stage: WordAlignment) -> None:
    turns = (Turn("user", (StoredPicture("a.png", b""), "What?")), Turn("assistant", ("A star.",)))
    with pytest.raises(DataError, match=r"a.jsonl:1: .*stage word_alignment.*format: synthetic"):
        stage.collate([stage.render(Example(turns, Where("a.jsonl", 1)))])
    turns = (Turn("user", ("What?",)), Turn("assistant", ("A star.",)))
    with pytest.raises(DataError, match=r"a.jsonl:1: there is no picture"):
        stage.collate([stage.render(Example(turns, Where("a.jsonl", 1)))])


class Words:
    """A tokenizer of another LLM: a piece for each letter."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_another_llm_names_things_in_its_own_words() -> None:
    """Words are the mean of their pieces; a place is a word and a code, and neighbours are alike; all stay the same."""
    torch.manual_seed(0)
    embeddings = torch.randn(128, 64)
    vectors = dict(zip(WORDS, word_vectors(Words(), embeddings), strict=True))  # type: ignore[arg-type]

    def spelled(word: str) -> Tensor:
        return embeddings[[ord(letter) for letter in f" {word}"]].mean(0)

    torch.testing.assert_close(vectors["red"], spelled("red"))
    assert torch.equal(vectors["<x3>"], word_vectors(Words(), embeddings)[WORDS.index("<x3>")])  # type: ignore[arg-type]
    length = torch.stack([vectors[word] for word in WORDS if word not in SYMBOLS]).norm(dim=-1).mean()
    for axis, thirds in (("x", ("left", "center", "right")), ("y", ("top", "middle", "bottom"))):
        row = torch.stack([vectors[f"<{axis}{level}>"] for level in range(LEVELS)])
        codes = row - torch.stack([spelled(third) for third in thirds]).repeat_interleave(LEVELS // 3, 0)
        torch.testing.assert_close(codes.norm(dim=-1), length.expand(LEVELS))
        apart = torch.cdist(codes, codes)
        assert apart.diagonal(1).mean() < 0.9 * apart.diagonal(8).mean()
        assert apart[~torch.eye(LEVELS, dtype=torch.bool)].min() > 0.1 * length  # and no two are the same
    for symbol in ("<none>", "<outside>"):
        torch.testing.assert_close(vectors[symbol].norm(), length)


def test_a_thing_near_a_border_is_told_to_another_llm_once() -> None:
    """What two cells tell of one thing, an LLM that never read such copies would count twice."""
    draw = random.Random(3)
    for _ in range(200):
        scene = random_scene(draw)
        told = [bag for bag in description(scene, copies=False)[:CELLS] if bag != (NONE,)]
        assert len(told) == len(scene.things)
        assert set(told) == {bag for bag in description(scene)[:CELLS] if bag != (NONE,)}
