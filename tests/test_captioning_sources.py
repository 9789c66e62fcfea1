"""Where `minichat caption` finds pictures, and what it does with the captions that they come with."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.captioning import Bot, lines, paint, rows, run


@pytest.fixture
def bot(monkeypatch):
    fake = Bot()
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: fake)
    return fake


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for red, name in ((1, "1.png"), (2, "sub/2.png"), (3, "sub/deep/3.png")):
        paint(tmp_path / "photos" / name, red)
    return tmp_path


def said(*reds: int) -> list[str]:
    return [f"It is red {red}." for red in reds]


def captions(*sources, **options) -> list[str]:
    return [json.loads(line)["caption"] for line in run(*sources, **options).stdout.splitlines()]


def test_patterns_stand_for_what_is_there(bot, home):
    paint(home / "photos" / "a[1].png", 9)
    assert captions("photos/*.png") == said(1, 9)
    assert captions("photos/**/*.png") == said(1, 9, 2, 3)
    assert captions("photos/s*") == said(2, 3)  # a folder
    assert captions("photos/{1..1}.png") == said(1)
    assert captions("photos/a[1].png") == said(9)  # it is there under this very name
    assert "Nothing is called 'no*.png'" in run("no*.png", code=1).stderr


@pytest.mark.parametrize(("end", "options"), [("\n", []), ("\r\n", []), ("\0", ["--null"])])
def test_a_list_comes_on_standard_input(bot, home, end, options):
    odd = "two\nlines.png" if options else "two lines.png"
    paint(home / odd, 7)
    paths = ["photos/1.png", odd, os.fspath(home / "photos" / "sub"), "photos/1.png"]
    typed = end.join(paths).encode()
    assert captions("-", *options, input=typed) == said(1, 7, 2, 3)
    assert captions("-", *options, input=typed + end.encode()) == said(1, 7, 2, 3)
    assert "names no picture" in run("-", *options, input=b"", code=1).stderr


def test_a_list_on_standard_input_may_begin_with_a_mark_of_its_encoding(bot, home):
    assert captions("-", input=b"\xef\xbb\xbfphotos/1.png\r\n") == said(1)  # as Windows writes it
    assert "is in UTF-16" in run("-", input="\ufeffphotos/1.png\r\n".encode("utf-16-le"), code=1).stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("name", ["list.txt", "list.lst", "list"])
def test_a_text_is_no_damaged_picture_and_how_a_list_is_read_is_said(bot, home, name, encoding):
    (home / name).write_bytes("photos/1.png\nphotos/é.png\n".encode(encoding))
    result = run(name, "photos/1.png", code=3)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"image": "photos/1.png", "caption": said(1)[0]}
    ]
    assert f"{name!r} is a text and no picture. A list of paths is read from standard input" in result.stderr
    assert run(name, code=3).stdout == ""


def test_a_text_that_is_called_a_picture_is_a_damaged_one(bot, home):
    (home / "page.jpg").write_text("<html>Not found</html>")  # as a download that failed
    result = run("page.jpg", code=3)
    assert "is not a picture that can be opened" in json.loads(result.stdout)["error"]


def test_a_long_list_on_standard_input_is_read_in_pieces(bot, home):
    paths = [f"photos/{'x' * 200}{number}.png" for number in range(2000)]
    result = run("-", "--dry-run", input="\n".join(paths).encode())
    assert result.stdout.startswith("2,000 pictures: 0 done before, 2,000 to do.")


def test_lists_in_files(bot, home):
    (home / "a.csv").write_text('id,file_name,title\n1,photos/1.png,"One, 1"\n2,photos/sub/2.png,Two\n')
    (home / "b.tsv").write_text('path\twords\nphotos/1.png\t"x"\n')
    (home / "c.jsonl").write_text('{"image": "photos/sub/2.png", "caption": "Two"}\n\n{"image": "photos/1.png"}\n')
    (home / "d.json").write_text(json.dumps([{"img_path": "photos/1.png"}, {"img_path": "photos/sub/2.png"}]))
    (home / "e.csv").write_text("photos/1.png\nphotos/sub/2.png\n")
    (home / "f.csv").write_text("\ufeffwhere;file\nx;photos/1.png\n")
    (home / "g.csv").write_text("sep=;\nwhere;file\nx, y;photos/1.png\n")
    assert captions("a.csv") == captions("d.json") == captions("e.csv") == said(1, 2)
    assert captions("b.tsv") == captions("f.csv") == captions("g.csv") == said(1)
    assert captions("c.jsonl") == said(2, 1)
    assert captions("a.csv", "--existing", "append", "--prompt", "More than “{caption}”") == [
        "One, 1 It is red 1.",
        "Two It is red 2.",
    ]
    assert [call["prompt"] for call in bot.asked[-1:]] == [["More than “One, 1”", "More than “Two”"]]
    assert captions("a.csv", "--existing", "keep") == ["One, 1", "Two"]
    assert captions("f.csv", "--image-column", "file") == said(1)


def test_what_is_wrong_in_a_list_is_named_and_the_rest_is_done(bot, home):
    (home / "a.csv").write_text("file,n\nphotos/1.png,1\nonly one\nphotos/gone.png,2\nhttp://x/y.png,3\n")
    result = run("a.csv", "--out", "c.jsonl", code=3)
    assert "a.csv:3: the row has 1 fields and the header 2" in result.stderr
    assert rows() == {"photos/1.png": "It is red 1.", "photos/gone.png": "failed", "http://x/y.png": "failed"}
    assert "addresses are not fetched" in lines()[2]["error"]
    (home / "b.jsonl").write_text('{"x": 1}\n{"image": "photos/1.png"}\n[3]\n{"image"\n')
    result = run("b.jsonl", code=3)
    assert result.stdout.count("\n") == 1
    for told in ("b.jsonl:1: no column is known to be the image", "b.jsonl:3", "b.jsonl:4"):
        assert told in result.stderr
    assert "there is no column 'y'" in run("a.csv", "--image-column", "y", code=3).stderr
    (home / "latin.csv").write_bytes(b"file\nph\xf6tos/1.png\n")
    assert "is not in UTF-8" in run("latin.csv", code=1).stderr


def test_pictures_that_stand_in_a_list(bot, home):
    data = base64.b64encode((home / "photos" / "1.png").read_bytes()).decode()
    (home / "a.jsonl").write_text(json.dumps({"image": data}) + "\n")
    assert run("a.jsonl", "--out", "c.jsonl") and rows() == {"a.jsonl#1": "It is red 1."}
    run("a.jsonl", "--out", "c.jsonl")
    assert bot.count == 1
    run("a.jsonl", "--out", "s", "--format", "webdataset")
    with tarfile.open("s/00000.tar") as tar:
        (name,) = (name for name in tar.getnames() if name.endswith((".jpg", ".png")))
        assert tar.extractfile(name).read() == (home / "photos" / "1.png").read_bytes()


def test_tars(bot, home):
    for number, reds in enumerate(((1, 2), (3,))):
        with tarfile.open(f"{number:03}.tar", "w") as tar:
            for red in reds:
                for name, data in (
                    (f"k{red}.png", paint(home / "x.png", red).read_bytes()),
                    (f"k{red}.txt", f"Text {red}".encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    run("{000..001}.tar", "--out", "c.jsonl")
    assert rows() == {
        f"{tar}/k{red}.png": f"It is red {red}." for tar, red in (("000.tar", 1), ("000.tar", 2), ("001.tar", 3))
    }
    run("{000..001}.tar", "--out", "c.jsonl")
    assert bot.count == 3
    assert captions("000.tar", "--existing", "keep") == ["Text 1", "Text 2"]
    (home / "tars").mkdir()
    Path("000.tar").rename(home / "tars" / "000.tar")
    assert captions("tars") == said(1, 2)
    run("001.tar", "--out", "new.tar")
    assert Path("new-00000.tar").exists()
    with Path("tars", "000.tar").open("r+b") as torn:
        torn.truncate(2000)
    assert "the tar is damaged here" in run("tars", code=3).stderr
    with tarfile.open("none.tar", "w"):
        pass
    assert "No picture is in the tar" in run("none.tar", code=1).stderr


def test_parquet_and_what_datasets_saved(bot, home):
    import datasets

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict(
        {"image": [str(home / "photos" / "1.png"), str(home / "photos" / "sub" / "2.png")], "text": ["One", "Two"]}
    ).cast_column("image", datasets.Image())
    table.to_parquet("paths.parquet")  # the paths, and no bytes
    held = [{"bytes": paint(home / "x.png", red).read_bytes() + bytes(300), "path": None} for red in (4, 5)]
    inside = datasets.Dataset.from_dict({"image": held, "text": ["Four", "Five"]}).cast_column(
        "image", datasets.Image()
    )
    inside.to_parquet("bytes.parquet")
    inside.save_to_disk("saved")
    assert captions("paths.parquet") == said(1, 2)
    assert captions("bytes.parquet") == captions("saved") == said(4, 5)
    assert captions("bytes.parquet", "--existing", "keep") == ["Four", "Five"]
    run("bytes.parquet", "--out", "c.jsonl")
    assert list(rows()) == ["bytes.parquet#1", "bytes.parquet#2"]
    count = bot.count
    run("bytes.parquet", "--out", "c.jsonl")
    assert bot.count == count
    run("saved", "--out", "s", "--format", "webdataset", "--html", "page.html")
    assert Path("page.html").read_text().count("data:image/jpeg;base64") == 2


def test_other_files_are_pictures_that_cannot_be_opened(bot, home):
    (home / "sound.mp3").write_bytes(b"ID3\4\0\0")
    result = run("sound.mp3", "gone.png", "photos/1.png", code=3)
    assert [json.loads(line).get("caption") for line in result.stdout.splitlines()] == [None, None, "It is red 1."]
    (home / "empty").mkdir()
    assert "No pictures are in the folder 'empty'" in run("empty", code=1).stderr


MEMORY = """
import io, tracemalloc
from pathlib import Path
from minichat.captioning.journal import Journal
from minichat.captioning.sources import Sources

def peak(count):
    listed = io.BytesIO(b"".join(b"photos/%d.png\\n" % number for number in range(count)))
    journal, batch = Journal(None), []
    tracemalloc.start()
    for picture in Sources(("-",), Path.cwd(), stdin=listed).pictures(print):
        batch.append(picture)
        if len(batch) == 500:
            journal.plan(batch)
            batch = []
    if sum(1 for _ in journal.todo(1)) != count:
        raise SystemExit("some are lost")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most

peak(20_000)  # Python's own table of names has its size then
print(peak(2_000), peak(20_000))
"""


def test_many_pictures_take_no_more_memory_than_few(home):
    """Nothing of what is planned stays in memory: 18,000 pictures more take less than 20 bytes each."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 18_000 * 20


def test_a_source_without_a_picture_is_said_to_be_one(bot, home):
    """A row, a list, or tars beside pictures: nothing is passed over in silence."""
    (home / "a.csv").write_text("image\n")
    (home / "b.csv").write_text("")
    (home / "c.json").write_text('{"images": [], "annotations": []}')
    for name in ("a.csv", "b.csv", "c.json"):
        assert f"{name}" in run(name, code=3).stderr
    (home / "d.jsonl").write_text('{"images": []}\n{"images": ["photos/1.png"]}\n')
    found = run("d.jsonl", code=3)
    assert "d.jsonl:1: the list of pictures is empty" in found.stderr
    assert len(found.stdout.splitlines()) == 1
    (home / "photos" / "x.tar").write_bytes(b"")
    found = run("photos", code=3)
    assert "its tars are not read ('x.tar'): name them, too" in found.stderr
    assert len(found.stdout.splitlines()) == 3
    (home / "photos" / "x.tar").unlink()
    for _ in range(2):  # the tars of the output itself are no source
        run("photos", "--format", "webdataset", "--out", "photos/own.tar")


def test_blanks_after_a_list_s_commas_are_no_part_of_paths(bot, home):
    (home / "a.csv").write_text('note, image\nx, photos/1.png\ny, "photos/sub/2.png"\n')
    assert captions("a.csv") == said(1, 2)
