"""A data set before anything is trained on it: what is wrong with it, how long its samples are, what is supervised."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from minichat.data.example import Example, Problem, StoredPicture, Where
from minichat.data.formats import Source, scan
from minichat.data.formats.base import refusal
from minichat.data.formats.chat import IMAGE
from minichat.errors import DataError, MiniChatError
from minichat.prompt.template import neutralise

if TYPE_CHECKING:
    from minichat.prompt.processor import MiniChatProcessor
    from minichat.prompt.render import Rendered


# --- How often each length occurs, as bars of text.


_WIDTH = 40  # of the longest bar, in characters
_BARS = 8


def plot(title: str, lengths: Sequence[int]) -> list[str]:
    """Lines: a title with the smallest, middle and largest length, and a bar for each length or range of lengths."""
    if not lengths:
        return []
    ordered = sorted(lengths)
    least, middle, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    step = _step(most - least + 1)
    first = least - least % step
    counts = Counter((length - first) // step for length in lengths)
    bins = range((most - first) // step + 1)
    names = [_name(first + number * step, step) for number in bins]
    wide, high = max(map(len, names)), max(counts.values())
    lines = [f"{title}: {least:,} to {most:,}, half of them up to {middle:,}"]
    for number, name in zip(bins, names, strict=True):
        bar = "█" * -(-counts[number] * _WIDTH // high)
        lines.append(f"  {name:>{wide}}  {bar:<{_WIDTH}} {counts[number]:,}".rstrip())
    return lines


def _step(span: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … by which few bars cover `span` lengths."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if span <= factor * power * _BARS:
                return factor * power
        power *= 10


def _name(first: int, step: int) -> str:
    return f"{first:,}" if step == 1 else f"{first:,}–{first + step - 1:,}"


# --- Everything that is wrong with a data set, by file and line, before anything is trained on it.


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
            report.notes.append(f"Records left out, which hold nothing to learn: {report.left_out:,}.")
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


# --- Samples as the model is to see them, with what it learns from in colour: in a terminal, and as a page.
#
# The words are decoded from the very ids and loss mask that training takes, so that a label in the wrong place shows.


THUMBNAIL = 160  # the longer side of a picture on the page, in pixels

_SUPERVISED, _CONTROL, _PICTURE, _PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[36m", "\x1b[0m"


@dataclass(frozen=True)
class Piece:
    """Neighbouring ids of one kind: words, a control id, or the slots of one picture."""

    text: str
    supervised: bool = False
    control: bool = False
    picture: int | None = None  # its number among the sample's pictures, from 0


@dataclass(frozen=True)
class Sample:
    """A record, spelled for a model: T ids, of which some are supervised."""

    where: Where
    pieces: tuple[Piece, ...]
    pictures: tuple[StoredPicture, ...]
    tokens: int
    supervised: int


def sample(example: Example, processor: MiniChatProcessor) -> Sample:
    """Spell a record as training does; no picture is opened.

    Raises `DataError`, with file and line, for one that cannot be spelled.
    """
    blank = Image.new("RGB", (1, 1))
    conversation = example.conversation(pictures=[blank] * len(example.pictures))
    try:
        rendered = processor.render(conversation)
    except MiniChatError as error:
        raise DataError(f"{example.where}: {error}") from None
    pieces = tuple(_pieces(rendered, processor))
    return Sample(example.where, pieces, example.pictures, len(rendered.ids), sum(rendered.loss_mask))


def to_terminal(samples: Iterable[Sample], colour: bool) -> Iterator[str]:
    """Each sample as text. Without colour, what is supervised stands in ⟦ ⟧."""
    for one in samples:
        lines = [f"── {_visible(str(one.where))}: {one.tokens:,} tokens, {one.supervised:,} supervised "]
        lines[0] += "─" * max(0, 80 - len(lines[0]))
        lines.append("".join(_painted(piece, one, colour) for piece in one.pieces))
        yield "\n".join(lines) + "\n"


def to_html(samples: Iterable[Sample]) -> str:
    """A page that holds everything it shows, loads nothing and runs nothing."""
    return _PAGE.format(samples="\n".join(_section(one) for one in samples))


def _pieces(rendered: Rendered, processor: MiniChatProcessor) -> Iterator[Piece]:
    """The ids in runs."""
    controls = processor.controls
    slots, n = 0, processor.num_image_tokens
    words: list[int] = []
    supervised: list[bool] = []
    for token, learn in zip(rendered.ids, rendered.loss_mask, strict=True):
        if token not in controls and token != processor.image_token_id:
            words.append(token)
            supervised.append(learn)
            continue
        yield from _words(words, supervised, processor)
        words, supervised = [], []
        if token in controls:
            yield Piece(controls[token], learn, control=True)
        else:
            slots += 1
            if slots % n == 0:
                yield Piece(f"{n} slots", learn, picture=slots // n - 1)
    yield from _words(words, supervised, processor)


def _words(ids: list[int], supervised: list[bool], processor: MiniChatProcessor) -> Iterator[Piece]:
    """Words between two other things, cut where learning begins or ends.

    Each cut is found in the text of all of them, since a tokenizer drops the space at the beginning of what it decodes.
    """
    decode = processor.content_tokenizer.decode
    done = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or supervised[place] != supervised[place - 1]:
            text = decode(ids[:place])
            yield Piece(text[done:], supervised[place - 1])
            done = len(text)


def _painted(piece: Piece, one: Sample, colour: bool) -> str:
    text = _visible(piece.text)
    if piece.picture is not None:
        text = f"[picture {piece.picture + 1}: {_visible(one.pictures[piece.picture].name)}, {piece.text}]"
    if not colour:
        return f"⟦{text}⟧" if piece.supervised else text
    paint = (
        _SUPERVISED
        if piece.supervised
        else _PICTURE
        if piece.picture is not None
        else _CONTROL
        if piece.control
        else ""
    )
    return f"{paint}{text}{_PLAIN}" if paint else text


def _visible(text: str) -> str:
    """Text that cannot steer a terminal: what is neither to be seen nor a line break is spelled out."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else f"\\x{ord(c):02x}" for c in text)


def _section(one: Sample) -> str:
    shown = []
    for number, picture in enumerate(one.pictures, start=1):
        caption = html.escape(f"{number}: {picture.name}")
        shown.append(f"<figure>{_thumbnail(picture)}<figcaption>{caption}</figcaption></figure>")
    words = "".join(_span(piece) for piece in one.pieces)
    title = html.escape(f"{one.where}: {one.tokens:,} tokens, {one.supervised:,} supervised")
    return f"<section><h2>{title}</h2><div>{''.join(shown)}</div><p>{words}</p></section>"


def _span(piece: Piece) -> str:
    text = html.escape(_visible(piece.text))
    if piece.picture is not None:
        return f'<span class="picture">[picture {piece.picture + 1}, {text}]</span>'
    kind = "supervised" if piece.supervised else "control" if piece.control else ""
    return f'<span class="{kind}">{text}</span>' if kind else text


def _thumbnail(picture: StoredPicture) -> str:
    try:
        small = picture.open()
    except DataError as error:
        return f'<p class="wrong">{html.escape(str(error))}</p>'
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}">'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Preview</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; background: #fff; }}
section {{ border-top: 1px solid #ccc; padding: .5rem 0 1rem; }}
h2 {{ font-size: 1rem; font-weight: 600; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .9rem; }}
figure {{ display: inline-block; margin: 0 1rem .5rem 0; vertical-align: top; }}
figcaption {{ font-size: .8rem; color: #595959; overflow-wrap: anywhere; max-width: 160px; }}
.supervised {{ background: #b8e6c1; color: #06310f; }}
.control {{ color: #767676; }}
.picture {{ color: #0b5a8a; }}
.wrong {{ color: #a11; max-width: 20rem; }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #eee; background: #181818; }}
  section {{ border-color: #444; }}
  figcaption {{ color: #aaa; }}
  .supervised {{ background: #14532d; color: #dcfce7; }}
  .control {{ color: #8f8f8f; }}
  .picture {{ color: #7cc4f0; }}
  .wrong {{ color: #ff8f8f; }}
}}
</style>
<h1>What the model is to learn</h1>
<p>The <span class="supervised">marked</span> words are supervised; all others are given to the model.</p>
{samples}
</html>
"""
