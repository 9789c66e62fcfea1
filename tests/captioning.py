"""What the tests of `minichat caption` share: a bot that says which red a picture is, and the command with it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from minichat import cli
from minichat.inference.bot import Caption


class Bot:
    """Says which red a picture is; remembers what it was asked."""

    caption_prompt = "Describe this image in detail."

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.fails_at: int | None = None  # so many pictures are captioned before Ctrl-C comes
        self.cut: set[int] = set()
        self.says: dict[int, str] = {}

    @property
    def count(self) -> int:
        return sum(one["count"] for one in self.asked)

    def caption(self, pictures, prompt=None, batch_size=8, **settings):
        if self.fails_at is not None and self.count >= self.fails_at:
            raise KeyboardInterrupt
        self.asked.append({"count": len(pictures), "prompt": prompt, **settings})
        reds = [picture.getpixel((0, 0))[0] for picture in pictures]
        return [
            Caption(self.says.get(red, f"It is red {red}."), "length" if red in self.cut else "stop") for red in reds
        ]


def paint(path: Path, red: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path)
    return path


def run(*arguments, code: int = 0, **options):
    result = CliRunner().invoke(cli.app, ["caption", *map(str, arguments)], **options)
    assert result.exit_code == code, result.output + result.stderr
    return result


def lines(path: Path | str = "c.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows(path: Path | str = "c.jsonl") -> dict[str, str]:
    """What is said of each picture; each stands there once."""
    found = {row["image"]: row.get("caption", "failed") for row in lines(path)}
    assert len(found) == len(lines(path))
    return found
