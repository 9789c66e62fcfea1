"""Users' files: captions in COCO's form, questions in VQAv2's, polls in POPE's, and all of them as JSONL."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minichat.data import formats
from minichat.data.example import Example, Problem, StoredPicture, Value, Where, records
from minichat.data.formats.base import NOTES, Shelf, is_document, words
from minichat.data.formats.folder import find_pictures
from minichat.data.formats.pairs import vqa_picture
from minichat.errors import DataError, shown
from minichat.evaluate.metrics import Id, readable
from minichat.evaluate.replies import Ask, Reply
from minichat.evaluate.tasks import RERANKED, SETTINGS, Gallery, OwnCaption, OwnDialogue, OwnQuestion, Poll
from minichat.fileio import open_file

# --- Ids and numbers as files hold them: one thing for each id, and 4 where a table program has made 4.0 of it.


_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def written(value: object) -> str | None:
    """A text or a number as text; a whole number without decimals, however it is stored. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value)
    whole = _WHOLE.fullmatch(text.strip())
    return whole[1] if whole is not None else text


def as_id(value: object) -> Id | None:
    """An id: 4 of 4, 4.0, "4" and "4.0", and a text of all else that is one; None for what is no id."""
    text = written(value)
    if text is None or (isinstance(value, float) and not value.is_integer()):
        return None
    text = text.strip()
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else text or None


class Places:
    """Where each id was given away, so that no two things have the same. `what`: what they are ids of."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._taken: dict[Id, tuple[Where, Hashable]] = {}

    def take(self, key: Id, where: Where, thing: Hashable = None) -> None:
        """Note an id. Raises `DataError`, which names both places, where another has it; the same `thing` may again."""
        first = (where, thing)
        before = self._taken.setdefault(key, first)
        if before is not first and (thing is None or before[1] != thing):
            raise DataError(
                f"{where}: the {self._what} has the id {shown(key)}, and so has another at {before[0]}: "
                "measure the sets one by one, or give each its own id."
            )


# --- Users' files: captions in COCO's form, questions in VQAv2's, polls in POPE's, and all of them as JSONL.
#
# A record names its picture, in the folder that is given for pictures or else beside the file:
#
#     captions       {"image": "a.png", "caption": "…"}    or "captions": ["…", "…"]
#     questions      {"image": "a.png", "question": "…", "answer": "…"}    or "answers": ["…", …], "images": ["…", "…"]
#     hallucination  {"image": "a.png", "text": "Is there a dog in the image?", "label": "no"}
#
# Captions and dialogues are also read from whatever `minichat.data` reads, questions from its tables. An id
# ("image_id", "question_id") belongs to one picture or question in all files together; POPE's, to one of each setting.


Record = tuple[Where, dict[str, Any]]


@dataclass(frozen=True)
class Files:
    """What a user gave: files, the folder of their pictures, and how many records to take (None: all).

    `unknown_keys` is as `minichat.data.formats.read` takes it; `left_out` is told of rows that hold an error in place
    of a caption.
    """

    data: tuple[Path, ...]
    images: Path | None = None
    count: int | None = None
    unknown_keys: str = "refuse"
    left_out: Callable[[Problem], None] = lambda problem: None

    def captions(self) -> tuple[OwnCaption, ...]:
        """Pictures with all the captions that the files have for them."""
        told: dict[StoredPicture, list[str]] = {}
        ids: dict[StoredPicture, dict[tuple[str, Id], None]] = {}
        places = Places("picture")
        for path in self.data:
            for where, picture, texts, key in self._captions(path):
                if key is not None:
                    places.take(key, where, _thing(picture))
                if picture in told or self._room(len(told)):
                    told.setdefault(picture, []).extend(texts)
                    ids.setdefault(picture, {}).update({} if key is None else {(self._stem(path), key): None})
        return tuple(
            OwnCaption(picture, tuple(texts), picture.name, tuple(ids[picture])) for picture, texts in told.items()
        )

    def _captions(self, path: Path) -> Iterator[tuple[Where, StoredPicture, list[str], Id | None]]:
        """Of each record its place, its picture, what it says of it, and the picture's id where it has one."""
        document = _document(path, ())
        if document is not None and is_document(document):
            notes = document[NOTES]
            for example in self._examples(path):
                picture, texts = _pair(example)
                where = Where(self._shown(path), record=example.where.record)
                yield where, _there(where, picture), texts, as_id(notes[example.where.record - 1]["image_id"])
        elif path.is_dir() or path.suffix.lower() not in (".json", ".jsonl") or _talks(path):
            for example in self._examples(path):
                yield (example.where, *_pair(example), None)
        else:
            for where, record in _records(path, self._shown(path)):
                if record.get("error") and "caption" not in record:  # of `minichat caption`
                    self.left_out(Problem(where, f"the row holds an error: {shown(record['error'])}."))
                    continue
                key = next((key for key in ("captions", "references", "caption") if key in record), "text")
                picture = self._picture(where, path, _field(where, record, "image"))
                number = _id(where, record, "image_id") if record.get("image_id") is not None else None
                yield where, picture, _texts(where, record, key), number

    def questions(self) -> tuple[OwnQuestion, ...]:
        """Questions with people's answers."""
        documents = {path: _document(path, ()) or {} for path in self.data}
        asked: list[OwnQuestion] = []
        answers: dict[Id, Record] = {}
        answered, places = Places("question of these answers"), (Places("question"), Places("picture"))
        for path, document in documents.items():
            for where, note in _numbered(self._shown(path), document, "annotations"):
                answered.take(_id(where, note, "question_id"), where)
                answers[_id(where, note, "question_id")] = where, note
        for path, document in documents.items():
            if _list(document, "questions"):
                asked += self._vqa(path, document, answers, places)
            elif not _list(document, "annotations"):
                asked += self._table(path) if _is_table(path) else self._own_questions(path, places)
        if not asked:
            names = ", ".join(repr(path.name) for path in self.data)
            raise DataError(f"{names} holds no questions: give the file of questions, too.")
        return tuple(asked[: self.count])

    def _vqa(
        self, path: Path, document: dict[str, Any], answers: dict[Id, Record], places: tuple[Places, Places]
    ) -> Iterator[OwnQuestion]:
        for where, question in _numbered(self._shown(path), document, "questions"):
            number = _id(where, question, "question_id")
            places[0].take(number, where)
            if number not in answers:
                raise DataError(
                    f"{where}: the question {shown(number)} has no answers: give VQAv2's annotations file, too."
                )
            name = _vqa_picture(where, document, question)
            given, kind = _people(*answers[number])
            picture = self._picture(where, path, name)
            if question.get("image_id") is not None:
                places[1].take(_id(where, question, "image_id"), where, _thing(picture))
            text, key = _text(where, question, "question"), (self._stem(path), number)
            yield OwnQuestion(text, (picture,), given, kind, name, key)

    def _table(self, path: Path) -> Iterator[OwnQuestion]:
        """Of a table with columns for picture, question and answer."""
        for example in self._examples(path):
            asked = [turn.text for turn in example.turns if turn.role == "user"]
            if len(asked) != 1 or not asked[0].strip() or len(example.replies) != 1:
                raise DataError(f"{example.where}: there is no question: a column 'question' holds it.")
            pictures = tuple(_there(example.where, picture) for picture in example.pictures)
            names = ", ".join(picture.name for picture in pictures)
            yield OwnQuestion(asked[0], pictures, (written(example.replies[0]) or "",), "", names)

    def _own_questions(self, path: Path, places: tuple[Places, Places]) -> Iterator[OwnQuestion]:
        for where, record in _records(path, self._shown(path)):
            names = record["images"] if isinstance(record.get("images"), list) else [_field(where, record, "image")]
            pictures = tuple(self._picture(where, path, name) for name in names)
            given = tuple(
                written(t) or "" for t in _texts(where, record, "answers" if "answers" in record else "answer")
            )
            text, kind = _text(where, record, "question"), _kind(where, record, "kind")
            key = None
            if record.get("question_id") is not None:
                key = self._stem(path), _id(where, record, "question_id")
                places[0].take(key[1], where)
            if record.get("image_id") is not None:
                places[1].take(_id(where, record, "image_id"), where, tuple(map(_thing, pictures)))
            yield OwnQuestion(text, pictures, given, kind, ", ".join(map(str, names)), key)

    def polls(self) -> tuple[Poll, ...]:
        """POPE's questions; a file's setting is told by its name ("coco_pope_popular.json")."""
        polls: list[Poll] = []
        numbers: dict[str, Places] = {}
        pictures = Places("picture")
        for path in self.data:
            setting = next((name for name in SETTINGS if name in path.stem), readable(path.stem))
            found: list[Poll] = []
            for where, record in _records(path, self._shown(path)):
                label = _text(where, record, "label").strip().lower()
                if label not in ("yes", "no"):
                    raise DataError(f"{where}: label is {shown(label)}; it must be 'yes' or 'no'.")
                name = _text(where, record, "image")
                picture = self._picture(where, path, name)
                if record.get("question_id") is not None:  # each setting's file begins at 1
                    taken = numbers.setdefault(setting, Places("question"))
                    taken.take(_id(where, record, "question_id"), where)
                if record.get("image_id") is not None:
                    pictures.take(_id(where, record, "image_id"), where, _thing(picture))
                text = _text(where, record, "text")
                found.append(Poll(setting, picture, text, label == "yes", name, self._stem(path)))
            polls += found[: self.count]
        return tuple(polls)

    def dialogues(self) -> tuple[OwnDialogue, ...]:
        """Dialogues in any form that `minichat.data` reads."""
        return tuple(_dialogue(example) for path in self.data for example in self._examples(path))[: self.count]

    def pictures(self) -> tuple[tuple[str, StoredPicture], ...]:
        """All pictures of files and folders."""
        return tuple((path.name, StoredPicture(path.name, path)) for path in find_pictures(self.data)[: self.count])

    def _examples(self, path: Path) -> Iterator[Example]:
        options: dict[str, Any] = {} if self.images is None else {"pictures": self.images}
        return formats.read(path, left_out=self.left_out, unknown_keys=self.unknown_keys, **options)

    def _shown(self, path: Path) -> str:
        """What errors call a file: its name, or its path where another has the same name."""
        return path.name if sum(other.name == path.name for other in self.data) == 1 else str(path)

    def _stem(self, path: Path) -> str:
        """What its files of results begin with: its own name, and a number where an earlier file has the same."""
        stem = path.stem.removesuffix("_questions")
        earlier = [other for other in dict.fromkeys(self.data[: self.data.index(path)]) if other.stem == path.stem]
        return readable(f"{stem}-{len(earlier) + 1}" if earlier else stem)

    def _room(self, taken: int) -> bool:
        return self.count is None or taken < self.count

    def _picture(self, where: Where, path: Path, name: object) -> StoredPicture:
        folder = path.parent if self.images is None else self.images
        try:
            picture = Shelf(folder).picture(name)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return _there(where, picture)


def _thing(picture: StoredPicture) -> Hashable:
    """What two records of the same picture have in common, however they write its path."""
    return os.path.realpath(picture.source) if isinstance(picture.source, Path) else picture.source


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".parquet")


def _there(where: Where, picture: StoredPicture) -> StoredPicture:
    """The picture. Raises `DataError` where it is a file that is missing."""
    if isinstance(picture.source, Path) and not os.path.isfile(picture.source):
        raise DataError(f"{where}: the picture {shown(picture.name)} is missing: say with --images where pictures are.")
    return picture


def _document(path: Path, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The file as one JSON object with lists under these keys; None where it is not that."""
    if path.is_dir():
        return None
    try:
        with open_file(path) as file:
            content = json.loads(file.read().decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path.name!r} was not found: check the path.") from None
    except OSError as error:
        raise DataError(f"{path.name!r} cannot be read ({error.strerror}): check it.") from None
    except (ValueError, RecursionError):  # JSON lines, or another format: their reader says what is wrong with them
        return None
    whole = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys)
    return content if whole else None


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _numbered(file: str, document: dict[str, Any], key: str) -> Iterator[Record]:
    """The records of a document's list, each with its number."""
    for number, record in enumerate(_list(document, key), start=1):
        yield Where(file, record=number), record


def _people(where: Where, note: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """People's answers to a question of VQAv2, and their kind."""
    answers = _field(where, note, "answers")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"{where}: answers is {shown(answers)}; it must be a list of one at least.")
    return tuple(_answer(where, answer, "answer") for answer in answers), _kind(where, note, "answer_type")


def _vqa_picture(where: Where, document: dict[str, Any], question: dict[str, Any]) -> str:
    """The name of a question's picture, which VQAv2 leaves to be worked out; that of "image" goes before."""
    if "image" in question:
        return _text(where, question, "image")
    try:
        return vqa_picture(document.get("data_subtype"), _id(where, question, "image_id"))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _talks(path: Path) -> bool:
    """Whether the first record is a conversation, as `minichat data split` writes them."""
    first = next(_lines(path, path.name), None)
    return isinstance(first, tuple) and isinstance(first[1], dict) and "messages" in first[1]


def _lines(path: Path, file: str) -> Iterator[Value | Problem]:
    """The records of a file. Raises `DataError` for one that cannot be read."""
    try:
        yield from records(path, file)
    except FileNotFoundError:
        raise DataError(f"{path.name!r} was not found: check the path.") from None
    except OSError as error:
        raise DataError(f"{path.name!r} cannot be read ({error.strerror}): check it.") from None


def _records(path: Path, file: str) -> Iterator[Record]:
    """The objects of JSON lines or of a JSON list, each with its line."""
    if path.is_dir():
        raise DataError(f"{path.name!r} is a folder: give the file of the questions, and with --images the pictures.")
    for record in _lines(path, file):
        if isinstance(record, Problem):
            raise DataError(str(record))
        where, value = record
        if not isinstance(value, dict):
            raise DataError(f"{where}: this is no JSON object: a record is one, with names before its values.")
        yield where, value


def _field(where: Where, record: Any, key: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise DataError(f"{where}: a record has no {key!r}.")
    return record[key]


def _id(where: Where, record: Any, key: str) -> Id:
    value = _field(where, record, key)
    found = as_id(value)
    if found is None:
        raise DataError(f"{where}: {key} is {shown(value)}; it must be a whole number or a text.")
    return found


def _text(where: Where, record: Any, key: str) -> str:
    value = _field(where, record, key)
    if isinstance(value, (int, float)):
        value = written(value) or value
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {shown(value)}; it must be text.")
    return words(value, f"{where}: {key}")


def _answer(where: Where, record: Any, key: str) -> str:
    return written(_text(where, record, key)) or ""


def _kind(where: Where, record: dict[str, Any], key: str) -> str:
    return words(str(record.get(key, "")), f"{where}: {key}")


def _texts(where: Where, record: dict[str, Any], key: str) -> list[str]:
    """One text or a list of them."""
    value = _field(where, record, key)
    if not isinstance(value, list):
        return [_text(where, record, key)]
    if not value:
        raise DataError(f"{where}: {key} is an empty list: there must be one at least.")
    return [_text(where, {key: one}, key) for one in value]


def _pair(example: Example) -> tuple[StoredPicture, list[str]]:
    """The picture of a record and its last reply, as pre-training takes it (`minichat.train.stages.qformer`)."""
    pictures, said = len(example.pictures), len(example.replies)
    if pictures != 1 or not said:
        raise DataError(f"{example.where}: this record has {pictures} pictures and {said} replies: captions need one.")
    return example.pictures[0], [example.replies[-1]]


def _dialogue(example: Example) -> OwnDialogue:
    system, asked = "", list[tuple[Ask, str]]()
    ask: Ask | None = None
    for turn in example.turns:
        text = "".join(part for part in turn.parts if isinstance(part, str))
        pictures = tuple(part for part in turn.parts if isinstance(part, StoredPicture))
        if turn.role == "system":
            system = text
        elif turn.role == "user":
            ask = asked[-1][0].then(Reply(asked[-1][1]), text, pictures) if asked else Ask(text, pictures, (), system)
        elif ask is not None:
            asked.append((ask, written(text) or text))
    return OwnDialogue(tuple(asked), str(example.where))


def as_gallery(captions: Sequence[OwnCaption], reranked: int = RERANKED) -> Gallery:
    """The same pictures and texts, to be found by each other."""
    texts = tuple((index, text) for index, item in enumerate(captions) for text in item.references)
    return Gallery(tuple(item.picture for item in captions), texts, reranked)
