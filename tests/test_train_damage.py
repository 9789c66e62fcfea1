"""`minichat.train.data`: a picture that cannot be opened is found before anything is learned, and ends no run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from minichat.data.example import StoredPicture, Where
from minichat.errors import DataError
from minichat.model.loss import ProcessGroup
from minichat.train import data as damage
from minichat.train.data import find_damaged
from minichat.train.trainer import train
from tests.training import config_of, losses, make_desk, run, write_tar

ONE = ProcessGroup(0, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"), samples=10)


@pytest.fixture
def desk(whole: Path, tmp_path: Path) -> Path:
    """A data set of ten records in which the pictures of two are damaged in unlike ways, and one of the held-out."""
    folder = tmp_path / "desk"
    shutil.copytree(whole, folder)
    for name, data in (("1-0", b"\x89PNG\r\n\x1a\ncut"), ("6-1", None), ("101-0", b"")):
        file = folder / "pictures" / f"{name}.png"
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)
    config = (folder / "train.yaml").read_text().replace(str(whole), str(folder))
    (folder / "train.yaml").write_text(config)
    return folder


def without_damaged(desk: Path) -> Path:
    """The same data set, from which a person took the damaged records."""
    for name, wrong in (("talks.jsonl", ("1-0", "6-1")), ("held_out.jsonl", ("101-0",))):
        lines = (desk / name).read_text().splitlines()
        kept = [line for line in lines if not any(f"pictures/{each}.png" in line for each in wrong)]
        assert len(kept) == len(lines) - len(wrong)
        (desk / name).write_text("\n".join(kept) + "\n")
    return desk


@pytest.mark.parametrize("more", [(), ("data.feature_cache={desk}/seen",)], ids=["computed", "kept"])
def test_damaged_pictures_are_left_out_and_named(desk: Path, more: tuple[str, ...]) -> None:
    settings = [each.format(desk=desk) for each in more]
    settings += [f"data.validation={desk}/held_out.jsonl", "run.epochs=2", "report.samples=3"]
    said: list[str] = []
    outcome = train(config_of(desk, *settings), say=said.append)
    assert outcome.step == 2 * 2  # eight records in batches of four
    listed = (desk / "run" / "left_out.txt").read_text().splitlines()
    assert [line.split(": ")[:2] for line in listed] == [
        ["step 0", f"{desk}/talks.jsonl:2"],
        ["step 0", f"{desk}/talks.jsonl:7"],
        ["step 0", f"{desk}/held_out.jsonl:2"],
    ]
    assert "damaged or cut off" in listed[0] and "is missing" in listed[1] and "is empty" in listed[2]
    told = next(text for text in said if text.startswith("Left out: "))
    assert (
        "talks.jsonl:2: the picture 'pictures/1-0.png' cannot be used" in told and "(and 2 more: left_out.txt)" in told
    )
    assert said.index(told) < next(number for number, text in enumerate(said) if text.startswith("step 1/"))

    other = without_damaged(desk)
    again = run(other, *settings, f"out={desk}/again")
    assert again.step == outcome.step
    assert losses(desk / "run") == losses(desk / "again")  # the run that never saw these records
    assert not (desk / "again" / "left_out.txt").exists()


def test_they_may_be_refused_before_anything_is_learnt(desk: Path) -> None:
    for more in ([], [f"data.feature_cache={desk}/seen"]):
        with pytest.raises(DataError, match=r"^2 of the pictures cannot be .*/talks\.jsonl:2: .*'pictures/1-0\.png'"):
            run(desk, "data.damaged_pictures=refuse", *more)
        assert not (desk / "run" / "checkpoints").exists()
    assert run(desk, "run.epochs=1").step == 2  # what was refused is in nobody's way


def test_a_run_that_goes_on_lists_them_once(desk: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("step 2/"):
            raise Stopped

    with pytest.raises(Stopped):
        train(config_of(desk, "run.save_every=1"), say=stop)
    listed = (desk / "run" / "left_out.txt").read_text()
    assert listed.count("talks.jsonl:2") == 1
    assert run(desk, "run.save_every=1").step == 8
    assert (desk / "run" / "left_out.txt").read_text() == listed


def test_where_none_can_be_opened_nothing_can_be_learnt(desk: Path) -> None:
    lines = [line for line in (desk / "talks.jsonl").read_text().splitlines() if '"image"' in line]
    (desk / "talks.jsonl").write_text("\n".join(lines))
    shutil.rmtree(desk / "pictures")
    with pytest.raises(DataError, match=r"^Of no record can the pictures be opened: .*/talks\.jsonl:1: .* is missing"):
        run(desk)


def test_in_a_stream_the_record_is_left_out_or_refused(desk: Path) -> None:
    write_tar(desk / "web.tar", range(6), broken=[3])
    stream = [f"data.train={desk}/web.tar", "data.streaming=true", "run.epochs=null", "run.max_steps=4"]
    stream += ["run.batch_size=2", "data.template=plain"]
    assert run(desk, *stream).step == 4
    assert "cannot be used" in (desk / "run" / "left_out.txt").read_text()
    with pytest.raises(DataError, match=r"cannot be used: .* data\.damaged_pictures is refuse"):
        run(desk, *stream, "data.damaged_pictures=refuse", f"out={desk}/refused")


# --- what is remembered


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of pictures that are opened; what is remembered is in a folder of its own."""
    names: list[str] = []
    real = StoredPicture.open

    def counted(self: StoredPicture) -> Image.Image:
        names.append(self.name)
        return real(self)

    monkeypatch.setattr(StoredPicture, "open", counted)
    monkeypatch.setattr(damage, "home", lambda: tmp_path / "home")
    return names


def stored(folder: Path, count: int) -> list[tuple[Where, StoredPicture]]:
    found = []
    for number in range(count):
        path = folder / f"{number}.png"
        if not path.exists():
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        found.append((Where("a.jsonl", number + 1), StoredPicture(path.name, path)))
    return found


def test_sound_pictures_are_opened_once(tmp_path: Path, opened: list[str]) -> None:
    pictures = stored(tmp_path, 5)
    (tmp_path / "3.png").write_bytes(b"no picture")
    assert list(find_damaged(pictures * 2, ONE, print)) == [pictures[3][1]]
    assert len({*opened}) == 5 and opened.count("3.png") == 2 and len(opened) <= 10
    opened.clear()
    assert list(find_damaged(pictures, ONE, print)) == [pictures[3][1]]
    assert opened == ["3.png"]  # what is damaged is looked at again
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "3.png")
    opened.clear()
    assert not find_damaged(pictures, ONE, print)
    assert sorted(opened) == ["1.png", "3.png"]


def test_a_torn_memory_costs_time_alone(tmp_path: Path, opened: list[str]) -> None:
    pictures = stored(tmp_path, 4)
    find_damaged(pictures, ONE, print)
    file = tmp_path / "home" / "opened-1.bin"
    file.write_bytes(file.read_bytes()[:-5])
    opened.clear()
    assert not find_damaged(pictures, ONE, print)
    assert opened == ["3.png"]
    opened.clear()
    assert not find_damaged(pictures, ONE, print)
    assert opened == []


def test_where_nothing_can_be_remembered_all_are_opened(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "home").write_text("a file in its place")
    for _ in range(2):
        opened.clear()
        assert not find_damaged(stored(tmp_path, 3), ONE, print)
        assert len(opened) == 3


def test_each_process_looks_at_its_share(tmp_path: Path, opened: list[str]) -> None:
    pictures = stored(tmp_path, 12)
    (tmp_path / "7.png").write_bytes(b"no picture")
    found = []
    for rank in range(3):
        together = ProcessGroup(0, 1)
        together.rank, together.count = rank, 3
        found += list(find_damaged(pictures, together, print))
    assert sorted(opened) == sorted(picture.name for _, picture in pictures)
    assert found == [pictures[7][1]]
