"""Lets transformers' Auto classes find MiniChat before `minichat.model` is imported.

`AutoModelForImageTextToText.from_pretrained(folder)` must work after a plain `import minichat`, which in turn must not
cost an import of torch. The Auto classes look a `model_type` up in tables of names and import the module that the name
belongs to only when they need it. So the names are added to those tables when transformers makes them, and the module
`transformers.models.minichat` that they point to imports `minichat.model`, which then registers everything itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODEL_TYPE = "minichat"
_MODULE = f"transformers.models.{_MODEL_TYPE}"
# module of transformers -> (its table of names, the name to add)
_TABLES = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING_NAMES", "MiniChatConfig"),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING_NAMES", "MiniChatProcessor"),
}


def announce() -> None:
    """Add MiniChat's names to transformers' tables, now or when transformers is imported. Does nothing twice."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for name in _TABLES:
        if name in sys.modules:
            _add_name(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def _add_name(module: ModuleType) -> None:
    table, name = _TABLES[module.__name__]
    getattr(module, table).setdefault(_MODEL_TYPE, name)


class _Finder(MetaPathFinder):
    """Finds `transformers.models.minichat`, and is told when a table has been made; all else it leaves alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _MODULE:
            return ModuleSpec(fullname, _ModelLoader())
        if fullname not in _TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _TableLoader(spec.loader)
        return spec


class _TableLoader(Loader):
    """Loads a module as `loader` would, then adds MiniChat's name to its table."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: inspect and linecache ask it for the source.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _add_name(module)


class _ModelLoader(Loader):
    """`transformers.models.minichat`: the classes of `minichat.model` under the name where transformers looks."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        model = import_module("minichat.model")
        module.MiniChatConfig = model.MiniChatConfig  # type: ignore[attr-defined]
        module.MiniChatProcessor = import_module("minichat.prompt.processor").MiniChatProcessor  # type: ignore[attr-defined]
