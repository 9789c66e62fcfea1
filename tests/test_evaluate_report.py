"""Reports and comparisons: intervals, JSON, Markdown, plots."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minichat.errors import DataError, SettingsError
from minichat.evaluate.metrics import Figure, Line, by_kind, is_blind, ratio, share
from minichat.evaluate.run import Plan, Report, compare, shown, versions, weights_of


def report(name: str = "tiny", right: float = 0.9, asked: str = "abc") -> Report:
    figures = [
        Line("questions", "colour", Figure(right, 1000), Figure(0.1, 500)),
        Line("questions", "overall", Figure(right, 2000), Figure(0.25, 1000)),
        Line("captions", "CIDEr-D", Figure(4.25, 10, "score"), Figure(0.5, 10, "score")),
        Line("captions", "ROUGE-L", Figure(0.5, 10, "rate")),
        Line("captions", "nothing", Figure(None, 0)),
    ]
    records = [{"task": "questions", "reply": "été"}]
    found = Report(name, {"model.safetensors": "00"}, versions(), "held-out scenes", 0, None, {}, lines=figures)
    found.asked, found.records, found.seconds = {"questions": asked, "captions": "c"}, records, {"questions": 1.5}
    return found


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_interval_is_wilsons(part, more):
    """Its ends solve (p − q)² = z² q (1 − q) / n."""
    n = part + more
    figure = ratio(part, n)
    low, high = figure.interval() or (0.0, 0.0)
    assert 0 <= low <= part / n <= high <= 1
    for q in (low, high):
        if 0 < q < 1:
            assert (part / n - q) ** 2 == pytest.approx(1.96**2 * q * (1 - q) / n, abs=1e-9)


def test_only_shares_have_an_interval():
    assert Figure(0.5, 10, "rate").interval() is None
    assert Figure(3.0, 10, "score").interval() is None
    assert Figure(None, 0).interval() is None
    assert share([]).value is None
    assert ratio(0, 0).value is None


def test_kinds_are_counted_apart_and_together():
    figures = by_kind([("a", 1.0), ("b", 0.0), ("a", 0.0), ("a", 1.0)])
    assert {name: (figure.value, figure.count) for name, figure in figures.items()} == {
        "a": (2 / 3, 3), "b": (0.0, 1), "overall": (0.5, 4),
    }  # fmt: skip
    assert list(figures) == ["a", "b", "overall"]


@pytest.mark.parametrize(
    ("seen", "blank", "blind"),
    [
        (Figure(0.26, 2000), Figure(0.25, 500), True),
        (Figure(0.20, 2000), Figure(0.25, 500), True),
        (Figure(0.95, 2000), Figure(0.25, 500), False),
        (Figure(0.30, 5000), Figure(0.25, 500), False),  # little, but not by chance
        (Figure(1.00, 6), Figure(0.67, 6), False),  # could be chance, but is not little
        (Figure(0.5, 10, "rate"), Figure(0.49, 10, "rate"), True),
        (Figure(None, 0), Figure(0.2, 5), False),
        (Figure(0.5, 10), None, False),
    ],
)
def test_who_does_not_see_is_told(seen, blank, blind):
    assert is_blind(Line("questions", "overall", seen, blank)) is blind


def test_the_table():
    text = report().to_markdown()
    assert text.startswith("# tiny\n\nOn held-out scenes, seed 0; minichat ")
    assert "## questions" in text and "## captions" in text
    assert "| overall | 90.0% | 88.6% – 91.2% | 25.0% | 2,000 |" in text
    assert "| CIDEr-D | 4.25 |  | 0.50 | 10 |" in text
    assert "| nothing | – |  |  | 0 |" in text
    assert "make no difference" not in text


def test_a_blind_model_is_named_above_the_tables():
    found = report(right=0.26)
    found.blind = [line for line in found.lines if line.name == "overall" and is_blind(line)]
    text = found.to_markdown()
    assert text.index("make no difference to questions") < text.index("## questions")
    assert found.to_json()["blind"] == ["questions: overall"]


def test_a_folder_holds_all_of_it(tmp_path):
    report().write(tmp_path / "run")
    written = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert written == ["captions.png", "questions.png", "replies.jsonl", "results.json", "results.md"]
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["model"] == {"name": "tiny", "weights": {"model.safetensors": "00"}}
    assert set(content["versions"]) >= {"minichat", "torch", "transformers", "torchmetrics", "python"}
    first = content["figures"][0]
    assert (first["task"], first["name"], first["value"], first["count"]) == ("questions", "colour", 0.9, 1000)
    assert first["blank"]["value"] == 0.1
    assert first["interval"][0] < 0.9 < first["interval"][1]
    assert (tmp_path / "run" / "replies.jsonl").read_text() == '{"task": "questions", "reply": "été"}\n'
    assert (tmp_path / "run" / "results.md").read_text() == report().to_markdown()
    with Image.open(tmp_path / "run" / "questions.png") as picture:
        assert picture.width > 400
    with pytest.raises(DataError, match="exists already"):
        report().write(tmp_path / "run")


def test_a_name_that_is_no_unicode_costs_no_report(tmp_path):
    """Of a folder, a file or a text that no one looked at: all is measured when it is written."""
    for name in ("odd\udcff", "half\ud800"):
        found = report(name)
        found.source, found.files, found.records = name, {name: "00"}, [{"picture": name, "reply": "été"}]
        out = tmp_path / f"run {name[:3]}"
        found.write(out)
        content = json.loads((out / "results.json").read_text(encoding="utf-8"))
        assert (content["model"]["name"], content["data"]["files"]) == (name, {name: "00"})
        assert json.loads((out / "replies.jsonl").read_text(encoding="utf-8")) == found.records[0]
        shown_as = name.encode("utf-8", "backslashreplace").decode()
        assert (out / "results.md").read_text(encoding="utf-8").startswith(f"# {shown_as}\n\nOn {shown_as}, seed 0")
    both = compare(tmp_path / "run odd", tmp_path / "run hal")
    both.write(tmp_path / "both")
    assert "| | odd\\udcff | half\\ud800 | difference |" in both.to_markdown()


# --- two runs


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    report().write(tmp_path / "one")
    report(right=0.95).write(tmp_path / "two")
    return tmp_path / "one", tmp_path / "two"


def test_two_runs_side_by_side(runs, tmp_path):
    found = compare(*runs)
    text = found.to_markdown()
    assert "| | one | two | difference |" in text  # the same model: the folders tell them apart
    assert "| overall | 90.0% | 95.0% | +5.0 points * |" in text
    assert "| ROUGE-L | 50.0% | 50.0% | +0.0 points |" in text
    assert "| CIDEr-D | 4.25 | 4.25 | +0.00 |" in text
    assert "different questions" not in text
    report(right=0.905).write(tmp_path / "close")
    assert "| overall | 90.0% | 90.5% | +0.5 points |" in compare(runs[0], tmp_path / "close").to_markdown()
    found.write(tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        "captions.png",
        "compare.md",
        "questions.png",
    ]


def test_runs_that_asked_different_questions_say_so(tmp_path):
    report().write(tmp_path / "one")
    report("other", asked="xyz").write(tmp_path / "two")
    text = compare(tmp_path / "one", tmp_path / "two").to_markdown()
    assert text.count("The two were asked different questions.") == 1
    assert "| | tiny | other | difference |" in text


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(DataError, match=r"'nowhere' holds no results\.json"):
        compare(runs[0], tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "results.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match=r"'odd' holds no results\.json"):
        compare(tmp_path / "odd", runs[0])
    other = report()
    other.lines = [Line("pairs", "overall", Figure(0.5, 10))]
    other.write(tmp_path / "pairs")
    with pytest.raises(DataError, match="no figure in common"):
        compare(runs[0], tmp_path / "pairs")


# --- plans


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("magic",)}, "no task 'magic'"),
        ({"count": 0}, "count is 0"),
        ({"reranked": -1}, "reranked is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_plan_that_cannot_be(settings, message):
    with pytest.raises(SettingsError, match=message):
        Plan(**settings)


def test_weights_are_known_by_their_hashes(tmp_path):
    import hashlib

    from minichat.weights.registry import find

    stored = find("minichat-tiny") / "model.safetensors"
    assert weights_of("minichat-tiny") == {"model.safetensors": hashlib.sha256(stored.read_bytes()).hexdigest()}
    assert weights_of("made in memory") == {}


def test_how_figures_are_shown():
    figures = (Figure(0.5, 1), Figure(0.123, 1, "rate"), Figure(math.pi, 1, "score"), Figure(None, 0))
    assert [shown(figure) for figure in figures] == ["50.0%", "12.3%", "3.14", "–"]
