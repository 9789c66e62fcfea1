"""A page to look through: each picture with what was said of it, failures first. It runs nothing, and fetches nothing
but the pictures beside it.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from minichat.captioning.journal import Journal, Result
from minichat.captioning.outputs import Output, replacing
from minichat.captioning.sources import stored
from minichat.errors import DataError, MiniChatError

MOST = 10_000  # captions on a page: a browser shows no million
_SIDE = 240  # pixels of a thumbnail's longer side
_SHOWN = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif")  # by every browser
_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src * data:; style-src 'unsafe-inline'">
<title>Captions</title>
<style>
body { font: 16px/1.4 sans-serif; margin: 1rem; color: #222; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; border: 1px solid #ddd; border-radius: .4rem; overflow-wrap: anywhere }
figure.failed { border-color: #b00; color: #b00 }
img { display: block; width: 100%; height: 200px; object-fit: contain; background: #f4f4f4 }
small { color: #666 } p { margin: .4rem 0 0; white-space: pre-wrap } b { color: #b60; font-weight: normal }
</style>
"""


def write_page(journal: Journal, output: Output, path: Path) -> int:
    """Write the page; returns how many captions it shows. Raises `DataError` where it cannot be written."""
    count = 0
    folder = path.absolute().parent
    total = len(journal)
    try:
        with replacing(path) as file:
            file.write(_HEAD.encode())
            shown = f"{total:,} captions" if total <= MOST else f"{MOST:,} of {total:,} captions"
            file.write(f"<h1>{shown}</h1>\n<main>\n".encode())
            for result in islice(_failures_first(journal), MOST):
                count += 1
                file.write(_figure(journal, output, result, folder).encode("utf-8", "replace"))
            file.write(b"</main>\n")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written ({error.strerror or error}): check the folder.") from None
    return count


def _failures_first(journal: Journal) -> Iterator[Result]:
    yield from (result for result in journal.results() if result.error is not None)
    yield from (result for result in journal.results() if result.error is None)


def _figure(journal: Journal, output: Output, result: Result, folder: Path) -> str:
    asked = f"<p><small>{html.escape(result.asked or '')}</small></p>" if output.several else ""
    cut = " <b>… cut off</b>" if result.cut else ""
    said = html.escape(result.error if result.error is not None else output.text(result))
    kind = ' class="failed"' if result.error is not None else ""
    picture = _picture(journal, result, folder)
    name = html.escape(result.place)
    return f"<figure{kind}>{picture}<figcaption><small>{name}</small>{asked}<p>{said}{cut}</p></figcaption></figure>\n"


def _picture(journal: Journal, result: Result, folder: Path) -> str:
    """A link to the file as seen from the page; what no browser shows, or lies in another file, is in the page."""
    place: dict[str, Any] = result.picture or {}
    path = place.get("path")
    if path is not None and path.lower().endswith(_SHOWN):
        try:
            seen = os.path.relpath(path, folder)
        except ValueError:  # on Windows there is no way from one drive to another
            return f'<img loading="lazy" alt="" src="{Path(path).as_uri()}">'
        return f'<img loading="lazy" alt="" src="{quote(os.fsencode(seen.replace(os.sep, "/")))}">'
    if result.error is not None or not place:
        return ""
    try:
        picture = stored(place, journal.data(result.place)).open()
    except (MiniChatError, KeyError):
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}">'
