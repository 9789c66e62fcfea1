"""The Auto classes know the network and what belongs to it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.prompt.processor import MiniChatImageProcessor
from tests.tiny_network import tiny_config, tiny_network


def test_auto_classes_find_the_parts_of_a_folder(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path)
    MiniChatImageProcessor(size=56).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MiniChatConfig)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path), MiniChatForConditionalGeneration)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, MiniChatImageProcessor)
    assert processor.size == {"height": 56, "width": 56}


def test_a_network_is_made_from_its_configuration() -> None:
    model = AutoModelForImageTextToText.from_config(tiny_config(), dtype=torch.bfloat16)
    assert isinstance(model, MiniChatForConditionalGeneration)
    assert model.projection.weight.dtype == torch.float32
    for part in (model.vision_model, model.bridge, model.language_model):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
    assert AutoConfig.for_model("minichat", template="llama2").template == "llama2"
