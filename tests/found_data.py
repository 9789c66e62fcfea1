"""Small data sets in the forms in which they are found, and what is read of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from minichat.data.check import check
from minichat.data.example import Example, Problem, StoredPicture


def png(number: int = 0) -> bytes:
    written = io.BytesIO()
    Image.effect_noise((24, 24), 90 + number).convert("RGB").save(written, "PNG")
    return written.getvalue()


RED, BLUE = png(), png(1)
BASE64 = base64.b64encode(RED).decode()


def file(name: str, content: Any) -> str:
    """A file of records, as JSON or as lines of it, or of text."""
    if not isinstance(content, str):
        content = "\n".join(map(json.dumps, content)) if name.endswith("l") else json.dumps(content)
    Path(name).write_text(content, encoding="utf-8")
    return name


def said(example: Example) -> list[tuple[str, ...]]:
    """Each turn's role, and its words and pictures (by their name in `home`)."""
    names = {RED: "a", BLUE: "b"}
    return [
        (turn.role, *(names[part.read()] if isinstance(part, StoredPicture) else part for part in turn.parts))
        for turn in example.turns
    ]


def told(source: str, **options: Any) -> tuple[list[str], Any]:
    found: list[Problem] = []
    report = check(source, found=found.append, **options)
    return [str(problem) for problem in found], report


def folder_with_pictures(folder: Path) -> Path:
    """The same folder, with a.png and b.png in it."""
    (folder / "a.png").write_bytes(RED)
    (folder / "b.png").write_bytes(BLUE)
    return folder


ASKED = [("user", "a", "How many stars are there?"), ("assistant", "One.")]
