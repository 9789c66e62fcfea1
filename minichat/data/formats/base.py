"""What all formats share: a record's words, pictures and keys are checked, and a caption gets its question."""

from __future__ import annotations

import base64
import binascii
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args
from urllib.request import url2pathname

from minichat.data import SeveralCaptions
from minichat.data.example import Cell, Example, Problem, StoredPicture, Turn, Where, read_text
from minichat.errors import DataError, SettingsError, shown
from minichat.prompt.conversation import Role

# --- Keys and values that may be passed over: they say where a record comes from, not what is to be learned.


#: In lower case. Names of records and their origin, sizes, scores, sorts; img2dataset's columns are among them.
_NAMES = """
annotator author category comment_number copyright created_at data_source dataset dataset_name date date_captured
difficulty error_message exif finish format guid hash idx index key lang language lead_time license licence link md5
meta metadata mime mime_type mode model nsfw num_bytes origin phash punsafe pwatermark sha1 sha256 similarity size
source sources split status subset subcategory task timestamp uid updated_at uri url urls uuid watermark
height width original_height original_width height_list width_list
imgid cocoid sentid sentids kind type answer_type question_type l2-category
"""
_HARMLESS = frozenset(_NAMES.split())
_ENDINGS = ("_id", "_ids", "_url", "_hash", "_score", "_similarity", "_width", "_height", "_license")
_INDEX = re.compile(r"(|unnamed: ?\d+|__.*__|ids?)")  # a table program's own, which has no name at times


def is_harmless(key: object) -> bool:
    """Whether a key of a record says nothing that a model could be meant to learn."""
    name = str(key).strip().casefold()
    return name in _HARMLESS or name.endswith(_ENDINGS) or _INDEX.fullmatch(name) is not None


def empty(value: object) -> bool:
    """Whether a value says nothing: none, blanks, an empty list or object (also as JSON), a table's missing number."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == [] or value == {}


# --- What all formats share: words, pictures and keys of a record are checked here, and so is the order of its turns.


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://", re.ASCII)
_FILE = "file://"
_FILMS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{60,}={0,2}\s*", re.ASCII)

Parts = list[str | StoredPicture]
OF_A_TURN, OF_A_PART = " of a turn", " of a part"


class LeftOut(DataError):
    """A record that says itself that it has nothing to learn from, such as a picture that could not be captioned."""


@dataclass
class Shelf:
    """What one record is read with: the folder that its pictures' paths start from, and its keys that nothing reads."""

    folder: Path
    unread: list[str] = field(default_factory=list)

    def only(self, value: Mapping[str, Any], known: Iterable[str], of: str = "") -> None:
        """Note each key that is not among the `known` ones, nor harmless or empty: what it says would be lost.

        Args:
            of: where the keys are, such as " of a turn". Those of a part are all taken at their word.
        """
        there = set(known)
        for key, given in value.items():
            if key not in there and not empty(given) and (of == OF_A_PART or not is_harmless(key)):
                self.unread.append(f"{shown(key)}{of}")

    def picture(self, name: object) -> StoredPicture:
        """The picture of this path, which is not opened yet; of bytes, also in base64; or of `{"bytes", "path"}`.

        Raises `DataError` for what is none of these.
        """
        if isinstance(name, StoredPicture):
            return name
        called = "a picture"
        if isinstance(name, dict):
            called = str(name.get("path") or called)
            name = name["bytes"] if name.get("bytes") is not None else name.get("path")
        if isinstance(name, bytes | Cell):
            return StoredPicture(called, name)
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"a picture is {shown(name)}: it must be the path of a file.")
        if name.startswith("data:"):
            return StoredPicture(called, of_base64(name, "a picture's data address"))
        if is_base64(name):
            return StoredPicture(called, of_base64(name, "a picture"))
        if name.startswith(_FILE):
            name = url2pathname(name.removeprefix(_FILE).removeprefix("localhost"))  # RFC 8089
        if _ADDRESS.match(name):
            raise DataError(
                f"the picture {shown(name)} is an address, and addresses are not fetched: save it and give its path."
            )
        if name.lower().endswith(_FILMS):
            raise DataError(f"{shown(name)} is a film: save its frames as pictures and give them as a list.")
        words(name, "a picture's path")
        return StoredPicture(name, self.folder / name)

    def pictures(self, names: object) -> list[StoredPicture]:
        """One path or a list of them, each perhaps a list of frames; nothing for None and an empty list."""
        if names is None:
            return []
        if isinstance(names, list):
            return [picture for name in names for picture in self.frames(name)]
        return [self.picture(names)]

    def frames(self, name: object) -> list[StoredPicture]:
        """One picture, or a list: the frames of a film."""
        if isinstance(name, list):
            if not name:
                raise DataError("a list of frames is empty: give the path of one at least.")
            return [self.picture(frame) for frame in name]
        return [self.picture(name)]


#: Reads one record: the turns of each of its samples, which are several where a picture has several captions.
Read = Callable[[Shelf, "Asking"], Iterable[Iterable[Turn]]]


@dataclass(frozen=True)
class Entry:
    """A record that is found but not read yet: passing it over costs nothing more."""

    where: Where
    folder: Path
    read: Read

    def examples(self, asking: Asking, unknown_keys: str = "refuse") -> Iterator[Example | Problem]:
        """Its samples, or what is wrong with it. Keys that nothing reads stand in each, unless they are ignored."""
        shelf = Shelf(self.folder)
        try:
            made = [example(turns, self.where) for turns in self.read(shelf, asking)]
        except DataError as error:
            yield Problem(self.where, str(error), mild=isinstance(error, LeftOut))
            return
        if unknown_keys != "ignore" and shelf.unread:
            made = [replace(one, unread=tuple(dict.fromkeys(shelf.unread))) for one in made]
        yield from made


def refusal(unread: Iterable[str]) -> str:
    """Why a record with keys that nothing reads is not learned from."""
    keys = list(unread)
    them = "it" if len(keys) == 1 else "them"
    return (
        f"nothing reads the key{'' if len(keys) == 1 else 's'} {', '.join(keys[:12])}: rename {them} to what is read, "
        f"remove {them}, or pass over such keys with unknown_keys: ignore (on the command line --unknown-keys ignore)."
    )


def is_base64(text: str) -> bool:
    """Whether a text is a picture in base64, by how it begins and by its letters."""
    if len(text) < 60:
        return False
    try:
        head = base64.b64decode(text[:16], validate=True)
    except (binascii.Error, ValueError):
        return False
    begins = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
    return (head.startswith(begins) or head[4:8] == b"ftyp") and _BASE64.fullmatch(text) is not None


def of_base64(text: str, what: str) -> bytes:
    """The bytes, of base64 or of a data address (RFC 2397: `data:image/png;base64,…`). Raises `DataError`."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise DataError(f"{what} is a data address that is not in base64: give the picture's path.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{what} does not hold valid base64.") from None


def words(value: object, what: str) -> str:
    """`value` if it is text that can be tokenised. Raises `DataError` naming `what` otherwise."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {kind(value)}: it must be text.")
    if "\0" in value:
        raise DataError(f"{what} holds a null character: remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{what} holds half of a surrogate pair, which is no character: remove it.") from None
    return value


def fields(value: object, what: str, wanted: tuple[str, ...]) -> Mapping[str, Any]:
    """`value` if it is an object that has the keys `wanted`; raises `DataError` otherwise."""
    if not isinstance(value, dict):
        raise DataError(f"{what} is {kind(value)}: it must be an object with {', '.join(map(repr, wanted))}.")
    for key in wanted:
        if value.get(key) is None:
            raise DataError(f"{what} has no {key!r}.")
    return value


def listed(value: object, what: str) -> list[Any]:
    """`value` if it is a list; raises `DataError` otherwise."""
    if not isinstance(value, list):
        raise DataError(f"{what} is {kind(value)}: it must be a list.")
    return value


def turn(role: Role, parts: Iterable[str | StoredPicture]) -> Turn:
    """A turn whose neighbouring words are one text, and which holds no empty one."""
    joined: Parts = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return Turn(role, tuple(joined))


def with_system(record: Mapping[str, Any], turns: Iterable[Turn]) -> list[Turn]:
    """The turns, before them the text under the record's key `system`, where there is one.

    Raises `DataError` where another system text is among the turns.
    """
    made = list(turns)
    if empty(record.get("system")):
        return made
    system = turn("system", [words(record["system"], "'system'")])
    if made and made[0].role == "system":
        if made[0] != system:
            raise DataError("one system text is under 'system' and another among the turns: keep one of them.")
        return made
    return [system, *made]


def example(turns: Iterable[Turn], where: Where) -> Example:
    """The record, if user and assistant take turns, the user first, the assistant last, and all have said something.

    Raises `DataError` naming the turn, counted from 1.
    """
    made = tuple(turns)
    said = [(number, turn) for number, turn in enumerate(made, start=1)]
    if said and made[0].role == "system":
        said = said[1:]
    if not said:
        raise DataError("there is no turn: a record needs a question and a reply.")
    for place, (number, turn) in enumerate(said):
        expected = "assistant" if place % 2 else "user"
        if turn.role != expected:
            raise DataError(
                f"turn {number} is of the {turn.role} where the {expected}'s is expected: after a system message, if "
                "there is one, user and assistant take turns and the user begins."
            )
        if turn.role == "assistant" and not turn.text.strip():
            raise DataError(f"turn {number}, a reply, is empty: write what is to be learned, or remove the record.")
        if turn.role == "user" and not any(not isinstance(part, str) or part.strip() for part in turn.parts):
            raise DataError(f"turn {number}, a question, is empty: it needs words or a picture.")
    if said[-1][1].role != "assistant":
        raise DataError(f"the reply to turn {said[-1][0]} is missing: a record ends with a reply.")
    for number, turn in enumerate(made, start=1):
        if turn.role != "user" and any(isinstance(part, StoredPicture) for part in turn.parts):
            raise DataError(f"turn {number}, of the {turn.role}, holds a picture: only the user can show one.")
    return Example(made, where)


def kind(value: object) -> str:
    """What a JSON value is, for a person."""
    if value is None:
        return "missing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


# --- How the texts of captions are changed before they are learned: as they are, or as MiniGPT-4's first stage did.


MOST_WORDS = 50
_MARKS = dict.fromkeys(map(ord, '.!"()*#:;~'), " ")


def blip_caption(text: str) -> str:
    """Lower case, ten marks of punctuation as spaces, single spaces, and the first 50 words.

    Source: LAVIS's `BlipCaptionProcessor` with its own settings, as MiniGPT-4's first stage uses it
    (minigpt4/processors/blip_processors.py, train_configs/minigpt4_stage1_pretrain.yaml).
    """
    single = re.sub(r"\s{2,}", " ", text.lower().translate(_MARKS)).strip(" \n")
    return " ".join(single.split(" ")[:MOST_WORDS])


CAPTIONS: dict[str, Callable[[str], str]] = {"verbatim": lambda text: text, "blip": blip_caption}


# --- What the user says to a picture that comes with a text alone, and what of the text is the reply.


#: MiniGPT-4's own instructions for its second stage.
ALIGNMENT = Path(__file__).parents[3] / "prompts" / "alignment.txt"
#: Of several texts of one picture: a sample for each, the first alone, or one that is drawn in each epoch.
SEVERAL: tuple[str, ...] = get_args(SeveralCaptions)


@dataclass(frozen=True)
class Asking:
    """How a picture and its text become a question and a reply.

    Args:
        instructions: what is asked, one of them drawn for each record and epoch; none: the picture is shown without a
            word, as in MiniGPT-4's first stage.
        captions: how the text is changed, by its name in `CAPTIONS`.
        several: which of several texts of one picture are learned, by its name in `SEVERAL`.
    """

    instructions: tuple[str, ...] = ()
    captions: str = "verbatim"
    several: str = "each"
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("captions", self.captions, tuple(CAPTIONS)),
            ("several_captions", self.several, SEVERAL),
        ):
            if not isinstance(value, str) or value not in known:
                raise SettingsError(f"{name} is {value!r}: use {' or '.join(map(repr, known))}.")

    def draw(self, record: str) -> str:
        """The instruction for a record: the same for equal seed, epoch and record, whatever else is read."""
        if not self.instructions:
            return ""
        return random.Random(f"instruction {self.seed} {self.epoch} {record}").choice(self.instructions)

    def worded(self, text: str) -> str:
        """A text as it is to be learned."""
        return CAPTIONS[self.captions](text)

    def chosen(self, record: str, texts: Sequence[str]) -> list[tuple[str, str]]:
        """Of a record's texts those that are used, each with a name of its own; the same for equal seed and epoch."""
        if len(texts) > 1 and self.several == "random":
            return [(record, random.Random(f"caption {self.seed} {self.epoch} {record}").choice(texts))]
        some = texts[:1] if self.several == "first" else texts
        return [(f"{record} {number}" if number else record, text) for number, text in enumerate(some)]

    def turns(self, record: str, pictures: list[StoredPicture], text: str) -> list[Turn]:
        """The picture or pictures with a drawn instruction, and the text."""
        return [turn("user", [*pictures, self.draw(record)]), turn("assistant", [self.worded(text)])]


def read_instructions(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a file of one instruction a line; lines that begin with `#` are remarks.

    Raises `DataError`, naming file and line, for a file without one, or with one that marks the picture's place.
    """
    if not isinstance(path, str | os.PathLike):
        raise SettingsError(f"instructions is {path!r}: it must be the path of a file.")
    shown = os.fspath(path)
    try:
        text = read_text(Path(path), Where(shown, 1))
    except OSError as error:
        raise DataError(f"The instructions {shown!r} cannot be read ({error.strerror}): name another file.") from None
    if isinstance(text, Problem):
        raise DataError(str(text))
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = Where(shown, number)
        if not line.strip() or line.startswith("#"):
            continue
        if "<ImageHere>" in line or "<image>" in line:
            raise DataError(f"{where}: an instruction is words alone, the picture comes before it: take its mark out.")
        lines.append(words(line.strip(), f"{where}: the instruction"))
    if not lines:
        raise DataError(f"{Where(shown, 1)}: the file is empty: write one instruction in every line.")
    return tuple(lines)


# --- The document in which COCO keeps all records of a data set.


IMAGES, NOTES = "images", "annotations"


def is_document(value: Any) -> bool:
    """Whether a file's content is COCO's, of captions or of anything else."""
    return isinstance(value, dict) and all(isinstance(value.get(key), list) for key in (IMAGES, NOTES))
