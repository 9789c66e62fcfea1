"""A contact sheet: what was found, in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from minichat import images
from minichat.errors import DataError, ImageError
from minichat.search.index import Hit

_COLUMNS, _MARGIN, _LINE = 5, 12, 18
_PAPER, _INK, _EMPTY = (255, 255, 255), (30, 30, 30), (225, 225, 225)


def contact_sheet(hits: Sequence[Hit], side: int = 192) -> Image.Image:
    """The pictures in rows of five, best first, each fitted into `side` × `side` pixels above its score and file name.

    One that cannot be opened any more is an empty field. Raises `DataError` where there is nothing to show.
    """
    if not hits:
        raise DataError("There is nothing to put on a contact sheet: no picture was found.")
    columns, rows = min(_COLUMNS, len(hits)), -(-len(hits) // _COLUMNS)
    across, down = side + _MARGIN, side + 2 * _LINE + _MARGIN
    sheet = Image.new("RGB", (columns * across + _MARGIN, rows * down + _MARGIN), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, hit in enumerate(hits):
        left = _MARGIN + number % _COLUMNS * across
        top = _MARGIN + number // _COLUMNS * down
        sheet.paste(_thumbnail(hit, side), (left, top))
        pen.text((left, top + side + 2), f"{number + 1}.  {hit.score:.4f}", fill=_INK, font=font)
        pen.text((left, top + side + 2 + _LINE), _fitted(hit.path.name, side, font), fill=_INK, font=font)
    return sheet


def _thumbnail(hit: Hit, side: int) -> Image.Image:
    try:
        return ImageOps.pad(images.load(hit.path), (side, side), color=_PAPER)
    except ImageError:
        return Image.new("RGB", (side, side), _EMPTY)


def _fitted(name: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The name, or as much of its end as `width` pixels have room for."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    if font.getlength(shown) <= width:
        return shown
    while shown and font.getlength(f"…{shown}") > width:
        shown = shown[1:]
    return f"…{shown}"
