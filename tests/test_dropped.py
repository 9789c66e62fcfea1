"""`minichat.cli.terminal`: paths as terminals write them, and the words after them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minichat.cli import terminal


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with pictures (nobody opens them) and a text; it is also the current one, and the person's."""
    for name in ("a.png", "b.JPG", "my cat.png", "猫 #1?.png", "it's.png", "notes.txt", "What.png?"):
        try:
            (tmp_path / name).touch()
        except OSError:  # Windows forbids some of these names
            continue
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return str(tmp_path)


def names(line: str) -> tuple[list[str], str]:
    paths, words = terminal.split(line)
    assert all(os.path.isfile(terminal.expanded(path)) for path in paths)
    return [Path(path).name for path in paths], words


@pytest.mark.parametrize(
    ("line", "pictures", "words"),
    [
        ("{}/a.png", ["a.png"], ""),
        ("{}/a.png What is this?", ["a.png"], "What is this?"),
        ("{}/a.png   What\nis this?", ["a.png"], "What\nis this?"),
        ("{}/a.png\nWhat is this?", ["a.png"], "What is this?"),
        ("'{}/my cat.png' What?", ["my cat.png"], "What?"),
        ('"{}/it\'s.png"What?', ["it's.png"], "What?"),
        ("{}/my\\ cat.png What?", ["my cat.png"], "What?"),
        ("{}/my cat.png What?", ["my cat.png"], "What?"),
        ("{}/it\\'s.png", ["it's.png"], ""),
        ("file://{}/a.png What?", ["a.png"], "What?"),
        ("file://localhost{}/my%20cat.png", ["my cat.png"], ""),
        ("file:{}/a.png", ["a.png"], ""),
        ("file://{}/%E7%8C%AB%20%231%3F.png file://{}/a.png", ["猫 #1?.png", "a.png"], ""),
        ("'{}/a.png' '{}/my cat.png' {}/b.JPG Which?", ["a.png", "my cat.png", "b.JPG"], "Which?"),
        ("{}/a.png {}/my\\ cat.png", ["a.png", "my cat.png"], ""),
        ("~/a.png What?", ["a.png"], "What?"),
        ("b.JPG What?", ["b.JPG"], "What?"),
        ("./a.png", ["a.png"], ""),
        ("{}/notes.txt", ["notes.txt"], ""),  # it is opened, and said to be no picture
    ],
)
def test_paths_at_the_beginning_are_pictures(here: str, line: str, pictures: list[str], words: str) -> None:
    assert names(line.replace("{}", here)) == (pictures, words)


@pytest.mark.parametrize(
    "line",
    [
        "What is in a.png?", "notes.txt", "gone.png", "'a word' and more", "'tis a cat", "{}", "{}/gone.png", "/help",
        "file://{}/gone.png", "file://[", "\\", "a" * 10_000, "/" + "a " * 5000, "a.png\0", "", '"', "Is it a b.png?",
    ],
)  # fmt: skip
def test_all_else_is_words(here: str, line: str) -> None:
    line = line.replace("{}", here)
    assert terminal.split(line) == ([], line)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("my cat.png", ["my cat.png"]),
        ("a.png my\\ cat.png 'it\\'s.png'", ["a.png", "my cat.png", "it\\", "s.png'"]),
        ("notes.txt gone.png", ["notes.txt", "gone.png"]),
        ("gone\\ one.png 'and another.png'", ["gone one.png", "and another.png"]),
        (r"C:\pictures\a.png", [r"C:\pictures\a.png"]),
        ("file:///gone%20too.png", ["/gone too.png"]),
        ("", []),
    ],
)
def test_paths_after_a_command_need_not_be_there(here: str, text: str, paths: list[str]) -> None:
    assert terminal.all_paths(text) == paths


def test_an_address_is_a_path(here: str) -> None:
    assert terminal.expanded(f"file://{here}/my%20cat.png") == Path(here, "my cat.png")
    assert terminal.expanded("~/a.png") == Path(here, "a.png")
