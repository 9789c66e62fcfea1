"""Data sets as they are found in the wild: no word of a record is lost in silence, and pictures are read wherever they
lie.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minichat.data.example import Cell, Example, Problem, StoredPicture
from minichat.data.export import write
from minichat.data.feature_cache import share
from minichat.data.formats import FORMS, examples, read
from minichat.data.formats.tables import PICTURE, QUESTION, TEXT
from minichat.errors import DataError, SettingsError
from minichat.evaluate.datasets import Files
from minichat.toy.dataset import SyntheticPicture
from minichat.train.config import read_config
from minichat.train.data_loader import Source, Stream
from tests.found_data import ASKED, BASE64, BLUE, RED, file, folder_with_pictures, said, told


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder_with_pictures(tmp_path)


PIRATE = ("system", "Answer like a pirate.")
EARLIER = [
    ("user", "a", "What shape is it?"),
    ("assistant", "A star."),
    ("user", "And its colour?"),
    ("assistant", "Grey."),
]
TALK = [
    {"from": "human", "value": "<image>\nHow many stars are there?"},
    {"from": "gpt", "value": "One."},
]
ROLES = [{"role": "user", "content": "<image>\nHow many stars are there?"}, {"role": "assistant", "content": "One."}]

#: A record, and what is learned from it.
RECORDS: dict[str, tuple[dict[str, Any], list[tuple[str, ...]]]] = {
    "ms-swift": ({"query": "<image>How many stars are there?", "response": "One.", "images": ["a.png"]}, ASKED),
    "ms-swift with all": (
        {"query": "And its colour?", "response": "Grey.", "history": [["<image>What shape is it?", "A star."]],
         "images": ["a.png"], "system": "Answer like a pirate.", "tools": "[]"},
        [PIRATE, *EARLIER],
    ),
    "OpenAI's developer": (
        {"messages": [{"role": "developer", "content": PIRATE[1]}, *ROLES], "images": ["a.png"]}, [PIRATE, *ASKED]
    ),
    "ms-swift's messages": ({"messages": ROLES, "images": ["a.png"], "system": None}, ASKED),
    "Alpaca": (
        {"instruction": "Answer the question.", "input": "How many stars are there?", "output": "One.",
         "images": ["a.png"], "history": [], "system": ""},
        [("user", "a", "Answer the question.\nHow many stars are there?"), ("assistant", "One.")],
    ),
    "Alpaca's history": (
        {"instruction": "And its colour?", "input": "", "output": "Grey.", "images": ["a.png"],
         "history": [["What shape is it?", "A star."]]},
        EARLIER,
    ),
    "Alpaca's mark in a later question": (
        {"instruction": "And <image> this?", "output": "Grey.", "history": [["Hello?", "Yes."]], "images": ["a.png"]},
        [("user", "Hello?"), ("assistant", "Yes."), ("user", "And", "a", "this?"), ("assistant", "Grey.")],
    ),
    "Alpaca without a picture": (
        {"instruction": "Hello?", "input": "", "output": "Yes."}, [("user", "Hello?"), ("assistant", "Yes.")]
    ),
    "input alone": ({"image": "a.png", "input": "How many stars are there?", "output": "One."}, ASKED),
    "prompt and answer": ({"image": "a.png", "prompt": "How many stars are there?", "answer": "One."}, ASKED),
    "a mark that somebody typed": (
        {"image": "a.png", "question": "What is <image>?", "answer": "A mark."},
        [("user", "a", "What is <image>?"), ("assistant", "A mark.")],
    ),
    "TRL's prompt and completion": (
        {"images": ["a.png"], "prompt": "<image>How many stars are there?", "completion": "One."}, ASKED
    ),
    "TRL's, as messages": ({"images": ["a.png"], "prompt": ROLES[:1], "completion": ROLES[1:]}, ASKED),
    "LLaVA's system": ({"id": "1", "image": "a.png", "system": PIRATE[1], "conversations": TALK}, [PIRATE, *ASKED]),
    "ShareGPT's system": ({"conversations": TALK, "system": PIRATE[1], "images": ["a.png"]}, [PIRATE, *ASKED]),
    "the same system twice": (
        {"conversations": [{"from": "system", "value": PIRATE[1]}, *TALK], "system": PIRATE[1], "images": ["a.png"]},
        [PIRATE, *ASKED],
    ),
    "roles by from in messages": ({"messages": TALK, "images": ["a.png"]}, ASKED),
    "roles in conversations": ({"conversations": ROLES, "images": ["a.png"]}, ASKED),
    "system beside messages": (
        {"messages": [{"role": "user", "content": "Hello?"}, ROLES[1]], "system": "Hm."},
        [("system", "Hm."), ("user", "Hello?"), ("assistant", "One.")],
    ),
    "a data address": (
        {"messages": [
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}", "detail": "low"}},
                {"type": "text", "text": "How many stars are there?"}]},
            ROLES[1]]},
        ASKED,
    ),
    "base64 under image": ({"image": BASE64, "question": "How many stars are there?", "answer": "One."}, ASKED),
    "VQAv2 on the hub": (
        {"image": "a.png", "question": "How many stars are there?", "multiple_choice_answer": "One.", "image_id": 5,
         "question_id": 7, "answer_type": "number", "question_type": "how many"},
        ASKED,
    ),
    "an empty picture beside another": ({"messages": ROLES, "images": ["a.png"], "image": "", "videos": []}, ASKED),
    "what says where it comes from": (
        {"id": 5, "image": "a.png", "question": "How many stars are there?", "answer": "One.", "url": "http://x/a.png",
         "width": 24, "height": 24, "sha256": "0a", "source": "web", "license": "CC0", "NSFW": "UNLIKELY",
         "similarity": 0.3, "key": "0001", "split": "train", "__index_level_0__": 0, "finish": "stop"},
        ASKED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_every_word_of_a_record_is_learnt(kind: str, name: str, home: Path) -> None:
    record, expected = RECORDS[kind]
    source = file(name, [record])
    (example,) = read(source)
    assert said(example) == expected
    assert told(source)[0] == []
    write(read(source), home / "again.jsonl")
    assert [said(one) for one in read(home / "again.jsonl")] == [expected]


@pytest.mark.parametrize("kind", [kind for kind in RECORDS if kind not in ("system beside messages", "a data address")])
def test_a_table_says_the_same(kind: str, home: Path) -> None:
    """As Parquet, whose columns are of one type: pictures lie within."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    record, expected = RECORDS[kind]
    held = {"bytes": RED, "path": None}
    record = {key: [held] if key == "images" and value else held if key == "image" and value else value
              for key, value in record.items()}  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([record]), "x.parquet")
    assert [said(one) for one in read("x.parquet")] == [expected]


#: A record with a key that nothing reads, and the key's name.
UNREAD: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"messages": ROLES, "images": ["a.png"], "tools": '[{"name": "zoom"}]'}, "'tools'"),
    "a hint": ({"image": "a.png", "question": "?", "answer": "A", "hint": "Look at the left."}, "'hint'"),
    "choices": ({"image": "a.png", "question": "?", "answer": "A", "choices": ["x", "y"]}, "'choices'"),
    "answers": ({"image": "a.png", "question": "?", "multiple_choice_answer": "x", "answers": ["x"]}, "'answers'"),
    "a rejected reply": ({"query": "?", "response": "x", "images": ["a.png"], "rejected_response": "y"}, "'rejected"),
    "history of no question": ({"image": "a.png", "caption": "x", "history": [["?", "!"]]}, "'history'"),
    "a turn's loss": ({"messages": [ROLES[0], {**ROLES[1], "loss": False}], "images": ["a.png"]}, "'loss' of a turn"),
    "a turn's calls": (
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "tool_calls": [{}]}]},
        "'tool_calls' of a turn",
    ),
    "a part's crop": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", "crop": [0, 5]}]}, ROLES[1]]},
        "'crop' of a part",
    ),
    "two keys of pictures": ({"messages": ROLES, "images": ["a.png"], "image": "b.png"}, "'image'"),
    "sounds": ({"messages": ROLES, "images": ["a.png"], "audios": ["a.wav"]}, "'audios'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREAD)
def test_a_key_that_nothing_reads_is_named_and_refused(kind: str, home: Path) -> None:
    record, key = UNREAD[kind]
    source = file("x.jsonl", [record] * 3)
    with pytest.raises(DataError, match=re.escape(f"x.jsonl:1: nothing reads the key {key}")):
        examples(source)
    problems, report = told(source)
    assert [problem for problem in problems if "says the same" not in problem] == [problems[0]]
    assert problems[0].startswith(f"x.jsonl:1: nothing reads the key {key}")
    assert report.wrong == 3
    assert re.search(rf"Records with the key {re.escape(key)}.*: 3; the first is x.jsonl:1", report.summary())
    assert len(examples(source, unknown_keys="ignore")) == 3
    assert told(source, unknown_keys="ignore")[1].wrong == 0
    with pytest.raises(SettingsError, match="unknown_keys is 'keep'"):
        examples(source, unknown_keys="keep")


def test_of_two_replies_to_compare_the_one_to_learn_is_asked_for(home: Path) -> None:
    record = {"images": ["a.png"], "prompt": ROLES[:1], "chosen": ROLES[1:], "rejected": ROLES[1:]}
    with pytest.raises(DataError, match="give the one to learn as 'completion'"):
        examples(file("x.jsonl", [record]))


def test_what_the_columns_of_a_table_hold_is_named_too(home: Path) -> None:
    source = file("x.csv", "image,question,answer,hint\na.png,?,A,\nb.png,?,B,Look.\n")
    problems, report = told(source)
    assert re.match(r"x\.csv:3: nothing reads the key 'hint'", problems[0])
    assert (report.records, report.wrong) == (2, 1)


def test_a_mark_that_stays_a_word_is_noted(home: Path) -> None:
    rows = [{"image": "a.png", "question": "What is <image>?", "answer": "A mark."}]
    assert told(file("x.jsonl", rows))[1].notes == ["Records whose questions hold <image>, there a word: 1."]


def test_system_texts_and_marks_that_contradict(home: Path) -> None:
    twice = {"conversations": [{"from": "system", "value": "Hm."}, *TALK], "system": "Oh.", "images": ["a.png"]}
    with pytest.raises(DataError, match="one system text is under 'system' and another among the turns"):
        examples(file("x.json", [twice]))
    marks = {"query": "<image><image>?", "response": "!", "images": ["a.png"]}
    with pytest.raises(DataError, match="the number of <image> is 2 but 1 of them is given"):
        examples(file("x.json", [marks]))
    with pytest.raises(DataError, match="'output' is a list: it must be text"):  # a preference, not two captions
        examples(file("x.json", [{"instruction": "?", "output": ["!", "?"], "images": ["a.png"]}]))
    with pytest.raises(DataError, match="turn 1 of 'history' is text"):
        examples(file("x.json", [{"query": "?", "response": "!", "images": ["a.png"], "history": ["?", "!"]}]))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([0, 1], ["a", "b"]),
        ([1, 0], ["b", "a"]),
        ([0, 1, 0], ["a", "b", "a"]),
        ([None, None], ["a", "b"]),
        ([0.0, float("nan"), 1], None),
        ([0, 2], r"a place of <image> has the index 2, but 2 of them are given"),
        ([-1, 0], "index -1"),
        ([0], "the number of <image> is 1 but 2 of them are given"),
        ([True, 1], "the index True: it must be the number of a picture"),
    ],
)
def test_the_index_of_a_part_is_a_picture_s_number(indices: list[Any], expected: Any, home: Path) -> None:
    parts = [{"type": "image", "text": None, "index": index} for index in indices]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "?", "index": None}]}
    source = file("x.jsonl", [{"messages": [asked, ROLES[1]], "images": ["a.png", "b.png"]}])
    if isinstance(expected, list):
        (example,) = read(source)
        assert said(example)[0] == ("user", *expected, "?")
    elif expected is not None:
        with pytest.raises(DataError, match=expected):
            examples(source)


# --- several captions


def several(home: Path) -> dict[str, str]:
    """Sources of the same captions of one picture."""
    texts = ["One star.", "A star.", "A grey star."]
    with tarfile.open("x.tar", "w") as tar:
        for name, data in (("0.png", RED), ("0.json", json.dumps({"captions": texts}).encode())):
            add(tar, name, data)
    with tarfile.open("y.tar", "w") as tar:
        for name, data in (("0.png", RED), *((f"0.{n}.txt", text.encode()) for n, text in enumerate(texts))):
            add(tar, name, data)
    coco = {"images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"id": n, "image_id": 1, "caption": text} for n, text in enumerate(texts)]}  # fmt: skip
    return {
        "lines": file("x.jsonl", [{"image": "a.png", "captions": texts}]),
        "sentences": file("y.jsonl", [{"image": "a.png", "sentences": texts, "sentids": [1, 2, 3], "split": "train"}]),
        "tar": "x.tar",
        "texts in a tar": "y.tar",
        "coco": file("captions_x.json", coco),
    }


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_of_several_captions_each_or_the_first_or_one_is_learnt(home: Path) -> None:
    for kind, source in several(home).items():
        each = [one.replies[0] for one in read(source)]
        assert each == ["One star.", "A star.", "A grey star."], kind
        written = home / f"{kind}.jsonl"
        write(read(source), written)
        assert [said(one) for one in read(written)] == [said(one) for one in read(source)], kind
        assert [one.replies[0] for one in read(source, several_captions="first")] == each[:1], kind
        drawn = [[one.replies[0] for one in read(source, several_captions="random", epoch=n)] for n in range(30)]
        assert drawn == [
            [one.replies[0] for one in read(source, several_captions="random", epoch=n)] for n in range(30)
        ]
        assert {text for (text,) in drawn} == set(each), kind
        assert told(source)[0] == [], kind
    with pytest.raises(SettingsError, match="several_captions is 'last'"):
        examples("x.jsonl", several_captions="last")


def test_a_stream_asks_which_of_several_captions(home: Path) -> None:
    for source in several(home).values():
        with pytest.raises(DataError, match=r"has 3 texts, and a stream takes one.*several_captions: first, or random"):
            next(Stream([Source(source)]).scan())
        drawn = Stream([Source(source)], several_captions="random", passes=20).scan()
        assert len({one.replies for one in drawn if isinstance(one, Example)}) > 1


def test_a_list_without_a_text_is_no_caption(home: Path) -> None:
    for value, message in (([], "'caption' is a list"), ([5], "'caption', text 1, is a number"), (5, "is a number")):
        with pytest.raises(DataError, match=message):
            examples(file("x.jsonl", [{"image": "a.png", "caption": value}]))


# --- files beside pictures


def test_kohya_s_captions_and_img2dataset_s_notes(home: Path) -> None:
    (home / "set").mkdir()
    for name in "ab":
        (home / "set" / f"{name}.png").write_bytes(RED if name == "a" else BLUE)
    (home / "set" / "a.caption").write_text("One star.\n")
    (home / "set" / "b.txt").write_text("Two stars.")
    (home / "set" / "b.json").write_text(json.dumps({"caption": "Two stars.\n", "url": "http://x", "width": 24}))
    (home / "set" / "00000_stats.json").write_text(json.dumps({"count": 2}))
    expected = [[("user", "a"), ("assistant", "One star.")], [("user", "b"), ("assistant", "Two stars.")]]
    assert [said(one) for one in read("set")] == expected
    assert told("set")[0] == []
    (home / "set" / "b.json").write_text(json.dumps({"caption": "Two stars.", "hint": "Count."}))
    with pytest.raises(DataError, match="nothing reads the key 'hint'"):
        examples("set")
    (home / "set" / "a.txt").write_text("star, grey")
    assert any("two texts, 'a.txt' and 'a.caption'" in problem for problem in told("set")[0])


def test_img2dataset_s_tables_beside_its_tars_and_pictures(home: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.Table.from_pylist([{"url": "u", "caption": "One star.", "key": "0", "status": "success"}])
    for folder in ("tars", "files/00000"):
        (home / folder).mkdir(parents=True)
    for folder in ("tars", "files"):
        parquet.write_table(rows, f"{folder}/00000.parquet")
        (home / folder / "00000_stats.json").write_text("{}")
    with tarfile.open("tars/00000.tar", "w") as tar:
        add(tar, "0.png", RED)
        add(tar, "0.txt", b"One star.")
    (home / "files" / "00000" / "0.png").write_bytes(RED)
    (home / "files" / "00000" / "0.txt").write_text("One star.")
    for source in ("tars", "files"):
        assert [said(one) for one in read(source)] == [[("user", "a"), ("assistant", "One star.")]]


def test_one_object_is_no_data_set_of_records(home: Path) -> None:
    """Karpathy's splits hold all in one object, and so do GQA's questions."""
    for document in ({"images": [{"filename": "a.png", "sentences": []}]}, {"7": {"question": "?", "imageId": "1"}}):
        for indent in (None, 1):
            with pytest.raises(DataError, match="in no format that is known"):
                examples(file("x.json", json.dumps(document, indent=indent)))
    spread = json.dumps({"messages": ROLES, "images": ["a.png"]}, indent=1)
    with pytest.raises(DataError, match="one record over several lines: put it into a list"):
        examples(file("x.json", spread))
    assert [said(one) for one in read(file("x.json", f"[{spread}]"))] == [ASKED]


def test_a_list_of_data_sets_is_none(home: Path) -> None:
    told = json.dumps({"demo": {"file_name": "demo.json", "formatting": "sharegpt"}}, indent=2)
    with pytest.raises(DataError, match="lists data sets rather than records: name the file of one"):
        examples(file("dataset_info.json", told))


def test_a_folder_with_metadata(home: Path) -> None:
    file("metadata.jsonl", [{"file_name": "a.png", "text": "One star."}])
    assert [said(one) for one in read(".")] == [[("user", "a"), ("assistant", "One star.")]]
    os.remove("metadata.jsonl")
    file("metadata.csv", "file_name,text\na.png,One star.\n")
    assert [said(one) for one in read(".")] == [[("user", "a"), ("assistant", "One star.")]]


TARS: dict[str, tuple[dict[str, bytes], Any]] = {
    "a question": ({"json": b'{"question": "How many stars are there?", "answer": "One."}'}, ASKED),
    "LLaVA": ({"json": json.dumps({"image": "x/0.png", "conversations": TALK}).encode()}, ASKED),
    "messages": ({"json": json.dumps({"messages": ROLES, "system": PIRATE[1]}).encode()}, [PIRATE, *ASKED]),
    "Alpaca": ({"json": b'{"instruction": "<image>How many stars are there?", "output": "One."}'}, ASKED),
    "img2dataset": (
        {"txt": b"One.", "json": b'{"caption": "One.", "url": "u", "key": "0", "status": "success", '
         b'"error_message": null, "width": 9, "height": 9, "original_width": 9, "original_height": 9, "exif": "{}", '
         b'"sha256": "0", "similarity": 0.3, "hash": 1, "punsafe": 0.1, "pwatermark": 0.1}'},
        [("user", "a"), ("assistant", "One.")],
    ),
    "a class": ({"txt": b"One.", "cls": b"5"}, [("user", "a"), ("assistant", "One.")]),
    "a sound": ({"txt": b"One.", "wav": b"5"}, "nothing reads the key '.wav' of a tar"),
    "two stories": ({"txt": b"One.", "json": b'{"caption": "Two."}'}, "nothing reads|could each be|'caption'"),
    "a key": ({"json": b'{"caption": "One.", "prompt_hint": "x"}'}, "nothing reads the key 'prompt_hint'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARS)
def test_what_stands_beside_a_picture_in_a_tar(kind: str, home: Path) -> None:
    files, expected = TARS[kind]
    with tarfile.open("x.tar", "w") as tar:
        for ending, data in {"png": RED, **files}.items():
            add(tar, f"0.{ending}", data)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            examples("x.tar")
        with pytest.raises(DataError, match=expected):
            list(Stream([Source("x.tar")], passes=1).scan())
    else:
        assert [said(one) for one in read("x.tar")] == [expected]
        assert [said(one) for one in Stream([Source("x.tar")], passes=1).scan() if isinstance(one, Example)] == [
            expected
        ]


def test_a_text_may_lie_beside_a_picture_under_its_whole_name(home: Path) -> None:
    """As taggers write it; read as a folder for each kind it would be learned as the folder's name."""
    for folder in ("one", "two"):
        Path("own", folder).mkdir(parents=True)
        for name, text in (("a.png", "A star."), ("a.jpg", "A dot.")):
            (home / "own" / folder / name).write_bytes((home / "a.png").read_bytes())
            (home / "own" / folder / f"{name}.txt").write_text(text)
    replies = [[turn[-1] for turn in said(one)][-1] for one in read("own")]
    assert replies == ["A dot.", "A star."] * 2
    Path("own/one/b.png.txt").write_text("Whose?")
    problems, _ = told("own")
    assert any("the text has no picture of its name beside it" in str(problem) for problem in problems)


def test_a_spreadsheet_among_folders_of_kinds_may_tell_more_than_their_names(home: Path) -> None:
    for folder in ("one", "two"):
        Path("own", folder).mkdir(parents=True)
        (home / "own" / folder / "a.png").write_bytes((home / "a.png").read_bytes())
    assert len(list(read("own"))) == 2
    Path("own/captions.xlsx").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"It holds 'captions\.xlsx': name one of them, or the format 'kinds'"):
        list(read("own"))


# --- COCO


def coco(name: str = "a.png", **more: Any) -> dict[str, Any]:
    note = {"id": 9, "image_id": 1, "caption": "One star.", **more}
    return {"info": {}, "licenses": [], "images": [{"id": 1, "file_name": name, "width": 24}], "annotations": [note]}


@pytest.mark.parametrize("folder", [".", "images", "train2017", "images/train2017"])
@pytest.mark.parametrize("up", [False, True])
def test_coco_s_captions_where_coco_is_unpacked(folder: str, up: bool, home: Path) -> None:
    file_ = home / ("annotations" if up else ".") / "captions_train2017.json"
    file_.parent.mkdir(exist_ok=True)
    (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "a.png").rename(home / folder / "c.png")
    file_.write_text(json.dumps(coco("c.png"), indent=1))
    assert [said(one) for one in read(file_)] == [[("user", "a"), ("assistant", "One star.")]]
    assert told(str(file_))[0] == []
    other = home / "elsewhere"
    other.mkdir()
    (home / folder / "c.png").rename(other / "c.png")
    assert [said(one) for one in read(file_, pictures=other)] == [[("user", "a"), ("assistant", "One star.")]]


def test_pictures_of_coco_that_no_caption_names_are_told(home: Path) -> None:
    images = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate("abc")]
    source = file("captions_x.json", {"images": images, "annotations": [{"image_id": 1, "caption": "One star."}]})
    left_out: list[Problem] = []
    assert len(list(read(source, left_out=left_out.append))) == 1
    assert [str(problem) for problem in left_out] == [
        f"{source} (record {number}): the picture {name!r} has no caption: nothing is learned of it."
        for number, name in ((1, "a.png"), (3, "c.png"))
    ]
    problems, report = told(source)
    assert (len(problems), report.records, report.wrong, report.left_out) == (2, 3, 0, 2)


def test_malformed_captions_of_coco(home: Path) -> None:
    for document, message in (
        (coco(caption=5), "'caption' is a number"),
        (coco(caption=None), "has no 'caption'"),
        (coco(image_id=5), "the image 5, which is not listed"),
        ({**coco(), "annotations": []}, "'annotations' is empty"),
        (
            {**coco(), "images": [{"id": 1, "file_name": name} for name in ("a.png", "b.png")]},
            "as another has .number 1",
        ),
        (coco("absent.png"), None),
    ):
        source = file("x.json", document)
        if message is None:
            assert "'absent.png' is missing" in told(source)[0][0]
        else:
            with pytest.raises(DataError, match=message):
                examples(source)


# --- rows of `minichat caption`


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_row_that_holds_an_error_is_left_out_and_said(name: str, home: Path) -> None:
    rows = [
        {"image": "a.png", "caption": "One star.", "finish": "length"},
        {"image": "b.png", "error": "It is damaged."},
    ]
    csv = "image,caption,error\na.png,One star.,\nb.png,,It is damaged.\n"
    source = file(name, rows if name.endswith("l") else csv)
    left_out: list[Problem] = []
    assert len(list(read(source, left_out=left_out.append))) == 1
    assert [problem.text for problem in left_out] == ["the row holds an error in place of a caption: 'It is damaged.'."]
    problems, report = told(source)
    assert (len(problems), report.wrong, report.left_out) == (1, 0, 1)
    assert "Records: 2. Good: 1. Wrong: 0." in report.summary()
    assert "Records left out, which hold nothing to learn: 1." in report.summary()


# --- what is no file


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tar", "x.parquet", "set/a.txt", "filter_cap.json"])
def test_a_pipe_is_refused_at_once(name: str, home: Path) -> None:
    (home / "set").mkdir()
    (home / "set" / "a.png").write_bytes(RED)
    os.mkfifo(home / name)
    for source in (name, "set") if "/" in name else (name,):
        with pytest.raises(DataError, match=rf"{re.escape(name)}.*it is a named pipe, not a file") as raised:
            examples(source, form="folder" if source == "set" else None)
        assert "\n" not in str(raised.value)


def test_devices_and_sockets_are_refused(home: Path) -> None:
    with pytest.raises(DataError, match="it is a device, not a file"):
        examples("/dev/zero")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("x.jsonl")
        with pytest.raises(DataError, match="it is a socket, not a file"):
            examples("x.jsonl")
    os.mkfifo("ask.txt")
    with pytest.raises(DataError, match=r"ask\.txt.*named pipe"):
        examples(file("x.csv", "image,caption\na.png,x\n"), instructions="ask.txt")


# --- elsewhere


def test_captions_to_measure_by_are_read_as_those_to_learn_from(home: Path) -> None:
    """Also COCO's pictures in their own folder, and keys that nothing reads."""
    rows = [{"image": "a.png", "caption": "One."}, {"image": "b.png", "error": "It is damaged."}]
    left_out: list[Problem] = []
    for name in ("x.jsonl", "x.json"):
        (found,) = Files((Path(file(name, rows)),), left_out=left_out.append).captions()
        assert (found.name, found.references) == ("a.png", ("One.",))
    assert [str(problem) for problem in left_out] == [
        "x.jsonl:2: the row holds an error: 'It is damaged.'.",
        "x.json:1 (record 2): the row holds an error: 'It is damaged.'.",
    ]
    (home / "val2014").mkdir()
    (home / "a.png").rename(home / "val2014" / "a.png")
    document = Path(file("captions_val2014.json", coco()))
    assert [item.references for item in Files((document,)).captions()] == [("One star.",)]
    with pytest.raises(DataError, match=r"'gone\.png' is missing: say with --images"):
        Files((Path(file("captions_val2014.json", coco("gone.png"))),)).captions()
    table = Path(file("x.csv", "image,caption,hint\nb.png,Two.,Look.\n"))
    with pytest.raises(DataError, match="nothing reads the key 'hint'"):
        Files((table,)).captions()
    assert len(Files((table,), unknown_keys="ignore").captions()) == 1
    with pytest.raises(DataError, match=r"'absent\.json' was not found"):
        Files((Path("absent.json"),)).polls()
    os.mkfifo("pipe.json")
    with pytest.raises(DataError, match=r"'pipe\.json' cannot be read \(it is a named pipe"):
        Files((Path("pipe.json"),)).polls()
    with pytest.raises(DataError, match=r"'pipe\.json' cannot be read \(it is a named pipe"):
        Files((Path("pipe.json"),)).captions()
    with pytest.raises(SettingsError, match=r"'pipe\.json' cannot be read as text \(it is a named pipe"):
        read_config("pipe.json")


def test_pictures_without_a_name_are_shared_evenly() -> None:
    """Whatever they are called, each comes to one process, and the same one again."""
    made = [StoredPicture("a picture", f"content {number}".encode()) for number in range(400)]
    shares = [share(picture, 4) for picture in made]
    assert shares == [share(picture, 4) for picture in made]
    assert all(60 < shares.count(number) < 140 for number in range(4))
    cells = [StoredPicture("a picture", Cell(Path("x.parquet"), number, "image", (), 900)) for number in range(400)]
    counts = Counter(share(picture, 4) for picture in cells)
    assert all(60 < counts[number] < 140 for number in range(4))
    drawn = [SyntheticPicture("drawn", seed=number) for number in range(400)]
    counts = Counter(share(picture, 4) for picture in drawn)
    assert all(60 < counts[number] < 140 for number in range(4))


def test_the_formats_are_told_of() -> None:
    told = (Path(__file__).parents[1] / "docs" / "DATA.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)) == set(FORMS)
    for name in (*PICTURE[:3], *TEXT, *QUESTION):
        assert f"`{name}`" in told
