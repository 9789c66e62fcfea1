"""The house: imports point one way, between packages and between files; what trains, measures and serves is on top."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import minichat

ROOT = Path(minichat.__file__).parent


def _module(path: Path) -> str:
    return ".".join(("minichat", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {_module(path): path for path in ROOT.rglob("*.py")}


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs: what is imported for the type checker alone is not."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _nodes(child)


def _imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, in a function or at its head."""
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found & MODULES.keys()


IMPORTS = {name: _imported(path) - {name} for name, path in MODULES.items()}


def _part(module: str) -> str:
    """A package, or a file beside the packages."""
    return ".".join(module.split(".")[:2])


def test_imports_point_one_way() -> None:
    parts: dict[str, set[str]] = defaultdict(set)
    for module, imported in IMPORTS.items():
        parts[_part(module)] |= {_part(each) for each in imported} - {_part(module)}
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which holds the circle
    TopologicalSorter(parts).prepare()


def test_only_the_command_line_imports_what_trains_measures_and_serves() -> None:
    for name in ("minichat.train", "minichat.evaluate", "minichat.web"):
        users = {_part(module) for module, imported in IMPORTS.items() if name in map(_part, imported)}
        assert users == {name, "minichat.cli"}, name
