"""The house: its rooms, which way imports point, what is imported only when it is asked for, and how long files are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from pkgutil import resolve_name

import pytest

import minichat

ROOT = Path(minichat.__file__).parent
# Each room, a package or a file beside the packages, imports only those before it. `docs/DESIGN.md` tells the same.
ORDER = (
    "errors", "fileio", "images", "prompt", "model", "device", "weights", "data", "inference", "captioning",
    "search", "train", "evaluate", "toy", "teach", "web", "serve", "cli",
)  # fmt: skip
ALONE = {"minichat", "minichat.__main__", "minichat.hf_auto"}  # the package's own face, and what imports nothing
FILES = 156
LONGEST, SHORTEST = 550, 40  # lines; the face of a package, and `python -m minichat`, may be shorter


def _module(path: Path) -> str:
    return ".".join(("minichat", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {_module(path): path for path in ROOT.rglob("*.py")}


def _imported(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports: at its head, in a function, or for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (inner & MODULES.keys()) or {node.module}


IMPORTS = {name: (set(_imported(path)) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def _room(module: str) -> str:
    return module.split(".")[1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which holds the circle


def test_imports_point_one_way_between_rooms() -> None:
    inner = {name: found - ALONE for name, found in IMPORTS.items() if name not in ALONE}
    assert {_room(name) for name in inner} == set(ORDER)
    place = {room: number for number, room in enumerate(ORDER)}
    wrong = {
        (name, other)
        for name, found in inner.items()
        for other in found
        if _room(other) != _room(name) and place[_room(other)] > place[_room(name)]
    }
    assert not wrong


def test_the_order_is_that_of_the_design() -> None:
    text = (ROOT.parent / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    told = re.search(r"`errors` ←.*?`cli`", text, re.DOTALL)
    assert told is not None
    assert tuple(re.findall(r"`(\w+)`", told[0])) == ORDER


def test_training_imports_nothing_of_the_toy() -> None:
    seen, left = set(), [name for name in MODULES if name.startswith("minichat.train")]
    while left:
        module = left.pop()
        seen.add(module)
        left += IMPORTS[module] - seen
    assert not {name for name in seen if name.startswith("minichat.toy")}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import minichat.train, minichat.train.trainer", ("minichat.toy", "gradio")),
        ("import minichat", ("torch", "transformers")),
        ("import minichat.cli", ("torch", "transformers", "PIL", "numpy")),
    ],
)
def test_what_is_imported_only_when_it_is_asked_for(code: str, absent: tuple[str, ...]) -> None:
    tell = f"{code}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_found_by_name_is_there() -> None:
    from minichat.evaluate.run import GALLERY, OF_PICTURES, OF_SCENES
    from minichat.train.data import STREAMS
    from minichat.train.stages import STAGES

    for place in (*STAGES.values(), *STREAMS.values(), *OF_SCENES.values(), OF_PICTURES, GALLERY):
        assert callable(resolve_name(place)), place


def test_files_are_few_and_of_a_readable_length() -> None:
    assert len(MODULES) <= FILES
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    faces = {name for name, path in MODULES.items() if path.name in ("__init__.py", "__main__.py")}
    assert not {name for name, count in lines.items() if count > LONGEST}
    assert not {name for name, count in lines.items() if count < SHORTEST and name not in faces}
