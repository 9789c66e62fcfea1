"""Recall both ways, what re-ranking changes, and a real Q-Former put through it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from minichat.errors import DataError
from minichat.evaluate.replies import Blank
from minichat.evaluate.retrieval import Gallery, Stage1Finder, can_retrieve, first_ranks, recalls
from minichat.evaluate.run import Plan, search
from minichat.scenes.captions import facts


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


def test_ranks_and_recalls():
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert first_ranks(order, [{0, 1}, {1}]) == [1, 0]
    figures = {name: figure.value for name, figure in recalls([0, 4, 5, 9, 10]).items()}
    assert figures == {"R@1": 0.2, "R@5": 0.4, "R@10": 0.8}


def test_a_picture_without_a_text_is_refused():
    with pytest.raises(DataError, match="Picture 2 has no text"):
        gallery(2, (0,))


def test_scenes_that_are_compared_tell_different_things():
    found = Gallery.of_scenes(60, seed=1)
    told = [facts(text) for _, text in found.texts]
    assert len({(frozenset(fact.things.items()), fact.background) for fact in told}) == len(told) == 60
    assert [owner for owner, _ in found.texts] == list(range(60))
    for picture, fact in zip(found.pictures, told, strict=True):
        assert fact.things.total() == len(picture.scene.things)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """The folder of a Q-Former with random weights, and its finder."""
    from minichat.prompt.wordpiece import read_wordpiece
    from minichat.weights.stage1 import Stage1, write_stage1
    from tests.tiny_stage1 import VOCABULARY, WORDS, tiny_pretraining

    vocabulary = tmp_path_factory.mktemp("words")
    words = [*WORDS, *(f"##{i}" for i in range(VOCABULARY - 1 - len(WORDS)))]
    (vocabulary / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = read_wordpiece(vocabulary)
    model = tiny_pretraining()
    folder = write_stage1(tmp_path_factory.mktemp("stage1") / "model", model, tokenizer)
    return folder, Stage1Finder(Stage1(model, tokenizer), batch_size=3)


def test_a_q_former_compares_in_batches_what_it_compares_alone(stage1):
    found = Gallery.of_scenes(7, reranked=3)
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
    found = Gallery.of_scenes(7)
    blind = found.search(stage1[1], blind=True).figures
    assert blind["picture of a text: R@1"].value == pytest.approx(1 / 7)
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
    assert refused.stderr.startswith("minichat: ") and "Blip2ForImageTextRetrieval" in refused.stderr
    assert set(report.weights) == {"model.safetensors", "stage1.safetensors"}
