"""Recall both ways, what re-ranking changes, and a real Q-Former put through it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from minichat.errors import DataError, SettingsError
from minichat.evaluate.replies import Blank
from minichat.evaluate.run import Plan, search
from minichat.evaluate.tasks import Finder, Gallery, can_retrieve, first_ranks, load_finder, recalls
from minichat.model.qformer_pretrain import QFormerPretraining, rerank
from minichat.search import Reader
from minichat.toy.captions import facts
from minichat.toy.evaluate_captions import gallery_of_scenes


class Table:
    """A finder whose similarities and matches are given; `matched` counts the pairs that were matched."""

    def __init__(self, similarity: list[list[float]], match: list[list[float]] | None = None) -> None:
        self._similarity = torch.tensor(similarity)
        self._match = torch.tensor(match) if match else torch.zeros_like(self._similarity)
        self.matched = 0

    def compare(self, pictures: Sequence[object], texts: Sequence[str]) -> Table:
        assert self._similarity.shape == (len(pictures), len(texts))
        return self

    def similarity(self) -> Tensor:
        return self._similarity

    def match(self, pictures: Tensor, texts: Tensor) -> Tensor:
        self.matched += len(pictures)
        scores = self._match[pictures, texts]
        return torch.stack([-scores, scores], dim=1)


def gallery(pictures: int, owners: Sequence[int], reranked: int = 2) -> Gallery:
    shown = tuple(Blank(8 + i) for i in range(pictures))
    return Gallery(shown, tuple((owner, f"text {i}") for i, owner in enumerate(owners)), reranked)


def test_recall_counts_the_first_own_text_of_several():
    """Picture 0 owns texts 0 and 1, picture 1 text 2. Picture 0 finds text 1 first, picture 1 its own second."""
    figures = gallery(2, (0, 0, 1)).search(Table([[0.1, 0.9, 0.5], [0.0, 0.8, 0.7]])).figures
    assert figures["text of a picture: R@1"].value == 0.5
    assert figures["text of a picture: R@5"].value == 1
    # texts 0 and 1 find picture 0 (0.1 > 0.0, 0.9 > 0.8), text 2 picture 1 (0.7 > 0.5)
    assert figures["picture of a text: R@1"].value == 1
    assert figures["picture of a text: R@1"].count == 3


def test_matching_puts_the_best_in_another_order_and_no_others():
    similarity = [[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.3, 0.2, 0.1]]
    match = [[0.0, 5.0, 9.0], [5.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    finder = Table(similarity, match)
    figures = gallery(3, (1, 0, 2), reranked=2).search(finder).figures
    assert figures["text of a picture, re-ranked: R@1"].value == pytest.approx(
        1 / 3
    )  # text 2 is not among the best two
    assert figures["text of a picture: R@1"].value == pytest.approx(1 / 3)
    assert finder.matched == 2 * (3 * 2)


@pytest.mark.parametrize("k", [0, 3, 50])
@pytest.mark.parametrize("at_once", [1, 4, 512])
def test_a_rank_is_the_place_of_the_first_own_candidate(k, at_once, monkeypatch):
    """However many queries are put in order at a time; some are as similar as others."""
    monkeypatch.setattr("minichat.evaluate.tasks._QUERIES", at_once)
    torch.manual_seed(0)
    similarity, logits = torch.randint(0, 5, (11, 30)) / 5, torch.randint(0, 5, (11, 30)) / 5

    def match(query: Tensor, candidate: Tensor) -> Tensor:
        return torch.stack([-logits[query, candidate], logits[query, candidate]], dim=1)

    wanted, offered = torch.arange(11), torch.randint(0, 11, (30,))
    offered[:11] = wanted.flip(0)
    order = rerank(similarity, match, k).tolist()
    by_hand = [[int(offered[each]) for each in row].index(query) for query, row in enumerate(order)]
    assert first_ranks(similarity, match, k, wanted, offered) == by_hand


@pytest.mark.parametrize("pieces", [1, 7 * 3 * 2, 10**9])
def test_similarity_is_the_same_in_pieces(pieces, monkeypatch):
    """Whole numbers, so that no sum is rounded; and no piece is larger than it may be, but of one picture."""
    monkeypatch.setattr("minichat.model.qformer_pretrain._AT_ONCE", pieces)
    einsum, sizes = torch.einsum, []

    def watched(*arguments):
        sizes.append(einsum(*arguments).numel())
        return einsum(*arguments)

    torch.manual_seed(0)
    images, texts = torch.randint(-9, 9, (10, 3, 4)).float(), torch.randint(-9, 9, (7, 4)).float()
    images.requires_grad_()
    whole = einsum("ine,be->ibn", images, texts).amax(-1)
    monkeypatch.setattr(torch, "einsum", watched)
    found = QFormerPretraining.similarity(images, texts)
    assert torch.equal(found, whole)
    assert max(sizes) <= max(pieces, 7 * 3) and sum(sizes) == 10 * 7 * 3
    gradients = [torch.autograd.grad(each.square().sum(), images)[0] for each in (found, whole)]
    assert torch.equal(*gradients)
    assert QFormerPretraining.similarity(images[:0], texts).shape == (0, 7)
    assert QFormerPretraining.similarity(images, texts[:0]).shape == (10, 0)


def test_recalls():
    figures = {name: figure.value for name, figure in recalls([0, 4, 5, 9, 10]).items()}
    assert figures == {"R@1": 0.2, "R@5": 0.4, "R@10": 0.8}


def test_a_picture_without_a_text_is_refused():
    with pytest.raises(DataError, match="Picture 2 has no text"):
        gallery(2, (0,))


def test_scenes_that_are_compared_tell_different_things():
    found = gallery_of_scenes(60, seed=1)
    told = [facts(text) for _, text in found.texts]
    assert len({(frozenset(fact.things.items()), fact.background) for fact in told}) == len(told) == 60
    assert [owner for owner, _ in found.texts] == list(range(60))
    for picture, fact in zip(found.pictures, told, strict=True):
        assert fact.things.total() == len(picture.scene.things)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """The folder of a Q-Former with random weights, and its finder."""
    from minichat.prompt.tokenizer import read_wordpiece
    from minichat.weights.qformer import Stage1, write_stage1
    from tests.tiny_stage1 import VOCABULARY, WORDS, tiny_pretraining

    vocabulary = tmp_path_factory.mktemp("words")
    words = [*WORDS, *(f"##{i}" for i in range(VOCABULARY - 1 - len(WORDS)))]
    (vocabulary / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = read_wordpiece(vocabulary)
    model = tiny_pretraining()
    folder = write_stage1(tmp_path_factory.mktemp("stage1") / "model", model, tokenizer)
    return folder, Finder(Reader(Stage1(model, tokenizer)), batch_size=3)


def test_a_q_former_compares_in_batches_what_it_compares_alone(stage1):
    found = gallery_of_scenes(7, reranked=3)
    texts = [text for _, text in found.texts]
    whole = stage1[1].compare(found.pictures, texts)
    similarity = whole.similarity()
    assert similarity.shape == (7, 7)
    alone = stage1[1].compare(found.pictures[4:5], texts).similarity()
    torch.testing.assert_close(similarity[4:5], alone)
    pairs = torch.tensor([0, 3]), torch.tensor([5, 1])
    assert whole.match(*pairs).shape == (2, 2)
    outcome = found.search(stage1[1])
    assert {name.split(":")[0] for name in outcome.figures} == {
        "text of a picture, re-ranked", "picture of a text, re-ranked", "text of a picture", "picture of a text",
    }  # fmt: skip


def test_blank_pictures_are_found_by_chance(stage1):
    found = gallery_of_scenes(7)
    blind = found.search(stage1[1], blind=True).figures
    assert blind["picture of a text: R@1"].value <= 4 / 7  # one in seven, where rounding breaks no tie
    assert "picture of a text, re-ranked: R@1" not in blind


def test_the_command_measures_a_folder(stage1):
    from typer.testing import CliRunner

    from minichat import cli

    folder, finder = stage1
    assert can_retrieve(str(folder)) and not can_retrieve("minichat-tiny") and not can_retrieve("nowhere")
    plan = Plan(("retrieval",), count=5, reranked=2)
    report = search(finder, str(folder), plan)
    for task in ("retrieval", "all"):
        result = CliRunner().invoke(
            cli.app, ["evaluate", task, "--model", str(folder), "--count", "5", "--rerank", "2", "--device", "cpu"]
        )
        assert result.exit_code == 0, result.stderr
        assert result.stdout == report.to_markdown()
    refused = CliRunner().invoke(cli.app, ["evaluate", "retrieval", "--count", "5"])
    assert refused.exit_code == 1
    assert "minichat: " in refused.stderr and "Blip2ForImageTextRetrieval" in refused.stderr
    assert set(report.weights) == {"model.safetensors", "stage1.safetensors"}


def test_the_precision_that_is_asked_for_is_the_one_that_is_measured(stage1, monkeypatch):
    from typer.testing import CliRunner

    from minichat import cli
    from minichat.search import encoder

    loaded, load = [], encoder.load_reader
    monkeypatch.setattr(encoder, "load_reader", lambda *arguments: loaded.append(load(*arguments)) or loaded[-1])
    options = ["--model", str(stage1[0]), "--count", "3", "--rerank", "2", "--device", "cpu"]
    for given in ([], ["--dtype", "bfloat16"]):
        result = CliRunner().invoke(cli.app, ["evaluate", "retrieval", *options, *given])
        assert result.exit_code == 0, result.stderr
    assert [each.model.dtype for each in loaded] == [torch.float32, torch.bfloat16]
    with pytest.raises(SettingsError, match="dtype is 'int8'"):
        load_finder(str(stage1[0]), "cpu", "int8")
