"""`minichat caption`: every picture gets exactly one row, in order, whatever happens to some of them."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from minichat import cli
from minichat.captioning import sources
from minichat.captioning.journal import Result
from minichat.captioning.outputs import JsonLines, append
from minichat.captioning.run import Captioner, Job, Outcome
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


def jobs(reds: list[int], prompt: str | None = None) -> list[Job]:
    """A picture of each shade of red."""
    return [Job(Image.new("RGB", (3, 3), (red, 0, 0)), prompt) for red in reds]


def captioned(bot: FakeBot, reds: list[int], batch_size: int = 8) -> list[Outcome]:
    return list(Captioner(bot, batch_size, {}).outcomes(jobs(reds)))


def said(outcomes: list[Outcome]) -> list[str | None]:
    return [one.caption for one in outcomes]


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
    for red in (1, 2):
        Image.new("RGB", (3, 3), (red, 0, 0)).save(tmp_path / f"{red}.png")
    (tmp_path / "locked").mkdir()
    result = CliRunner().invoke(cli.app, ["caption", str(tmp_path)])
    assert result.exit_code == 3
    assert [json.loads(line)["caption"] for line in result.stdout.splitlines()] == ["red 1", "red 2"]
    assert f"minichat: The folder '{tmp_path}/locked' cannot be read (Permission denied)" in result.stderr


# --- outcomes


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_outcomes_are_in_order_whatever_the_batch(batch_size):
    bot = FakeBot()
    assert said(captioned(bot, [1, 2, 3, 4, 5, 6], batch_size)) == [f"red {red}" for red in range(1, 7)]
    assert max(bot.batches) <= batch_size
    assert sum(bot.batches) == 6


def test_batches_shrink_when_memory_runs_out_and_stay_small():
    bot = FakeBot(fits=3)
    assert said(captioned(bot, list(range(1, 33)), 16)) == [f"red {red}" for red in range(1, 33)]
    assert bot.batches == [16, 8, 4] + [2] * 16  # found out once


def test_a_picture_too_large_for_memory_is_an_error_of_its_own():
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB")
    outcomes = captioned(FakeBot(poison={3: out_of_memory}), [1, 2, 3, 4])
    assert said(outcomes) == ["red 1", "red 2", None, "red 4"]
    assert "memory" in outcomes[2].error
    assert "CUDA" not in outcomes[2].error


@pytest.mark.parametrize(
    "failure", [ValueError("at 0x7f00"), IndexError(), ImageError("It is odd."), ContextError("Full.")]
)
def test_only_the_culprit_is_lost_when_the_model_fails(failure):
    outcomes = captioned(FakeBot(poison={4: failure}), [1, 2, 3, 4, 5], 3)
    assert said(outcomes) == ["red 1", "red 2", "red 3", None, "red 5"]
    assert "0x7f00" not in outcomes[3].error
    assert (outcomes[3].error == str(failure)) == isinstance(failure, ImageError | ContextError)


def test_the_culprit_is_looked_for_once():
    bot = FakeBot(poison={3: ValueError()})
    assert len(captioned(bot, [1, 2, 3, 4, 5, 6], 3)) == 6
    assert bot.batches == [3, 1, 1, 1, 3]


def test_what_concerns_every_picture_is_raised():
    with pytest.raises(SettingsError, match="temperature"):
        captioned(FakeBot(poison={1: SettingsError("temperature is −1")}), [1, 2])
    for size in (0, -1, True, 1.5, None):
        with pytest.raises(SettingsError, match="batch_size"):
            captioned(FakeBot(), [1, 2], size)


def test_prompt_and_settings_reach_the_bot():
    bot = FakeBot()
    list(Captioner(bot, 8, {"max_new_tokens": 7, "seed": 3}).outcomes(jobs([1], "Say it.")))
    assert bot.asked == [{"prompt": "Say it.", "max_new_tokens": 7, "seed": 3}]


def test_outcomes_come_as_soon_as_their_batch_is_done():
    bot = FakeBot()
    outcomes = Captioner(bot, 2, {}).outcomes(jobs([1, 2, 3, 4]))
    assert [next(outcomes).caption, next(outcomes).caption] == ["red 1", "red 2"]
    assert bot.batches == [2]


def chaos(count: int, seed: int) -> None:
    rng = random.Random(seed)
    reds = [rng.choice([250, 251, *range(1, 50)]) for _ in range(count)]
    bot = FakeBot(fits=rng.randint(1, 9), poison={250: ValueError(), 251: MemoryError()})
    outcomes = captioned(bot, reds, rng.randint(1, 12))
    assert said(outcomes) == [f"red {red}" if red < 250 else None for red in reds]
    assert [one.error is None for one in outcomes] == [red < 250 for red in reds]


def test_no_outcome_is_lost_in_any_mixture():
    for seed in range(5):
        chaos(40, seed)


@pytest.mark.long
def test_no_outcome_is_lost_in_many_mixtures():
    for seed in range(5, 45):
        chaos(200, seed)


# --- lines


def row(place: str, caption: str | None = None, error: str | None = None, cut: bool = False) -> bytes:
    """The line of a picture's result."""
    return JsonLines(None).line(Result(place, caption=caption, error=error, cut=cut))


def test_a_row_is_one_line_of_json_whatever_its_name():
    names = ["a.png", "two\nlines\r.png", "ünï—码\u2028.png", 'quote".png', os.fsdecode(b"not\xffutf8.png")]
    for name in names:
        for told in ({"caption": "A “red” circle.\nIt is small."}, {"error": "It is damaged: mend it."}):
            line = row(name, **told)
            assert line.endswith(b"\n") and line.count(b"\n") == 1
            assert json.loads(line) == {"image": name, **told}
    assert "码" in row("码.png", caption="c").decode()
    assert json.loads(row("a.png", caption="A red", cut=True))["finish"] == "length"


def test_on_another_drive_paths_are_absolute(monkeypatch):
    def refused(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refused)
    assert sources._seen_from("a.png", "out") == os.path.abspath("a.png")


def test_a_line_that_is_interrupted_is_taken_back(tmp_path):
    class Interrupted(io.FileIO):
        parts = 0

        def write(self, data) -> int:
            self.parts += 1
            if self.parts == 2:
                raise KeyboardInterrupt
            return super().write(bytes(data)[:9])

    with Interrupted(tmp_path / "out.jsonl", "xb") as file, pytest.raises(KeyboardInterrupt):
        append(file, row("a.png", caption="red"))
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
    line = row("a.png", caption="red 1")
    path = tmp_path / "out.jsonl"
    with FullDisk(path, "xb") as file:
        file.room = room
        with pytest.raises(DataError, match="No space left on device"):
            for _ in range(10):
                append(file, line)
    assert path.read_bytes() == line * (room // len(line))
