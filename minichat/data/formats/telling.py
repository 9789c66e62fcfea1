"""Which format a file or folder is in, told from its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minichat.data.example import Problem, Where
from minichat.data.formats import align, arrow, coco, folder
from minichat.data.formats.columns import PICTURE, QUESTION
from minichat.data.formats.lines import BOMS, OTHER_UNICODE, first_byte, parse, read_text, records
from minichat.data.formats.shards import expand
from minichat.data.tables import is_table
from minichat.disk import open_file
from minichat.errors import DataError

_TAR = b"ustar"  # at byte 257 of a tar's first header (POSIX.1-1988)
_LISTS = "dataset_info.json"  # LLaMA-Factory's list of data sets


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
    if shown.endswith((arrow.ENDING, ".arrow")) and expand(shown) not in ([], [shown]):
        return "arrow"
    raise DataError(f"{shown!r} was not found: check the path.")


def _of_folder(path: Path) -> str | None:
    if (path / align.CAPTIONS).is_file():
        return "cc_sbu_align"
    if arrow.is_saved(path):
        return "arrow"
    if any(path.glob("*.tar")):
        return "webdataset"
    if any((path / name).is_file() for name in folder.METADATA):
        return "pairs"
    if folder.has_pairs(path):
        return "folder"
    return "arrow" if arrow.is_folder(path) else None  # last: img2dataset puts one beside its tars and pictures, too


def _of_file(path: Path, shown: str) -> str | None:
    with open_file(path) as file:
        head = file.read(512)
    if head[257:262] == _TAR or path.suffix.lower() == ".tar":
        return "webdataset"
    if is_table(path):
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
    return _of_json(path, shown)


def _of_json(path: Path, shown: str) -> str | None:
    problem = None
    for item in records(path, shown):
        if not isinstance(item, Problem):
            return "coco" if coco.is_document(item[1]) else of_record(item[1])
        if problem is None:
            problem = item
            whole = _document(path, shown)
            if coco.is_document(whole):
                return "coco"
            if isinstance(whole, dict) and path.name == _LISTS:
                raise DataError(f"{shown!r} lists data sets rather than records: name the file of one of them.")
            if of_record(whole) is not None:
                raise DataError(f"{shown!r} holds one record over several lines: put it into a list, or into one line.")
            if isinstance(whole, dict):
                return None
    raise DataError(str(problem))


def _document(path: Path, shown: str) -> Any:
    """The one JSON value of a file that is spread over lines; None where it is no such file."""
    text = read_text(path, Where(shown, 1))
    value = parse(text, Where(shown, 1)) if isinstance(text, str) and text.rstrip().endswith("}") else None
    return None if isinstance(value, Problem) else value


def _of_table(head: bytes) -> str | None:
    line = head.split(b"\n", 1)[0]
    return "pairs" if b"\0" not in line and any(mark in line for mark in (b",", b"\t", b";", b"|")) else None


def of_record(record: Any) -> str | None:
    """The format that a record is in: "messages", "sharegpt", "llava", "pairs", or none that is known."""
    if not isinstance(record, dict):
        return None
    for key in ("messages", "conversations"):
        if record.get(key) is not None:
            if any(pictures in record for pictures in ("images", "videos")):
                return "sharegpt"
            if key == "conversations":
                return "llava" if _is_said(record[key]) else "sharegpt"
            return "messages" if record.get("image") is None and _is_ours(record[key]) else "sharegpt"
    told = {key.strip().casefold(): value for key, value in record.items()}
    return "pairs" if any(key in told and not _is_listing(told[key]) for key in (*PICTURE, *QUESTION)) else None


def _is_listing(value: Any) -> bool:
    """Whether a value is a list of records, as in files that hold a whole data set in one object."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and not {"bytes", "path", "role", "from"} & first.keys()


def _is_said(turns: Any) -> bool:
    """Whether the turns are LLaVA's, or nothing that would tell."""
    return not (isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0])


def _is_ours(messages: Any) -> bool:
    """Whether the turns are Hugging Face's messages, or nothing that would tell."""
    return not (isinstance(messages, list) and messages and isinstance(messages[0], dict) and "from" in messages[0])
