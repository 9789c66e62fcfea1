"""BLIP-2's first stage: the original's own numbers, from its own files.

A case is a folder with a `case.json` that gives `embed_dim`, wherever `test_reference.py` looks for cases. Float32
agrees to 1e-4, ids exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minichat.prompt.wordpiece import tokenize
from minichat.weights.keys import BLIP2_STAGE1
from minichat.weights.stage1 import read_blip2
from tests.conftest import reference_folders

TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


def cases() -> list[Any]:
    found = []
    for root in reference_folders():
        for file in sorted(root.rglob("case.json")):
            if "embed_dim" in json.loads(file.read_text()):
                found.append(pytest.param(file.parent, id=f"{root.name}/{file.parent.relative_to(root)}"))
    return found


class Case:
    """A case and the model in its files; every size is told by `case.json` or by the files."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        stage1 = read_blip2(
            folder / "blip2_pretrained.pth",
            tokenizer=folder / "bert_tokenizer",
            vit=folder / "eva_vit.pth",
            vision_heads=self.facts["vision"]["heads"],
            vision_layers=self.facts["vision"]["layers"],
            qformer_heads=self.facts["qformer"]["heads"],
        )
        assert stage1.made == ()
        self.model, self.tokenizer = stage1.model, stage1.tokenizer
        self.model.config.label_smoothing = self.facts["label_smoothing"]
        self.texts = tokenize(self.tokenizer, self.facts["texts"], self.facts["max_txt_len"], pad="max_length")
        with torch.no_grad():
            self.patches = self.model.encode_patches(self.expected["pixel_values"])

    def batch(self) -> dict[str, Any]:
        """What `forward` takes: the case's pairs and the negatives that its program drew."""
        ids = self.facts["image_id"]
        return {
            **self.texts,
            "patches": self.patches,
            "image_ids": None if ids is None else torch.tensor(ids),
            "negatives": (self.expected["negative_image_index"], self.expected["negative_text_index"]),
        }


CASES = cases()
__test__ = bool(CASES)  # a kind of case that is absent makes no test


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.detach().reshape(theirs.shape), theirs, **TOLERANCE)


def test_word_pieces(case: Case) -> None:
    assert torch.equal(case.texts["input_ids"], case.expected["input_ids"])
    assert torch.equal(case.texts["attention_mask"], case.expected["text_attention_mask"])
    assert case.tokenizer.bos_token == case.facts["bos_token"]


@torch.no_grad()
def test_pictures(case: Case) -> None:
    """The vision encoder, `ln_vision`, and what the queries read."""
    close(case.model.bridge.ln_vision(case.patches), case.expected["image_embeds"])
    close(case.model.query_states(case.patches), case.expected["query_output"])


@torch.no_grad()
def test_texts(case: Case) -> None:
    close(case.model.text_states(**case.texts), case.expected["text_output"])


@torch.no_grad()
def test_similarity(case: Case) -> None:
    model = case.model
    close(
        model.similarity(model.image_embeddings(case.patches), model.text_embeddings(**case.texts)),
        case.expected["itc_similarity"],
    )


@torch.no_grad()
def test_matching_of_every_pair(case: Case) -> None:
    count = len(case.facts["texts"])
    logits = [case.model.match(picture.expand(count, -1, -1), **case.texts) for picture in case.patches[:, None]]
    close(torch.stack(logits), case.expected["itm_logits"])


def test_losses_and_gradients(case: Case) -> None:
    """The three losses with the negatives that were drawn, and every gradient that the case gives."""
    case.model.zero_grad()
    losses = case.model(**case.batch())
    for name in ("loss", "itc", "itm", "itg"):
        close(losses[name], case.expected["loss" if name == "loss" else f"loss_{name}"])
    losses.loss.backward()
    given = [name.removeprefix("grad.") for name in case.expected if name.startswith("grad.")]
    assert given
    for name in given:
        ours = BLIP2_STAGE1.target(name)
        assert ours is not None, name
        close(case.model.get_parameter(ours).grad, case.expected[f"grad.{name}"])
    case.model.zero_grad()


def test_masks_hide_the_same_under_either_attention(case: Case) -> None:
    case.model.bridge.qformer.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            losses = case.model(**case.batch())
    finally:
        case.model.bridge.qformer.set_attn_implementation("sdpa")
    close(losses.loss, case.expected["loss"])
