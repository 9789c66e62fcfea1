"""Checkpoints: what is written is read back, and a whole one is there whenever the program dies."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minichat.errors import ModelError, SettingsError
from minichat.train.checkpoint import Checkpoints
from tests.training import turn_a_bit

KILLS = 100
EVERYDAY = 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A forked child cannot use the threads of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors_of(step: int, size: int = 50) -> dict[str, Tensor]:
    """What the checkpoint of a step holds: its own number, everywhere."""
    return {
        "projection.weight": torch.full((size, size), float(step)),
        "optimizer.step.projection.weight": torch.tensor(step),
    }


def whole(checkpoints: Checkpoints, say: Callable[[str], None] = lambda text: None) -> int:
    """The step of the last checkpoint, which holds what was written at that step, and no less."""
    saved = checkpoints.last(say)
    assert saved is not None
    assert all((tensor == saved.step).all() for tensor in saved.tensors.values())
    assert saved.tensors.keys() == tensors_of(0).keys()
    assert saved.facts["note"] == f"of {saved.step}"
    return saved.step


def save(checkpoints: Checkpoints, step: int, size: int = 50) -> None:
    checkpoints.save(step, tensors_of(step, size), {"note": f"of {step}"})


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(3, dtype=torch.int64), "c": torch.randn(2).bfloat16()}
    tensors["d"] = tensors["a"].T  # not in one piece
    facts = {"standing": {"best": float("inf"), "step": 3}, "words": "größer 大"}
    checkpoints.save(3, tensors, facts)
    saved = checkpoints.last()
    assert saved is not None
    assert saved.step == 3
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in tensors.items())
    assert saved.facts == {**facts, "step": 3}


def test_the_last_two_are_kept_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last() is None
    assert checkpoints.best() is None
    checkpoints.save_best(1, tensors_of(1), {"validation_loss": 0.5})
    for step in (1, 2, 3, 12):
        save(checkpoints, step)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best.safetensors", "step-00000003.safetensors", "step-00000012.safetensors",
    ]  # fmt: skip
    assert whole(checkpoints) == 12
    best = checkpoints.best()
    assert best is not None
    assert (best.step, best.facts["validation_loss"]) == (1, 0.5)


@given(st.data())
def test_a_damaged_one_gives_way_to_the_one_before_and_that_is_said(data: st.DataObject) -> None:
    """Cut off anywhere, or with one bit of it turned over anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        save(checkpoints, 1)
        save(checkpoints, 2)
        last = Path(folder) / "step-00000002.safetensors"
        content = bytearray(last.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            del content[place:]
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        last.write_bytes(content)
        said: list[str] = []
        if whole(checkpoints, said.append) == 2:  # in the blanks after the header, or the checksum's own name
            assert not said
            return
        (told,) = said
        assert told.startswith("The checkpoint step-00000002.safetensors is damaged (")
        assert told.endswith("The one before it, step-00000001.safetensors, is taken instead.")
        assert sorted(file.name for file in Path(folder).iterdir()) == [
            "step-00000001.safetensors", "step-00000002.safetensors.damaged",
        ]  # fmt: skip


def test_a_turned_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    turn_a_bit(tmp_path / "step-00000002.safetensors")
    assert whole(checkpoints) == 1


def test_one_without_a_checksum_is_read(tmp_path: Path) -> None:
    """As versions before this one wrote them."""
    facts = {"facts": json.dumps({"step": 3, "note": "of 3"})}
    safetensors.torch.save_file(tensors_of(3), tmp_path / "step-00000003.safetensors", metadata=facts)
    assert whole(Checkpoints(tmp_path)) == 3


def test_where_all_are_damaged_that_is_said(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    save(checkpoints, 1)
    save(checkpoints, 2)
    for step in (1, 2):
        turn_a_bit(checkpoints.folder / f"step-0000000{step}.safetensors")
    both = r"step-00000002\.safetensors is damaged .*step-00000001\.safetensors is damaged .*"
    with pytest.raises(ModelError, match=both + r"None is left in 'run': begin anew"):
        checkpoints.last()
    checkpoints.save_best(1, tensors_of(1), {})
    with pytest.raises(ModelError, match=both + r"best\.safetensors, .* after step 1: .*--initialize-from .*run\."):
        checkpoints.last()


def test_files_have_the_rights_that_others_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(Checkpoints(tmp_path), 1)
        Checkpoints(tmp_path).save_best(1, tensors_of(1), {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        kept = (
            r"step-00000002\.safetensors cannot be written \(No space left.*the one before, step-00000001\.safetensors"
        )
        with pytest.raises(SettingsError, match=kept):
            save(checkpoints, 2)
        with pytest.raises(SettingsError, match=r"step-00000001\.safetensors cannot be written .*none before it"):
            save(Checkpoints(tmp_path / "new"), 1)
    assert [file.name for file in tmp_path.glob("*.*")] == ["step-00000001.safetensors"]
    assert whole(checkpoints) == 1


# --- SIGKILL


def killed(work: Callable[[], None], after: float | None = None) -> None:
    """Do `work` in a forked process that kills itself, or is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


class Countdown:
    """Kills this process at a chosen point: after so many bytes of the files, or system calls on them."""

    def __init__(self, points: int) -> None:
        self.points = points

    def pass_point(self) -> None:
        self.points -= 1
        if self.points < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        def save_file(tensors: Any, path: Path, metadata: Any) -> None:
            content = safetensors.torch.save(tensors, metadata)
            with open(path, "wb", buffering=0) as file:
                for start in range(0, len(content), 512):
                    self.pass_point()
                    file.write(content[start : start + 512])

        patch.setattr(safetensors.torch, "save_file", save_file)
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            self.around(patch, owner, name)

    def around(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def hooked(*arguments: Any, **options: Any) -> Any:
            self.pass_point()
            result = real(*arguments, **options)
            self.pass_point()
            return result

        patch.setattr(owner, name, hooked)


def points_of_a_save(folder: Path) -> int:
    """How many points there are at which the third checkpoint's writing can be killed."""
    countdown = Countdown(10**9)
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    save(checkpoints, 2)
    with pytest.MonkeyPatch.context() as patch:
        countdown.install(patch)
        save(checkpoints, 3)
    return 10**9 - countdown.points


def at_points(numbers: list[int], folder: Path) -> None:
    """Kill the writing of a third checkpoint at each of these points: the second or the third is whole, and goes on."""
    for place, number in enumerate(numbers):
        checkpoints = Checkpoints(folder / str(place))
        save(checkpoints, 1)
        save(checkpoints, 2)

        def work(number: int = number, checkpoints: Checkpoints = checkpoints) -> None:
            with pytest.MonkeyPatch.context() as patch:
                Countdown(number).install(patch)
                save(checkpoints, 3)

        killed(work)
        assert whole(checkpoints) in (2, 3)
        assert not list(checkpoints.folder.glob("*.part"))
        save(checkpoints, 4)
        assert whole(checkpoints) == 4
        assert len(list(checkpoints.folder.iterdir())) == 2


def test_killed_while_writing(tmp_path: Path) -> None:
    points = points_of_a_save(tmp_path / "counted")
    edges = [*range(points - 8, points)]  # the system calls: to the disk, the new name, the removal of the oldest
    at_points([*random.Random(1).sample(range(points - 8), EVERYDAY - len(edges)), *edges], tmp_path)


@pytest.mark.long
def test_killed_at_100_points_of_writing(tmp_path: Path) -> None:
    points = points_of_a_save(tmp_path / "counted")
    draw = random.Random(2)
    at_points([draw.randrange(points) for _ in range(KILLS)], tmp_path)


def at_times(count: int, folder: Path) -> None:
    """A writer that never rests is killed at any time."""
    checkpoints, draw = Checkpoints(folder), random.Random(3)
    began = time.monotonic()
    for _ in range(5):
        save(checkpoints, 1, size=300)
    several = time.monotonic() - began

    def work() -> None:
        step = whole(checkpoints)
        while True:
            step += 1
            save(checkpoints, step, size=300)

    for _ in range(count):
        before = whole(checkpoints)
        killed(work, after=draw.uniform(0, several))
        assert whole(checkpoints) >= before


def test_killed_at_any_time(tmp_path: Path) -> None:
    at_times(10, tmp_path)


@pytest.mark.long
def test_killed_at_100_times(tmp_path: Path) -> None:
    at_times(KILLS, tmp_path)
