"""Data sets of scenes on disk: whole, true, the same for the same seed, or not there at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from scene_reader import truth

from minichat.errors import DataError, SettingsError
from minichat.toy import captions, dataset
from minichat.toy.asking import Question
from minichat.toy.captions import facts
from minichat.toy.evaluate_captions import check
from minichat.toy.world import Scene

FILES = ["captions.csv", "conversations.jsonl", "descriptions.csv", "pictures", "questions.jsonl", "scenes.jsonl"]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.write(tmp_path_factory.mktemp("data") / "new" / "scenes", 12, seed=3, size=40)


def test_everything_is_there_and_nothing_else(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == FILES
    assert [path.name for path in written.parent.iterdir()] == ["scenes"]
    names = [f"pictures/{number:06d}.png" for number in range(12)]
    assert [f"pictures/{path.name}" for path in sorted((written / "pictures").iterdir())] == names
    assert [record["image"] for record in lines(written / "scenes.jsonl")] == names
    with open(written / "captions.csv", encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == names


def test_pictures_have_the_size_asked_for(written: Path) -> None:
    for path in (written / "pictures").iterdir():
        with Image.open(path) as picture:
            assert (picture.size, picture.mode, picture.format) == ((40, 40), "RGB", "PNG")


def test_what_is_written_is_true_of_the_scene(written: Path) -> None:
    scenes = {record["image"]: Scene.from_dict(record["scene"]) for record in lines(written / "scenes.jsonl")}  # type: ignore[arg-type]
    for table in ("captions.csv", "descriptions.csv"):
        with open(written / table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                assert facts(row["caption"]).things.total() == len(scenes[row["image"]].things)
    asked = lines(written / "questions.jsonl")
    assert len(asked) > 12 * 5
    for record in asked:
        question = Question(*(str(record[key]) for key in ("kind", "question", "answer", "reply")))
        assert truth(scenes[record["image"]], question) == question.answer


def test_conversations_are_messages_with_pictures_that_exist(written: Path) -> None:
    conversations = lines(written / "conversations.jsonl")
    assert len(conversations) == 12
    for number, record in enumerate(conversations):
        messages = record["messages"]
        assert isinstance(messages, list)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        assert images[0] == f"pictures/{number:06d}.png"
        assert all((written / image).is_file() for image in images)
        for message in messages:
            assert [part["type"] for part in message["content"]].count("text") == 1
            assert all(part["type"] == "text" for part in message["content"] if message["role"] == "assistant")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_seeds_write_equal_bytes_and_more_scenes_begin_with_the_same(written: Path, tmp_path: Path) -> None:
    assert everything(dataset.write(tmp_path / "again", 12, seed=3, size=40)) == everything(written)
    other = everything(dataset.write(tmp_path / "other", 12, seed=4, size=40))
    assert other["scenes.jsonl"] != everything(written)["scenes.jsonl"]
    more = dataset.write(tmp_path / "more", 14, seed=3, size=40)
    assert lines(more / "scenes.jsonl")[:12] == lines(written / "scenes.jsonl")
    assert (more / "pictures/000011.png").read_bytes() == (written / "pictures/000011.png").read_bytes()


def test_an_empty_folder_is_filled_and_readable_by_others(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    usual = out.stat().st_mode
    assert sorted(path.name for path in dataset.write(out, 1, size=16).iterdir()) == FILES
    assert out.stat().st_mode == usual


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists already"):
        dataset.write(tmp_path, 2, size=16)
    with pytest.raises(DataError, match="exists already"):
        dataset.write(tmp_path / "thesis.txt", 2, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), DataError)):
        calls = iter(range(3))

        def failing(turns: object, images: object, error: BaseException = error, calls: object = calls) -> object:
            if next(calls) == 2:  # type: ignore[call-overload]
                raise error
            return []

        monkeypatch.setattr(dataset, "messages", failing)
        with pytest.raises(expected):
            dataset.write(tmp_path / "out", 5, size=16)
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        dataset.write(tmp_path / "file" / "out", 1, size=16)


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ({"count": 0}, "count"), ({"count": -3}, "count"), ({"count": 10**9}, "count"), ({"count": 2.5}, "count"),
        ({"count": True}, "count"), ({"count": "12"}, "count"), ({"count": float("nan")}, "count"),
        ({"size": 4}, "size"), ({"size": 10**6}, "size"), ({"seed": 1.5}, "seed"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named(tmp_path: Path, wish: dict[str, object], name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        dataset.write(tmp_path / "out", **{"count": 1, **wish})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_storybook_is_the_same_scenes_in_one_style(written: Path, tmp_path: Path) -> None:
    book = dataset.write(tmp_path / "book", 12, seed=3, size=40, style="storybook")
    for name in ("captions.csv", "questions.jsonl", "scenes.jsonl"):
        assert (book / name).read_bytes() == (written / name).read_bytes()
    scenes = {record["image"]: Scene.from_dict(record["scene"]) for record in lines(book / "scenes.jsonl")}  # type: ignore[arg-type]
    for record in lines(book / "conversations.jsonl"):
        (shown, asked), (told,) = (message["content"] for message in record["messages"])  # type: ignore[attr-defined]
        assert asked["text"] in captions.STORYBOOK_REQUESTS
        assert captions.halves(told["text"][:-1]) is None  # cut off
        description, story = captions.halves(told["text"]) or ("", "")
        assert f"{description} {story}" == told["text"]
        for text in (description, story):
            found = check(text, scenes[shown["image"]])
            assert found.objects.invented == found.objects.missed == 0
    replies = [m["content"][-1]["text"] for r in lines(written / "conversations.jsonl") for m in r["messages"]]  # type: ignore[attr-defined]
    assert not any(captions.halves(str(reply)) for reply in replies)
    with pytest.raises(SettingsError, match="style: 'poem' is unknown; choose from dialogues, storybook"):
        dataset.write(tmp_path / "new", 2, style="poem")
