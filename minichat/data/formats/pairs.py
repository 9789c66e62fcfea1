"""A picture and a text: rows and JSON objects, COCO's captions, VQAv2's answers, and MiniGPT-4's `cc_sbu_align`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from minichat.data.example import Cell, Problem, StoredPicture, Turn, Where, parse, read_text
from minichat.data.formats import chat
from minichat.data.formats.base import (
    IMAGES,
    NOTES,
    Asking,
    Entry,
    LeftOut,
    Shelf,
    empty,
    fields,
    is_base64,
    is_document,
    kind,
    listed,
    with_system,
    words,
)
from minichat.data.formats.chat import IMAGE, Said, cut, place
from minichat.data.formats.tables import INPUT, MARKED, PICTURE, TEXT, Columns
from minichat.errors import DataError, shown
from minichat.images import SUFFIXES

# --- Pairs of picture and text: rows of a table (`table`), or JSON objects, with a question where there is one.
#
#     {"image", "caption"}                            or a list of captions
#     {"image", "question", "answer"}
#     {"instruction", "input", "output", "history", "system", "images"}      Alpaca, as LLaMA-Factory has it
#     {"query", "response", "history", "system", "images"}                   ms-swift
#     {"prompt", "completion", "images"}                                     TRL
#
# In the last three `<image>` in a question is the place of a picture (see `marked`), and a question may do without
# one. A row of `minichat caption` that holds an error in place of a caption is left out.


_ERROR = "error"  # in a row of `minichat caption`


def pair_samples(record: object, shelf: Shelf, columns: Columns, asking: Asking, name: str) -> Iterator[list[Turn]]:
    """The turns of one pair, or of each of its texts that is learned. Raises `DataError` for what is not understood.

    Args:
        name: the record's, from which follows what is drawn for it.
    """
    read = fields(record, "the record", ())
    if columns == Columns():
        _leave_out_failed(read)
    if isinstance(read.get("prompt"), list):
        yield _messages(read, shelf)
        return
    there = {key: value for key, value in read.items() if value is not None}
    held = [key for key, value in there.items() if _is_picture(value)]
    named = columns.among(there, held, pictures=not any(key.casefold() in (*MARKED, "completion") for key in there))
    texts = _texts(read[str(named.text)], shown(named.text), several=not named.marks)
    shows = named.picture is not None and not (named.marks and empty(read[named.picture]))
    pictures = _pictures(read[str(named.picture)], shelf) if shows else []
    if not pictures and not named.marks:
        raise DataError(f"{shown(named.picture)} is an empty list: a pair needs a picture.")
    if len(texts) > 1 and len(texts) == len(pictures) and not isinstance(read[str(named.picture)][0], StoredPicture):
        raise DataError(
            f"the record has {len(texts)} pictures and as many texts: give each picture and its text a record of their "
            "own, or all pictures one text."
        )
    shelf.only(read, _known(there, named, held, columns))
    for own, text in asking.chosen(name, texts):
        if named.question is None:
            shown_to = [picture for frames in pictures for picture in frames]
            yield with_system(read, asking.turns(own, shown_to, text))
        else:
            asked = _asked(read, named.question)
            talk = [*_history(read.get("history")), ("user", asked), ("assistant", asking.worded(text))]
            said = [_said(role, spoken, named.marks) for role, spoken in talk]
            yield with_system(read, place(said, {IMAGE: pictures}))


def _known(there: Mapping[str, Any], named: Columns, held: list[str], columns: Columns) -> list[str]:
    """The keys of a record that are read, or need not be."""
    known = [name for name in (named.picture, named.text, named.question) if name is not None]
    known += [*columns.passed_over(there), "system"]
    if named.picture in held:  # it may have names, too
        known += [key for key, value in there.items() if key.strip().casefold() in PICTURE and isinstance(value, str)]
    return known if named.question is None else [*known, INPUT, "history"]


def _leave_out_failed(read: Mapping[str, Any]) -> None:
    """Leave out a row that says why there is no caption."""
    if not empty(read.get(_ERROR)) and all(empty(read.get(key)) for key in TEXT):
        raise LeftOut(f"the row holds an error in place of a caption: {shown(read[_ERROR])}.")


def _messages(read: Mapping[str, Any], shelf: Shelf) -> list[Turn]:
    """TRL's prompt and completion, which may be messages."""
    if "completion" not in read and "chosen" in read:
        raise DataError("'chosen' is one of two replies to compare: give the one to learn as 'completion'.")
    whole = [*read["prompt"], *listed(read.get("completion"), "'completion'")]
    rest = {key: value for key, value in read.items() if key not in ("prompt", "completion")}
    return chat.sharegpt_turns({**rest, "messages": whole}, shelf)


def _is_picture(value: Any) -> bool:
    """Whether a value holds a picture, or pictures, rather than their names."""
    if isinstance(value, list):
        return any(map(_is_picture, value))
    if isinstance(value, dict):
        return value.get("bytes") is not None
    if isinstance(value, str):
        return value.startswith("data:image/") or is_base64(value)
    return isinstance(value, bytes | Cell | StoredPicture)


def _pictures(value: Any, shelf: Shelf) -> list[Any]:
    """A picture or a list of them, each as its frames."""
    if isinstance(value, list):
        return [shelf.frames(name) for name in value]
    return [[shelf.picture(value)]]


def _texts(value: Any, what: str, several: bool) -> list[str]:
    """A text, or those of a list; the reply to a question of Alpaca's kind is one."""
    if several and isinstance(value, list) and value:
        return [words(text, f"{what}, text {number},") for number, text in enumerate(value, start=1)]
    return [words(value, what)]


def _asked(read: Mapping[str, Any], key: str) -> str:
    """The question; of Alpaca's the instruction and, in a line after it, what it is about."""
    asked = words(read[key], shown(key))
    if key == INPUT or empty(read.get(INPUT)):
        return asked
    return "\n".join(part for part in (asked, words(read[INPUT], f"{INPUT!r}")) if part)


def _history(turns: Any) -> Iterator[tuple[str, str]]:
    """Earlier questions and replies, `[[question, reply], …]`."""
    for number, pair in enumerate([] if empty(turns) else listed(turns, "'history'"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"turn {number} of 'history' is {kind(pair)}: it must be a list of a question and a reply.")
        yield "user", words(pair[0], f"turn {number} of 'history', the question,")
        yield "assistant", words(pair[1], f"turn {number} of 'history', the reply,")


def _said(role: Any, text: str, marks: bool) -> Said:
    return Said(role, cut(text, [IMAGE]) if marks and role == "user" else [text])


# --- COCO's captions: `{"images": [{"id", "file_name"}, …], "annotations": [{"image_id", "caption"}, …]}`.
#
# Pictures lie beside the file, or in one of the folders in which COCO is unpacked: `images/`, one with the name of the
# file's part (`train2017/` of `captions_train2017.json`), each beside the file or beside its folder.
#
# Source: https://cocodataset.org/#format-data


def coco_entries(path: Path, file: str, home: Path | None = None) -> Iterator[Entry | Problem]:
    """An entry for each picture that has captions, in the order of the annotations, whose numbers places are; then a
    mild `Problem` for each picture that has none, with its number in the list of pictures.

    Args:
        home: the folder of the pictures; None: where they usually lie.
    """
    value = _whole(path, file)
    if isinstance(value, Problem):
        yield value
        return
    if not is_document(value):
        yield Problem(Where(file, 1), f"the file must hold an object with lists {IMAGES!r} and {NOTES!r}.")
        return
    names, notes = dict[object, tuple[int, Any]](), dict[object, list[tuple[int, Any]]]()
    for number, image in enumerate(value[IMAGES], start=1):
        key = _key(image, "id")
        first, before = names.setdefault(key, (number, image))
        if key is None or before.get("file_name") != image.get("file_name"):  # the same picture may be listed again
            what = "has no 'id'" if key is None else f"has the id {shown(key)}, as another has (number {first})"
            yield Problem(Where(file, record=number), f"an entry of {IMAGES!r} {what}: give each its own.")
    for number, note in enumerate(value[NOTES], start=1):
        notes.setdefault(_key(note, "image_id"), []).append((number, note))
    if not notes:
        yield Problem(Where(file, 1), f"{NOTES!r} is empty: there is no record in it.")
    places = [home] if home is not None else _places(path, path.stem.rpartition("_")[2])  # captions_train2017.json
    for key, some in notes.items():
        where = Where(file, record=some[0][0])
        yield Entry(
            where, path.parent, partial(_samples, names.get(key, (0, None))[1], [note for _, note in some], places)
        )
    for key, (number, image) in names.items():
        if key is not None and key not in notes:
            says = f"the picture {shown(image.get('file_name'))} has no caption: nothing is learned of it."
            yield Problem(Where(file, record=number), says, mild=True)


def _whole(path: Path, file: str) -> Any:
    """The one JSON value of a file, or a `Problem`."""
    text = read_text(path, Where(file, 1))
    return text if isinstance(text, Problem) else parse(text, Where(file, 1))


def _key(record: Any, name: str) -> object:
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _samples(image: Any, notes: list[Any], places: list[Path], shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
    told = [fields(note, "the annotation", ("image_id", "caption")) for note in notes]
    for note in told:
        shelf.only(note, ("image_id", "caption"))
    key = told[0]["image_id"]
    if _key(told[0], "image_id") is None:
        raise DataError(f"'image_id' is {kind(key)}: it must be the id of a picture.")
    if image is None:
        raise DataError(f"the caption is of the image {shown(key)}, which is not listed under {IMAGES!r}.")
    shelf.only(fields(image, "the image", ("file_name",)), ("id", "file_name"))
    picture = _found(image["file_name"], places, shelf)
    texts = [words(note["caption"], "'caption'") for note in told]
    for own, text in asking.chosen(str(key), texts):
        yield asking.turns(own, [picture], text)


def _found(name: object, places: list[Path], shelf: Shelf) -> StoredPicture:
    """The picture in the first place where it is; in the first of all, where it is nowhere."""
    named = shelf.picture(name)
    if isinstance(named.source, bytes):
        return named
    there = next((place for place in places if (place / named.name).is_file()), places[0])
    return StoredPicture(named.name, there / named.name)


def _places(path: Path, part: str) -> list[Path]:
    """Where COCO's pictures usually lie, beginning beside the file; `part`: the folder of the file's, `train2017`."""
    homes = (path.parent, path.parent.parent)
    return [home / folder for home in homes for folder in ("", "images", part, f"images/{part}")]


# --- VQAv2's questions and people's answers, each in a file of its own: `{"questions": [{"question_id", "image_id",
# "question"}, …], "data_subtype"}` and `{"annotations": [{"question_id", "multiple_choice_answer", "answers":
# [{"answer"}, …]}, …]}`.
#
# Either file is named, and the other is found beside it by VQAv2's own names. What is learned is the answer that most
# people gave: `multiple_choice_answer`, or, as in OK-VQA, the most frequent of `answers`.
#
# Source: https://visualqa.org/download.html


QUESTIONS = "questions"


def is_vqa(value: Any) -> bool:
    """Whether a file's content is VQAv2's, of questions or of answers."""
    if not isinstance(value, dict) or is_document(value):
        return False
    questions = value.get(QUESTIONS)
    if isinstance(questions, list):
        return "data_subtype" in value or (bool(questions) and isinstance(questions[0], dict))  # or a record's own
    notes = value.get(NOTES)
    return isinstance(notes, list) and bool(notes) and _key(notes[0], "question_id") is not None


def vqa_entries(path: Path, file: str, home: Path | None = None) -> Iterator[Entry | Problem]:
    """An entry for each question, in order; its number in the file of questions is its place.

    Args:
        home: the folder of the pictures; None: where COCO's usually lie.
    """
    found = _both(path, file)
    if isinstance(found, Problem):
        yield found
        return
    (asked, questions), (answered, notes) = found
    part = questions.get("data_subtype")
    places = [home] if home is not None else _places(path, part if isinstance(part, str) else "")
    answers = dict[object, Any]()
    for number, note in enumerate(notes[NOTES], start=1):
        key = _key(note, "question_id")
        if key is None or key in answers:
            what = "has no 'question_id'" if key is None else f"answers the question {shown(key)}, as another does"
            yield Problem(Where(answered, record=number), f"this annotation {what}: give each question one.")
        answers.setdefault(key, note)
    if not questions[QUESTIONS]:
        yield Problem(Where(asked, 1), f"{QUESTIONS!r} is empty: there is no record in it.")
    for number, question in enumerate(questions[QUESTIONS], start=1):
        note = answers.pop(_key(question, "question_id"), None)
        where = Where(asked, record=number)
        yield Entry(where, path.parent, partial(_answered, question, note, part, answered, places))
    for key in answers:
        yield Problem(Where(answered, 1), f"the question {shown(key)} is answered but not asked in {asked}.")


def _both(path: Path, file: str) -> tuple[tuple[str, Any], tuple[str, Any]] | Problem:
    """The file of questions and that of answers, each by name and content; one may be both."""
    value = _whole(path, file)
    if isinstance(value, Problem):
        return value
    if not is_vqa(value):
        return Problem(Where(file, 1), f"the file must hold an object with a list {QUESTIONS!r} or {NOTES!r}.")
    asks, answers = (isinstance(value.get(key), list) for key in (QUESTIONS, NOTES))
    if asks and answers:
        return (file, value), (file, value)
    name = _answers_name(path.name)
    if asks:
        others = [path.with_name(name)] if name != path.name else []
    else:
        others = [one for one in sorted(path.parent.glob("*questions*.json")) if _answers_name(one.name) == path.name]
    other = next((one for one in others if one.is_file()), None)
    if other is None:
        lacks = "answers" if asks else "questions"
        usual = name if asks and name != path.name else "…_questions.json, …_annotations.json"
        says = f"the file of the {lacks} is missing: put it beside this one, under VQAv2's name for it ({usual})."
        return Problem(Where(file, 1), says)
    shown_other = file.removesuffix(path.name) + other.name
    told = _whole(other, shown_other)
    if isinstance(told, Problem):
        return told
    if not isinstance(told, dict) or not isinstance(told.get(NOTES if asks else QUESTIONS), list):
        lacks = NOTES if asks else QUESTIONS
        return Problem(Where(shown_other, 1), f"the file must hold an object with a list {lacks!r}.")
    return ((file, value), (shown_other, told)) if asks else ((shown_other, told), (file, value))


def _answers_name(questions: str) -> str:
    """The name of the answers' file: v2_mscoco_X_annotations.json of v2_OpenEnded_mscoco_X_questions.json."""
    return questions.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")


def vqa_picture(part: object, number: object) -> str:
    """What VQAv2 leaves to be worked out: the picture's name, of the part of COCO and the picture's id.

    Raises `DataError` for what gives no name.
    """
    if not isinstance(part, str) or not isinstance(number, int):
        raise DataError(
            f"VQAv2's pictures are named by data_subtype, a text, and image_id, a whole number; here they are "
            f"{shown(part)} and {shown(number)}. Correct them, or give each question an 'image', the name of its file."
        )
    return f"COCO_{part}_{number:012d}.jpg"


def _answered(
    question: Any, note: Any, part: object, answered: str, places: list[Path], shelf: Shelf, asking: Asking
) -> Iterator[list[Turn]]:
    asked = fields(question, "the question", ("question_id", "question"))
    shelf.only(asked, ("question", "image"))
    if note is None:
        raise DataError(f"the question {shown(asked['question_id'])} has no answer in {answered}.")
    shelf.only(note, ("multiple_choice_answer", "answers", "confidence"))
    name = asked.get("image")
    picture = _found(vqa_picture(part, _key(asked, "image_id")) if empty(name) else name, places, shelf)
    talk = (("user", words(asked["question"], "'question'")), ("assistant", asking.worded(_most(note))))
    yield place([_said(role, text, marks=False) for role, text in talk], {IMAGE: [[picture]]})


def _most(note: Mapping[str, Any]) -> str:
    """The answer that most people gave; of equally frequent ones the first."""
    if not empty(note.get("multiple_choice_answer")):
        return words(note["multiple_choice_answer"], "'multiple_choice_answer'")
    given = listed(note.get("answers"), "'answers'")
    said = [one.get("answer") if isinstance(one, dict) else one for one in given]
    if not said:
        raise DataError("'answers' is an empty list: a question needs an answer.")
    return Counter(words(one, "an answer") for one in said).most_common(1)[0][0]


# --- An object of pictures' paths and what is said of each: `{"a.jpg": "A dog.", "b.jpg": ["A cat.", "A tom."]}`.


def is_named(value: Any) -> bool:
    """Whether a file's content is captions by the paths of their pictures."""
    if not isinstance(value, dict) or not value:
        return False
    return all(key.lower().endswith(SUFFIXES) and isinstance(text, str | list) for key, text in value.items())


def named_entries(path: Path, file: str, home: Path) -> Iterator[Entry | Problem]:
    """An entry for each picture, in the order of the file."""
    value = _whole(path, file)
    if isinstance(value, Problem):
        yield value
    elif not is_named(value):
        yield Problem(Where(file, 1), "the file must hold an object of pictures' paths and their captions.")
    else:
        for number, (name, text) in enumerate(value.items(), start=1):
            record = {"image": name, "caption": text}
            yield Entry(Where(file, record=number), home, partial(_captioned, record, name))


def _captioned(record: object, name: str, shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
    yield from pair_samples(record, shelf, Columns(), asking, name)


# --- MiniGPT-4's `cc_sbu_align`: `filter_cap.json` with `{"annotations": [{"image_id", "caption"}, …]}`,
# `image/ID.jpg`.
#
# The instruction of each picture is drawn from a file. Source: MiniGPT-4's dataset/README_2_STAGE.md.


CAPTIONS = "filter_cap.json"
PICTURES = "image"
KEY = "annotations"


def align_samples(record: object, shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
    """The turns of one annotation. Raises `DataError` for what is not understood."""
    read = fields(record, "the annotation", ("image_id", "caption"))
    shelf.only(read, ("image_id", "caption"))
    number = read["image_id"]
    if isinstance(number, bool) or not isinstance(number, str | int):
        raise DataError(f"'image_id' is {kind(number)}: it must be the name of a picture, without its ending.")
    caption = words(read["caption"], "'caption'")
    yield asking.turns(str(number), [shelf.picture(f"{number}.jpg")], caption)
