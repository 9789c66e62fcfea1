"""What `minichat caption` writes, read by the programs that people use it with, or by their rules."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
from webdataset import WebDataset

from minichat.data.formats import examples
from tests.captioning import Bot, lines, paint, rows, run


@pytest.fixture
def bot(monkeypatch):
    fake = Bot()
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: fake)
    return fake


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Pictures 1 to 4, of which one has an odd name, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for red, name in ((1, "1.png"), (2, "sub/2.jpg"), (3, "sub/a, “b”.png"), (4, "v1.4.png")):
        paint(tmp_path / "photos" / name, red)
    (tmp_path / "photos" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return tmp_path


def jpeg_red(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return f"It is red {picture.convert('RGB').getpixel((0, 0))[0]}."


def load(form: str, **options):
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(form, split="train", **options)


# --- tables


def test_csv_is_read_by_pandas_datasets_and_ours(bot, home):
    import pandas

    bot.says = {1: 'A "red",\nsecond line; ünï 码', 3: "None"}
    bot.cut = {4}
    done = run("photos", "--out", "c.csv", code=3)
    table = pandas.read_csv("c.csv", keep_default_na=False)
    assert list(table.columns) == ["image", "caption", "finish", "error"]
    assert table.caption.tolist()[:2] == [bot.says[1], ""] or bot.says[1] in table.caption.tolist()
    said = dict(zip(table.image, table.caption, strict=True))
    assert said["photos/1.png"] == bot.says[1] and said["photos/sub/a, “b”.png"] == "None"
    assert table.finish.tolist().count("length") == 1
    assert sum(bool(error) for error in table.error) == 1
    assert load("csv", data_files="c.csv")["image"] == table.image.tolist()
    assert "missing in a CSV (None, NA and the like): 1 ('photos/sub/a, “b”.png')." in done.stderr
    assert {one.replies[0] for one in examples("c.csv")} >= {bot.says[1], "None"}
    before = Path("c.csv").read_bytes()
    run("photos", "--out", "c.csv", code=3)
    assert Path("c.csv").read_bytes() == before


def test_a_csv_that_a_person_changed_or_that_is_torn_is_gone_on_with(bot, home):
    import pandas

    bot.says = {1: "two\nlines"}
    run("photos/1.png", "photos/v1.4.png", "--out", "c.csv")
    whole = Path("c.csv").read_bytes()
    for end in (3, len(whole) - 20, len(whole) - 1):
        Path("c.csv").write_bytes(whole[:end])
        run("photos/1.png", "photos/v1.4.png", "--out", "c.csv")
        assert Path("c.csv").read_bytes() == whole
    Path("c.csv").write_bytes(whole.replace(b"It is red 4.", b'"Mine, 4."'))
    run("photos", "--out", "c.csv", code=3)
    table = pandas.read_csv("c.csv", keep_default_na=False)
    assert set(table.caption) == {"", "It is red 3.", "Mine, 4.", jpeg_red(home / "photos/sub/2.jpg"), "two\nlines"}


def test_a_table_called_metadata_is_an_imagefolder_s(bot, home):
    """datasets' ImageFolder wants `file_name`, and reads captions from CSV, JSON lines and Parquet alike."""
    (home / "photos" / "bad.png").unlink()
    for name in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
        out = home / "photos" / name
        run("photos", "--out", out)
        found = load("imagefolder", data_dir="photos")
        assert sorted(found["caption"])[0] == "It is red 1.", name
        assert found[0]["image"].size == (4, 4)
        assert all(text.startswith("It is red") for text in found["caption"])
        out.unlink()


def test_parquet_is_read_by_datasets_and_pandas(bot, home):
    import pandas

    bot.cut = {1}
    run("photos", "--out", "c.parquet", code=3)
    table = pandas.read_parquet("c.parquet")
    assert list(table.columns) == ["image", "caption", "finish", "error"]
    said = dict(zip(table.image, table.caption, strict=True))
    assert said["photos/1.png"] == "It is red 1." and pandas.isna(said["photos/bad.png"])
    assert load("parquet", data_files="c.parquet")["image"] == table.image.tolist()
    paint(home / "photos" / "5.png", 5)
    run("photos", "--out", "c.parquet", code=3)
    assert len(pandas.read_parquet("c.parquet")) == 6 and bot.count == 5
    pandas.DataFrame({"x": [1]}).to_parquet("c.parquet")
    assert "has changed since it was written" in run("photos", "--out", "c.parquet", code=1).stderr
    pandas.DataFrame({"x": [1]}).to_parquet("d.parquet")
    assert "exists already" in run("photos", "--out", "d.parquet", code=1).stderr


def test_several_prompts_are_rows_that_can_be_learnt(bot, home):
    import pandas

    asked = ["--prompt", "What is {name}?", "--prompt", "In {folder}: {x}?"]
    run("photos/1.png", "--out", "c.jsonl", *asked)
    prompts = ["What is 1?", "In photos: {x}?"]
    assert [row["prompt"] for row in lines()] == prompts
    assert [one.turns[0].text for one in examples("c.jsonl")] == prompts
    before = Path("c.jsonl").read_text()
    Path("c.jsonl").write_text(before.splitlines(keepends=True)[0][:-9])
    run("photos/1.png", "--out", "c.jsonl", *asked)
    assert Path("c.jsonl").read_text() == before
    for out in ("c.csv", "c.parquet"):
        run("photos", "--out", out, *asked, code=3)
    assert pandas.read_csv("c.csv").prompt.tolist() == pandas.read_parquet("c.parquet").prompt.tolist()
    assert len(pandas.read_csv("c.csv")) == 10


# --- COCO


def load_res(results: Path, annotations: Path) -> dict:
    """Image ids and captions, as pycocotools reads results."""
    from pycocotools.coco import COCO

    return {one["image_id"]: one["caption"] for one in COCO(annotations).loadRes(str(results)).anns.values()}


def test_coco_s_results_have_the_ids_of_the_annotations(bot, home):
    names = ["1.png", "sub/2.jpg", "bad.png"]
    document = {"images": [{"id": 100 + n, "file_name": name} for n, name in enumerate(names)], "annotations": []}
    (home / "photos" / "captions_val.json").write_text(json.dumps(document))
    done = run("photos/captions_val.json", "--out", "results.json", code=3)
    said = load_res(home / "results.json", home / "photos" / "captions_val.json")
    assert said == {100: "It is red 1.", 101: jpeg_red(home / "photos/sub/2.jpg")}
    assert "photos/bad.png: “bad.png” is damaged" in done.stderr  # what has no row is named
    assert "exists already" in run("photos/1.png", "--out", _other("x.json"), code=1).stderr


def _other(name: str) -> str:
    Path(name).write_text("[]")
    return name


def test_a_caption_of_coco_s_results_is_one_line(bot, home):
    bot.says = {1: "A dog.\r\nIt is\u2028red,\x0band old."}
    run("photos/1.png", "--out", "a.json")
    assert json.loads(Path("a.json").read_text()) == [{"image_id": 1, "caption": "A dog. It is red, and old."}]


def test_coco_s_ids_of_names_and_of_lists(bot, home):
    paint(home / "coco" / "COCO_val2014_000000000042.jpg", 9)
    paint(home / "coco" / "000000000007.png", 7)
    run("coco", "--out", "a.json")
    assert [one["image_id"] for one in json.loads(Path("a.json").read_text())] == [7, 42]
    Path("list.csv").write_text("id,file_name\n5,photos/1.png\nx9,photos/v1.4.png\n")
    run("list.csv", "--out", "b.json")
    assert [one["image_id"] for one in json.loads(Path("b.json").read_text())] == [5, "x9"]
    paint(home / "one" / "x_1.png", 1), paint(home / "one" / "y_1.png", 2)
    assert "would both be 'image_id 1'" in run("one", "--out", "d.json", code=1).stderr
    paint(home / "two" / "cat.png", 1)
    assert "has no number to be its image_id" in run("two", "--out", "e.json", code=1).stderr
    assert "one caption of each picture" in run("coco", "--out", "f.json", *2 * ["--prompt", "a"], code=1).stderr
    assert bot.count == 4


# --- beside pictures


def kohya(picture: Path, extension: str) -> str:
    """sd-scripts' rule without wildcards: the first line of the file of that ending, stripped."""
    return picture.with_suffix(extension).read_text(encoding="utf-8").splitlines()[0].strip()


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_text_lies_beside_each_picture(bot, home, ending):
    form = ending[1:]
    (home / "photos" / f"1{ending}").write_text("Mine.\n")
    done = run("photos", "--format", form, code=3)
    assert "photos/bad.png" in done.stderr or "bad.png:" in done.stderr
    assert kohya(home / "photos" / "1.png", ending) == "Mine."  # kept: it was there
    assert kohya(home / "photos" / "v1.4.png", ending) == "It is red 4."
    assert not (home / "photos" / f"bad{ending}").exists()
    (home / "photos" / "bad.png").unlink()
    assert {one.replies[0] for one in examples("photos")} >= {"Mine.", "It is red 4."}
    (home / "photos" / f"v1.4{ending}").write_text("Changed by hand.\n")
    (home / "photos" / "sub" / f"2{ending}").unlink()
    paint(home / "photos" / "6.png", 6)
    count = bot.count
    run("photos", "--format", form)
    assert bot.count == count + 1  # what is missing comes from the record
    assert kohya(home / "photos" / "sub" / "2.jpg", ending).startswith("It is red")
    assert kohya(home / "photos" / "v1.4.png", ending) == "Changed by hand."
    paint(home / "photos" / "6.png", 66)
    run("photos", "--format", form)
    assert kohya(home / "photos" / "6.png", ending) == "It is red 66."
    run("photos", "--format", form, "--prefix", "art, ")
    assert kohya(home / "photos" / "6.png", ending) == "art, It is red 66."
    assert kohya(home / "photos" / "v1.4.png", ending) == "Changed by hand."


@pytest.mark.parametrize(
    ("existing", "text", "asked"),
    [("keep", "Mine.", 3), ("skip", "Mine.", 3), ("append", "Mine. It is red 1.", 4), ("overwrite", "It is red 1.", 4)],
)
def test_captions_that_are_there(bot, home, existing, text, asked):
    (home / "photos" / "1.txt").write_text("Mine.\n")
    for _ in range(2):  # the second time there is nothing to do
        run("photos", "--format", "txt", "--existing", existing, code=3)
        assert kohya(home / "photos" / "1.png", ".txt") == text
        assert bot.count == asked


@pytest.mark.parametrize(
    ("existing", "said"),
    [("keep", "Mine."), ("skip", None), ("append", "Mine. It is red 1."), ("overwrite", "It is red 1.")],
)
def test_captions_that_are_there_in_another_output(bot, home, existing, said):
    (home / "photos" / "1.txt").write_text("Mine.\n")
    done = run("photos", "--out", "c.jsonl", "--existing", existing, code=3)
    assert rows().get("photos/1.png") == said
    assert ("Left out, since they have captions (--existing skip): 1." in done.stderr) == (existing == "skip")
    assert kohya(home / "photos" / "1.png", ".txt") == "Mine."


def test_two_pictures_of_one_text_are_refused(bot, home):
    paint(home / "photos" / "1.jpg", 9)
    assert "would both be" in run("photos", "--format", "txt", code=1).stderr
    assert "leave --out away" in run("photos", "--format", "txt", "--out", "x", code=1).stderr


# --- tars


def test_shards_are_read_by_datasets_and_ours(bot, home):
    (home / "photos" / "bad.png").unlink()
    run("photos", "--out", "shards/", "--format", "webdataset", "--shard-size", "3")
    tars = sorted(path.name for path in (home / "shards").glob("*.tar"))
    assert tars == ["00000.tar", "00001.tar"]
    with tarfile.open("shards/00000.tar") as tar:
        names = tar.getnames()
        assert tar.extractfile("photos/1.png").read() == (home / "photos" / "1.png").read_bytes()
        assert tar.extractfile("photos/1.txt").read().decode() == "It is red 1."
    assert names[:3] == ["photos/1.png", "photos/1.txt", "photos/1.json"]
    records = [record for name in tars for record in WebDataset(f"shards/{name}", shardshuffle=False)]
    # webdataset ends a key at the first dot of a name.
    assert {one["__key__"] for one in records} == {"photos/1", "photos/sub/2", "photos/sub/a, “b”", "photos/v1_4"}
    for one in records:
        assert json.loads(one["json"])["caption"] == one["txt"].decode()
        (ending,) = one.keys() & {"png", "jpg"}
        assert one[ending]
    assert {one.replies[0] for one in examples("shards")} >= {"It is red 1.", "It is red 3.", "It is red 4."}
    for number in range(10, 13):  # datasets takes no endings of two kinds in a tar
        paint(home / "pngs" / f"{number}.png", number)
    run("pngs", "--out", "pngs.tar")
    assert load("webdataset", data_files="*.tar")["txt"] == [f"It is red {number}." for number in range(10, 13)]
    bot.asked.clear()
    paint(home / "photos" / "7.png", 7)
    run("photos", "--out", "shards/", "--format", "webdataset", "--shard-size", "3")
    assert sorted(path.name for path in (home / "shards").glob("*.tar")) == [*tars, "00002.tar"]
    assert len(examples("shards")) == 5 and bot.count == 1


def test_shards_of_several_prompts_hold_each_caption(bot, home):
    (home / "photos" / "bad.png").unlink()
    run("photos", "--out", "s", "--format", "webdataset", "--shard-size", "2", *["--prompt", "a", "--prompt", "b"])
    assert len(examples("s")) == 8
    (home / "t").mkdir()
    (home / "t" / "x.tar").write_bytes(b"")
    assert "holds tars already" in run("photos", "--out", "t", code=1).stderr


def test_formats_that_are_not_known_or_have_no_name(bot, home):
    assert "is written to a file or folder" in run("photos", "--format", "parquet", code=1).stderr
    run("photos", "--format", "nonsense", code=2)
    printed = run("photos/1.png", "--format", "csv")
    assert printed.stdout == "image,caption,finish,error\nphotos/1.png,It is red 1.,,\n"


def test_a_picture_with_two_ids_is_refused(bot, home):
    """Else the results would lack one of them."""
    (home / "l.jsonl").write_text("".join(f'{{"image": "photos/1.png", "image_id": {n}}}\n' for n in (7, 8)))
    stderr = run("l.jsonl", "--out", "c.json", code=1).stderr
    assert "'photos/1.png' would be 'image_id 7' and 'image_id 8' in the output: name it once" in stderr
    run("l.jsonl", "l.jsonl", "--out", "c.jsonl")


def test_a_page_replaces_nothing_but_a_page(bot, home):
    """What is wrong with it is said before anything is captioned."""
    picture = next((home / "photos").glob("*.png"))
    before = picture.read_bytes()
    wrong = {picture: "is no page of captions", "photos": "cannot be written", "no/x": "check the folder"}
    for page, why in (wrong | {"c.jsonl": "--html and --out are both"}).items():
        assert why in run("photos", "--html", page, "--out", "c.jsonl", code=1).stderr
    assert bot.count == 0
    assert picture.read_bytes() == before
    for _ in range(2):
        run("photos", "--html", "page.html", "--out", "c.jsonl", code=3)


def test_texts_beside_pictures_are_made_anew_as_it_is_said(bot, home):
    """They have no other --out."""
    run("photos", "--format", "txt", code=3)
    refused = run("photos", "--format", "txt", "--max-new-tokens", "5", code=1).stderr
    record = re.search(r"remove its record, '(.+)', and say --existing overwrite", refused)[1]
    Path(record).unlink()
    bot.asked.clear()
    run("photos", "--format", "txt", "--max-new-tokens", "5", "--existing", "overwrite", code=3)
    assert bot.count == 4


BAD = os.fsdecode(b"not\xffutf8.png")
READABLE = "not\\udcffutf8.png"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are Unicode there")
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "webdataset"])
def test_a_name_that_is_no_utf8_keeps_no_output_from_being_opened(bot, home, form):
    import pandas

    paint(home / "photos" / BAD, 9)
    paint(home / "photos" / f"damaged{BAD}", 9).write_bytes(b"no picture")
    for _ in range(2):  # the second goes on, and finds its rows
        run("photos", "--format", form, "--out", "c", code=3)
    assert bot.count == 5
    if form == "webdataset":
        with tarfile.open(home / "c" / "00000.tar", errors="strict") as tar:
            notes = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
        assert f"../photos/{READABLE}" in [one["image"] for one in notes]
        return
    read = {"jsonl": partial(pandas.read_json, lines=True), "csv": pandas.read_csv, "parquet": pandas.read_parquet}
    table = read[form](home / "c").set_index("image")
    assert table["caption"][f"photos/{READABLE}"] == "It is red 9."
    assert "not a picture" in table["error"][f"photos/damaged{READABLE}"]
    assert len(table) == 7
