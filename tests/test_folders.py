"""`minichat.fileio`: what is found in a folder, in order, and nothing that looks like a picture is passed over."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from minichat.data.check import check
from minichat.data.example import Problem
from minichat.data.formats import examples
from minichat.data.formats.folder import Skipped, find_pictures, looks_like_picture
from minichat.errors import DataError, ImageError
from minichat.images import load
from minichat.train.data_loader import Source, Stream


def paint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


def test_a_folder_is_walked_in_order_and_by_ending(tmp_path):
    for name in [
        "b/2.JPG",
        "b/10.png",
        "a.webp",
        "b/c/deep.gif",
        "notes.txt",
        "b/.hidden.png",
        ".git/x.png",
        "z.bmp",
        "y.jpeg",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures([tmp_path])]
    assert found == ["a.webp", "y.jpeg", "z.bmp", "b/10.png", "b/2.JPG", "b/c/deep.gif"]


def test_named_files_are_always_tried_and_each_is_taken_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    (tmp_path / "odd.txt").touch()
    assert find_pictures(["odd.txt", "absent.png", "x.png", "./x.png", tmp_path / "x.png", "."]) == [
        Path("odd.txt"),
        Path("absent.png"),
        Path("x.png"),
    ]


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_pictures([tmp_path]) == [tmp_path / "a.png"]


def test_links_to_folders_are_followed_and_no_folder_is_looked_through_twice(tmp_path):
    """A folder by its own name where it has one there, else by its link's; whatever circles the links make; none
    leads to what is above the folder that is named."""
    top, away = tmp_path / "top", tmp_path / "away"
    for path in (top / "z" / "inside.png", away / "outside.png", away / "deep" / "er.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for link, to in (
        (top / "a", top / "z"), (top / "b", away), (top / "c", away), (top / "z" / "up", top), (top / "gone", "absent"),
        (away / "deep" / "back", away), (away / "to", top), (top / ".hidden", away / "deep"),
        (top / "above", tmp_path), (top / "z" / "root", "/"),
    ):  # fmt: skip
        link.symlink_to(to)
    found = [path.relative_to(top).as_posix() for path in find_pictures([top])]
    assert found == ["z/inside.png", "b/outside.png", "b/deep/er.png"]
    assert find_pictures([top / "b"])[0] == top / "b" / "outside.png"  # one that is named


@pytest.fixture
def locked(monkeypatch):
    """Folders of the name "locked" cannot be read: to root no permission is denied."""
    scandir = os.scandir

    def refusing(path="."):
        if Path(os.fspath(path)).name == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_a_folder_that_cannot_be_read_costs_the_others_nothing(tmp_path, locked):
    for name in ("a.png", "locked/b.png", "open/locked/c.png", "open/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    told: list[Skipped] = []
    assert find_pictures([tmp_path], told.append) == [tmp_path / "a.png", tmp_path / "open" / "d.png"]
    assert [each.path for each in told] == [tmp_path / "locked", tmp_path / "open" / "locked"]
    assert told[0].error == f"The folder '{tmp_path}/locked' cannot be read (Permission denied): check its permissions."
    for inputs, tell in (([tmp_path], ()), ([tmp_path / "locked"], (told.append,))):
        with pytest.raises(DataError, match="cannot be read"):  # no one hears of it, or there is nothing else
            find_pictures(inputs, *tell)


def test_nothing_to_caption_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"No pictures are in the folder .*TIFF, AVIF or HEIC are looked for"):
        find_pictures([tmp_path])
    with pytest.raises(DataError, match="name pictures or folders"):
        find_pictures([])


@pytest.mark.parametrize(
    "name",
    [
        "a.jpe", "a.JFIF", "a.jif", "a.pjpeg", "a.mpo", "a.Tif", "a.TIFF", "a.avif", "a.HEIC", "a.heif", "a.hif",
        "a.psd", "a.svg", "a.CR2", "a.nef", "a.arw", "a.dng", "a.raw", "a.jp2", "a.jxl", "a.eps", "a.ico", "a.tga",
        "a.ppm", "two\nlines.jpe", "码.jfif", os.fsdecode(b"not\xffutf8.heic"),
    ],
)  # fmt: skip
def test_the_ending_says_that_it_is_a_picture(name):
    assert looks_like_picture(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "a.jpg.txt", "a.mp4", "a.json", "jpg", "a.pdf", "a.zip", "absent"])
def test_others_are_none(name, tmp_path):
    assert not looks_like_picture(tmp_path / name)


def test_without_an_ending_the_content_says_it(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "drawn", "PNG")
    (tmp_path / "layers").write_bytes(b"8BPS\0\1" + b"\0" * 90)
    (tmp_path / "LICENSE").write_text("BMW and others may use it.")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    found = find_pictures([tmp_path])
    assert [path.name for path in found] == ["drawn", "layers"]
    assert load(found[0]).size == (4, 3)
    with pytest.raises(ImageError, match="“layers” is a Photoshop file, which is not opened"):
        load(found[1])


def test_a_data_folder_names_what_it_does_not_read(tmp_path):
    """What looks like a picture, beside one that is read or alone; folders are looked through as everywhere."""
    away = tmp_path / "away"
    for folder in (tmp_path / "set", away):
        folder.mkdir()
        Image.new("RGB", (4, 3)).save(folder / "a.JFIF", "JPEG")
        (folder / "a.txt").write_text("A field.")
    (tmp_path / "set" / "a.CR2").write_bytes(b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 99)
    (tmp_path / "set" / "b.psd").write_bytes(b"8BPS\0\1" + b"\0" * 99)
    (tmp_path / "set" / "c.svg").write_text("<svg></svg>")
    (tmp_path / "set" / "c.txt").write_text("Drawn.")
    (tmp_path / "set" / "linked").symlink_to(away)
    found: list[Problem] = []
    report = check(tmp_path / "set", found=found.append)
    said = [(Path(problem.where.file).name, problem.text) for problem in found]
    assert (report.records, report.wrong) == (5, 3)
    assert said[0][0] == "a.CR2" and "looks like a picture, but beside 'a.JFIF' it is not read" in said[0][1]
    assert said[1] == ("b.psd", "the picture has no text: write 'b.txt'.")
    assert said[2][0] == "c.txt" and "it is a drawing in SVG, which is not opened" in said[2][1]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (
            {"train/metadata.jsonl": '{"file_name": "1.png", "text": "Red."}'},
            "holds 'train/metadata.jsonl': name one of them, or the format 'kinds'",
        ),
        ({"annotations/x.json": '{"images": [], "annotations": []}'}, "holds 'annotations/x.json': name one of them"),
        ({"red/1.json": '{"caption": "Red."}'}, "holds 'red/1.json': name one of them"),
        ({"red.csv": ""}, "holds 'red.csv': name one of them"),
    ],
)
def test_folders_with_lists_are_no_kinds(tmp_path, lists, said):
    """ImageFolder's sets, COCO as it is unpacked: else each reply would be the name of a folder."""
    for name in ("red/1.png", "blue/2.png"):
        paint(tmp_path / name)
    for name in ("classes.json", "red/1.png.json"):  # what says nothing of what a picture shows
        (tmp_path / name).write_text('{"0": "red"}' if name == "classes.json" else '{"title": "1.png"}')
    assert {one.replies for one in examples(tmp_path)} == {("red",), ("blue",)}
    (tmp_path / "classes.json").unlink()
    for name, content in lists.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        examples(tmp_path)
    assert len(examples(tmp_path, form="kinds")) == 2


def test_folders_named_for_sets_are_no_kinds(tmp_path):
    for name in ("train2017/1.png", "val2017/2.png", "images/test/3.png"):
        paint(tmp_path / name)
    with pytest.raises(DataError, match="in no format that is known"):
        examples(tmp_path)
    paint(tmp_path / "train2017" / "red" / "4.png")
    assert len(examples(tmp_path)) == 4  # the folder of one picture says what it shows


def test_a_number_before_all_kinds_is_no_part_of_them(tmp_path):
    for name in ("kohya/10_red star/1.png", "kohya/5_blue_cup/2.png", "coins/1_euro/3.png", "coins/2_euro/4.png"):
        paint(tmp_path / name)
    assert {one.replies for one in examples(tmp_path / "kohya")} == {("red star",), ("blue cup",)}
    assert {one.replies for one in examples(tmp_path / "coins")} == {("1 euro",), ("2 euro",)}
    paint(tmp_path / "kohya" / "green" / "5.png")
    assert ("10 red star",) in {one.replies for one in examples(tmp_path / "kohya")}


def test_what_describes_the_whole_set_leaves_kinds_alone(tmp_path):
    for name in ("red/1.png", "blue/2.png"):
        paint(tmp_path / name)
    (tmp_path / "dataset-metadata.json").write_text('{"title": "Colours", "description": "Two."}')  # Kaggle's
    for name in ("README.md", ".DS_Store", "red/Thumbs.db", "labels.txt"):
        (tmp_path / name).write_text("red\nblue\n")
    assert {one.replies for one in examples(tmp_path)} == {("red",), ("blue",)}


@pytest.mark.parametrize("name", ["a.TXT", "a.JSON"])
def test_of_two_texts_whose_names_differ_in_case_none_is_lost(tmp_path, name):
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("Red.")
    (tmp_path / "a.json").write_text("{}")
    if not (tmp_path / name).exists():  # not where case makes no name
        (tmp_path / name).write_text('{"n": 1}')
        with pytest.raises(DataError, match=f"beside '{name}' it is not read: remove it"):
            examples(tmp_path)


def test_lines_of_texts_end_alike(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"A star.\r\nIt is red.\r\n")
    assert examples(tmp_path)[0].replies == ("A star.\nIt is red.",)
    (tmp_path / "a.json").write_text(r'{"caption": "A star.\r\nIt is red."}')  # as img2dataset writes it, twice
    assert examples(tmp_path)[0].replies == ("A star.\nIt is red.",)


def test_of_two_data_sets_in_a_folder_none_is_passed_over(tmp_path):
    def shard(path):
        with tarfile.open(path, "w") as tar:
            for name, data in (("._0.png", b"x"), ("0.png", b""), ("._0.txt", b"x"), ("0.txt", b"Red.")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    shard(tmp_path / "train-0.tar")
    assert [one.replies for one in examples(tmp_path)] == [("Red.",)]  # what macOS adds is hidden
    paint(tmp_path / "a.png")
    with pytest.raises(DataError, match="holds tars and pictures beside them: name the tars"):
        examples(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "metadata")
    shard(tmp_path / "val-0.tar")
    for read in (examples, lambda source: list(Stream([Source(source)], passes=1).scan())):
        with pytest.raises(DataError, match=r"holds several sets \('train', 'val'\): name its files by a pattern"):
            read(tmp_path)
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("file_name,text\n")
    with pytest.raises(DataError, match=r"holds metadata\.jsonl and metadata\.csv: name one of them"):
        examples(tmp_path)
