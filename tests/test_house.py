"""The house: imports point one way, between packages and between files; what trains, measures and serves is on top."""

from __future__ import annotations

import ast
import re
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


PARTS: dict[str, set[str]] = defaultdict(set)
for _name, _found in IMPORTS.items():
    PARTS[_part(_name)] |= {_part(each) for each in _found} - {_part(_name)}


def test_imports_point_one_way() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which holds the circle
    TopologicalSorter(PARTS).prepare()


def test_the_chain_is_that_of_the_design() -> None:
    """Each link imports of the others only those before it; `scenes` knows next to nothing."""
    text = (ROOT.parent / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    told = re.search(r"`errors` ←.*?;", text, re.DOTALL)
    assert told is not None
    links = [[f"minichat.{name}" for name in re.findall(r"`(\w+)`", link)] for link in told[0].split("←")]
    assert len(links) == 9
    for number, link in enumerate(links):
        later = {name for each in links[number + 1 :] for name in each}
        assert all(not PARTS[name] & later for name in link), link
    assert PARTS["minichat.scenes"] == {"minichat.errors", "minichat.disk"}


def test_only_the_command_line_imports_what_trains_measures_and_serves() -> None:
    for name in ("minichat.train", "minichat.evaluate", "minichat.web"):
        users = {_part(module) for module, imported in IMPORTS.items() if name in map(_part, imported)}
        assert users == {name, "minichat.cli"}, name
