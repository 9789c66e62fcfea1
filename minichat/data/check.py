"""Everything that is wrong with a data set, by file and line, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from minichat.data.example import Example, Problem, StoredPicture, Where
from minichat.data.formats import Source, scan
from minichat.data.formats.marked import IMAGE
from minichat.data.formats.record import refusal
from minichat.data.lengths import plot
from minichat.errors import DataError, MiniChatError
from minichat.prompt.neutral import neutralise

if TYPE_CHECKING:
    from minichat.prompt.processing import MiniChatProcessor


@dataclass
class Report:
    """What was found: how many records there are and can be used, what is wrong, what is odd, and the lengths."""

    records: int = 0
    wrong: int = 0
    pictures: int = 0
    different_pictures: int = 0
    left_out: int = 0
    unread: dict[str, tuple[Where, int]] = field(default_factory=dict)  # a key: where it is first, in how many records
    notes: list[str] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)

    def summary(self) -> str:
        """Lines for a person: counts, notes and the lengths as bars."""
        lines = [
            f"Records: {self.records:,}. Good: {self.records - self.wrong - self.left_out:,}. Wrong: {self.wrong:,}.",
            f"Pictures: {self.pictures:,}. Different ones: {self.different_pictures:,}.",
            *self.notes,
        ]
        for title, lengths in self.lengths.items():
            lines += ["", *plot(title, lengths)]
        return "\n".join(lines)


def check(
    source: Source,
    form: str | None = None,
    *,
    processor: MiniChatProcessor | None = None,
    context: int | None = None,
    found: Callable[[Problem], None],
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Report:
    """Read every record and open every picture.

    Args:
        source, form, options: as `minichat.data.formats.read` takes them.
        processor: of the model that is to learn from it; tokens are counted with it.
        context: the most tokens that the model can read; a record that is longer is wrong.
        found: is told each thing that is wrong, as soon as it is found.
        progress: is told how many records are done.

    Raises `DataError` where there is nothing to read, `SettingsError` for an option that the format has not.
    """
    checker = _Checker(processor, context)
    for number, item in enumerate(scan(source, form, **options), start=1):
        problems = [item] if isinstance(item, Problem) else list(checker.problems(item))
        checker.report.records += 1
        checker.report.left_out += isinstance(item, Problem) and item.mild
        unread = isinstance(item, Example) and bool(item.unread)
        checker.report.wrong += unread or not all(problem.mild for problem in problems)
        for problem in problems:
            found(problem)
        if progress is not None:
            progress(number)
    return checker.finish()


class _Checker:
    """Remembers what it has seen: pictures by their place, records by what they say."""

    def __init__(self, processor: MiniChatProcessor | None, context: int | None) -> None:
        self.report = Report()
        self._processor = processor
        self._context = context
        self._blank = Image.new("RGB", (1, 1))
        self._pictures: dict[Path, str | DataError] = {}
        self._contents: set[str] = set()
        self._records: dict[bytes, Where] = {}
        self._systems: Counter[str] = Counter()
        self._broken_markers = 0
        self._typed_marks = 0
        self._without_picture = 0

    def problems(self, example: Example) -> Iterator[Problem]:
        """What is wrong with one record, each thing once."""
        where = example.where
        new = [key for key in example.unread if key not in self.report.unread]
        if new:
            yield Problem(where, refusal(new))
        for key in example.unread:
            place, count = self.report.unread.get(key, (where, 0))
            self.report.unread[key] = place, count + 1
        keys = []
        for picture in example.pictures:
            content = self._key(picture)
            if isinstance(content, DataError):
                yield Problem(where, str(content))
            else:
                self._contents.add(content)
            keys.append(str(content))
        first = self._records.setdefault(_identity(example, keys), where)
        if first is not where:
            yield Problem(where, f"the record says the same as {first}: remove one of them.", mild=True)
        for number, turn in enumerate(example.turns, start=1):
            if turn.role == "system" and not turn.text.strip():
                yield Problem(where, f"turn {number}, the system text, is empty: write one, or leave the turn out.")
        yield from self._count(example)

    def finish(self) -> Report:
        """The report, its notes written."""
        report = self.report
        report.different_pictures = len(self._contents)
        read = len(self._records)
        if report.left_out:
            report.notes.append(f"Records left out, which hold an error in place of a caption: {report.left_out:,}.")
        for key, (where, count) in report.unread.items():
            report.notes.append(f"Records with the key {key}, which nothing reads: {count:,}; the first is {where}.")
        if self._without_picture:
            report.notes.append(f"Records without a picture: {self._without_picture:,}.")
        with_system = self._systems.total()
        if 0 < with_system < read:
            report.notes.append(
                f"Records with a system text: {with_system:,}; the others are spelled with the template's."
            )
        elif len(self._systems) > 1:
            report.notes.append(f"Different system texts: {len(self._systems):,}.")
        if self._typed_marks:
            report.notes.append(f"Records whose questions hold {IMAGE}, there a word: {self._typed_marks:,}.")
        if self._broken_markers:
            report.notes.append(
                f"Replies that spell a marker of the template: {self._broken_markers:,}; it gets a hyphen in it."
            )
        return report

    def _key(self, picture: StoredPicture) -> str | DataError:
        """The picture's content, if it can be opened; each file is opened once."""
        if not isinstance(picture.source, Path):
            return _content(picture)
        if picture.source not in self._pictures:
            self._pictures[picture.source] = _content(picture)
        return self._pictures[picture.source]

    def _count(self, example: Example) -> Iterator[Problem]:
        lengths = self.report.lengths
        shown, replies = len(example.pictures), example.replies
        self.report.pictures += shown
        self._without_picture += not shown
        self._typed_marks += any(IMAGE in turn.text for turn in example.turns if turn.role == "user")
        self._systems.update(turn.text for turn in example.turns if turn.role == "system")
        lengths.setdefault("replies in a record", []).append(len(replies))
        lengths.setdefault("pictures in a record", []).append(shown)
        if self._processor is None:
            lengths.setdefault("words in a reply", []).extend(len(reply.split()) for reply in replies)
            return
        template = self._processor.spelling
        self._broken_markers += sum(neutralise(reply, template) != reply for reply in replies)
        tokenizer = self._processor.content_tokenizer
        lengths.setdefault("tokens in a reply", []).extend(len(tokenizer.encode(reply)) for reply in replies)
        try:
            conversation = example.conversation(pictures=[self._blank] * shown)
            total = len(self._processor.render(conversation).ids)
        except MiniChatError as error:
            yield Problem(example.where, str(error).removeprefix(f"{example.where}: "))
            return
        lengths.setdefault("tokens in a record", []).append(total)
        if self._context is not None and total > self._context:
            yield Problem(
                example.where,
                f"the record has {total:,} tokens, and the model reads {self._context:,}: shorten it, or divide it.",
            )


def _content(picture: StoredPicture) -> str | DataError:
    try:
        held = StoredPicture(picture.name, picture.read())
        held.open()
        return held.key()
    except DataError as error:
        return error.with_traceback(None)


def _identity(example: Example, keys: list[str]) -> bytes:
    """A digest of what is said and shown."""
    shown = iter(keys)
    turns = [
        (turn.role, [part if isinstance(part, str) else (next(shown),) for part in turn.parts])
        for turn in example.turns
    ]
    return hashlib.sha256(repr(turns).encode("utf-8", "surrogateescape")).digest()
