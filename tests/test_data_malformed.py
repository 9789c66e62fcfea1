"""Every kind of malformed input is one sentence with file and line, and no other record is lost by it."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minichat.data import formats
from minichat.data.check import check
from minichat.data.example import Problem
from minichat.data.formats import FORMS, examples, read, scan
from minichat.errors import DataError, SettingsError
from minichat.train.data_loader import Source, Stream


def png(size: tuple[int, int] = (4, 3)) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, "red").save(written, "PNG")
    return written.getvalue()


def bomb() -> bytes:
    """A small file whose header states 20,000 × 20,000 pixels."""
    whole = bytearray(png())
    whole[16:24] = (20_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def reply(text: Any = "A red field.") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def shown(name: Any = "a.png", **more: Any) -> dict[str, Any]:
    return {"type": "image", "image": name, **more}


ASK = {"type": "text", "text": "What is it?"}
GOOD = {"messages": [user(shown(), ASK), reply()]}
LLAVA = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red field."}]


def talk(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def second(record: Any) -> bytes:
    """A file of JSON lines whose second line is this."""
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    good = json.dumps(GOOD).encode()
    return good + b"\n" + line + b"\n" + good + b"\n"


#: What is wrong with line 2 of a file of messages, and what the error says of it.
MESSAGES: dict[str, tuple[Any, str]] = {
    "broken JSON": (b'{"messages": [', r"not valid JSON \(Expecting value"),
    "no JSON": (b"hello", "not valid JSON"),
    "two values in a line": (json.dumps(GOOD).encode() * 2, "not valid JSON .Extra data"),
    "nested thousands deep": (b"[" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": (b"1" * 5000, "too long a number"),
    "not an object": ([GOOD], "the record is a list: it must be an object"),
    "nothing": (None, "the record is missing: it must be an object"),
    "missing key": ({"message": []}, "has no 'messages'"),
    "wrong type of messages": ({"messages": "hello"}, "'messages' is text: it must be a list"),
    "no turn": (talk(), "there is no turn"),
    "message is text": (talk("hello"), "turn 1 is text: it must be an object"),
    "message without role": (talk({"content": "x"}, reply()), "turn 1 has no 'role'"),
    "message without content": (talk(user("x"), {"role": "assistant"}), "turn 2 has no 'content'"),
    "unknown role": (talk({"role": "bot", "content": "x"}), "unknown role 'bot'.*system, user, assistant"),
    "role of a wrong type": (talk({"role": ["user"], "content": "x"}), "unknown role"),
    "content is a number": (talk(user("x"), reply(7)), "turn 2: 'content' is a number"),
    "part is text": (talk(user(shown(), "x"), reply()), "turn 1, part 2 is text"),
    "part without type": (talk(user({"text": "x"}), reply()), "turn 1, part 1 has no 'type'"),
    "part of an unknown type": (talk(user({"type": "audio"}), reply()), "unknown type 'audio'.*'video'"),
    "text part without text": (talk(user({"type": "text"}), reply()), "'text', is missing"),
    "text part of a number": (talk(user({"type": "text", "text": 3}), reply()), "'text', is a number"),
    "two users in a row": (talk(user("x"), user("y"), reply()), "turn 2 is of the user.*assistant's is expected"),
    "assistant first": (talk(reply(), user("x"), reply()), "turn 1 is of the assistant where the user's"),
    "system in the middle": (talk(user("x"), {"role": "system", "content": "y"}), "turn 2 is of the system"),
    "system alone": (talk({"role": "system", "content": "y"}), "there is no turn"),
    "empty reply": (talk(user("x"), reply(" \n")), "turn 2, a reply, is empty"),
    "empty question": (talk(user(" "), reply()), "turn 1, a question, is empty"),
    "reply missing": (talk(user("x"), reply(), user("y")), "reply to turn 3 is missing"),
    "picture in a reply": (talk(user("x"), reply([ASK, shown()])), "turn 2, of the assistant, holds a picture"),
    "picture without a source": (talk(user({"type": "image"}), reply()), "exactly one of image, path, base64, not 0"),
    "picture with two sources": (talk(user(shown(path="a.png")), reply()), "exactly one of .*, not 2"),
    "picture is a number": (talk(user(shown(5)), reply()), "a picture is 5: it must be the path"),
    "picture of no name": (talk(user(shown("")), reply()), "a picture is '': it must be the path"),
    "picture by url": (talk(user({"type": "image", "url": "http://x/a.png"}), reply()), "addresses are not fetched"),
    "picture is an address": (talk(user(shown("https://x.org/a.png")), reply()), "addresses are not fetched"),
    "picture is on another machine": (talk(user(shown("ftp://x.org/a.png")), reply()), "addresses are not fetched"),
    "no base64": (talk(user({"type": "image", "base64": "%%%"}), reply()), "not hold valid base64"),
    "film": (talk(user(shown("a.mp4"), ASK), reply()), "'a.mp4' is a film: save its frames"),
    "film without frames": (talk(user({"type": "video", "video": []}, ASK), reply()), "list of frames is empty"),
    "frames are no list": (talk(user({"type": "video", "video": "a.png"}, ASK), reply()), "is 'a.png': films are not"),
    "half a surrogate pair": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half of a surrogate pair"),
    "null character": (talk(user("a\0b"), reply()), "'text', holds a null character"),
    "null character in a path": (talk(user(shown("a\0.png")), reply()), "path holds a null character"),
    "bad UTF-8": (json.dumps(talk(user("caf"), reply())).encode().replace(b"caf", b"caf\xe9"), "0xe9 is not UTF-8"),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def error_of(source: str, form: str | None = None, **options: Any) -> str:
    """The error that reading ends with, which is one line and tells nobody's folder."""
    with pytest.raises(DataError) as raised:
        examples(source, form=form, **options)
    text = str(raised.value)
    assert "\n" not in text
    assert str(Path.cwd()) not in text
    return text


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_malformed_record_is_named_by_file_and_line(kind: str, home: Path) -> None:
    record, says = MESSAGES[kind]
    (home / "train.jsonl").write_bytes(second(record))
    text = error_of("train.jsonl")
    assert text.startswith("train.jsonl:2: ")
    assert re.search(says, text)


@pytest.mark.parametrize("kind", MESSAGES)
def test_reading_goes_on_after_a_malformed_record(kind: str, home: Path) -> None:
    (home / "train.jsonl").write_bytes(second(MESSAGES[kind][0]))
    first, wrong, last = scan("train.jsonl")
    assert isinstance(wrong, Problem)
    assert not isinstance(first, Problem)
    assert not isinstance(last, Problem)
    assert (first.where.line, wrong.where.line, last.where.line) == (1, 2, 3)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if not isinstance(MESSAGES[kind][0], bytes)])
def test_in_a_list_the_line_is_where_the_record_begins(kind: str, home: Path) -> None:
    record, says = MESSAGES[kind]
    good = json.dumps(GOOD, indent=1)
    (home / "train.json").write_text(f"[\n{good},\n{json.dumps(record)},\n{good}\n]")
    text = error_of("train.json")
    line = good.count("\n") + 3
    assert text.startswith(f"train.json:{line} (record 2): ")
    assert re.search(says, text)
    assert [item.where.record for item in scan("train.json")] == [1, 2, 3]


#: A picture that cannot be opened: what makes it, and what the error says.
PICTURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "'b.png' is missing: put it there"),
    "folder": (lambda path: path.mkdir(), "'b.png' is not a file"),
    "no picture": (lambda path: path.write_text("hello"), "'b.png' cannot be used.*not a picture"),
    "empty": (lambda path: path.write_bytes(b""), "'b.png' cannot be used.*empty"),
    "cut off": (lambda path: path.write_bytes(png((90, 90))[:-60]), "'b.png' cannot be used.*damaged"),
    "bomb": (lambda path: path.write_bytes(bomb()), "'b.png' cannot be used: it is too large"),
    "pipe": (os.mkfifo, "'b.png' is not a file"),
    "EPS": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "'b.png' cannot be used.*PostScript"),
    "dangling link": (lambda path: path.symlink_to("nowhere.png"), "'b.png' is missing"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_cannot_be_opened_is_named_by_file_and_line(kind: str, home: Path) -> None:
    make, says = PICTURES[kind]
    make(home / "b.png")
    (home / "train.jsonl").write_bytes(second(talk(user(shown("b.png"), ASK), reply())))
    first, wrong, _ = read("train.jsonl")
    first.conversation()
    with pytest.raises(DataError, match=says) as raised:
        wrong.conversation()
    assert str(raised.value).startswith("train.jsonl:2: ")
    assert str(home) not in str(raised.value)
    told: list[Problem] = []
    report = check("train.jsonl", found=told.append)
    assert [problem.where.line for problem in told if "the same" not in problem.text] == [2]
    assert report.records == 3


def llava(conversations: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": "1", "image": "a.png", "conversations": LLAVA if conversations is None else conversations, **more}


def says(value: str, sender: str = "human") -> list[dict[str, str]]:
    return [{"from": sender, "value": value}, LLAVA[1]]


LLAVAS: dict[str, tuple[Any, str]] = {
    "no conversations": ({"id": "1", "image": "a.png"}, "has no 'conversations'"),
    "conversations are an object": (llava({"from": "human"}), "'conversations' is an object: it must be a list"),
    "unknown sender": (llava(says("x", "narrator")), "turn 1 is from the unknown 'narrator'"),
    "no value": (llava([{"from": "human"}, LLAVA[1]]), "turn 1 has no 'value'"),
    "value is a list": (llava([{"from": "human", "value": []}, LLAVA[1]]), "'value', is a list: it must be text"),
    "too many places": (llava(says("<image> and <image>")), "number of <image> is 2 but 1 of them is given"),
    "too few places": (llava(image=["a.png", "a.png"]), "number of <image> is 1 but 2 of them are given"),
    "a place and no picture": ({"conversations": LLAVA}, "number of <image> is 1 but 0 of them are given"),
    "too few films": (
        llava(says("<video> and <video>"), image=None, video=["a.png"]),
        "number of <video> is 2 but 1 of them is given",
    ),
    "film file": (llava(image=None, video="a.mp4"), "'video' is 'a.mp4': films are not opened"),
    "picture is an address": (llava(image="http://x.org/a.png"), "addresses are not fetched"),
    "picture is an object": (llava(image={"url": "x"}), "it must be the path of a file"),
    "empty reply": (llava([LLAVA[0], {"from": "gpt", "value": ""}]), "turn 2, a reply, is empty"),
    "reply missing": (llava(LLAVA[:1]), "reply to turn 1 is missing"),
    "two humans in a row": (llava([LLAVA[0], says("x")[0], LLAVA[1]]), "turn 2 is of the user"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LLAVAS)
def test_llava_records(kind: str, home: Path) -> None:
    record, message = LLAVAS[kind]
    (home / "train.json").write_text(json.dumps([llava(), record, llava()], indent=1))
    text = error_of("train.json", "llava")
    line = len(json.dumps([llava()], indent=1).splitlines())
    assert text.startswith(f"train.json:{line} (record 2): ")
    assert re.search(message, text)


SHAREGPT: dict[str, tuple[Any, str]] = {
    "too few": ({"messages": [user("<image><image>"), reply()], "images": ["a.png"]}, "is 2 but 1 of them is given"),
    "parts without pictures": (
        {"messages": [user({"type": "image"}, ASK), reply()], "images": []},
        "is 1 but 0 of them are given",
    ),
    "unknown role": ({"messages": [{"role": "tool", "content": "x"}], "images": []}, "unknown role 'tool'"),
    "picture in a reply": (
        {"messages": [user("x"), reply([{"type": "image"}])], "images": ["a.png"]},
        "turn 2, part 1 is a picture in the assistant's turn",
    ),
    "neither key": ({"images": ["a.png"]}, "has no 'conversations'"),
    "a film's file": (
        {"messages": [user("<video>"), reply()], "videos": "a.mp4"},
        "'videos' is 'a.mp4': films are not",
    ),
    "images of numbers": ({"messages": [user("<image>"), reply()], "images": [3]}, "a picture is 3"),
}


@pytest.mark.parametrize("kind", SHAREGPT)
def test_sharegpt_records(kind: str, home: Path) -> None:
    record, message = SHAREGPT[kind]
    good = {"messages": [user("<image>x"), reply()], "images": ["a.png"]}
    (home / "train.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(record))
    text = error_of("train.jsonl", "sharegpt")
    assert text.startswith("train.jsonl:2: ")
    assert re.search(message, text)


#: Whole files: their content, the place, and what the error says.
FILES: dict[str, tuple[str, bytes, str, str]] = {
    "empty": ("x.jsonl", b"", "x.jsonl:1: ", "the file is empty"),
    "empty lines": ("x.jsonl", b"\n \n", "x.jsonl:1: ", "the file is empty"),
    "byte order mark alone": ("x.jsonl", b"\xef\xbb\xbf", "x.jsonl:1: ", "the file is empty"),
    "empty list": ("x.json", b"[\n]", "x.json:1: ", "list is empty"),
    "UTF-16": ("x.jsonl", json.dumps(GOOD).encode("utf-16"), "x.jsonl:1: ", "UTF-16"),
    "UTF-16 table": ("x.csv", "image,text\na.png,x\n".encode("utf-16"), "x.csv:1: ", "UTF-16"),
    "list broken in line 3": ("x.json", b'[\n{"messages":\n oops}]', "x.json:3 ", "not valid JSON"),
    "list cut off": ("x.json", b"[" + json.dumps(GOOD).encode() + b",\n", "x.json:2 ", "not valid JSON"),
    "list without a comma": ("x.json", b"[" + json.dumps(GOOD).encode() + b"\n{}]", "x.json:2 ", "'{' stands where"),
    "something after the list": ("x.json", b"[" + json.dumps(GOOD).encode() + b"]\nx", "x.json:2 ", "list's end"),
    "list with a bad byte": ("x.json", b"[\n\n" + json.dumps(GOOD).encode() + b"\xff]", "x.json:3: ", "0xff is not"),
    "table with no row": ("x.csv", b"image,text\n", "x.csv:1: ", "no row"),
    "table without the picture": ("x.csv", b"photo,text\na.png,x\n", "x.csv:1: ", "'photo'.*name it .image_column"),
    "table without the text": ("x.csv", b"image,words\na.png,x\n", "x.csv:1: ", "known to be the text"),
    "table with two texts": ("x.csv", b"image,text,caption\n", "x.csv:1: ", "'text' and 'caption' could each be"),
    "table with a column twice": ("x.csv", b"image,text,text\n", "x.csv:1: ", "'text' stands there twice"),
    "ragged row": ("x.csv", b'image,text\na.png,"two\nlines"\na.png\n', "x.csv:4: ", "1 fields and the header 2"),
    "row too long": ("x.csv", b"image,text\na.png,x,y\n", "x.csv:2: ", "3 fields and the header 2"),
    "open quotation mark": ("x.csv", b'image,text\na.png,"x\n', "x.csv:2: ", "no CSV"),
    "table with a bad byte": ("x.csv", b'image,text\na.png,"x\ny\xe9"\n', "x.csv:3: ", "0xe9 is not UTF-8"),
    "table with an empty text": ("x.csv", b"image,text\na.png,\n", "x.csv:2: ", "reply, is empty"),
    "table without a path": ("x.csv", b"image,text\n,x\n", "x.csv:2: ", "path of a file"),
    "table with an address": ("x.csv", b"image,text\nhttp://x/a.png,x\n", "x.csv:2: ", "not fetched"),
    "table with a null": ("x.csv", b"image,text\na.png,x\0y\n", "x.csv:2: ", "null character"),
    "pairs without a text": ("x.jsonl", b'{"image": "a.png"}', "x.jsonl:1: ", "known to be the text"),
    "pairs of no picture": ("x.jsonl", b'{"image": [], "text": "x"}', "x.jsonl:1: ", "empty list"),
    "pairs of a number": ("x.jsonl", b'{"image": "a.png", "text": 5}', "x.jsonl:1: ", "'text' is a number"),
    "captions without annotations": ("filter_cap.json", b'{"images": []}', "filter_cap.json:1: ", "list 'annotations'"),
    "captions not an object": ("filter_cap.json", b"[1]", "filter_cap.json:1: ", "list 'annotations'"),
    "no caption": (
        "filter_cap.json",
        b'{"info": {"annotations": 1}, "annotations":\n [{"image_id": 1, "caption": "x"},\n {"image_id": 2}]}',
        "filter_cap.json:3 (record 2): ",
        "has no 'caption'",
    ),
    "no image_id": ("filter_cap.json", b'{"annotations": [{"caption": "x"}]}', "filter_cap.json:1 ", "no 'image_id'"),
    "image_id of a list": (
        "filter_cap.json", b'{"annotations": [{"image_id": [], "caption": "x"}]}', "filter_cap.json:1 ", "is a list"
    ),
    "captions broken": ("filter_cap.json", b'{"annotations":\n [', "filter_cap.json:", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_malformed_file_is_named_with_its_line(kind: str, home: Path) -> None:
    name, content, place, message = FILES[kind]
    (home / name).write_bytes(content)
    text = error_of(name)
    assert text.startswith(place)
    assert re.search(message, text)


def test_an_unknown_format_lists_those_that_are_known(home: Path) -> None:
    (home / "notes.txt").write_text("Nothing of the kind.")
    (home / "empty").mkdir()
    (home / "other.json").write_text('{"a": 1}')
    for source, form in (("notes.txt", None), ("empty", None), ("other.json", None), ("a.png", None), (".", "voc")):
        text = error_of(source, form)
        assert all(name in text for name in FORMS)
    assert "not found" in error_of("absent.jsonl")
    assert "not found" in error_of("absent.jsonl", "messages")
    assert "no tar" in error_of("shards-*.tar")
    assert "not a folder" in error_of("a.png", "folder")


def test_an_option_that_a_format_has_not_is_refused(home: Path) -> None:
    (home / "x.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(SettingsError, match="text_column is no option of the format 'messages'"):
        examples("x.jsonl", text_column="caption")
    with pytest.raises(SettingsError, match="column is no option of a data set"):
        examples("x.jsonl", column="caption")
    (home / "x.csv").write_text("image,text\na.png,x\n")
    assert "no column 'words' for the text" in error_of("x.csv", text_column="words")
    with pytest.raises(SettingsError, match="captions is 'short'"):
        examples("x.csv", captions="short")


# --- folders


def test_a_folder_of_pictures_and_texts(home: Path) -> None:
    def fresh(**files: bytes) -> str:
        folder = home / "folder"
        for old in folder.glob("*") if folder.is_dir() else ():
            old.unlink()
        folder.mkdir(exist_ok=True)
        for name, content in {"good_png": png(), "good_txt": b"A red field.\n", **files}.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return "folder"

    assert len(examples(fresh())) == 1
    assert re.match(r"folder/b\.png:1: the picture has no text: write 'b.txt'", error_of(fresh(b_png=png())))
    assert re.match(r"folder/b\.txt:1: the text has no picture", error_of(fresh(b_txt=b"x")))
    both = error_of(fresh(b_txt=b"x", b_png=png(), b_jpg=png()))
    assert re.match(r"folder/b\.txt:1: the text has 2 pictures \('b.jpg', 'b.png'\)", both)
    assert re.match(r"folder/b\.txt:3: the byte 0xe9", error_of(fresh(b_txt=b"x\ny\n\xe9", b_png=png())))
    assert re.match(r"folder/b\.txt:1: turn 2, a reply, is empty", error_of(fresh(b_txt=b" \n", b_png=png())))
    assert re.match(r"folder/b\.txt:1: the file is in UTF-16", error_of(fresh(b_txt="x".encode("utf-16"), b_png=png())))
    kept = [item.where.file for item in scan(fresh(b_txt=b"x")) if not isinstance(item, Problem)]
    assert kept == ["folder/good.txt"]


def test_captions_without_their_picture(home: Path) -> None:
    (home / "align" / "image").mkdir(parents=True)
    (home / "align" / "image" / "1.jpg").write_bytes(png())
    (home / "align" / "filter_cap.json").write_text(
        '{"annotations": [{"image_id": "1", "caption": "x"},\n{"image_id": "2", "caption": "y"}]}'
    )
    told: list[Problem] = []
    check("align", found=told.append)
    assert [str(problem) for problem in told] == [
        "align/filter_cap.json:2 (record 2): the picture '2.jpg' is missing: put it there, or correct its path."
    ]


# --- tars


def tar_of(path: Path, *files: tuple[str, bytes], keep: int | None = None, kind: bytes = tarfile.REGTYPE) -> str:
    """A tar; `kind` is that of its last member, and `keep` bytes of it are kept."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for number, (name, data) in enumerate(files, start=1):
            info = tarfile.TarInfo(name)
            info.type = kind if number == len(files) else tarfile.REGTYPE
            info.linkname = "elsewhere" if info.type == tarfile.SYMTYPE else ""
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(written.getvalue()[:keep])
    return path.name


ONE = [("1.png", png()), ("1.txt", b"A red field.")]
TWO = [("2.png", png()), ("2.txt", b"A red field too.")]
TARS: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"files": [*ONE, TWO[0]]}, "x.tar:2: '2' has no text"),
    "no picture": ({"files": [*ONE, TWO[1]]}, r"x.tar:2: '2' has no picture \('txt'\)"),
    "empty text": ({"files": [*ONE, TWO[0], ("2.txt", b"\n")]}, "x.tar:2: turn 2, a reply, is empty"),
    "bad UTF-8": ({"files": [*ONE, TWO[0], ("2.txt", b"\xff")]}, "x.tar:2: the text of '2': the byte 0xff"),
    "broken JSON": ({"files": [*ONE, TWO[0], ("2.json", b"{")]}, "x.tar:2: the .json of '2': .*not valid JSON"),
    "JSON without a caption": ({"files": [*ONE, TWO[0], ("2.json", b'{"url": "x"}')]}, "x.tar:2: .* has no text"),
    "JSON list": ({"files": [*ONE, TWO[0], ("2.json", b"[]")]}, "x.tar:2: .* has no text"),
    "caption of a number": ({"files": [*ONE, TWO[0], ("2.json", b'{"caption": 1}')]}, "x.tar:2: 'caption' .* a number"),
    "file twice": ({"files": [*ONE, TWO[0], *TWO]}, "x.tar:2: the tar holds '2.png' twice"),
    "name used again": ({"files": [*ONE, *TWO, *ONE]}, "x.tar:3: the name '1' was there before"),
    "link": ({"files": [*ONE, TWO[0]], "kind": tarfile.SYMTYPE}, "x.tar:2: '2.png' is a link"),
    "cut within a file": ({"files": [*ONE, *TWO], "keep": 2048 + 512 + 20}, "x.tar:2: the tar ends within '2.png'"),
    "cut within a header": ({"files": [*ONE, *TWO], "keep": 2048 + 100}, "x.tar:2: the tar ends without its end mark"),
    "cut between files": ({"files": [*ONE, *TWO], "keep": 2048}, "x.tar:2: the tar ends without its end mark"),
    "empty": ({"files": []}, "x.tar:1: the tar is empty"),
    "no tar": ({"files": [], "keep": 100}, "x.tar:1: the tar is damaged"),
    "no bytes": ({"files": [], "keep": 0}, "x.tar:1: the (file is empty|tar is damaged)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARS)
def test_a_malformed_tar_is_named_with_the_record(kind: str, home: Path) -> None:
    made, message = TARS[kind]
    source = tar_of(home / "x.tar", *made["files"], **{k: v for k, v in made.items() if k != "files"})
    assert re.match(message, error_of(source))
    items = list(scan(source))
    good = [item for item in items if not isinstance(item, Problem)]
    assert len(items) > len(good) >= (1 if made["files"] else 0)
    streamed = list(Stream([Source(source)], passes=1, shuffle=1).scan())
    assert [str(item.where) for item in streamed] == [str(item.where) for item in items]


def test_a_damaged_header_is_not_the_end(home: Path) -> None:
    source = tar_of(home / "x.tar", *ONE, *TWO)
    damaged = bytearray((home / source).read_bytes())
    damaged[2048] ^= 0xFF
    (home / source).write_bytes(damaged)
    assert re.match(r"x\.tar:2: the tar is damaged here", error_of(source))


def test_a_negative_size_does_not_lead_backwards(home: Path) -> None:
    source = tar_of(home / "x.tar", *ONE, *TWO)
    content = bytearray((home / source).read_bytes())
    header = tarfile.TarInfo("2.png")
    header.size = -1024
    content[2048 : 2048 + 512] = header.tobuf(tarfile.GNU_FORMAT)
    (home / source).write_bytes(content)
    assert re.match(r"x\.tar:2: .*(negative|damaged)", error_of(source))


def test_a_compressed_or_a_missing_tar(home: Path) -> None:
    with tarfile.open(home / "x.tar", "w:gz") as tar:
        tar.add(home / "a.png", "a.png")
    assert "unpack it" in error_of("x.tar")
    assert "x-1.tar was not found" in error_of("x-{1..3}.tar")
    with pytest.raises(DataError, match=r"x-2\.tar was not found"):
        Stream([Source("x-{2..3}.tar")])
    assert "counts down" in error_of("x-{3..1}.tar")


# --- instructions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "words.txt:1: the file is empty"),
        (b"# remarks alone\n", "words.txt:1: the file is empty"),
        (b"Say it.\n<Img><ImageHere></Img> Describe it.\n", "words.txt:2: an instruction is words alone"),
        (b"Say it.\n\xff\n", "words.txt:2: the byte 0xff"),
        (b"Say\0it.\n", "words.txt:1: .* null character"),
    ],
)
def test_malformed_instructions(content: bytes, message: str, home: Path) -> None:
    (home / "words.txt").write_bytes(content)
    (home / "x.csv").write_text("image,text\na.png,x\n")
    assert re.match(message, error_of("x.csv", instructions="words.txt"))
    assert "cannot be read" in error_of("x.csv", instructions="absent.txt")


def test_captions_need_instructions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the project's own are not installed, a file must be named."""
    (home / "filter_cap.json").write_text('{"annotations": [{"image_id": 1, "caption": "x"}]}')
    assert len(examples("filter_cap.json")) == 1
    monkeypatch.setattr(formats, "ALIGNMENT", home / "absent.txt")
    assert "name one (instructions)" in error_of("filter_cap.json")
    (home / "words.txt").write_text("Say it.")
    assert examples("filter_cap.json", instructions="words.txt")[0].turns[0].text == "Say it."


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "filter_cap.json", "by_picture.json"])
def test_a_key_that_stands_twice_is_named(name: str, tmp_path: Path) -> None:
    """JSON's own reader keeps the last of two values, and forgets the first without a word."""
    twice = '{"image": "a.png", "caption": "One star.", "caption": "Two stars."}'
    twice = twice.replace("image", "image_id") if name == "filter_cap.json" else twice
    same = twice.replace("Two stars", "One star")
    whole = {
        "x.jsonl": "{}\n",
        "x.json": "[\n{}]",
        "filter_cap.json": '{{"annotations": [{}]}}',
        "by_picture.json": "{}",
    }[name]
    if name == "by_picture.json":
        twice = '{"a.png": "One star.", "b.png": "x", "a.png": "Two stars."}'
        same = twice.replace("Two stars", "One star")
    (tmp_path / name).write_text(whole.format(twice))
    with pytest.raises(DataError, match=r"stands twice in one object, as 'One star\.' and as 'Two stars\.': keep one"):
        examples(tmp_path / name)
    (tmp_path / name).write_text(whole.format(same))
    assert examples(tmp_path / name)[0].replies == ("One star.",)


def test_as_many_texts_as_pictures_are_no_one_record(tmp_path: Path) -> None:
    """A table's columns in one object, as pandas writes them, would be one record of all pictures."""
    (tmp_path / "x.json").write_text('{"image": ["a.png", "b.png"], "caption": ["One star.", "Two stars."]}')
    with pytest.raises(DataError, match="2 pictures and as many texts: give each picture and its text a record"):
        examples(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.tar", "a.png"])
def test_what_git_did_not_fetch_is_named(name: str, tmp_path: Path) -> None:
    """A data set that was cloned without Git LFS."""
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:46\nsize 12345\n")
    (tmp_path / "y.jsonl").write_text('{"image": "a.png", "caption": "One star."}')
    with pytest.raises(DataError, match="is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        for example in examples(tmp_path / ("y.jsonl" if name == "a.png" else name)):
            example.conversation()
