"""MiniChat: talk about pictures with a MiniGPT-4-style model, teach it, caption folders of pictures and search them.

The public names are imported when they are first used, so that `import minichat` costs nothing: no torch, no
transformers. It only makes transformers' Auto classes able to find `model_type: minichat` (see `minichat.auto`).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from minichat import auto

if TYPE_CHECKING:
    from minichat import images as images
    from minichat import search as search
    from minichat.chat import ChatSession as ChatSession
    from minichat.chat import MiniChat as MiniChat
    from minichat.errors import ContextError as ContextError
    from minichat.errors import DataError as DataError
    from minichat.errors import ImageError as ImageError
    from minichat.errors import MiniChatError as MiniChatError
    from minichat.errors import ModelError as ModelError
    from minichat.errors import PromptError as PromptError
    from minichat.errors import SettingsError as SettingsError
    from minichat.generation import GenerationSettings as GenerationSettings
    from minichat.load import load as load
    from minichat.prompt.conversation import Conversation as Conversation
    from minichat.prompt.conversation import Message as Message

__version__ = "0.1.0"

_HOMES = {
    "load": "minichat.load",
    "MiniChat": "minichat.chat",
    "ChatSession": "minichat.chat",
    "GenerationSettings": "minichat.generation",
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


class _Package(ModuleType):
    """Keeps `minichat.load` the public function.

    Python binds a submodule to its package when it is imported, so `import minichat.load` anywhere would otherwise
    turn `minichat.load(...)` into "module is not callable".
    """

    @property
    def load(self) -> Any:
        return import_module("minichat.load").load

    @load.setter
    def load(self, submodule: ModuleType) -> None:
        """Leave the submodule in `sys.modules` alone, where `from minichat.load import …` finds it."""


sys.modules[__name__].__class__ = _Package
auto.announce()
