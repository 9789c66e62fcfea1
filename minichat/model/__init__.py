"""The network. Importing this registers it, and its processor, with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

# From its own module: without torchvision, transformers 5.16 exports a stand-in that only raises.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from minichat.model.config import BridgeConfig, MiniChatConfig
from minichat.model.loss import set_trainable
from minichat.model.minichat import MiniChatForConditionalGeneration, MiniChatOutput
from minichat.prompt.processor import MiniChatImageProcessor, MiniChatProcessor

AutoConfig.register("minichat", MiniChatConfig, exist_ok=True)
AutoModelForImageTextToText.register(MiniChatConfig, MiniChatForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MiniChatConfig, MiniChatProcessor, exist_ok=True)
# "pil" is the backend that transformers falls back to where there is no torchvision; ours never needs one.
_BACKENDS = dict.fromkeys(("pil", "torchvision"), MiniChatImageProcessor)
AutoImageProcessor.register(MiniChatConfig, image_processor_classes=_BACKENDS, exist_ok=True)

__all__ = ["BridgeConfig", "MiniChatConfig", "MiniChatForConditionalGeneration", "MiniChatOutput", "set_trainable"]
