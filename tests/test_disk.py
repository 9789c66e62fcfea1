"""Whole or not at all, also for who is killed; and one process at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from minichat import fileio
from minichat.errors import ModelError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(out: Path) -> None:
    with fileio.new_folder(out, ModelError) as made:
        (made / "file").write_text("whole")


def child(work: Callable[[Callable[[], None]], None]) -> int:
    """A process that does `work`, and calls what it is given when it is in the midst of it; returns its id then."""
    ready, said = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work(lambda: os.write(said, b"x") and None)
        finally:
            os._exit(0)
    os.close(said)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    return process


def write_slowly(out: Path) -> Callable[[Callable[[], None]], None]:
    def work(ready: Callable[[], None]) -> None:
        with fileio.new_folder(out, ModelError) as made:
            (made / "half").write_text("a half")
            ready()
            signal.pause()

    return work


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), fileio.new_folder(tmp_path / "out", ModelError) as made:
        (made / "file").write_text("a half")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    with pytest.raises(ModelError, match="'out' exists already"):
        write(tmp_path / "out")


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    kill(child(write_slowly(tmp_path / "out")))
    (left,) = names(tmp_path)
    assert left.startswith(".out.")
    mine = [".out.backup01", ".other.abcdefgh.unfinished", "out.abcdefgh.unfinished"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    write(tmp_path / "out")
    assert names(tmp_path) == sorted(["out", *mine])
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_what_a_process_is_at_work_in_stays(tmp_path: Path) -> None:
    process = child(write_slowly(tmp_path / "out"))
    try:
        write(tmp_path / "out")
        assert len(names(tmp_path)) == 2
    finally:
        kill(process)


def test_a_folder_that_was_taken_for_a_dead_ones_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of a folder and its lock, another process may have found it, or have removed it already."""
    lock, made = fileio._lock, []

    def late(folder: Path) -> int | None:
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()
        if len(made) == 2:
            raise BlockingIOError
        return lock(folder)

    monkeypatch.setattr(fileio, "_lock", late)
    write(tmp_path / "out")
    assert len(made) == 3
    assert "out" in names(tmp_path)


def test_without_locks_nothing_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileio, "locks", None)
    (tmp_path / ".out.abcdefgh.unfinished").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path) == [".out.abcdefgh.unfinished", "out"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lock, log = tmp_path / "deep" / "lock", tmp_path / "log"

    def work(ready: Callable[[], None]) -> None:
        with fileio.locked(lock):
            ready()
            signal.pause()

    process, waited = child(work), []

    def waiting() -> None:
        waited.append(True)
        log.write_text("waits")
        kill(process)  # a lock ends with its process

    with fileio.locked(lock, waiting):
        assert log.read_text() == "waits"
    with fileio.locked(lock, waiting):
        pass
    assert waited == [True]
