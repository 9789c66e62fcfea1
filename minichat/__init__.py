"""MiniChat: talk about pictures with a MiniGPT-4-style model, teach it, caption folders of pictures and search them.

The public names are imported when they are first used, so that `import minichat` costs nothing: no torch, no
transformers. It only makes transformers' Auto classes able to find `model_type: minichat` (see `minichat.hf_auto`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minichat import hf_auto

if TYPE_CHECKING:
    from minichat import images as images
    from minichat import search as search
    from minichat.errors import ContextError as ContextError
    from minichat.errors import DataError as DataError
    from minichat.errors import ImageError as ImageError
    from minichat.errors import MiniChatError as MiniChatError
    from minichat.errors import ModelError as ModelError
    from minichat.errors import PromptError as PromptError
    from minichat.errors import SettingsError as SettingsError
    from minichat.inference.bot import MiniChat as MiniChat
    from minichat.inference.load import load as load
    from minichat.inference.sampling import GenerationSettings as GenerationSettings
    from minichat.inference.session import ChatSession as ChatSession
    from minichat.prompt.conversation import Conversation as Conversation
    from minichat.prompt.conversation import Message as Message

__version__ = "0.1.0"

_HOMES = {
    "load": "minichat.inference.load",
    "MiniChat": "minichat.inference.bot",
    "ChatSession": "minichat.inference.session",
    "GenerationSettings": "minichat.inference.sampling",
    "Conversation": "minichat.prompt.conversation",
    "Message": "minichat.prompt.conversation",
    "MiniChatError": "minichat.errors",
    "ImageError": "minichat.errors",
    "PromptError": "minichat.errors",
    "SettingsError": "minichat.errors",
    "ModelError": "minichat.errors",
    "ContextError": "minichat.errors",
    "DataError": "minichat.errors",
}

__all__ = ["__version__", "images", "search", *_HOMES]  # noqa: PLE0604 (names, all of them)


def __getattr__(name: str) -> Any:
    if name in ("images", "search"):
        return import_module(f"minichat.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'minichat' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


hf_auto.announce()
