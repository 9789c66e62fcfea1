"""Tables, as text and as Parquet and Arrow: their fields, and the pictures in them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from minichat.data.example import Cell, Example, Problem, StoredPicture
from minichat.data.formats import examples, read, scan
from minichat.errors import DataError, shown
from minichat.train.data_loader import Part, Source, Stream
from tests.found_data import ASKED, BASE64, RED, file, folder_with_pictures, png, said, told


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder_with_pictures(tmp_path)


def test_a_tsv_has_no_quotation_marks_round_its_fields(home: Path) -> None:
    rows = 'image\tcaption\na.png\t"Hello", it says.\nb.png\t"\n'
    assert [one.replies for one in read(file("x.tsv", rows))] == [('"Hello", it says.',), ('"',)]
    assert [one.replies for one in read(file("x.csv", 'image,caption\na.png,"a ""b"", c"\n'))] == [('a "b", c',)]


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
@pytest.mark.parametrize("order", [0, 1])
def test_a_table_without_a_header(name: str, order: int, home: Path) -> None:
    rows = [["a.png", "One star."], ["b.png", "Two stars."]]
    between = "\t" if name.endswith("tsv") else ","
    source = file(name, "".join(between.join(row[::-1] if order else row) + "\n" for row in rows))
    assert [said(one) for one in read(source)] == [
        [("user", "a"), ("assistant", "One star.")],
        [("user", "b"), ("assistant", "Two stars.")],
    ]
    assert [one.where.line for one in read(source)] == [1, 2]


def test_a_column_s_blanks_need_not_be_named(home: Path) -> None:
    """Flickr30k's own table."""
    rows = "image_name| comment_number| comment\na.png| 0| One star.\n"
    (example,) = read(file("x.csv", rows), text_column="comment")
    assert said(example)[1] == ("assistant", "One star.")
    assert [said(one) for one in read("x.csv")] == [said(example)]


def test_a_table_program_s_own_column_is_passed_over(home: Path) -> None:
    assert len(examples(file("x.csv", ",image,caption\n0,a.png,One.\n"))) == 1


def test_a_tsv_whose_fields_are_quoted_is_no_tsv(home: Path) -> None:
    rows = 'image\tcaption\na.png\t"One\nstar."\n'
    with pytest.raises(DataError, match=r"x\.tsv:3: the row has 1 fields.*name it \.csv if this one has"):
        examples(file("x.tsv", rows))
    assert [one.replies for one in read(file("x.csv", rows))] == [("One\nstar.",)]


def test_what_is_no_table_without_a_header_stays_refused(home: Path) -> None:
    for rows in ("a.png\tb.png\n", "a.png,x,y\n", "photo,words\na.png,x\n", "x,y\n"):
        with pytest.raises(DataError, match="no column is known to be the"):
            examples(file("x.csv", rows))
    numbered = file("captions.token", "a.png#0\tOne star.\na.png#1\tA star.\n")
    assert [said(one)[1] for one in read(numbered)] == [("assistant", "One star."), ("assistant", "A star.")]


def test_fields_may_be_long_and_messages_are_short(home: Path) -> None:
    long = "x" * 200_000
    (example,) = read(file("x.tsv", f"image\tcaption\na.png\t{long}\n"))
    assert example.replies == (long,)
    wrong = {
        "x.tsv": f"image\tcaption\n{long}.png\tx\n",
        "y.tsv": f"{long}\t{long}\n",
        "x.csv": f"image,caption\n{long}://y.png,x\n",
        "x.jsonl": [{"image": [long] * 9 + [5], "caption": "x"}, {"image": "a.png", "caption": "x", long: long}],
        "y.jsonl": [{"messages": [{"role": long, "content": "x"}]}],
        "z.jsonl": [{"messages": [{"role": [long], "content": "x"}], "images": []}],
        "w.jsonl": [{"image": "a.png", "error": long}],
        "v.jsonl": [{"image": BASE64[:-9] + "\x00", "caption": "x"}],
    }
    for name, content in wrong.items():
        problems, _ = told(file(name, content))
        assert problems
        assert all(len(problem) < 700 for problem in problems), (name, max(map(len, problems)))
    assert shown(RED) == f"<{len(RED):,} bytes>"
    assert len(shown([RED] * 100 + [long])) < 300


def test_pictures_in_base64_in_a_table(home: Path) -> None:
    """MMBench's and LLaVA-Bench's form; other names of the picture stand beside it."""
    rows = f"index\timage\tquestion\tanswer\timage_path\n0\t{BASE64}\tHow many stars are there?\tOne.\tfar/away.png\n"
    assert [said(one) for one in read(file("x.tsv", rows))] == [ASKED]
    with pytest.raises(DataError, match=r"nothing reads the keys 'hint', 'A', 'B'"):
        examples(file("y.tsv", f"index\tquestion\thint\tA\tB\tanswer\timage\n0\t?\tLook.\tx\ty\tA\t{BASE64}\n"))


# --- Parquet and Arrow


def table(name: str, rows: list[dict[str, Any]], **options: Any) -> str:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), name, **options)
    return name


SHOWN: dict[str, Any] = {
    "bytes": RED,
    "a list of bytes": [RED],
    "a struct": {"bytes": RED, "path": "far/a.png"},
    "a list of structs": [{"bytes": RED, "path": None}],
    "base64": BASE64,
    "a path": "a.png",
}


@pytest.mark.parametrize("kind", SHOWN)
@pytest.mark.parametrize("column", ["image", "jpg"])
def test_pictures_in_a_column(kind: str, column: str, home: Path) -> None:
    rows = [{column: SHOWN[kind], "caption": ["One.", "A star."], "filename": "a.png"}]
    if kind == "a path":
        del rows[0]["filename"]
    found = list(read(table("x.parquet", rows)))
    assert [said(one) for one in found] == [[("user", "a"), ("assistant", text)] for text in ("One.", "A star.")]
    assert told("x.parquet")[0] == []
    source = found[0].pictures[0].source
    assert isinstance(source, Cell) == (kind not in ("a path", "base64"))


def test_a_row_s_pictures_stay_in_the_table_until_they_are_opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minichat.data import example as tables

    rows = [{"image": png(number), "caption": f"{number}."} for number in range(7)]
    table("x.parquet", rows, row_group_size=3)
    found = examples("x.parquet")
    assert [one.pictures[0].read() for one in found[::-1]] == [row["image"] for row in rows[::-1]]
    monkeypatch.setattr(tables, "GROUP_BYTES", 0)  # groups too large to be read again for each picture
    tables._table.cache_clear()
    assert [one.pictures[0].source for one in examples("x.parquet")] == [row["image"] for row in rows]
    tables._table.cache_clear()
    table("x.parquet", rows[::-1])
    with pytest.raises(DataError, match=r"not in 'x.parquet' any more"):
        found[0].pictures[0].read()


def test_a_folder_or_a_pattern_of_tables(home: Path) -> None:
    rows = [{"image": "../../a.png", "caption": f"{number}."} for number in range(4)]
    for shard in range(2):
        table(f"set/data/train-{shard:05d}-of-00002.parquet", rows[2 * shard :][:2])
    for source in ("set", "set/data/train-*.parquet", "set/data/train-{00000..00001}-of-00002.parquet"):
        assert [one.replies[0] for one in read(source)] == ["0.", "1.", "2.", "3."], source
        assert {one.pictures[0].read() for one in read(source)} == {RED}  # beside the file
    table("set/data/test-00000-of-00001.parquet", rows[:1])
    with pytest.raises(DataError, match=r"several sets \('test', 'train'\): name its files by a pattern"):
        examples("set")
    with pytest.raises(DataError, match="not found"):
        examples("set/data/validation-*.parquet")


def test_a_saved_set_s_pictures_lie_beside_its_folder(home: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([{"image": "a.png", "caption": "One."}]).save_to_disk("saved")
    streamed = Stream([Source("saved")], passes=1).scan()
    for found in (*read("saved"), *streamed):
        assert isinstance(found, Example)
        assert said(found)[0] == ("user", "a")
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"a": 1}])}).save_to_disk("sets")
    with pytest.raises(DataError, match=r"holds several sets \('train'\): name the folder of one"):
        examples("sets")


def test_a_damaged_table_is_named(home: Path) -> None:
    table("x.parquet", [{"image": "a.png", "caption": "x"}])
    content = Path("x.parquet").read_bytes()
    for name, damaged in (("y.parquet", content[:-9]), ("y.parquet", content[:20]), ("y.parquet", b"PAR1"),
                          ("y.arrow", b"ARROW1"), ("y.arrow", b""), ("y.arrow", content)):  # fmt: skip
        Path(name).write_bytes(damaged)
        (problem,) = scan(name)
        if damaged != content:
            assert isinstance(problem, Problem)
            assert re.match(rf"{name}:1: the table cannot be read \(", str(problem))


@pytest.mark.parametrize("kind", ["parquet", "saved", "lines"])
@pytest.mark.parametrize("by", ["records", "shards"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_reads_tables_and_lines_too(kind: str, by: Any, count: int, home: Path) -> None:
    """Each record is one part's, once in each pass; pictures are read as they are opened."""
    rows = [{"image": {"bytes": png(number), "path": None}, "caption": f"{number}"} for number in range(11)]
    if kind == "parquet":
        for shard in range(3):
            table(f"set/train-{shard:05d}-of-00003.parquet", rows[4 * shard :][:4], row_group_size=2)
        source = "set"
    elif kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk("saved", num_shards=2)
        source = "saved"
    else:
        source = file("x.jsonl", [{"image": "a.png", "caption": row["caption"]} for row in rows])
    stream = Stream([Source(source)], passes=2, seed=3, shuffle=4)
    parts = [[one for one in stream.scan(Part(index, count, by)) if isinstance(one, Example)] for index in range(count)]
    texts = sorted(int(one.replies[0]) for part in parts for one in part)
    assert texts == sorted([*range(11)] * 2)
    if kind != "lines":
        for one in parts[0][:3]:
            assert one.pictures[0].read() == rows[int(one.replies[0])]["image"]["bytes"]
    entered = stream.scan(Part(0, count, by), skip=2)
    assert [one.where for one in entered] == [one.where for one in parts[0][2:]]


def test_blanks_after_commas_are_no_part_of_fields(home: Path) -> None:
    rows = 'image, caption\na.png, One star.\nb.png, "Two, no: ""three"" stars."\n'
    assert [one.replies for one in read(file("x.csv", rows))] == [("One star.",), ('Two, no: "three" stars.',)]
    (problem, _) = scan(file("x.csv", rows.replace("image, ", "image,").replace("a.png, One", 'a.png, "One"')))
    assert "x.csv:2: a blank stands before a field's quotation mark" in str(problem)
    quoted = 'image,caption\na.png," ""Stop"" sign."\n'  # there it is a word
    assert [one.replies for one in read(file("x.csv", quoted))] == [(' "Stop" sign.',)]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\ufeffSEP=;\r"])
def test_a_line_that_tells_the_delimiter_is_no_part_of_the_table(first: str, home: Path) -> None:
    rows = first + "\nimage;caption\na.png;One, two, three stars.\n"
    (example,) = read(file("x.csv", rows))
    assert (said(example)[1], example.where.line) == (("assistant", "One, two, three stars."), 3)
    assert [one.where.line for one in read(file("y.csv", first + "\na.png;One star.\n"))] == [2]
    problems, _ = told(file("z.csv", rows + "b.png\n"))
    assert str(problems[-1]).startswith("z.csv:4: the row has 1 fields and the header 2")
    with pytest.raises(DataError, match=r"w\.csv:2: no column is known to be the image"):
        examples(file("w.csv", first + "\nBild;caption\na.png;One.\n"))


@pytest.mark.parametrize(
    "text",
    [
        "image,caption\na.png,One star.\n,\n\n , \n",  # rows that were emptied
        "image,caption,,\na.png,One star.,,\n,,,\n",  # and columns
        "image,caption\na.png,One star.,,\n",
    ],
)
def test_what_was_emptied_in_a_spreadsheet_is_no_part_of_its_table(text: str, home: Path) -> None:
    source = file("sheet.csv", text)
    problems, report = told(source)
    assert (problems, report.records) == ([], 1)
    assert [said(one) for one in read(source)] == [[("user", "a"), ("assistant", "One star.")]]
    problems, _ = told(file("more.csv", text.replace("One star.,,", "One star.,,lost") + "a.png,x,lost\n"))
    assert "fields and the header 2: give each column one." in str(problems[-1])


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("own.xlsx", b"PK\3\4", "is a spreadsheet, which is not read: save it as CSV"),
        ("own.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a spreadsheet"),
        ("own.zip", b"PK\3\4", "is compressed, or an archive: unpack it"),
        ("own.tar.gz", gzip.compress(b"x", mtime=0), "is compressed, or an archive"),
        ("own.jsonl.bz2", bz2.compress(b"x"), "is compressed, or an archive"),
        ("own.csv.xz", lzma.compress(b"x"), "is compressed, or an archive"),
    ],
)
def test_what_has_to_be_unpacked_first_is_named(name: str, head: bytes, said: str, home: Path) -> None:
    Path(name).write_bytes(head + b"\0" * 30)
    with pytest.raises(DataError, match=f"^'{re.escape(name)}' {re.escape(said)}"):
        told(name)


@pytest.mark.parametrize(
    ("named", "there", "hint"),
    [
        ("A.JPG", "a.jpg", " ('a.jpg' is there)"),
        ("u\u0308.png", "\u00fc.png", " ('\u00fc.png' is there)"),
        ("b.png ", "b.png", " ('b.png' is there)"),
        (" sub/b.png", "b.png", ", which begins or ends with a blank"),
        ("c.png", "b.png", ""),
    ],
)
def test_the_picture_that_may_be_meant_is_named(named: str, there: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / there).write_bytes(b"picture")
    missing = StoredPicture(named, tmp_path / named)
    if missing.source.exists():  # where the system does not tell these names apart
        pytest.skip("this file system finds it")
    with pytest.raises(DataError) as error:
        missing.read()
    assert str(error.value) == f"the picture {shown(named)} is missing: put it there, or correct its path{hint}."


def test_old_macs_line_ends_are_named(home: Path) -> None:
    (problem,) = scan(file("x.csv", "image,caption\ra.png,One star.\r"))
    assert "x.csv:1: the lines end with carriage returns alone" in str(problem)


def test_a_folder_of_tables_is_whole_and_one_set(home: Path) -> None:
    """Half a download is no data set, and no test is learned because it lies beside what is to be."""
    row = [{"image": "../a.png", "caption": "One."}]
    for name in ("half/train-00000-of-00003", "half/train-00002-of-00003", "two/part-1-of-2", "two/part-2-of-2"):
        table(f"{name}.parquet", row)
    with pytest.raises(DataError, match=r"'half' holds 2 of the 3 files .* the first that is missing is number 1"):
        examples("half")
    assert len(examples("half/*.parquet")) == len(examples("two")) == 2  # who names them so wants them so
    for first, second in (("train", "test"), ("en-train-0", "en-val-0"), ("x_train", "x_validation")):
        table(f"sets/{first}.parquet", row)
        table(f"sets/{second}.parquet", row)
        with pytest.raises(DataError, match=r"'sets' holds several sets .*: name its files by a pattern"):
            examples("sets")
        with pytest.raises(DataError, match="'sets' holds several sets"):
            list(Stream([Source("sets")], passes=1).scan())
        assert len(examples("sets/*train*.parquet")) == 1
        Path(f"sets/{first}.parquet").unlink()
        Path(f"sets/{second}.parquet").unlink()
    table("both/x.parquet", row)
    table("both/data/y.parquet", row)
    with pytest.raises(DataError, match="and so does its folder 'data'"):
        examples("both")
