"""Every format is read to the same examples where it says the same, and a stream of tars loses and repeats nothing."""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minichat.data.example import Example, Problem, StoredPicture
from minichat.data.formats import FORMS, examples, form_of, read, scan
from minichat.data.formats.base import ALIGNMENT, Asking, blip_caption, read_instructions
from minichat.data.formats.chat import IMAGE, cut
from minichat.errors import DataError, SettingsError
from minichat.train.data_loader import Part, Source, Stream

DATA = Path(__file__).parent / "data"
ASKED = {"instructions": DATA / "instruction.txt"}

#: Where the same three records stand, in which format, and what is asked where the format has no question.
SAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "messages.jsonl": ("messages", {}),
    "llava.json": ("llava", {}),
    "sharegpt.json": ("sharegpt", {}),
    "cc_sbu_align": ("cc_sbu_align", ASKED),
    "captions_pictures.json": ("coco", ASKED),
    "vqa_OpenEnded_questions.json": ("vqa", {}),
    "vqa_annotations.json": ("vqa", {}),
    "by_picture.json": ("by_picture", ASKED),
    "pairs.csv": ("pairs", {}),
    "pairs.jsonl": ("pairs", ASKED),
    "folder": ("folder", ASKED),
    "shards": ("webdataset", ASKED),
    "shards/{00000..00001}.tar": ("webdataset", ASKED),
    "shards/0000?.tar": ("webdataset", ASKED),
}
TALKS = {"talk_messages.jsonl": "messages", "talk_llava.json": "llava", "talk_sharegpt.jsonl": "sharegpt"}


def said(example: Example) -> list[tuple[str, list[str | bytes]]]:
    """What an example says and shows, a picture as its content."""
    return [
        (turn.role, [part.read() if isinstance(part, StoredPicture) else part for part in turn.parts])
        for turn in example.turns
    ]


def all_said(source: str | Path, form: str | None = None, **options: Any) -> list[Any]:
    return [said(example) for example in examples(source, form=form, **options)]


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_same_records_in_every_format(sample: str) -> None:
    form, options = SAMPLES[sample]
    first = all_said(DATA / "messages.jsonl")
    assert len(first) == 3
    assert first[0][0][1][1] == "Describe this image in detail."
    assert all_said(DATA / sample, **options) == first
    assert all_said(DATA / sample, form, **options) == first


@pytest.mark.parametrize("sample", TALKS)
def test_the_same_conversations_with_pictures_in_any_turn(sample: str) -> None:
    long, film = all_said(DATA / sample)
    pictures = [(DATA / "pictures" / f"{number}.jpg").read_bytes() for number in (1, 2, 3)]
    frames = [(DATA / "pictures" / "frames" / f"{number}.png").read_bytes() for number in (1, 2)]
    assert long == [
        ("system", ["You see drawn scenes."]),
        ("user", [*pictures[:2], "Which of the two has more objects?"]),
        ("assistant", ["The first."]),
        ("user", ["And what is <b>this</b>?"]),
        ("assistant", ["A word in bold."]),
        ("user", ["Compare it with", pictures[2], "please."]),
        ("assistant", ["It has fewer."]),
    ]
    assert film == [("user", [*frames, "What happens?"]), ("assistant", ["The scene changes."])]
    assert form_of(DATA / sample, sample) == TALKS[sample]


def test_every_format_has_a_sample(tmp_path: Path) -> None:
    assert {form for form, _ in SAMPLES.values()} | {"arrow", "kinds"} == set(FORMS)
    for sample, (form, _) in SAMPLES.items():
        assert form_of(DATA / sample, sample) == form


@pytest.mark.parametrize("sample", ["messages.jsonl", "llava.json", "sharegpt.json", "pairs.csv"])
def test_a_table_that_datasets_wrote_says_the_same(sample: str, tmp_path: Path) -> None:
    """Pictures lie within, or are named; the table is a Parquet file, or a folder."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    form = SAMPLES[sample][0]
    if sample.endswith("csv"):
        rows = list(datasets.Dataset.from_csv(str(DATA / sample), cache_dir=str(tmp_path / "cache")))
        rows = [{**row, "image": str(DATA / row["image"])} for row in rows]
    else:
        text = (DATA / sample).read_text()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    table = datasets.Dataset.from_list(rows)
    if form == "pairs":
        table = table.cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "pictures").symlink_to(DATA / "pictures")
    for source in ("saved", "rows.parquet"):
        assert form_of(tmp_path / source, source) == "arrow"
        assert all_said(tmp_path / source) == all_said(DATA / "messages.jsonl")


def test_a_folder_for_each_kind_says_what_its_pictures_show(tmp_path: Path) -> None:
    for name in ("train/cup/1.jpg", "train/tea_pot/2.jpg", "test/cup/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((DATA / "pictures" / Path(name).name).read_bytes())
    assert form_of(tmp_path, "kinds") == "kinds"
    texts = [example.turns[1].text for example in examples(tmp_path, instructions=DATA / "instruction.txt")]
    assert texts == ["cup", "cup", "tea pot"]
    (tmp_path / "stray.jpg").write_bytes((DATA / "pictures" / "1.jpg").read_bytes())
    assert form_of(tmp_path, "kinds") is None
    *others, stray = sorted(scan(tmp_path, "kinds"), key=lambda one: isinstance(one, Problem))
    assert all(isinstance(one, Example) for one in others)
    assert "stray.jpg" in str(stray)
    assert "in no folder that is named for what it shows" in str(stray)


def test_examples_survive_a_worker_process() -> None:
    for sample, (_, options) in SAMPLES.items():
        for example in examples(DATA / sample, **options):
            assert pickle.loads(pickle.dumps(example)) == example


def test_where_a_record_stands() -> None:
    places = {
        "messages.jsonl": ["messages.jsonl:1", "messages.jsonl:2", "messages.jsonl:3"],
        "llava.json": ["llava.json:2 (record 1)", "llava.json:16 (record 2)", "llava.json:30 (record 3)"],
        "cc_sbu_align": [f"cc_sbu_align/filter_cap.json:1 (record {number})" for number in (1, 2, 3)],
        "pairs.csv": ["pairs.csv:2", "pairs.csv:3", "pairs.csv:4"],
        "folder": ["folder/1.txt:1", "folder/2.txt:1", "folder/3.txt:1"],
        "shards": ["shards/00000.tar:1", "shards/00000.tar:2", "shards/00001.tar:1"],
    }
    for sample, expected in places.items():
        assert [str(one.where) for one in examples(DATA / sample)] == [str(DATA / place) for place in expected]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name in ("messages.jsonl", "llava.json", "pairs.csv", "cc_sbu_align/filter_cap.json", "folder/1.txt"):
        content = (DATA / name).read_bytes()
        marked = tmp_path / Path(name).name
        marked.write_bytes(b"\xef\xbb\xbf" + content)
        if name.endswith("txt"):
            (tmp_path / "1.jpg").write_bytes((DATA / "folder" / "1.jpg").read_bytes())
            assert all_said(tmp_path, "folder") == all_said(DATA / "folder")[:1]
        else:
            pictures = DATA / "cc_sbu_align" / "image" if "cap" in name else DATA
            assert all_said(marked, pictures=pictures) == all_said(
                (DATA / name).parent if "cap" in name else DATA / name
            )


def test_pictures_lie_where_they_are_said_to_lie(tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((DATA / "messages.jsonl").read_bytes())
    assert examples(moved)[0].pictures[0].source == tmp_path / "pictures" / "1.jpg"
    assert all_said(moved, pictures=DATA) == all_said(DATA / "messages.jsonl")
    absolute = str(DATA / "pictures" / "1.jpg")
    moved.write_text(json.dumps({"image": absolute, "text": "x"}))
    assert all_said(moved)[0][0][1] == [Path(absolute).read_bytes()]


# --- marks


@given(st.lists(st.sampled_from(["a", " ", "\n", "<image>", "<video>", "<image", ">"]), max_size=8).map("".join))
def test_all_words_but_the_marks_stay(text: str) -> None:
    """A mark takes the place of itself and of one space or line break on each side; `<video>` is a word here."""
    pieces = cut(text, [IMAGE])
    assert sum(not isinstance(piece, str) for piece in pieces) == text.count(IMAGE)
    words = "".join(piece for piece in pieces if isinstance(piece, str))
    gone = Counter(text.replace(IMAGE, "")) - Counter(words)
    assert Counter(words) - Counter(text.replace(IMAGE, "")) == Counter()
    assert set(gone) <= {" ", "\n"}
    assert gone.total() <= 2 * text.count(IMAGE)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("<image>\nWhat?", [0, "What?"]),
        ("What?\n<image>", ["What?", 0]),
        ("<image>What?", [0, "What?"]),
        ("Is <image> red?", ["Is", 0, "red?"]),
        ("<image>\n\n  What?", [0, "\n  What?"]),
        ("What?", [0, "What?"]),
        ("<image>", [0]),
        ("<Image> <ImageHere> <img> <video>", [0, "<Image> <ImageHere> <img> <video>"]),
    ],
)
def test_where_a_marked_picture_stands(value: str, parts: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "See <image>."}]
    file.write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    (example,) = read(file)
    found = [0 if isinstance(part, StoredPicture) else part for part in example.turns[0].parts]
    assert found == parts
    assert example.replies == ("See <image>.",)


def test_pictures_without_a_mark_come_first_and_films_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    values = {"system": "<image>", "human": "See <video> twice: <video>", "gpt": "x"}
    turns = [{"from": sender, "value": value} for sender, value in values.items()]
    record = {"image": ["a.png", ["b.png", "c.png"]], "video": [["1.png"], ["2.png", "3.png"]], "conversations": turns}
    file.write_text(json.dumps([record]))
    (example,) = read(file)
    assert example.turns[0].text == "<image>"
    parts = [part.name if isinstance(part, StoredPicture) else [part] for part in example.turns[1].parts]
    assert parts == ["a.png", "b.png", "c.png", ["See"], "1.png", ["twice:"], "2.png", "3.png"]


def test_a_picture_may_be_named_among_the_words(tmp_path: Path) -> None:
    """As in Qwen-VL's data; where the record gives its pictures elsewhere, or in a reply, it is words."""
    words = "Picture 1: <img>a b.jpg</img>\nWhat is it?"
    talk = [{"from": "user", "value": words}, {"from": "assistant", "value": "An <img>x.jpg</img>."}]
    file = tmp_path / "qwen.json"
    file.write_text(json.dumps([{"conversations": talk}, {"conversations": talk, "image": "c.jpg"}]))
    first, second = examples(file)
    assert [picture.source for picture in first.pictures] == [tmp_path / "a b.jpg"]
    assert first.turns[0].text == "Picture 1:What is it?"
    assert [picture.source for picture in second.pictures] == [tmp_path / "c.jpg"]
    assert second.turns[0].text == words
    assert first.replies == second.replies == ("An <img>x.jpg</img>.",)


@pytest.mark.parametrize("key", ["url", "image_url", "image"])
def test_a_picture_s_address_may_be_of_a_file(key: str, tmp_path: Path) -> None:
    for address in ("a b.jpg", (tmp_path / "a b.jpg").as_uri()):
        source = {"url": address} if key == "image_url" else address
        asked = [{"type": "image_url" if key == "image_url" else "image", key: source}]
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": "A dog."}]
        file = tmp_path / "x.jsonl"
        file.write_text(json.dumps({"messages": talk}))
        (example,) = examples(file)
        assert [picture.source for picture in example.pictures] == [tmp_path / "a b.jpg"]


@pytest.mark.parametrize("questions", [[], ["What is it?"]])
def test_a_record_that_holds_questions_is_no_document(questions: list[str], tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(2 * (json.dumps({"image": "a.png", "caption": "A dog.", "questions": questions}) + "\n"))
    assert form_of(file, "x.jsonl") == "pairs"


_QUESTION = {"question_id": 7, "image_id": 42, "question": "What is it?"}
_ANSWER = {"question_id": 7, "image_id": 42, "multiple_choice_answer": "dog"}


def _vqa(folder: Path, questions: list[Any], notes: list[Any] | None) -> Path:
    asked = folder / "v2_OpenEnded_mscoco_train2014_questions.json"
    asked.write_text(json.dumps({"data_subtype": "train2014", "questions": questions}))
    if notes is not None:
        (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": notes}))
    return asked


def test_questions_of_vqav2_find_their_answers_and_pictures(tmp_path: Path) -> None:
    """The reply is what most people said; a picture is found where COCO's lie."""
    (tmp_path / "images" / "train2014").mkdir(parents=True)
    there = tmp_path / "images" / "train2014" / "COCO_train2014_000000000042.jpg"
    there.write_bytes(b"x")
    said = [{"answer": answer} for answer in ("cat", "dog", "dog")]
    file = _vqa(tmp_path, [_QUESTION], [{"question_id": 7, "image_id": 42, "answers": said, "confidence": 3}])
    for source in (file, tmp_path / "v2_mscoco_train2014_annotations.json"):
        (example,) = examples(source)
        assert (example.turns[0].text, example.replies) == ("What is it?", ("dog",))
        assert [picture.source for picture in example.pictures] == [there]
        assert (example.where.file, example.where.record) == (str(file), 1)


@pytest.mark.parametrize(
    ("questions", "notes", "message"),
    [
        ([_QUESTION], None, "the file of the answers is missing: .*v2_mscoco_train2014_annotations.json"),
        ([_QUESTION], [], "the question 7 has no answer in .*annotations"),
        ([], [_ANSWER], "'questions' is empty"),
        ([_QUESTION], [_ANSWER, {**_ANSWER, "question_id": 8}], "the question 8 is answered but not asked"),
        ([_QUESTION], [_ANSWER, _ANSWER], "answers the question 7, as another does"),
        ([{"question_id": 7, "question": "?"}], [_ANSWER], "named by data_subtype"),
        ([_QUESTION], [{"question_id": 7, "answers": []}], "'answers' is an empty list"),
        ([{"question_id": 7, "image_id": 4}], [_ANSWER], "has no 'question'"),
        ([3], [_ANSWER], "the question is a number"),
        ([{**_QUESTION, "hint": "b"}], [_ANSWER], "nothing reads the key 'hint'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_questions_of_vqav2_is_named(
    questions: list[Any], notes: list[Any] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        examples(_vqa(tmp_path, questions, notes))


def test_in_messages_words_are_words(tmp_path: Path) -> None:
    """RELIABILITY: markers and control tokens that somebody typed are plain text."""
    file = tmp_path / "x.jsonl"
    typed = "<image> <ImageHere> </s> [INST] ###Human: <Img>"
    turns = [{"role": "user", "content": typed}, {"role": "assistant", "content": [{"type": "text", "text": typed}]}]
    file.write_text(json.dumps({"messages": turns}))
    (example,) = read(file)
    assert [turn.parts for turn in example.turns] == [(typed,), (typed,)]
    assert example.pictures == ()


# --- tables


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("Image;Title;id;caption\na.png;Hello, you;1;z\n")
    assert examples(table, text_column="Title")[0].replies == ("Hello, you",)
    assert examples(table, text_column="caption")[0].replies == ("z",)
    table.write_text('file_name\tcaption\nä b.png\t"two\n""lines"""\nc.png\tx\n')
    first, second = examples(table)
    assert (first.replies, first.pictures[0].name) == (('two\n"lines"',), "ä b.png")
    assert (first.where.line, second.where.line) == (2, 4)
    table.write_text("a,b,c\n1.png,What?,That.\n")
    (example,) = examples(table, image_column="a", question_column="b", text_column="c")
    assert [turn.text for turn in example.turns] == ["What?", "That."]
    lines = tmp_path / "x.jsonl"
    lines.write_text(
        json.dumps({"image": ["1.png", "2.png"], "kind": 1, "question": None, "answer": "x", "reply": "y"})
    )
    (example,) = examples(lines, text_column="reply")
    assert [len(example.pictures), *example.replies] == [2, "y"]


def test_captions_as_the_first_stage_learnt_them(tmp_path: Path) -> None:
    assert blip_caption('  A  "Big" (red) Boat!\n\n') == "a big red boat"
    assert blip_caption("It's 3/4, e-mail: #1; ~x*") == "it's 3/4, e-mail 1 x"
    assert blip_caption(" ".join(map(str, range(60)))) == " ".join(map(str, range(50)))
    table = tmp_path / "x.csv"
    table.write_text("image,text\na.png,A Boat.\n")
    assert examples(table, captions="blip")[0].replies == ("a boat",)


# --- instructions


def test_instructions_are_drawn_anew_for_each_record_and_epoch() -> None:
    lines = read_instructions(ALIGNMENT)
    assert len(lines) == 4
    assert all(line.isprintable() and "<" not in line and "#" not in line for line in lines)

    def drawn(seed: int, epoch: int) -> list[str]:
        return [example.turns[0].text for example in examples(DATA / "cc_sbu_align", seed=seed, epoch=epoch)]

    by_epoch = [drawn(0, epoch) for epoch in range(20)]
    assert by_epoch == [drawn(0, epoch) for epoch in range(20)]
    assert {line for epoch in by_epoch for line in epoch} == set(lines)
    assert len({tuple(epoch) for epoch in by_epoch}) > 10
    assert by_epoch != [drawn(1, epoch) for epoch in range(20)]
    often = Counter(Asking(lines, epoch=number).draw("a") for number in range(4000))
    assert all(900 < count < 1100 for count in often.values())
    assert Asking(lines, epoch=3).draw("1") == "Could you describe the contents of this image for me?"  # as ever


# --- streams


def shards(folder: Path, counts: list[int], start: int = 0) -> list[str]:
    """Tars of so many records, whose texts are their numbers."""
    folder.mkdir(exist_ok=True)
    number = start
    for index, count in enumerate(counts):
        with tarfile.open(folder / f"{index:03d}.tar", "w") as tar:
            for _ in range(count):
                for ending, data in (("jpg", b"x"), ("txt", str(number).encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                number += 1
    return [str(folder / f"{index:03d}.tar") for index in range(len(counts))]


def texts(items: Any) -> list[int]:
    return [int(item.replies[0]) for item in items if not isinstance(item, Problem)]


@pytest.mark.parametrize("shuffle", [1, 7, 1000])
@pytest.mark.parametrize("by", ["records", "shards"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_each_record_is_one_part_s_once_in_each_pass(count: int, by: Any, shuffle: int, tmp_path: Path) -> None:
    files = shards(tmp_path / "s", [5, 1, 9, 4])  # more parts than shards too
    stream = Stream([Source(files)], shuffle=shuffle, passes=2, seed=3)
    parts = [texts(stream.scan(Part(index, count, by))) for index in range(count)]
    assert Counter(number for part in parts for number in part) == Counter(dict.fromkeys(range(19), 2))
    if by == "records":
        whole = texts(stream.scan())
        assert parts == [whole[index::count] for index in range(count)]
        assert sorted(whole[:19]) == sorted(whole[19:]) == list(range(19))
    if shuffle == 1 and count == 1:
        assert parts == [[*range(19), *range(19)]]


@given(
    seed=st.integers(0, 99), skip=st.integers(0, 40), count=st.integers(1, 3), by=st.sampled_from(["records", "shards"])
)
@settings(max_examples=30, deadline=None)
def test_a_stream_entered_later_goes_on_as_it_would_have(seed: int, skip: int, count: int, by: Any) -> None:
    files = _two_sources()
    stream = Stream([Source(files[0], 115), Source(files[1], 14)], seed=seed, shuffle=5)
    begun = stream.scan(Part(count - 1, count, by))
    whole = [str(next(begun).where) for _ in range(50)]
    entered = stream.scan(Part(count - 1, count, by), skip=skip)
    assert [str(next(entered).where) for _ in range(50 - skip)] == whole[skip:]


_MADE: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    _MADE["folder"] = tmp_path_factory.mktemp("sources")


def _two_sources() -> list[list[str]]:
    if "sources" not in _MADE:
        _MADE["sources"] = [
            shards(_MADE["folder"] / "laion", [10, 7, 12]),
            shards(_MADE["folder"] / "cc_sbu", [6, 6], start=1000),
        ]
    return _MADE["sources"]


def test_sources_are_mixed_by_their_ratio() -> None:
    """MiniGPT-4's first stage: LAION and CC/SBU, 115 : 14."""
    large, small = _two_sources()
    stream = Stream([Source(large, 115), Source(small, 14)], seed=1)
    begun = stream.scan()
    numbers = [texts([next(begun)])[0] for _ in range(3000)]
    share = sum(number < 1000 for number in numbers) / len(numbers)
    assert abs(share - 115 / 129) < 0.02
    of_small = [number for number in numbers if number >= 1000]
    passes = [of_small[start : start + 12] for start in range(0, len(of_small) - 12, 12)]
    assert all(sorted(one) == list(range(1000, 1012)) for one in passes)
    assert len({tuple(one) for one in passes}) > 10


def test_a_source_that_is_through_leaves_the_others() -> None:
    large, small = _two_sources()
    numbers = texts(Stream([Source(large), Source(small)], passes=1).scan())
    assert sorted(numbers) == [*range(29), *range(1000, 1012)]


def test_a_stream_draws_instructions_anew_in_each_pass(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("\n".join(f"Question {number}?" for number in range(9)))
    files = shards(tmp_path / "s", [8])
    stream = Stream([Source(files)], passes=2, shuffle=1, instructions=tmp_path / "ask.txt", captions="blip")
    asked = [item.turns[0].text for item in stream.scan() if isinstance(item, Example)]
    assert asked == [item.turns[0].text for item in stream.scan() if isinstance(item, Example)]
    assert asked[:8] != asked[8:]


def test_several_pictures_of_one_name_are_shown_in_order(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("f/a.0.jpg", b"0"), ("f/a.1.JPG", b"1"), ("f/a.cls", b"7"), ("f/a.txt", b"Two frames.")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (example,) = read(tmp_path / "x.tar")
    assert [picture.read() for picture in example.pictures] == [b"0", b"1"]
    assert example.replies == ("Two frames.",)


@pytest.mark.parametrize("made_by", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_a_tar(made_by: int, tmp_path: Path) -> None:
    folder = "folder" if made_by == tarfile.USTAR_FORMAT else "größe-" * 20
    with tarfile.open(tmp_path / "x.tar", "w", format=made_by) as tar:
        for name, data in ((f"{folder}/a.jpg", b"0"), (f"{folder}/a.txt", b"x"), ("__notes__", b"x"), ("empty", None)):
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data or b""))
    (example,) = read(tmp_path / "x.tar")
    assert example.pictures[0].name == f"{folder}/a.jpg"
    assert example.pictures[0].read() == b"0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Part(2, 2), "part is 2 of 2"),
        (lambda: Part(0, 1, "bytes"), "by is 'bytes'"),  # type: ignore[arg-type]
        (lambda: Stream([]), "sources is empty"),
        (lambda: Stream([Source("x.tar", 0.0)]), "ratio is 0.0"),
        (lambda: Stream([Source("x.tar", float("nan"))]), "ratio is nan"),
        (lambda: Stream([Source("x.tar")], shuffle=0), "shuffle is 0"),
        (lambda: Stream([Source("x.tar")], shuffle="many"), "shuffle is 'many'"),  # type: ignore[arg-type]
        (lambda: Stream([Source(str(DATA / "shards"))], instructions=5), "instructions is 5"),  # type: ignore[arg-type]
        (lambda: Stream([Source(str(DATA / "shards"))], captions=["blip"]), "captions is"),  # type: ignore[arg-type]
        (lambda: Stream([Source("x.tar")], passes=0), "passes is 0"),
        (lambda: Stream([Source(str(DATA / "shards"))], captions="short"), "captions is 'short'"),
    ],
)
def test_a_stream_s_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


# --- noise


@given(st.data())
@settings(deadline=None)
def test_no_mutant_of_a_file_is_a_crash(data: st.DataObject) -> None:
    """Whatever a byte becomes, reading ends in examples and problems."""
    name = data.draw(
        st.sampled_from(
            ["messages.jsonl", "llava.json", "pairs.csv", "shards/00000.tar", "sharegpt.json", "by_picture.json"]
        )
    )
    content = bytearray((DATA / name).read_bytes())
    draw = random.Random(data.draw(st.integers(0, 10_000)))
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(min(len(content), 3000))
        content[place : place + draw.choice([0, 1, 1, 5])] = draw.randbytes(draw.choice([0, 1, 1, 3]))
    file = Path(_MADE["folder"]) / f"mutant{Path(name).suffix}"
    file.write_bytes(content)
    for item in scan(file, SAMPLES.get(name, ("webdataset", {}))[0]):
        assert str(item.where).startswith(str(file))
