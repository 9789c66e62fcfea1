"""`minichat.captioning.journal`: every picture gets exactly one row, in order, whatever happens to some of them."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from minichat import cli, images
from minichat.captioning import Row, append_row, caption_paths, named_from
from minichat.errors import ContextError, DataError, ImageError, SettingsError


class FakeBot:
    """Captions a picture with its top left colour; fails as it is told, and remembers its batches."""

    caption_prompt = "Describe it."

    def __init__(self, fits: int = 1000, poison: dict[int, Exception] | None = None) -> None:
        self.fits = fits  # pictures that memory has room for
        self.poison = poison or {}  # a red value -> the error that such a picture causes
        self.batches: list[int] = []
        self.asked: list[dict] = []

    def caption(self, pictures, prompt=None, max_new_tokens=60, batch_size=8, **settings):
        self.batches.append(len(pictures))
        self.asked.append({"prompt": prompt, "max_new_tokens": max_new_tokens, **settings})
        if len(pictures) > self.fits:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
            )
        for picture in pictures:
            if picture.getpixel((0, 0))[0] in self.poison:
                raise self.poison[picture.getpixel((0, 0))[0]]
        return [f"red {picture.getpixel((0, 0))[0]}" for picture in pictures]


def pictures(folder: Path, reds: list[int | None]) -> list[Path]:
    """A picture of each shade of red; None: a file that is none."""
    paths = []
    for number, red in enumerate(reds):
        path = folder / f"{number:04}.png"
        if red is None:
            path.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
        else:
            Image.new("RGB", (3, 3), (red, 0, 0)).save(path)
        paths.append(path)
    return paths


# --- the command


@pytest.fixture
def locked(monkeypatch):
    """Folders of the name "locked" cannot be read: to root no permission is denied."""
    scandir = os.scandir

    def refusing(path="."):
        if Path(os.fspath(path)).name == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_the_command_names_a_folder_that_cannot_be_read(tmp_path, locked, monkeypatch):
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: FakeBot())
    pictures(tmp_path, [1, 2])
    (tmp_path / "locked").mkdir()
    result = CliRunner().invoke(cli.app, ["caption", str(tmp_path)])
    assert result.exit_code == 3
    assert [json.loads(line)["caption"] for line in result.stdout.splitlines()] == ["red 1", "red 2"]
    assert f"minichat: The folder '{tmp_path}/locked' cannot be read (Permission denied)" in result.stderr


# --- rows


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_rows_are_in_order_whatever_the_batch(tmp_path, batch_size):
    reds = [1, None, 2, 3, None, None, 4, 5, 6, None]
    paths = pictures(tmp_path, reds)
    bot = FakeBot()
    rows = list(caption_paths(bot, paths, batch_size=batch_size))
    assert [row.image for row in rows] == [str(path) for path in paths]
    assert [row.caption for row in rows] == [None if red is None else f"red {red}" for red in reds]
    assert [row.error is None for row in rows] == [red is not None for red in reds]
    assert max(bot.batches) <= batch_size
    assert sum(bot.batches) == 6


def test_a_picture_that_cannot_be_opened_says_why(tmp_path):
    bad, absent = tmp_path / "bad.jpg", tmp_path / "absent.jpg"
    bad.write_text("hello")
    rows = list(caption_paths(FakeBot(), [bad, absent]))
    assert "“bad.jpg” is not a picture" in rows[0].error
    assert "“absent.jpg” was not found" in rows[1].error


def test_batches_shrink_when_memory_runs_out_and_stay_small(tmp_path):
    paths = pictures(tmp_path, list(range(1, 33)))
    bot = FakeBot(fits=3)
    rows = list(caption_paths(bot, paths, batch_size=16))
    assert [row.caption for row in rows] == [f"red {red}" for red in range(1, 33)]
    assert bot.batches == [16, 8, 4] + [2] * 16  # found out once


def test_a_picture_too_large_for_memory_is_an_error_of_its_own(tmp_path):
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB")
    paths = pictures(tmp_path, [1, 2, 3, 4])
    rows = list(caption_paths(FakeBot(poison={3: out_of_memory}), paths))
    assert [row.caption for row in rows] == ["red 1", "red 2", None, "red 4"]
    assert "memory" in rows[2].error
    assert "CUDA" not in rows[2].error


@pytest.mark.parametrize(
    "failure", [ValueError("at 0x7f00"), IndexError(), ImageError("It is odd."), ContextError("Full.")]
)
def test_only_the_culprit_is_lost_when_the_model_fails(tmp_path, failure):
    paths = pictures(tmp_path, [1, 2, 3, 4, 5])
    rows = list(caption_paths(FakeBot(poison={4: failure}), paths, batch_size=3))
    assert [row.caption for row in rows] == ["red 1", "red 2", "red 3", None, "red 5"]
    assert "0x7f00" not in rows[3].error
    assert (rows[3].error == str(failure)) == isinstance(failure, ImageError | ContextError)


def test_the_culprit_is_looked_for_once(tmp_path):
    bot = FakeBot(poison={3: ValueError()})
    assert len(list(caption_paths(bot, pictures(tmp_path, [1, 2, 3, 4, 5, 6]), batch_size=3))) == 6
    assert bot.batches == [3, 1, 1, 1, 3]


def test_what_concerns_every_picture_is_raised(tmp_path):
    paths = pictures(tmp_path, [1, 2])
    with pytest.raises(SettingsError, match="temperature"):
        list(caption_paths(FakeBot(poison={1: SettingsError("temperature is −1")}), paths))
    for size in (0, -1, True, 1.5, None):
        with pytest.raises(SettingsError, match="batch_size"):
            list(caption_paths(FakeBot(), paths, batch_size=size))


def test_prompt_and_settings_reach_the_bot(tmp_path):
    bot = FakeBot()
    list(caption_paths(bot, pictures(tmp_path, [1]), prompt="Say it.", max_new_tokens=7, seed=3))
    assert bot.asked == [{"prompt": "Say it.", "max_new_tokens": 7, "seed": 3}]


def test_large_pictures_make_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    bot = FakeBot()
    assert len(list(caption_paths(bot, pictures(tmp_path, [1] * 10), batch_size=8))) == 10
    assert bot.batches == [3, 3, 3, 1]


def test_rows_come_as_soon_as_their_batch_is_done(tmp_path):
    bot = FakeBot()
    rows = caption_paths(bot, pictures(tmp_path, [None, 1, 2, 3, 4]), batch_size=2)
    assert next(rows).error and bot.batches == []
    assert [next(rows).caption, next(rows).caption] == ["red 1", "red 2"]
    assert bot.batches == [2]


def chaos(tmp_path: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    reds = [rng.choice([None, 250, 251, *range(1, 50)]) for _ in range(count)]
    bot = FakeBot(fits=rng.randint(1, 9), poison={250: ValueError(), 251: MemoryError()})
    rows = list(caption_paths(bot, pictures(tmp_path, reds), batch_size=rng.randint(1, 12)))
    assert [row.caption for row in rows] == [f"red {red}" if red and red < 250 else None for red in reds]


def test_no_row_is_lost_in_any_mixture(tmp_path):
    for seed in range(5):
        chaos(tmp_path, 40, seed)


@pytest.mark.long
def test_no_row_is_lost_in_many_mixtures(tmp_path):
    for seed in range(5, 45):
        chaos(tmp_path, 200, seed)


# --- lines


def test_a_row_is_one_line_of_json_whatever_its_name():
    names = ["a.png", "two\nlines\r.png", "ünï—码\u2028.png", 'quote".png', os.fsdecode(b"not\xffutf8.png")]
    for name in names:
        for row in (Row(name, caption="A “red” circle.\nIt is small."), Row(name, error="It is damaged: mend it.")):
            line = row.to_json()
            assert "\n" not in line
            record = json.loads(line.encode())
            assert record.pop("image") == name
            assert record == ({"caption": row.caption} if row.caption else {"error": row.error})
    assert "码" in Row("码.png", caption="c").to_json()
    assert json.loads(Row("a.png", caption="A red", cut=True).to_json())["finish"] == "length"


def test_on_another_drive_paths_are_absolute(monkeypatch):
    def refused(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refused)
    assert named_from("a.png", "out") == os.path.abspath("a.png")


def test_a_line_that_is_interrupted_is_taken_back(tmp_path):
    class Interrupted(io.FileIO):
        parts = 0

        def write(self, data) -> int:
            self.parts += 1
            if self.parts == 2:
                raise KeyboardInterrupt
            return super().write(bytes(data)[:9])

    with Interrupted(tmp_path / "out.jsonl", "xb") as file, pytest.raises(KeyboardInterrupt):
        append_row(file, Row("a.png", caption="red"))
    assert (tmp_path / "out.jsonl").read_bytes() == b""


class FullDisk(io.FileIO):
    """Takes `room` bytes, the last of them in a short write, as a full disk does."""

    room = 0

    def write(self, data) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = bytes(data)[: self.room]
        self.room -= len(taken)
        return super().write(taken)


@pytest.mark.parametrize("room", [0, 1, 20, 45, 60])
def test_a_full_disk_leaves_whole_lines_and_a_clear_error(tmp_path, room):
    row = Row("a.png", caption="red 1")
    line = row.to_json().encode() + b"\n"
    path = tmp_path / "out.jsonl"
    with FullDisk(path, "xb") as file:
        file.room = room
        with pytest.raises(DataError, match="No space left on device"):
            for _ in range(10):
                append_row(file, row)
    assert path.read_bytes() == line * (room // len(line))
