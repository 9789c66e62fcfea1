"""Samples as the model is to see them, with what it learns from in colour: in a terminal, and as a page.

The words are decoded from the very ids and loss mask that training takes, so that a label in the wrong place shows.
"""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from minichat.data.example import Example, StoredPicture, Where
from minichat.errors import DataError, MiniChatError
from minichat.prompt.render import Rendered

if TYPE_CHECKING:
    from minichat.prompt.processing import MiniChatProcessor

THUMBNAIL = 160  # the longer side of a picture on the page, in pixels

_LEARNT, _CONTROL, _PICTURE, _PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[36m", "\x1b[0m"


@dataclass(frozen=True)
class Piece:
    """Neighbouring ids of one kind: words, a control id, or the slots of one picture; `learnt`: they are supervised."""

    text: str
    learnt: bool = False
    control: bool = False
    picture: int | None = None  # its number among the sample's pictures, from 0


@dataclass(frozen=True)
class Sample:
    """A record, spelled for a model: T ids, of which some are learnt."""

    where: Where
    pieces: tuple[Piece, ...]
    pictures: tuple[StoredPicture, ...]
    tokens: int
    learnt: int


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
    """Each sample as text. Without colour, what is learnt stands in ⟦ ⟧."""
    for one in samples:
        lines = [f"── {_visible(str(one.where))}: {one.tokens:,} tokens, {one.learnt:,} learnt "]
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
    learnt: list[bool] = []
    for token, learn in zip(rendered.ids, rendered.loss_mask, strict=True):
        if token not in controls and token != processor.image_token_id:
            words.append(token)
            learnt.append(learn)
            continue
        yield from _words(words, learnt, processor)
        words, learnt = [], []
        if token in controls:
            yield Piece(controls[token], learn, control=True)
        else:
            slots += 1
            if slots % n == 0:
                yield Piece(f"{n} slots", learn, picture=slots // n - 1)
    yield from _words(words, learnt, processor)


def _words(ids: list[int], learnt: list[bool], processor: MiniChatProcessor) -> Iterator[Piece]:
    """Words between two other things, cut where learning begins or ends.

    Each cut is found in the text of all of them, since a tokenizer drops the space at the beginning of what it decodes.
    """
    decode = processor.content_tokenizer.decode
    done = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or learnt[place] != learnt[place - 1]:
            text = decode(ids[:place])
            yield Piece(text[done:], learnt[place - 1])
            done = len(text)


def _painted(piece: Piece, one: Sample, colour: bool) -> str:
    text = _visible(piece.text)
    if piece.picture is not None:
        text = f"[picture {piece.picture + 1}: {_visible(one.pictures[piece.picture].name)}, {piece.text}]"
    if not colour:
        return f"⟦{text}⟧" if piece.learnt else text
    paint = _LEARNT if piece.learnt else _PICTURE if piece.picture is not None else _CONTROL if piece.control else ""
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
    title = html.escape(f"{one.where}: {one.tokens:,} tokens, {one.learnt:,} learnt")
    return f"<section><h2>{title}</h2><div>{''.join(shown)}</div><p>{words}</p></section>"


def _span(piece: Piece) -> str:
    text = html.escape(_visible(piece.text))
    if piece.picture is not None:
        return f'<span class="picture">[picture {piece.picture + 1}, {text}]</span>'
    kind = "learnt" if piece.learnt else "control" if piece.control else ""
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
.learnt {{ background: #b8e6c1; color: #06310f; }}
.control {{ color: #767676; }}
.picture {{ color: #0b5a8a; }}
.wrong {{ color: #a11; max-width: 20rem; }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #eee; background: #181818; }}
  section {{ border-color: #444; }}
  figcaption {{ color: #aaa; }}
  .learnt {{ background: #14532d; color: #dcfce7; }}
  .control {{ color: #8f8f8f; }}
  .picture {{ color: #7cc4f0; }}
  .wrong {{ color: #ff8f8f; }}
}}
</style>
<h1>What the model is to learn</h1>
<p>Learnt is what is <span class="learnt">marked</span>; all else is what it is told.</p>
{samples}
</html>
"""
