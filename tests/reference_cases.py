"""The reference cases: where they are, of which kind each is, and how one is taken in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import minichat
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.prompt.tokenizer import tokenize
from minichat.weights.convert import convert
from minichat.weights.qformer import read_blip2
from tests.conftest import all_cases

TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
#: Kind → a field that `case.json` has in this kind, and in none of those after it.
KINDS = {"minigpt-v2": "lora", "lavis": "generate", "minigpt4": "chat_template", "blip2-stage1": "embed_dim"}


def kind_of(folder: Path) -> str | None:
    """None for a case of no kind that is known here."""
    facts = json.loads((folder / "case.json").read_text())
    return next((kind for kind, field in KINDS.items() if field in facts), None)


def cases_of(kind: str) -> list[Any]:
    """The cases of a kind, as pytest's parameters."""
    return [
        pytest.param(folder, id=f"{folder.parent.name}/{folder.name}")
        for folder in all_cases()
        if kind_of(folder) == kind
    ]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.detach(), theirs, **TOLERANCE)


class MiniGPT4Case:
    """A case, converted and loaded as anyone would. `trained`: what a run of the original saved."""

    def __init__(self, folder: Path, out: Path, trained: str = "minigpt4.pth", merge: bool = False) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        self.out = convert(
            out,
            vit=folder / "eva_vit.pth",
            qformer=folder / "blip2_qformer.pth" if self.facts["qformer"] else None,
            projection=folder / trained,
            llm=str(folder / "llm"),
            template=self.facts["chat_template"],
            vision_heads=self.facts["vision"]["heads"],
            qformer_heads=self.facts["qformer"]["heads"] if self.facts["qformer"] else None,
            image_size=None if "lora" in self.facts else self.facts["image_size"],  # which MiniGPT-v2's file says
            merge=merge,
        )
        self.bot = minichat.load(self.out, device="cpu", dtype="float32")
        self.pictures = sorted((folder / "images").iterdir(), key=lambda file: int(file.stem))


def samples(case: MiniGPT4Case, kind: str) -> list[list[tuple[str, str]]]:
    """The training conversations as (question, reply) pairs, the questions without picture and delimiters."""
    before, after = case.facts["template"].split("{}")
    picture = "<Img><ImageHere></Img> "
    if kind == "caption":
        captions = case.facts["captions"]
        asked = [q.removeprefix(before).removesuffix(after).removeprefix(picture) for q in captions["instructions"]]
        return [[pair] for pair in zip(asked, captions["answers"], strict=True)]
    talk = case.facts["conversation"]
    join = talk["connect_sym"]
    return [
        list(zip(questions.removeprefix(picture).split(join), answers.split(join), strict=True))
        for questions, answers in zip(talk["questions"], talk["answers"], strict=True)
    ]


def examples(case: MiniGPT4Case, kind: str) -> list[Example]:
    """The samples as records of a data set, each with its picture."""
    found = []
    for number, sample in enumerate(samples(case, kind)):
        picture = StoredPicture(case.pictures[number].name, case.pictures[number])
        turns = []
        for question, answer in sample:
            shown = () if turns else (picture,)
            turns += [Turn("user", (*shown, question)), Turn("assistant", (answer,))]
        found.append(Example(tuple(turns), Where(f"{kind}.json", record=number + 1)))
    return found


def read_back(case: MiniGPT4Case, embeds: Tensor) -> list[int]:
    """The ids whose embeddings (1, T, H) these are; what no id has is an image token."""
    table = case.bot.model.get_input_embeddings().weight.detach().double()
    distance, ids = torch.cdist(embeds[0].double(), table).min(-1)
    slot = case.bot.processor.image_token_id
    return [int(i) if d < 1e-5 else slot for d, i in zip(distance, ids, strict=True)]


def without_stop(ids: list[int], stops: list[list[int]]) -> list[int]:
    """A reply's ids without the stop that ended it: a message keeps what was said."""
    return next((ids[: -len(stop)] for stop in stops if ids[-len(stop) :] == stop), ids)


class LavisCase:
    """BLIP-2 or InstructBLIP before its LLM, converted from LAVIS's file and loaded as anyone would."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        (trained,) = (file for file in folder.glob("*.pth") if file.name != "eva_vit.pth")
        self.instructed = (folder / "bert_tokenizer").is_dir()
        words = {"tokenizer": folder / "bert_tokenizer", "instruction_tokens": self.facts["max_txt_len"]}
        self.out = convert(
            out,
            vit=folder / "eva_vit.pth",
            projection=trained,
            llm=str(folder / "llm"),
            vision_heads=self.facts["vision"]["heads"],
            vision_layers=self.facts["vision"]["layers"],
            qformer_heads=self.facts["qformer"]["heads"],
            image_size=self.facts["image_size"],
            **(words if self.instructed else {}),
        )
        self.bot = minichat.load(self.out, device="cpu", dtype="float32")
        self.encodes = self.bot.model.config.is_encoder_decoder
        self.pictures = sorted((folder / "images").iterdir(), key=lambda file: int(file.stem))

    def examples(self) -> list[Example]:
        """What the case trains on. Of OPT's texts, which are the prompt and what goes on from it, the rest is the
        reply."""
        found = []
        for number, said in enumerate(self.facts["training"]):
            question, reply = said["text_input"], said.get("text_output")
            if reply is None:
                question = self.facts["prompt"].strip()
                reply = said["text_input"].removeprefix(question).removeprefix(" " if question else "")
            picture = StoredPicture(said["image"], self.folder / "images" / said["image"])
            turns = (Turn("user", (picture, question)), Turn("assistant", (reply,)))
            found.append(Example(turns, Where("training.json", record=number + 1)))
        return found

    def limits(self) -> dict[str, int]:
        """The settings by which the trainer cuts what LAVIS cuts."""
        most = self.facts["max_txt_len"]
        if self.instructed:  # one of the reply's is its own begin token
            return {"max_question_length": most, "max_reply_length": self.facts["max_output_txt_len"] - 1}
        if self.encodes:
            return {"max_question_length": most, "max_reply_length": most}
        return {"max_length": self.bot.model.config.num_image_tokens + most}

    def prompts(self, asked: dict[str, Any]) -> dict[str, Tensor]:
        """A batch to generate from, by the processor. Before OPT a prompt is cut from the right."""
        pictures = [self.folder / "images" / name for name in asked["images"]]
        most = self.bot.model.config.num_image_tokens + self.facts["max_txt_len"]
        cut = {} if self.encodes or self.instructed else {"truncation": True, "max_length": most}
        return dict(self.bot.captioner(pictures, asked["prompts"], return_tensors="pt", **cut))


class Stage1Case:
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
