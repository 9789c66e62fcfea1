"""Which format a file or folder is in, told from its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.data.formats import align, arrow, folder
from minichat.data.formats.columns import PICTURE
from minichat.data.formats.lines import BOMS, OTHER_UNICODE, first_byte, records
from minichat.errors import DataError

_TAR = b"ustar"  # at byte 257 of a tar's first header (POSIX.1-1988)


def form_of(path: Path, shown: str) -> str | None:
    """The name of the format, or None where none is recognised.

    Raises `DataError` for what is missing or empty, or holds no record that could tell.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.exists():
        return _of_file(path, shown)
    if shown.endswith(".tar"):
        return "webdataset"  # a pattern
    raise DataError(f"{shown!r} was not found: check the path.")


def _of_folder(path: Path) -> str | None:
    if (path / align.CAPTIONS).is_file():
        return "cc_sbu_align"
    if (path / arrow.STATE).is_file():
        return "arrow"
    if any(path.glob("*.tar")):
        return "webdataset"
    return "folder" if folder.has_pairs(path) else None


def _of_file(path: Path, shown: str) -> str | None:
    with open(path, "rb") as file:
        head = file.read(512)
    if head[257:262] == _TAR or path.suffix.lower() == ".tar":
        return "webdataset"
    if head.startswith(arrow.MAGIC):
        return "arrow"
    first = first_byte(path)
    if not first:
        raise DataError(f"{Where(shown, 1)}: the file is empty: there is no record in it.")
    if head.startswith(BOMS):
        raise DataError(f"{Where(shown, 1)}: {OTHER_UNICODE}")
    if first not in (b"{", b"["):
        return "pairs" if path.suffix.lower() in (".csv", ".tsv") else _of_table(head)
    if path.name == align.CAPTIONS:
        return "cc_sbu_align"
    for item in records(path, shown):
        if not isinstance(item, Problem):
            return of_record(item[1])
    raise DataError(str(next(records(path, shown))))


def _of_table(head: bytes) -> str | None:
    line = head.split(b"\n", 1)[0]
    return "pairs" if b"\0" not in line and any(mark in line for mark in (b",", b"\t", b";", b"|")) else None


def of_record(record: Any) -> str | None:
    """The format that a record is in: "messages", "sharegpt", "llava", "pairs", or none that is known."""
    if not isinstance(record, dict):
        return None
    for key in ("messages", "conversations"):
        if record.get(key) is not None:
            if any(record.get(pictures) is not None for pictures in ("images", "videos")):
                return "sharegpt"
            if key == "conversations":
                return "llava" if _is_said(record[key]) else "sharegpt"
            return "messages" if record.get("image") is None else "sharegpt"
    return "pairs" if any(key.strip().casefold() in PICTURE for key in record) else None


def _is_said(turns: Any) -> bool:
    """Whether the turns are LLaVA's, or nothing that would tell."""
    return not (isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0])
