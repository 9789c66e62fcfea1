"""What is written is read back the same, whole or not at all, and no picture is in two of the sets."""

from __future__ import annotations

import io
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from minichat import cli
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.data.export import divide, split, write
from minichat.data.formats import examples, read
from minichat.data.formats.base import turn
from minichat.errors import DataError, SettingsError
from tests.prompt_samples import hostile_text
from tests.test_data_formats import DATA, SAMPLES, TALKS, all_said, said

WHERE = Where("made", 1)


def png(number: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (3, 3), (number % 256, number // 256, 7)).save(written, "PNG")
    return written.getvalue()


def showing(picture: StoredPicture) -> Example:
    return Example((turn("user", [picture]), turn("assistant", ["x"])), WHERE)


# What can stand in a data set: no null character.
texts = hostile_text.map(lambda text: text.replace("\0", ""))
pictures = st.integers(0, 3).map(lambda number: StoredPicture(f"{number}.png", png(number)))


@st.composite
def records(draw: st.DrawFn) -> Example:
    turns: list[Turn] = []
    if draw(st.booleans()):
        turns.append(turn("system", [draw(texts)]))
    for _ in range(draw(st.integers(1, 3))):
        turns.append(turn("user", [*draw(st.lists(texts | pictures, max_size=4)), draw(pictures)]))
        turns.append(turn("assistant", [draw(texts) + "x"]))
    return Example(tuple(turns), WHERE)


@given(made=st.lists(records(), min_size=1, max_size=3), form=st.sampled_from(["messages", "llava"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(made: list[Example], form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Law: any words, any pictures, in any turn; LLaVA's JSON refuses words that it would take for a picture."""
    out = tmp_path_factory.mktemp("out") / "set"
    if form == "llava" and any("<image>" in t.text for one in made for t in one.turns if t.role == "user"):
        with pytest.raises(DataError, match="takes for the place of a picture"):
            write(made, out, form)
        assert list(out.parent.iterdir()) == []
        return
    assert write(made, out, form) == len(made)
    assert all_said(out) == [said(one) for one in made]


@pytest.mark.parametrize("sample", [*SAMPLES, *TALKS])
@pytest.mark.parametrize("form", ["messages", "llava"])
def test_every_format_is_converted(sample: str, form: str, tmp_path: Path) -> None:
    options = SAMPLES.get(sample, ("", {}))[1]
    (tmp_path / "deep").mkdir()
    out = tmp_path / "deep" / "set.json"
    write(read(DATA / sample, **options), out, form)
    assert all_said(out, form) == all_said(DATA / sample, **options)
    there = sorted(path.name for path in out.parent.iterdir())
    if "shards" in sample:
        assert there == ["set-pictures", "set.json"]
        assert [path.suffix for path in (out.parent / "set-pictures").iterdir()] == [".jpg"] * 3
        out.parent.rename(tmp_path / "moved")  # what holds all it needs may be moved
        assert all_said(tmp_path / "moved" / "set.json", form) == all_said(DATA / sample, **options)
    else:
        assert there == ["set.json"]
        assert not any(os.path.isabs(picture.name) for one in examples(out) for picture in one.pictures)


def test_llava_s_json_is_as_llava_writes_it(tmp_path: Path) -> None:
    write(read(DATA / "talk_messages.jsonl"), tmp_path / "x.json", "llava")
    first, _ = json.loads((tmp_path / "x.json").read_text())
    assert first["id"] == "1"
    assert len(first["image"]) == 3
    assert first["conversations"][1] == {
        "from": "human",
        "value": "<image>\n<image>\nWhich of the two has more objects?",
    }
    assert first["conversations"][5]["value"] == "Compare it with\n<image>\nplease."


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    good = list(read(DATA / "shards"))

    def failing() -> Any:
        yield from good
        raise DataError("made:4: no.")

    for form in ("messages", "llava"):
        with pytest.raises(DataError, match="made:4: no"):
            write(failing(), out, form)
        with pytest.raises(DataError, match="no record to write"):
            write([], out, form)
        missing = Example(
            (turn("user", [StoredPicture("m", good[0].pictures[0].source)]), turn("assistant", ["x"])), WHERE
        )
        gone = StoredPicture("gone.png", type(missing.pictures[0].source)(tmp_path / "no.tar", 0, 5))  # type: ignore
        with pytest.raises(DataError, match=r"made:1: the picture 'gone\.png' is missing"):
            write([*good, Example((turn("user", [gone]), turn("assistant", ["x"])), WHERE)], out, form)
    assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write(good, out)
    assert out.read_text() == "mine"
    with pytest.raises(DataError, match="cannot be made"):
        write(good, tmp_path / "absent" / "x.jsonl")
    with pytest.raises(DataError, match="'coco' cannot be written"):
        write(good, tmp_path / "y", "coco")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the writer")
@pytest.mark.parametrize("step", [1, 2])
def test_a_writer_that_is_killed_leaves_no_half_file(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it names the folder of pictures, or the file."""
    good, out = list(read(DATA / "shards")), tmp_path / "x.jsonl"
    child = os.fork()
    if child == 0:
        steps = iter(range(1, 9))

        def replace(source: Any, target: Any, replace: Any = os.replace) -> None:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = replace  # type: ignore[assignment]
        write(good, out)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    pictures = tmp_path / "x-pictures"
    assert pictures.exists() is (step == 2)
    if step == 2:
        assert len(list(pictures.iterdir())) == 3
        with pytest.raises(DataError, match="'x-pictures' exists already: remove it"):
            write(good, out)
        out = tmp_path / "y.jsonl"
    write(good, out)
    assert all_said(out) == [said(one) for one in good]


def test_names_in_any_script(tmp_path: Path) -> None:
    for name in ("größe 写真\u2028.png", "new\nline.png", b"\xff.png".decode(errors="surrogateescape")):
        (tmp_path / name).write_bytes(png(1))
        named = StoredPicture(name, tmp_path / name)
        out = tmp_path / "x.jsonl"
        write([showing(named)], out)
        assert all_said(out)[0][0][1] == [png(1)]
        out.unlink()
        if (tmp_path / "x-pictures").exists():
            for file in (tmp_path / "x-pictures").iterdir():
                file.unlink()
            (tmp_path / "x-pictures").rmdir()


# --- split


def shown(*numbers: int, text: str = "What?", line: int = 1) -> Example:
    pictures = [StoredPicture(f"{number}.png", png(number)) for number in numbers]
    return Example((turn("user", [*pictures, text]), turn("assistant", ["x"])), Where("made", line))


@given(st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=12, max_size=60), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_no_picture_is_in_two_sets(numbers: list[list[int]], seed: int) -> None:
    made = [shown(*some, text=f"{sorted(some)}", line=line) for line, some in enumerate(numbers, start=1)]
    try:
        sets = divide(made, 0.2, 0.1, seed)
    except DataError as error:
        assert "would be empty" in str(error)
        return
    contents = {name: {p.key() for one in chosen for p in one.pictures} for name, chosen in sets.items()}
    assert not contents["train"] & contents["validation"]
    assert not contents["train"] & contents["test"]
    assert not contents["validation"] & contents["test"]
    texts_of = [{one.turns[0].text for one in chosen if not one.pictures} for chosen in sets.values()]
    assert not set.intersection(*texts_of)
    lines = [one.where.line for chosen in sets.values() for one in chosen]
    assert sorted(lines) == list(range(1, len(made) + 1))
    assert len(sets["validation"]) <= round(0.2 * len(made))
    assert len(sets["test"]) <= round(0.1 * len(made))
    again = random.Random(seed).sample(made, len(made))
    assert {name: {one.where for one in chosen} for name, chosen in divide(again, 0.2, 0.1, seed).items()} == {
        name: {one.where for one in chosen} for name, chosen in sets.items()
    }


def test_records_are_tied_through_others() -> None:
    chain = [shown(number, number + 1) for number in range(50)]
    with pytest.raises(DataError, match="validation set would be empty: 50 records make 1 groups"):
        divide(chain, 0.2, 0.2)
    alone = [shown(1000 + number) for number in range(50)]
    sets = divide([*chain, *alone], 0.2, 0.2)
    assert set(chain) <= set(sets["train"])
    assert Counter(map(len, sets.values())) == Counter([60, 20, 20])


def test_the_seed_decides_and_shares_are_checked() -> None:
    made = [shown(number, line=number) for number in range(40)]
    assert divide(made, 0.25, 0.25, 1) == divide(made, 0.25, 0.25, 1) != divide(made, 0.25, 0.25, 2)
    assert divide(made, 0, 0)["train"] == made
    for validation, test in ((-0.1, 0.1), (0.1, 1.0), (0.5, 0.5), (float("nan"), 0.1)):
        with pytest.raises(SettingsError):
            divide(made, validation, test)
    with pytest.raises(DataError, match="train set would be empty"):
        divide([], 0, 0)


def test_split_writes_three_sets(tmp_path: Path) -> None:
    """Pictures of tars are written beside them; those that are files stay where they are."""
    for source, options in ((DATA / "shards", {}), (DATA / "messages.jsonl", {})):
        out = tmp_path / source.stem
        assert split(examples(source, **options), out, 0.34, 0.34) == {"train": 1, "validation": 1, "test": 1}
        read_back = [one for name in ("train", "validation", "test") for one in all_said(out / f"{name}.jsonl")]
        assert sorted(read_back, key=str) == sorted(all_said(source), key=str)
        assert (out / "pictures").exists() is (source.suffix == "")
    with pytest.raises(DataError, match="exists already"):
        split(examples(DATA / "messages.jsonl"), tmp_path / "shards", 0.34, 0.34)
    broken = [*examples(DATA / "messages.jsonl"), showing(StoredPicture("m.png", tmp_path / "m.png"))]
    with pytest.raises(DataError, match=r"made:1: the picture 'm\.png' is missing"):
        split(broken, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messages", "shards"]


# --- the command line


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)])


def test_convert_and_split_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    done = run("convert", DATA / "talk_messages.jsonl", "--to", "llava", "--out", out)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert done.stderr == f"2 records are in {out}.\n"
    assert all_said(out) == all_said(DATA / "talk_messages.jsonl")
    assert run("convert", DATA / "messages.jsonl", "--to", "coco", "--out", out).exit_code == 2
    assert run("convert", DATA / "messages.jsonl", "--to", "llava", "--out", out).exit_code == 1
    done = run("split", DATA / "messages.jsonl", "--out", tmp_path / "sets", "--validation", "0.34", "--test", "0")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert done.stderr == f"train 2, validation 1, test 0: in {tmp_path / 'sets'}.\n"
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == ["train.jsonl", "validation.jsonl"]
    assert run("split", DATA / "messages.jsonl", "--out", tmp_path / "other", "--validation", "2").exit_code == 1


def test_whether_answers_can_be_written_is_known_before_the_model_is_loaded(tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("What is a comet?\n")
    done = run("answers", asked, "--model", "absent", "--out", tmp_path / "no" / "answers.jsonl")
    assert done.exit_code == 1
    assert done.stderr.startswith("minichat: 'answers.jsonl' cannot be made")
    done = run("answers", asked, "--model", "absent", "--out", tmp_path / "answers.jsonl")
    assert done.stderr.startswith("minichat: There is no model 'absent'")
    assert list(tmp_path.iterdir()) == [asked]
