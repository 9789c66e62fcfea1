"""Which format a file or folder is in, told from its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.data.formats import align, folder
from minichat.data.formats.columns import Columns
from minichat.data.formats.lines import first_byte, records
from minichat.data.formats.reading import FORMS
from minichat.errors import DataError

_TAR = b"ustar"  # at byte 257 of a tar's first header (POSIX.1-1988)


def form_of(path: Path, shown: str) -> str:
    """The name of the format. Raises `DataError`, which lists all of them, where none is recognised."""
    if path.is_dir():
        form = _of_folder(path)
    elif not path.exists():
        form = "webdataset" if shown.endswith(".tar") else None
        if form is None:
            raise DataError(f"{shown!r} was not found: check the path.")
    else:
        form = _of_file(path, shown)
    if form is None:
        raise DataError(f"{shown!r} is in no format that is known. Say which it is (form): {listing()}.")
    return form


def listing() -> str:
    """All formats, for an error."""
    return "; ".join(f"{name} ({form.says})" for name, form in FORMS.items())


def _of_folder(path: Path) -> str | None:
    if (path / align.CAPTIONS).is_file():
        return "cc_sbu_align"
    if any(path.glob("*.tar")):
        return "webdataset"
    return "folder" if folder.has_pairs(path) else None


def _of_file(path: Path, shown: str) -> str | None:
    with open(path, "rb") as file:
        head = file.read(512)
    if head[257:262] == _TAR or path.suffix.lower() == ".tar":
        return "webdataset"
    first = first_byte(path)
    if not first:
        raise DataError(f"{Where(shown, 1)}: the file is empty: there is no record in it.")
    if first not in (b"{", b"["):
        return _of_table(head)
    if path.name == align.CAPTIONS:
        return "cc_sbu_align"
    for item in records(path, shown):
        if not isinstance(item, Problem):
            return _of_record(item[1])
    raise DataError(str(next(records(path, shown))))


def _of_table(head: bytes) -> str | None:
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
    return "pairs" if any(mark in line for mark in ",\t;|") else None


def _of_record(record: Any) -> str | None:
    if not isinstance(record, dict):
        return None
    for key in ("messages", "conversations"):
        if record.get(key) is not None:
            if any(record.get(pictures) is not None for pictures in ("images", "videos")):
                return "sharegpt"
            if key == "conversations":
                return "llava" if _is_said(record[key]) else "sharegpt"
            return "messages" if record.get("image") is None else "sharegpt"
    try:
        Columns().among(record)
    except DataError:
        return None
    return "pairs"


def _is_said(turns: Any) -> bool:
    """Whether the turns are LLaVA's, or nothing that would tell."""
    return not (isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0])
