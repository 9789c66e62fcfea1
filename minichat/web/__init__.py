"""The chat page. Gradio is imported only when a name from here is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minichat.web.app import build_app
    from minichat.web.serving import Running, launch, mount
    from minichat.web.sessions import Limits
    from minichat.web.swap import Owned

__all__ = ["Limits", "Owned", "Running", "build_app", "launch", "mount"]

_HOMES = {
    "build_app": "minichat.web.app",
    "Limits": "minichat.web.sessions",
    "launch": "minichat.web.serving",
    "Owned": "minichat.web.swap",
    "mount": "minichat.web.serving",
    "Running": "minichat.web.serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
