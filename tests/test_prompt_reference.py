"""The original programs' own chat prompts, letter by letter and id by id, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minichat.prompt.conversation import Conversation
from minichat.prompt.render import Rendered, render, render_text
from minichat.prompt.template import TEMPLATES
from minichat.prompt.tokenizer import SentencePieceTokenizer


class Case:
    """One MiniGPT-4 case: its numbers, and its embeddings read back as ids (−1: no id's, an image token)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        self.tokenizer = SentencePieceTokenizer(folder / "llm" / "tokenizer.model")
        self.table = load_file(folder / "llm" / "model.safetensors")["model.embed_tokens.weight"].double()  # (V, H)
        self.slots = self.expected["image_embeds"].shape[1]
        self.slot_id = self.table.shape[0]

    def read_back(self, embeds: torch.Tensor) -> list[int]:
        distance, ids = torch.cdist(embeds.double(), self.table).min(-1)  # (T, H), (V, H) -> (T,)
        return [int(i) if d < 1e-5 else -1 for d, i in zip(distance, ids, strict=True)]

    def render(self, conversation: Conversation, template: str, **options: Any) -> Rendered:
        return render(
            conversation,
            TEMPLATES[self.facts[template]],
            self.tokenizer,
            slot_id=self.slot_id,
            slots_per_picture=self.slots,
            **options,
        )

    def without_slots(self, ids: list[int]) -> list[int]:
        return [-1 if i == self.slot_id else i for i in ids]


@pytest.fixture(scope="module")
def cases(reference: Path) -> list[Case]:
    folders = sorted(path.parent for path in reference.glob("*/case.json"))
    found = [Case(folder) for folder in folders if "chat_template" in json.loads((folder / "case.json").read_text())]
    if not found:
        pytest.skip("no MiniGPT-4 case among the reference cases")
    return found


def test_every_chat_prompt_has_the_originals_text_and_ids(cases: list[Case]) -> None:
    for case in cases:
        for number, chat in enumerate(case.facts["chats"]):
            conversation = Conversation()
            for turn, said in enumerate(chat):
                images = [case.folder / "images" / name for name in said["images"]]
                conversation = conversation.user(said["question"], images)
                options: dict[str, Any] = {"add_generation_prompt": True, "history": "text"}
                text = render_text(conversation, TEMPLATES[case.facts["chat_template"]], **options)
                assert text == "<s>" + said["prompt"]
                expected = case.read_back(case.expected[f"chat{number}.turn{turn}.prompt_embeds"][0])
                assert case.without_slots(case.render(conversation, "chat_template", **options).ids) == expected
                conversation = conversation.assistant(said["answer"])
