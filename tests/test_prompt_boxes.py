"""MiniGPT-v2's boxes: what is spelled is what is read, and what is none stays text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from captioning import Bot, paint, run
from hypothesis import given, settings
from hypothesis import strategies as st

from minichat.errors import PromptError
from minichat.prompt.boxes import GROUNDING, TASKS, Box, numbered, parse

hundredths = st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted)


@settings(deadline=None)
@given(across=hundredths, down=hundredths, words=st.text("abc <>{}[]p/\n", max_size=12))
def test_a_box_comes_back(across: list[int], down: list[int], words: str) -> None:
    box = Box(across[0] / 100, down[0] / 100, across[1] / 100, down[1] / 100)
    assert parse(str(box)) == [box]
    assert all(found in parse(f"{words} {box}") for found in [box] if not words.strip().endswith("</p>"))
    assert len(parse(words)) == 0


def test_phrases_stand_before_their_boxes() -> None:
    text = (
        "<p>a green cat</p> {<25><30><70><80>} is left of <p> two houses </p>{<50><0><99><64>}<delim>{<3><4><55><66>}, "
        "and {<1><2><3><4>}"
    )
    assert parse(text) == [
        Box(0.25, 0.3, 0.7, 0.8, "a green cat"),
        Box(0.5, 0.0, 0.99, 0.64, "two houses"),
        Box(0.03, 0.04, 0.55, 0.66, "two houses"),
        Box(0.01, 0.02, 0.03, 0.04),
    ]
    assert numbered(text) == "a green cat [1] is left of two houses[2][3], and [4]"
    for same in ("no box {<9><9><1><1>}, <b>", "{<1><2><3>}", ""):
        assert numbered(same) == same


@pytest.mark.parametrize(
    "text", ["{<70><30><25><80>}", "{<25><30><70>}", "{<25><30><70><101>}", "{<-1><3><4><5>}", "<25><30><70><80>", "{}"]
)
def test_what_is_no_box_is_passed_over(text: str) -> None:
    assert parse(f"<p>a cat</p> {text} there") == []


def test_a_box_is_within_the_picture() -> None:
    assert Box(0.25, 0.5, 1, 1).pixels(640, 480) == (160, 240, 640, 480)
    for sides in ((0.5, 0, 0.4, 1), (0, 0, 1.1, 1), (0, -0.1, 1, 1), (0, 0, float("nan"), 1)):
        with pytest.raises(PromptError, match="each from 0 to 1"):
            Box(*sides)


def test_captions_come_with_their_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON lines, asked for by MiniGPT-v2's own words; other formats have no place for them."""
    bot = Bot()
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *given: bot)
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "photos" / "1.png", 1)
    paint(tmp_path / "photos" / "2.png", 2)
    bot.says = {1: "<p>a cat</p> {<25><30><70><80>}", 2: "Nothing."}
    run("photos", "--out", "c.jsonl", "--boxes")
    assert {one["prompt"] for one in bot.asked} == {GROUNDING}
    assert GROUNDING.startswith("[grounding]") and "grounding" in TASKS
    found = {row["image"]: row for row in map(json.loads, Path("c.jsonl").read_text().splitlines())}
    assert found["photos/1.png"]["boxes"] == [{"phrase": "a cat", "box": [0.25, 0.3, 0.7, 0.8]}]
    assert found["photos/2.png"]["boxes"] == []
    run("photos", "--out", "c.jsonl", "--boxes")  # which is done
    assert bot.count == 2
    assert "--boxes" in run("photos", "--out", "c.csv", "--boxes", code=1).stderr
