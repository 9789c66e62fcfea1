"""Numbers as table programs store them, ids that collide, and the files that the official programs take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minichat.errors import DataError
from minichat.evaluate.datasets import Files, as_id, written
from minichat.evaluate.run import Report
from minichat.evaluate.tasks import OwnCaptions, OwnQuestions, Polls
from minichat.toy.evaluate_captions import polls_about_scenes
from tests.evaluate_tellers import Oracle
from tests.test_evaluate_files import write


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8), "red").save(folder / name)
    return tmp_path


# --- numbers


@pytest.mark.parametrize(
    ("stored", "text"),
    [(4, "4"), (4.0, "4"), ("4.0", "4"), ("4.00", "4"), (" 4.0 ", "4"), (-3.0, "-3"), ("-3.0", "-3"), (0.0, "0"),
     (4.5, "4.5"), ("4.5", "4.5"), ("4.05", "4.05"), ("v4.0", "v4.0"), ("4.0.0", "4.0.0"), ("four", "four"),
     (float("nan"), None), (float("inf"), None), (True, None), (None, None), ([4], None)],
)  # fmt: skip
def test_a_whole_number_is_written_without_decimals(stored: Any, text: str | None) -> None:
    assert written(stored) == text


@pytest.mark.parametrize(
    ("stored", "found"),
    [(4, 4), (4.0, 4), ("4", 4), ("4.0", 4), ("007", "007"), ("a7", "a7"), (4.5, None), (True, None), ("", None),
     ({}, None), (None, None), ("9" * 40, "9" * 40)],
)  # fmt: skip
def test_an_id_is_the_same_however_it_is_stored(stored: Any, found: Any) -> None:
    assert as_id(stored) == found


@pytest.mark.parametrize("stored", [4, 4.0, "4", "4.0"])
def test_an_answer_counts_as_its_number_in_every_form(shots: Path, stored: Any) -> None:
    record = {"image": "a.png", "question": "How many?"}
    (shots / "t.csv").write_text(f"image,question,answer\na.png,How many?,{stored}\n")
    (shots / "t.tsv").write_text(f"image\tquestion\tanswer\na.png\tHow many?\t{stored}\n")
    questions = write(shots / "q.json", {"questions": [{**record, "question_id": stored}]})
    notes = write(shots / "n.json", {"annotations": [{"question_id": 4, "answers": [{"answer": stored}]}]})
    for files in (
        (write(shots / "one.jsonl", {**record, "answer": stored}),),
        (write(shots / "several.json", [{**record, "answers": [stored, stored]}]),),
        (shots / "t.csv",),
        (shots / "t.tsv",),
        (questions, notes),
    ):
        (found,) = Files(files).questions()
        assert set(found.answers) == {"4"}
        (record_of,) = OwnQuestions((found,)).take(Oracle(lambda ask: "4")).records
        assert (record_of["accuracy"], record_of["within"]) == (1, True)


def test_a_table_without_questions_is_refused(shots: Path) -> None:
    (shots / "t.csv").write_text("image,answer\na.png,4\n")
    with pytest.raises(DataError, match=r"t\.csv:2.*there is no question: a column 'question'"):
        Files((shots / "t.csv",)).questions()


# --- ids


def vqa(folder: Path, name: str, *questions: tuple[int, int, str]) -> tuple[Path, Path]:
    """A file of questions and one of answers; a question has its id, its picture's id, and its picture."""
    asked = [
        {"question_id": number, "image_id": image, "image": picture, "question": "What?"}
        for number, image, picture in questions
    ]
    notes = [{"question_id": number, "answers": [{"answer": "red"}]} for number, _, _ in questions]
    return (
        write(folder / f"{name}_questions.json", {"questions": asked}),
        write(folder / f"{name}_annotations.json", {"annotations": notes}),
    )


def coco(folder: Path, name: str, *pictures: tuple[int, str]) -> Path:
    images = [{"id": number, "file_name": picture} for number, picture in pictures]
    notes = [{"id": n, "image_id": number, "caption": "It."} for n, (number, _) in enumerate(pictures)]
    return write(folder / f"{name}.json", {"images": images, "annotations": notes})


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "image": "a.png", "question": "What?", "answer": "red", **more}


def poll(number: int, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "image": "a.png", "text": "Is there a dog?", "label": "no", **more}


Made = Callable[[Path], tuple[Path, ...]]
COLLIDING: list[tuple[str, Made, str]] = [
    ("questions", lambda s: (*vqa(s, "x", (1, 1, "a.png")), *vqa(s, "y", (1, 2, "b.png"))),
     r"y_annotations\.json \(record 1\): the question of these answers has the id 1, .* x_annotations\.json \(rec"),
    ("questions", lambda s: vqa(s, "x", (1, 1, "a.png"), (1, 1, "a.png")), r"\(record 2\).* id 1, .*\(record 1\)"),
    ("questions", lambda s: (*vqa(s, "x", (1, 1, "a.png")), vqa(s, "y", (1, 1, "a.png"))[0]),
     r"y_questions\.json \(record 1\): the question has the id 1, .* x_questions\.json \(record 1\)"),
    ("questions", lambda s: vqa(s, "x", (1, 7, "a.png"), (2, 7, "b.png")),
     r"x_questions\.json \(record 2\): the picture has the id 7, .* x_questions\.json \(record 1\)"),
    ("questions", lambda s: (*vqa(s, "x", (1, 7, "a.png")), *vqa(s / "other", "x", (2, 7, "a.png"))),
     r"other.x_questions\.json \(record 1\): the picture has the id 7"),
    ("questions", lambda s: (write(s / "q.jsonl", question(1), question(1.0)),), r"q\.jsonl:2: .* id 1, .* q\.jsonl:1"),
    ("questions", lambda s: (write(s / "q.jsonl", question(1)), write(s / "r.jsonl", question("1"))), r"r\.jsonl:1: "),
    ("questions", lambda s: (write(s / "q.jsonl", question(1, image_id=7), question(2, image_id=7, image="b.png")),),
     r"q\.jsonl:2: the picture has the id 7, and so has another at q\.jsonl:1"),
    ("captions", lambda s: (coco(s, "x", (1, "a.png")), coco(s, "y", (1, "b.png"))),
     r"y\.json \(record 1\): the picture has the id 1, and so has another at x\.json \(record 1\)"),
    ("captions", lambda s: (coco(s, "x", (1, "a.png")), coco(s / "other", "x", (1, "a.png"))), "picture has the id 1"),
    ("captions", lambda s: (coco(s, "x", (1, "a.png"), (1, "b.png")),), r"x\.json .*id 1, as another has \(number 1\)"),
    ("captions", lambda s: (write(s / "c.jsonl", {"image": "a.png", "image_id": 1, "caption": "It."},
                                  {"image": "b.png", "image_id": 1, "caption": "It."}),), r"c\.jsonl:2: .*c\.jsonl:1"),
    ("polls", lambda s: (write(s / "p_random.json", poll(1), poll(1)),), r"p_random\.json:2: .*p_random\.json:1"),
    ("polls", lambda s: (write(s / "p_random.json", poll(1)), write(s / "q_random.json", poll(1))), r"q_random\.js"),
    ("polls", lambda s: (write(s / "p_random.json", poll(1, image_id=3)),
                         write(s / "p_popular.json", poll(1, image_id=3, image="b.png"))), "the picture has the id 3"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "make", "message"), COLLIDING)
def test_ids_that_collide_are_refused_with_both_places(shots: Path, task: str, make: Made, message: str) -> None:
    with pytest.raises(DataError, match=message):
        getattr(Files(make(shots)), task)()


def test_the_same_picture_may_have_its_id_again(shots: Path) -> None:
    assert len(Files(vqa(shots, "x", (1, 7, "a.png"), (2, 7, "./a.png"))).questions()) == 2
    both = (*vqa(shots, "x", (1, 7, "a.png")), *vqa(shots, "y", (2, 7, "a.png")))
    assert len(Files(both).questions()) == 2
    (twice,) = Files((coco(shots, "x", (1, "a.png"), (1, "a.png")), coco(shots, "y", (1, "a.png")))).captions()
    assert len(twice.references) == 3
    names = ("random", "popular", "adversarial")  # POPE's own files begin at 1 each
    polls = Files(tuple(write(shots / f"coco_pope_{name}.json", poll(1), poll(2)) for name in names)).polls()
    assert [each.setting for each in polls] == [name for name in names for _ in range(2)]


# --- the official forms


def written_files(report: Report, folder: Path) -> dict[str, str]:
    folder.mkdir()
    report.write_into(folder)
    standard = ("results.json", "results.md", "replies.jsonl")
    return {path.name: path.read_text() for path in folder.iterdir() if path.name not in standard}


def reported(exam: Any, model: str = "runs/my_model") -> Report:
    versions = {"minichat": "0"}
    outcome = exam.take(Oracle(lambda ask: f"It is {ask.pictures[0].name} “{ask.text}”."))  # type: ignore[attr-defined]
    return Report(model, {}, versions, "files", None, None, {}, results=outcome.results)


def test_captions_are_written_as_cocos_server_takes_them(shots: Path) -> None:
    files = coco(shots, "captions_val2014", (9, "a.png"), (7, "b.png"), (9, "a.png")), coco(shots, "more", (7, "b.png"))
    found = written_files(reported(OwnCaptions(Files(files).captions(), "Say.")), shots / "out")
    assert set(found) == {"captions_val2014_runs-my-model_results.json", "more_runs-my-model_results.json"}
    rows = json.loads(found["captions_val2014_runs-my-model_results.json"])
    assert rows == [
        {"image_id": 9, "caption": "It is a.png “Say.”."},
        {"image_id": 7, "caption": "It is b.png “Say.”."},
    ]


def test_answers_are_written_as_vqas_server_takes_them(shots: Path) -> None:
    files = vqa(shots, "v2_OpenEnded_mscoco_val2014", (420, 42, "a.png"), (421, 42, "a.png"))
    found = written_files(reported(OwnQuestions(Files(files).questions())), shots / "out")
    ((name, text),) = found.items()
    assert name == "v2_OpenEnded_mscoco_val2014_runs-my-model_results.json"
    assert [(row["question_id"], sorted(row)) for row in json.loads(text)] == [
        (420, ["answer", "question_id"]),
        (421, ["answer", "question_id"]),
    ]


def test_polls_are_written_as_popes_program_reads_them(shots: Path) -> None:
    names = ("random", "popular")
    paths = [write(shots / f"coco_pope_{n}.json", poll(1), poll(2, text="Is there a cat?")) for n in names]
    found = written_files(reported(Polls(Files(tuple(paths)).polls())), shots / "out")
    assert set(found) == {f"coco_pope_{name}_runs-my-model_answers.jsonl" for name in names}
    lines = [json.loads(line) for line in found["coco_pope_popular_runs-my-model_answers.jsonl"].splitlines()]
    assert [line["question"] for line in lines] == ["Is there a dog?", "Is there a cat?"]
    assert all(set(line) == {"question", "answer"} for line in lines)


def test_files_of_the_same_name_do_not_overwrite_each_other(shots: Path) -> None:
    (shots / "other" / "b.png").write_bytes((shots / "b.png").read_bytes())
    files = coco(shots, "x", (1, "a.png")), coco(shots / "other", "x", (2, "a.png"))
    found = written_files(reported(OwnCaptions(Files(files).captions(), "Say."), ""), shots / "out")
    assert {name: [row["image_id"] for row in json.loads(text)] for name, text in found.items()} == {
        "x_model_results.json": [1],
        "x-2_model_results.json": [2],
    }


def test_what_has_no_ids_and_scenes_write_nothing_more(shots: Path) -> None:
    captions = Files((write(shots / "c.jsonl", {"image": "a.png", "caption": "It."}),)).captions()
    assert written_files(reported(OwnCaptions(captions, "Say.")), shots / "out") == {}
    assert polls_about_scenes(1).take(Oracle(lambda ask: "Yes.")).results == []
