"""Users' files: COCO, VQAv2, POPE, JSONL; what is wrong with one is named by file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minichat.data.example import StoredPicture
from minichat.errors import DataError, SettingsError
from minichat.evaluate.datasets import Files, as_gallery
from minichat.evaluate.run import Plan
from minichat.evaluate.tasks import OwnCaptions, OwnDialogues
from tests.evaluate_tellers import Oracle


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """A folder with pictures."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for name in ("a.png", "b.png", "COCO_val2014_000000000042.jpg"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def write(path: Path, *records: Any) -> Path:
    """JSON lines, or one JSON document."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


# --- captions


def test_captions_of_coco(shots, tmp_path):
    document = {
        "info": {},
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 7, "id": 1, "caption": "One."},
            {"image_id": 9, "id": 2, "caption": "Two."},
            {"image_id": 7, "id": 3, "caption": "Three."},
        ],
    }
    path = write(tmp_path / "captions_val2014.json", document)
    found = Files((path,), shots).captions()
    assert [(item.name, item.references) for item in found] == [("a.png", ("One.", "Three.")), ("b.png", ("Two.",))]
    assert found[0].picture == StoredPicture("a.png", shots / "a.png")
    assert [item.name for item in Files((path,), shots, 1).captions()] == ["a.png"]
    assert Files((path,), shots, 1).captions()[0].references == ("One.", "Three.")
    gallery = as_gallery(found)
    assert gallery.texts == ((0, "One."), (0, "Three."), (1, "Two."))


@pytest.mark.parametrize("key", ["caption", "captions", "references", "text"])
def test_captions_of_json_lines_and_of_a_list(shots, key):
    records = [{"image": "a.png", key: ["One.", "Two."]}, {"image": "b.png", key: "Three."}]
    lines = write(shots / "c.jsonl", *records)
    listed = write(shots / "c.json", records)
    assert Files((lines,)).captions() == Files((listed,)).captions()
    assert [item.references for item in Files((lines,)).captions()] == [("One.", "Two."), ("Three.",)]


def test_captions_of_a_table(shots):
    (shots / "c.csv").write_text("image,text\na.png,A red star.\nb.png,A ring.\n")
    found = Files((shots / "c.csv",)).captions()
    assert [(item.name, item.references) for item in found] == [("a.png", ("A red star.",)), ("b.png", ("A ring.",))]


def test_pictures_of_a_table_may_lie_elsewhere(shots, tmp_path):
    """`--images` is for all forms, not for JSON alone."""
    (away := tmp_path / "away").mkdir()
    (away / "c.csv").write_text("image,text\na.png,A red star.\n")
    (found,) = Files((away / "c.csv",), shots).captions()
    assert found.picture.source == shots / "a.png"


def test_own_captions_are_scored(shots):
    path = write(
        shots / "c.jsonl", {"image": "a.png", "caption": "a red star of five"}, {"image": "b.png", "caption": "no"}
    )
    exam = Plan(("captions",), prompt="Say it.").own("captions", Files((path,)))
    assert isinstance(exam, OwnCaptions)
    oracle = Oracle(lambda ask: "A red star of five." if ask.pictures[0].name == "a.png" else "Yes.")
    found = exam.take(oracle)
    assert found.figures["ROUGE-L"].value == pytest.approx(0.5)
    assert {ask.text for ask in oracle.asked} == {"Say it."}


# --- questions


def test_a_prompt_without_the_question_is_refused(shots):
    path = write(shots / "q.jsonl", {"image": "a.png", "question": "What?", "answer": "a star"})
    for task in ("questions", "pairs"):
        with pytest.raises(SettingsError, match="where in it the"):
            Plan((task,), prompt="Briefly:").own(task, Files((path,)))
        assert Plan((task,), prompt="").own(task, Files((path,)))


def vqa(tmp_path: Path, **changes: Any) -> tuple[Path, Path]:
    question = {"image_id": 42, "question": "What colour?", "question_id": 420, **changes}
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    note = {"question_id": 420, "image_id": 42, "answers": answers, "answer_type": "other", "question_type": "what"}
    questions = {"data_subtype": "val2014", "task_type": "Open-Ended", "questions": [question]}
    return write(tmp_path / "q.json", questions), write(tmp_path / "a.json", {"annotations": [note]})


def test_questions_of_vqa_v2(shots, tmp_path):
    for files in (vqa(tmp_path), vqa(tmp_path)[::-1]):
        (found,) = Files(files, shots).questions()
        assert (found.text, found.answers, found.kind) == ("What colour?", ("red",) * 10, "other")
        assert found.pictures == (
            StoredPicture("COCO_val2014_000000000042.jpg", shots / "COCO_val2014_000000000042.jpg"),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_id": "a7"},
            r"q\.json \(record 1\): VQAv2's pictures are named by .* 'val2014' and 'a7'\. .* an 'image'",
        ),
        ({"image_id": [1]}, r"q\.json \(record 1\): image_id is \[1\]; it must be a whole number or a text"),
        ({"question_id": {}}, r"q\.json \(record 1\): question_id is \{\}; it must be"),
    ],
)
def test_questions_whose_pictures_have_other_names(shots, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        Files(vqa(tmp_path, **changes), shots).questions()
    if isinstance(changes.get("image_id"), str):
        (found,) = Files(vqa(tmp_path, **changes, image="a.png"), shots).questions()
        assert found.pictures == (StoredPicture("a.png", shots / "a.png"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": 5}, "answers is 5; it must be a list of one at least"),
        ({"answers": "red"}, "answers is 'red'; it must be a list"),
        ({"answers": []}, r"answers is \[\]; it must be a list of one at least"),
        ({"answers": [{"answer": "red"}, 3]}, "a record has no 'answer'"),
        ({"answers": [{"answer": "\ud800"}]}, "answer holds half of a surrogate pair"),
        ({"answer_type": "\ud800"}, "answer_type holds half of a surrogate pair"),
    ],
)
def test_answers_that_are_none_are_named_by_file_and_record(shots, tmp_path, changes, message):
    questions, answers = vqa(tmp_path)
    (note,) = json.loads(answers.read_text())["annotations"]
    write(answers, {"annotations": [{**note, "question_id": 1}, {**note, **changes}]})
    with pytest.raises(DataError, match=rf"a\.json \(record 2\): {message}"):
        Files((questions, answers), shots).questions()


def test_answers_without_their_questions(shots, tmp_path):
    """VQAv2's second file alone, or COCO's captions: nothing would be asked, and the table be empty."""
    with pytest.raises(DataError, match=r"'a\.json' holds no questions: give the file of questions, too"):
        Files(vqa(tmp_path)[1:], shots).questions()


@pytest.mark.parametrize(
    "document", [{"annotations": None}, {"questions": None, "annotations": None}, {"annotations": 3}]
)
def test_a_document_without_its_lists(shots, tmp_path, document):
    with pytest.raises(DataError, match=r"d\.json:1: a record has no 'image'"):
        Files((write(tmp_path / "d.json", document),), shots).questions()


def test_a_folder_in_place_of_questions(shots):
    with pytest.raises(DataError, match="is a folder: give the file of the questions"):
        Files((shots,)).questions()


def test_a_conversations_last_reply_is_its_caption(shots, tmp_path):
    """As in pre-training."""
    first = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]
    turns = (("user", first), ("assistant", "No."), ("user", "Now?"), ("assistant", "A red star."))
    said = [{"role": role, "content": content} for role, content in turns]
    (found,) = Files((write(shots / "talks.jsonl", {"messages": said}),)).captions()
    assert found.references == ("A red star.",)


def test_questions_without_their_answers(shots, tmp_path):
    with pytest.raises(
        DataError, match=r"q\.json \(record 1\): the question 420 has no answers: give VQAv2's annotations"
    ):
        Files(vqa(tmp_path)[:1], shots).questions()


def test_questions_of_json_lines(shots):
    path = write(
        shots / "q.jsonl",
        {"image": "a.png", "question": "What?", "answer": 3},
        {"images": ["a.png", "b.png"], "question": "Which?", "answers": ["first", "the first"], "kind": "pair"},
    )
    one, two = Files((path,)).questions()
    assert (one.answers, one.kind, len(one.pictures)) == (("3",), "", 1)
    assert (two.answers, two.kind, two.name) == (("first", "the first"), "pair", "a.png, b.png")
    assert len(Files((path,), count=1).questions()) == 1


def test_a_data_set_of_scenes_is_read_back(tmp_path):
    from minichat.toy import dataset

    folder = dataset.write(tmp_path / "scenes", 2, seed=1, size=32)
    found = Files((folder / "questions.jsonl",)).questions()
    assert len(found) == len((folder / "questions.jsonl").read_text().splitlines())
    assert {item.kind for item in found} >= {"existence", "background"}
    assert len(Files((folder / "captions.csv",)).captions()) == 2
    assert len(Files((folder / "conversations.jsonl",)).dialogues()) == 2


# --- polls


def test_polls_of_pope(shots):
    record = {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "no"}
    paths = tuple(
        write(shots / f"coco_pope_{name}.json", record, {**record, "question_id": 2, "label": "yes"})
        for name in ("popular", "random")
    )
    found = Files(paths).polls()
    assert [(poll.setting, poll.true) for poll in found] == [
        ("popular", False), ("popular", True), ("random", False), ("random", True),
    ]  # fmt: skip
    assert [poll.setting for poll in Files(paths, count=1).polls()] == ["popular", "random"]
    figures = Plan(("hallucination",)).own("hallucination", Files(paths)).take(Oracle(lambda ask: "Yes.")).figures
    assert figures["popular: recall"].value == 1
    assert figures["random: says yes"].value == 1


def test_a_file_of_polls_whose_name_is_no_unicode(shots):
    """Its name is that of figures, in a table and on a plot."""
    path = write(shots / os.fsdecode(b"odd\xff.json"), {"image": "a.png", "text": "A dog?", "label": "no"})
    (poll,) = Files((path,)).polls()
    assert poll.setting == "odd\\udcff"


# --- dialogues


def test_dialogues_of_messages(shots):
    def said(role: str, *parts: Any) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}

    messages = [
        said("system", "Be brief."),
        said("user", {"type": "image", "image": "a.png"}, "What is it?"),
        said("assistant", "A red star."),
        said("user", {"type": "image", "image": "b.png"}, "And this?"),
        said("assistant", "A ring."),
    ]
    (dialogue,) = Files((write(shots / "d.jsonl", {"messages": messages}),)).dialogues()
    (first, one), (second, two) = dialogue.turns
    assert (one, two) == ("A red star.", "A ring.")
    assert (first.system, first.text, first.before) == ("Be brief.", "What is it?", ())
    assert second.system == "Be brief."
    assert [picture.name for picture in second.all_pictures()] == ["a.png", "b.png"]
    assert second.before[0].reply.text == "A red star."
    exam = OwnDialogues((dialogue,))
    figures = exam.take(Oracle(lambda ask: "a ring" if ask.before else "A red star!")).figures
    assert figures["turn 1: the same answer"].value == 1
    assert figures["turn 2: ROUGE-L"].value == pytest.approx(1)


# --- what is wrong


@pytest.mark.parametrize(
    ("task", "records", "message"),
    [
        ("captions", [{"caption": "x"}], r"d\.jsonl:1: a record has no 'image'"),
        ("captions", [{"image": "a.png", "caption": "x"}, {"image": "a.png"}], r"d\.jsonl:2: a record has no 'text'"),
        ("captions", [{"image": "a.png", "captions": []}], r"d\.jsonl:1: captions is an empty list"),
        ("captions", [{"image": "gone.png", "caption": "x"}], r"d\.jsonl:1: the picture 'gone\.png' is missing"),
        ("captions", [{"image": "http://x/a.png", "caption": "x"}], r"d\.jsonl:1: the picture .* is an address"),
        ("questions", [{"image": "a.png", "question": "x"}], r"d\.jsonl:1: a record has no 'answer'"),
        ("questions", [{"image": "a.png", "question": "", "answer": "x"}], r"d\.jsonl:1: question is ''"),
        ("questions", [["a.png"]], r"d\.jsonl:1.*no JSON object"),
        ("polls", [{"image": "a.png", "text": "x", "label": "maybe"}], r"d\.jsonl:1: label is 'maybe'"),
        (
            "captions",
            [{"image": "a.png", "caption": "a \ud800 star"}],
            r"d\.jsonl:1: caption holds half of a surrogate",
        ),
        ("captions", [{"image": "a.png", "captions": ["a", "\0"]}], r"d\.jsonl:1: captions holds a null character"),
        (
            "questions",
            [{"image": "a.png", "question": "\udfff", "answer": "x"}],
            r"d\.jsonl:1: question holds half of a",
        ),
        (
            "questions",
            [{"image": "a.png", "question": "x", "answer": "x", "kind": "\ud800"}],
            r"d\.jsonl:1: kind holds half of a surrogate pair",
        ),
        ("polls", [{"image": "a.png", "text": "\ud800", "label": "no"}], r"d\.jsonl:1: text holds half of a surrogate"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(shots, task, records, message):
    path = write(shots / "d.jsonl", *records)
    with pytest.raises(DataError, match=message):
        getattr(Files((path,)), task)()


def test_files_that_cannot_be_read(shots):
    with pytest.raises(DataError, match=r"gone\.jsonl' was not found"):
        Files((shots / "gone.jsonl",)).questions()
    (shots / "bad.jsonl").write_text("{not json\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        Files((shots / "bad.jsonl",)).polls()
    (shots / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        Files((shots / "empty.jsonl",)).captions()


def test_a_coco_caption_of_a_picture_that_is_not_listed(shots):
    path = write(shots / "c.json", {"images": [], "annotations": [{"image_id": 1, "caption": "x"}]})
    with pytest.raises(DataError, match="is of the image 1, which is not listed"):
        Files((path,)).captions()


def test_stories_have_no_files(shots):
    with pytest.raises(SettingsError, match="stories are measured on scenes alone"):
        Plan(("stories",)).own("stories", Files((shots,)))


def test_a_folder_of_pictures(shots):
    assert [name for name, _ in Files((shots,)).pictures()] == ["COCO_val2014_000000000042.jpg", "a.png", "b.png"]
