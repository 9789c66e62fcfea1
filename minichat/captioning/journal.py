"""The record of a captioning run, an SQLite file beside the output; prompts, and the words of captions."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where, read_text
from minichat.errors import DataError, PromptError, SettingsError, shown

# --- Words in and out: prompts with a picture's own words in them, and what becomes of a caption before it is written.


_PLACEHOLDER = re.compile(r"\{(name|folder|caption)\}")


def read_prompts(path: Path) -> list[str]:
    """A file of one prompt a line; lines that begin with `#` are remarks. Raises `DataError` for one without any."""
    try:
        text = read_text(path, Where(os.fspath(path), 1))
    except OSError as error:
        raise DataError(f"The prompts {str(path)!r} cannot be read ({error.strerror}): name another file.") from None
    if isinstance(text, Problem):
        raise DataError(str(text))
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise DataError(f"{str(path)!r} holds no prompt: write one in every line.")
    return found


def needs_caption(prompts: Sequence[str | None]) -> bool:
    """Whether a prompt asks for the caption that a picture has already."""
    return any(prompt is not None and "{caption}" in prompt for prompt in prompts)


def filled(prompt: str | None, place: str, before: str | None) -> str | None:
    """The prompt with `{name}` (the file's, without its ending), `{folder}` and `{caption}` in it; other braces stay.

    Raises `PromptError` where a picture has no caption that could stand there.
    """
    if prompt is None:
        return None
    path = Path(os.path.abspath(place))
    words: dict[str, Callable[[], str]] = {
        "name": lambda: path.name.split(".")[0] or path.name,
        "folder": lambda: path.parent.name,
        "caption": lambda: _before(before),
    }
    return _PLACEHOLDER.sub(lambda found: _legible(words[found[1]]()), prompt)


def _before(text: str | None) -> str:
    if text is None:
        raise PromptError("The prompt asks for the picture's {caption}, and it has none: write one, or ask otherwise.")
    return text


def _legible(text: str) -> str:
    """A name that is no Unicode, with marks in place of what cannot be read."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


@dataclass(frozen=True)
class Shape:
    """What becomes of a caption before it is written, in this order. Raises `SettingsError` for what cannot be."""

    one_line: bool = False  # line breaks and runs of blanks become one blank
    forbid: tuple[str, ...] = ()  # words, or several in a row, that are taken out wherever they stand whole
    words: int | None = None  # the first so many
    prefix: str = ""
    suffix: str = ""
    triggers: tuple[str, ...] = ()  # words that stand first, each with a comma
    append: bool = False  # all of this after the caption that the picture had already
    boxes: bool = False  # beside it, the boxes that it names

    def __post_init__(self) -> None:
        if self.words is not None and (isinstance(self.words, bool) or self.words < 1):
            raise SettingsError(f"words is {self.words!r}; it must be a whole number of at least 1.")
        for word in self.forbid:
            if not word.strip():
                raise SettingsError("A word to forbid is empty: name one.")
        object.__setattr__(self, "_forbidden", _forbidden(self.forbid))

    def apply(self, caption: str, before: str | None = None) -> str:
        """The caption as it is written; `before` is what the picture had already."""
        text = " ".join(caption.split()) if self.one_line else caption
        forbidden: re.Pattern[str] | None = getattr(self, "_forbidden", None)
        if forbidden is not None:
            text = _tidied(forbidden.sub("", text))
        if self.words is not None:
            found = list(re.finditer(r"\S+", text))
            if len(found) > self.words:
                text = text[: found[self.words - 1].end()]
        text = f"{self.prefix}{text}{self.suffix}"
        text = ", ".join((*self.triggers, text) if text else self.triggers)
        return " ".join(filter(None, (before, text))) if self.append else text

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> Shape:
        held: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in facts.items()}
        return cls(**held)


def _forbidden(words: tuple[str, ...]) -> re.Pattern[str] | None:
    """Each of the words, in any case, where it is no part of a longer one."""
    if not words:
        return None
    longest_first = sorted((word.strip() for word in words), key=len, reverse=True)
    spelled = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{spelled})(?!\w)", re.IGNORECASE)


def _tidied(text: str) -> str:
    """Without the blanks and commas that are left where words were taken out."""
    text = re.sub(r"[ \t]{2,}", " ", text)
    text = re.sub(r"[ \t]+(?=[,.;:!?])", "", text)
    text = re.sub(r",(?:\s*,)+", ",", text)
    text = re.sub(r",(?=[.;:!?])", "", text)
    return re.sub(r"^[\s,;:]+", "", text).rstrip(" \t,;:")


# --- The record of a captioning run: an SQLite file beside the output, from which every output can be written again.
#
# A result is in it, and on the disk, before any output shows it. So a process may be stopped at any moment: the next
# one finds what is done by each picture's place, content and prompt, and brings the output up to date.


_FORMAT = "minichat-captions-1"
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    number INTEGER PRIMARY KEY,
    place BLOB NOT NULL, question INTEGER NOT NULL,
    stamp TEXT, content TEXT, asked BLOB,
    caption BLOB, error BLOB, cut INTEGER NOT NULL, before BLOB, id TEXT, picture TEXT,
    fixed INTEGER NOT NULL, shard INTEGER, gone INTEGER NOT NULL DEFAULT 0,
    UNIQUE (place, question)
);
CREATE INDEX IF NOT EXISTS by_content ON results (content);
CREATE INDEX IF NOT EXISTS by_shard ON results (shard);
CREATE TEMP TABLE taken (key BLOB PRIMARY KEY, place BLOB NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TEMP TABLE plan (
    number INTEGER PRIMARY KEY,
    place BLOB NOT NULL UNIQUE, picture TEXT NOT NULL, bytes BLOB, stamp TEXT NOT NULL, before BLOB, id TEXT
);
"""
_RESULT = "number, place, question, stamp, content, asked, caption, error, cut, before, id, picture, fixed, shard, gone"
# A picture is done where each of its prompts has a result for the file as it is.
_LOOSE = "shard IS NULL AND error IS NULL AND gone = 0 AND picture != 'null'"
_DONE = "results.place = plan.place AND results.gone = 0 AND results.stamp = plan.stamp"


@dataclass(frozen=True)
class Result:
    """What came of one picture and one prompt.

    `fixed`: the caption is as a person left it, or as an earlier output had it, and is not shaped again.
    """

    place: str
    question: int = 0  # the prompt's number
    stamp: str | None = None  # by which an unchanged file is known without being read
    content: str | None = None  # a hash of the file
    asked: str | None = None  # the prompt as it was put; None: the model's own
    caption: str | None = None
    error: str | None = None
    cut: bool = False
    before: str | None = None  # the caption that the picture had already
    id: str | None = None  # what the source calls it: COCO's image id, a tar's key
    picture: dict[str, Any] | None = None  # where it is, see `sources`
    fixed: bool = False
    shard: int | None = None  # the tar of the output that holds it
    gone: bool = False  # the picture is not there any more
    number: int | None = None  # its place in the order of the output


@dataclass(frozen=True)
class Planned:
    """A picture that is to be captioned, as it stands in the plan."""

    place: str
    picture: dict[str, Any]  # where it is, see `sources`
    stamp: str
    before: str | None = None
    id: str | None = None
    data: bytes | None = None
    number: int = 0


class Journal:
    """One run's record. `path` None: a temporary one, for an output that nobody can go on with."""

    def __init__(self, path: Path | None, copied: bool = False) -> None:
        """Open the record, or make it. `copied`: work on a temporary copy.

        Raises `DataError` where that cannot be, or another process is at work.
        """
        self.path = path
        self._new = path is None or not path.exists()
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        opened = path
        if path is not None and copied:
            self._aside = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            opened = Path(self._aside.name) / path.name
            for name in (path.name, f"{path.name}-wal"):
                with suppress(FileNotFoundError):
                    shutil.copyfile(path.with_name(name), opened.with_name(name))
        elif path is not None and self._new:  # the log of a record that was removed is of no other
            path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
        with self._told():
            self._db = sqlite3.connect("" if opened is None else os.fspath(opened), timeout=1, isolation_level=None)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")  # one wait for the disk at each commit, not three
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA temp_store = FILE")
            self._db.execute("BEGIN EXCLUSIVE")
            for statement in _TABLES.split(";")[:-1]:
                self._db.execute(statement)
            known = self.fact("format")
            if known not in (None, _FORMAT):
                raise DataError(f"{self._shown()} is of another version of minichat ({known}): go on with that one.")
            self.note(format=_FORMAT)
            self._db.execute("COMMIT")

    def _shown(self) -> str:
        return "The record of this run" + ("" if self.path is None else f" ({str(self.path)!r})")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refusal(error) from None

    def _refusal(self, error: sqlite3.Error) -> DataError:
        text, name = str(error), self._shown()
        if "locked" in text:
            return DataError(f"{name} is in use: another process writes this output; wait for it, or name another.")
        if isinstance(error, sqlite3.OperationalError):
            return DataError(
                f"{name} cannot be written ({text}): make room or check the folder, and the same command goes on."
            )
        return DataError(f"{name} is damaged ({text}): remove it; what is in the output is then gone on with.")

    def close(self) -> None:
        """Leave nothing behind where nothing was noted."""
        empty = False
        try:
            empty = self._new and not self._db.execute("SELECT 1 FROM results LIMIT 1").fetchone()
        except sqlite3.Error:
            pass
        self._db.close()
        if self._aside is not None:
            self._aside.cleanup()
        elif empty and self.path is not None:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All that is written within is on the disk afterwards, or none of it."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # --- facts

    def fact(self, name: str) -> Any:
        found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def note(self, **facts: Any) -> None:
        with self._told():
            self._db.executemany("REPLACE INTO facts VALUES (?, ?)", [(k, json.dumps(v)) for k, v in facts.items()])

    # --- the plan

    def plan(self, pictures: Iterable[Planned]) -> None:
        """Add pictures to what this command is about; each place counts once."""
        with self.writing():
            self._db.executemany(
                "INSERT OR IGNORE INTO plan VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                ((_blob(p.place), json.dumps(p.picture), p.data, p.stamp, _blob(p.before), p.id) for p in pictures),
            )

    def take(self, key: str, place: str) -> str | None:
        """Note what a planned picture is called in the output; what is wrong where it cannot be called so."""
        held = _blob(key), _blob(place)
        self._db.execute("INSERT OR IGNORE INTO taken VALUES (?, ?)", held)
        for other_key, other in self._db.execute("SELECT * FROM taken WHERE key = ? OR place = ?", held):
            if other != held[1]:
                return f"{shown(_text(other))} and {shown(place)} would both be {shown(key)} in the output: name one."
            if other_key != held[0]:
                return (
                    f"{shown(place)} would be {shown(_text(other_key))} and {shown(key)} in the output: name it once."
                )
        return None

    def believe(self) -> None:
        """What was taken over from an output without a record is true of the files as they are now."""
        with self.writing():
            self._db.execute(
                "UPDATE results SET stamp = (SELECT stamp FROM plan WHERE plan.place = results.place) "
                "WHERE stamp IS NULL AND place IN (SELECT place FROM plan)"
            )

    def retry(self) -> None:
        """Errors count as not done."""
        with self.writing():
            self._db.execute(
                "UPDATE results SET stamp = '', content = NULL WHERE error IS NOT NULL "
                "AND place IN (SELECT place FROM plan)"
            )

    def count(self) -> int:
        """How many pictures are planned."""
        return int(self._db.execute("SELECT COUNT(*) FROM plan").fetchone()[0])

    def waiting(self, questions: int) -> int:
        """How many of them are still to be looked at."""
        todo = f"(SELECT COUNT(*) FROM results WHERE {_DONE}) < ?"
        return int(self._db.execute(f"SELECT COUNT(*) FROM plan WHERE {todo}", (questions,)).fetchone()[0])

    def todo(self, questions: int, at_once: int = 256) -> Iterator[Planned]:
        """The pictures that lack a result for a prompt, or have changed, in order; results may be added meanwhile."""
        last = 0
        while True:
            rows = self._db.execute(
                "SELECT number, place, picture, bytes, stamp, before, id FROM plan WHERE number > ? AND "
                f"(SELECT COUNT(*) FROM results WHERE {_DONE}) < ? ORDER BY number LIMIT ?",
                (last, questions, at_once),
            ).fetchall()
            if not rows:
                return
            for number, place, picture, data, stamp, before, key in rows:
                yield Planned(_text(place), json.loads(picture), stamp, _maybe(before), key, data, number)
            last = rows[-1][0]

    def data(self, place: str) -> bytes | None:
        """The bytes of a planned picture that stood in a list itself."""
        found = self._db.execute("SELECT bytes FROM plan WHERE place = ?", (_blob(place),)).fetchone()
        return None if found is None else found[0]

    def unplanned(self) -> Iterator[str]:
        """The places of results that this command names no more, of files and not of what is within one."""
        asked = "SELECT DISTINCT place, picture FROM results WHERE gone = 0 AND place NOT IN (SELECT place FROM plan)"
        for place, picture in self._db.execute(asked):
            known = json.loads(picture)
            if known is None or "path" in known:
                yield _text(place)

    def tally(self) -> tuple[int, int, int, int]:
        """Of the planned pictures' results: how many there are, have failed, were cut off, are empty."""
        found = self._db.execute(
            "SELECT COUNT(*), SUM(error IS NOT NULL), SUM(cut), SUM(error IS NULL AND caption = x'') FROM results "
            "WHERE gone = 0 AND place IN (SELECT place FROM plan)"
        ).fetchone()
        return int(found[0]), int(found[1] or 0), int(found[2] or 0), int(found[3] or 0)

    def failures(self, most: int) -> list[Result]:
        """The first planned pictures that have an error."""
        asked = (
            f"SELECT {_RESULT} FROM results WHERE error IS NOT NULL AND gone = 0 "
            "AND place IN (SELECT place FROM plan) ORDER BY number LIMIT ?"
        )
        return [_result(row) for row in self._db.execute(asked, (most,)).fetchall()]

    # --- results

    def known(self, place: str, question: int) -> Result | None:
        """The result for a place and a prompt, also of a picture that is gone."""
        asked = f"SELECT {_RESULT} FROM results WHERE place = ? AND question = ?"
        found = self._db.execute(asked, (_blob(place), question)).fetchone()
        return None if found is None else _result(found)

    def equal(self, content: str, asked: str | None) -> Result | None:
        """A caption of the same content that answered the same prompt."""
        found = self._db.execute(
            f"SELECT {_RESULT} FROM results WHERE content = ? AND asked IS ? AND error IS NULL AND fixed = 0 LIMIT 1",
            (content, _blob(asked)),
        ).fetchone()
        return None if found is None else _result(found)

    def add(self, results: Iterable[Result]) -> list[Result]:
        """Note results. Returns those that are new; one in place of an earlier result keeps its place in the order,
        and the output is then noted to be stale.
        """
        new = []
        for one in results:
            values = {
                "stamp": one.stamp,
                "content": one.content,
                "asked": _blob(one.asked),
                "caption": _blob(one.caption),
                "error": _blob(one.error),
                "cut": int(one.cut),
                "before": _blob(one.before),
                "id": one.id,
                "picture": json.dumps(one.picture),
                "fixed": int(one.fixed),
            }
            key = (_blob(one.place), one.question)
            changed = self._db.execute(
                f"UPDATE results SET {', '.join(f'{name} = ?' for name in values)}, gone = 0 "
                "WHERE place = ? AND question = ?",
                (*values.values(), *key),
            ).rowcount
            if changed:
                self.note(stale=True)
                continue
            marks = ", ".join("?" * (len(values) + 2))
            added = self._db.execute(
                f"INSERT INTO results ({', '.join(values)}, place, question) VALUES ({marks})", (*values.values(), *key)
            )
            new.append(replace(one, number=added.lastrowid))
        return new

    def refresh(self, place: str, stamp: str) -> None:
        """A file that was read again and is what it was."""
        self._db.execute("UPDATE results SET stamp = ? WHERE place = ? AND gone = 0", (stamp, _blob(place)))

    def forget(self, places: Iterable[str]) -> None:
        """Pictures that are gone: they stand in no output, and their captions wait for the file to come back."""
        self._db.executemany("UPDATE results SET gone = 1 WHERE place = ?", [(_blob(place),) for place in places])
        self.note(stale=True)

    def results(self, after: int = 0, at_once: int = 1000) -> Iterator[Result]:
        """The results that outputs show, in their order; a few at a time, so that they may be written to meanwhile."""
        while True:
            rows = self._db.execute(
                f"SELECT {_RESULT} FROM results WHERE number > ? AND gone = 0 ORDER BY number LIMIT ?", (after, at_once)
            ).fetchall()
            yield from map(_result, rows)
            if len(rows) < at_once:
                return
            after = rows[-1][0]

    # --- tars that hold them

    def shards(self) -> int:
        """How many tars there are."""
        return int(self._db.execute("SELECT COALESCE(MAX(shard) + 1, 0) FROM results").fetchone()[0])

    def without_shard(self, questions: int, most: int) -> list[list[Result]]:
        """The first pictures that are in none and have an answer to each prompt, with their captions."""
        asked = (
            f"SELECT place FROM results WHERE {_LOOSE} AND (SELECT COUNT(*) FROM results AS all_of "
            "WHERE all_of.place = results.place) >= ? GROUP BY place ORDER BY MIN(number) LIMIT ?"
        )
        places = [_text(place) for (place,) in self._db.execute(asked, (questions, most)).fetchall()]
        found = [[self.known(place, question) for question in range(questions)] for place in places]
        return [[one for one in results if one is not None and one.error is None] for results in found]

    def in_shard(self, places: Iterable[str], number: int) -> None:
        self._db.executemany(
            "UPDATE results SET shard = ? WHERE place = ?", [(number, _blob(place)) for place in places]
        )

    def __len__(self) -> int:
        """How many results outputs show."""
        return int(self._db.execute("SELECT COUNT(*) FROM results WHERE gone = 0").fetchone()[0])


def _blob(text: str | None) -> bytes | None:
    """Text as bytes: a file's name may hold what is no Unicode, which SQLite's text cannot."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


def _maybe(blob: bytes | None) -> str | None:
    return None if blob is None else _text(blob)


def _result(row: tuple[Any, ...]) -> Result:
    number, place, question, stamp, content, asked, caption, error, cut, before, key, picture, fixed, shard, gone = row
    return Result(
        place=_text(place),
        question=question,
        stamp=stamp,
        content=content,
        asked=_maybe(asked),
        caption=_maybe(caption),
        error=_maybe(error),
        cut=bool(cut),
        before=_maybe(before),
        id=key,
        picture=json.loads(picture),
        fixed=bool(fixed),
        shard=shard,
        gone=bool(gone),
        number=number,
    )
