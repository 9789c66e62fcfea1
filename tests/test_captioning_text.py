"""Words: prompts, what becomes of captions, and what a run says of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minichat.captioning.journal import Shape, filled
from minichat.cli.chat import progress_line
from minichat.errors import PromptError, SettingsError
from tests.captioning import Bot, lines, paint, rows, run


@pytest.fixture
def bot(monkeypatch):
    fake = Bot()
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: fake)
    return fake


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for red in (1, 2, 3):
        paint(tmp_path / "photos" / f"{red}.png", red)
    return tmp_path


# --- prompts


def test_prompts_hold_a_picture_s_own_words():
    assert filled("{name} in {folder}: {caption}, {x} {{name}}", "a/b/cat.v2.png", "Old {name}") == (
        "cat in b: Old {name}, {x} {cat}"
    )
    assert filled(None, "a.png", None) is None
    with pytest.raises(PromptError, match="it has none"):
        filled("{caption}", "a.png", None)


def test_prompts_from_a_file(bot, home):
    (home / "p.txt").write_text("# remarks\nWhat is {name}?\n\n  Where?  \n")
    run("photos", "--prompts", "p.txt", "--out", "c.jsonl")
    assert [row["prompt"] for row in lines()] == [text for n in "123" for text in (f"What is {n}?", "Where?")]
    (home / "none.txt").write_text("# nothing\n")
    assert "holds no prompt" in run("photos", "--prompts", "none.txt", code=1).stderr
    assert "cannot be read" in run("photos", "--prompts", "gone.txt", code=1).stderr


def test_a_picture_without_the_caption_that_is_asked_about_is_named(bot, home):
    (home / "photos" / "1.txt").write_text("One.")
    run("photos", "--prompt", "Better than {caption}", "--out", "c.jsonl", code=3)
    assert [row.get("error") is None for row in lines()] == [True, False, False]
    assert "it has none" in lines()[1]["error"]
    assert bot.asked[0]["prompt"] == "Better than One."


def test_one_prompt_is_passed_on_as_it_is(bot, home):
    run("photos", "--prompt", "")
    assert bot.asked[0]["prompt"] == ""
    run("photos")
    assert bot.asked[1]["prompt"] is None


# --- captions


@pytest.mark.parametrize(
    ("shape", "text", "expected"),
    [
        ({}, "A  red\nstar.", "A  red\nstar."),
        ({"one_line": True}, " A  red\n\nstar. ", "A red star."),
        ({"words": 2}, "A  red\nstar.", "A  red"),
        ({"words": 9}, "A red star.", "A red star."),
        ({"prefix": "art of ", "suffix": " [x]"}, "a star", "art of a star [x]"),
        ({"triggers": ("sks", "dog")}, "A star.", "sks, dog, A star."),
        ({"forbid": ("red",)}, "A Red star, red, redder and infrared.", "A star, redder and infrared."),
        ({"forbid": ("the image shows",)}, "The image  shows a star.", "a star."),
        ({"forbid": ("C++", "(x)")}, "C++ and (x) here", "and here"),
        ({"forbid": ("星",)}, "星 star", "star"),
        ({"forbid": ("a", "b"), "words": 1, "prefix": "p "}, "a b c d", "p c"),
        ({"append": True, "prefix": "+"}, "new", "+new"),
    ],
)  # fmt: skip
def test_shapes(shape, text, expected):
    assert Shape(**shape).apply(text) == expected
    assert Shape.of_facts(json.loads(json.dumps(Shape(**shape).facts()))) == Shape(**shape)


def test_shapes_that_cannot_be():
    for wrong in ({"words": 0}, {"words": True}, {"forbid": (" ",)}):
        with pytest.raises(SettingsError):
            Shape(**wrong)
    assert Shape(append=True).apply("new", "Old.") == "Old. new"


def test_other_words_round_captions_need_no_model(bot, home):
    run("photos", "--out", "c.jsonl")
    run("photos", "--out", "c.jsonl", "--trigger", "sks", "--forbid", "is", "--words", "2", "--one-line")
    assert rows() == {f"photos/{red}.png": "sks, It red" for red in (1, 2, 3)} and bot.count == 3
    paint(home / "photos" / "4.png", 4)
    run("photos", "--out", "c.jsonl")
    assert rows() == {f"photos/{red}.png": f"It is red {red}." for red in (1, 2, 3, 4)} and bot.count == 4


def test_captions_that_say_nothing_are_counted(bot, home):
    bot.says = {2: ""}
    assert "Captions in which the model said nothing: 1." in run("photos").stderr


# --- what a run says


def test_a_dry_run_does_nothing(bot, home):
    result = run("photos", "--dry-run", "--out", "c.jsonl", "--prompt", "What is {name}?", "--model", "m")
    assert result.stdout.splitlines() == [
        "3 pictures: 0 done before, 3 to do. Nothing was done (--dry-run).",
        "Model: m. Output: jsonl, c.jsonl.",
        *(f"  photos/{n}.png: What is {n}?" for n in (1, 2, 3)),
    ]
    assert sorted(path.name for path in home.iterdir()) == ["photos"] and bot.asked == []
    run("photos/1.png", "--out", "c.jsonl")
    files = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    (home / "photos" / "1.txt").write_text("One.")
    assert run("photos", "--dry-run", "--out", "c.jsonl").stdout.startswith("3 pictures: 1 done before, 2 to do.")
    assert files == {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    Path("d.jsonl").write_text('{"image": "photos/1.png", "caption": "x"}\n')
    assert run("photos", "--dry-run", "--out", "d.jsonl").stdout.startswith("3 pictures: 1 done before, 2 to do.")
    assert "was begun with the prompt" in run("photos", "--dry-run", "--out", "c.jsonl", "--prompt", "x", code=1).stderr
    run("photos", "--dry-run", "--out", "s", "--format", "webdataset")
    assert not (home / "s").exists()


def test_a_limit_leaves_the_rest_for_another_time(bot, home):
    first = run("photos", "--out", "c.jsonl", "--limit", "2")
    assert list(rows()) == ["photos/1.png", "photos/2.png"]
    assert "2 pictures: 2 captioned, 0 failed." in first.stderr
    assert "Left for another time (--limit): 1. The same command goes on." in first.stderr
    run("photos", "--out", "c.jsonl", "--limit", "2")
    assert len(rows()) == 3 and bot.count == 3
    run("photos", "--limit", "0", code=2)


def test_progress_says_how_far_how_fast_and_how_long_still():
    assert progress_line(0, 10, 1.0, 0) == "0 of 10 pictures"
    assert progress_line(20, 1000, 10, 1) == "20 of 1,000 pictures, 2.0 per second, 8 min 10 s left, 1 failed"
    assert progress_line(2, 10, 10, 0) == "2 of 10 pictures, 5.0 seconds each, 40 s left"
    assert progress_line(10, 100_000, 10, 0) == "10 of 100,000 pictures, 1.0 per second, 27 h 46 min left"
    assert progress_line(10, 10, 5, 0) == "10 of 10 pictures, 2.0 per second"


def test_a_page_to_look_through(bot, home):
    bot.says = {1: "<b>“One” & two"}
    bot.cut = {2}
    (home / "photos" / "a b#'.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    paint(home / "photos" / "c.tif", 9)
    (home / "out").mkdir()
    result = run("photos", "--out", "out/c.jsonl", "--html", "out/p.html", code=3)
    page = (home / "out" / "p.html").read_text()
    assert "A page of 5 captions is at out/p.html." in result.stderr
    figures = re.findall(r"<figure.*?</figure>", page)
    assert len(figures) == 5 and 'class="failed"' in figures[0] and "is damaged" in figures[0]
    assert 'src="../photos/a%20b%23%27.png"' in figures[0]
    assert "&lt;b&gt;“One” &amp; two" in page and "<b>“One”" not in page
    assert page.count("… cut off") == 1 and page.count("data:image/jpeg;base64") == 1  # no browser shows TIFF
    assert "<script" not in page
    assert "cannot be written" in run("photos", "--html", "no/p.html", code=1).stderr
