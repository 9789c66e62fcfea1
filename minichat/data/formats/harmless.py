"""Keys and values that may be passed over: they say where a record comes from, not what is to be learnt."""

from __future__ import annotations

import math
import re

#: In lower case. Names of records and their origin, sizes, scores, sorts; img2dataset's columns are among them.
_NAMES = """
author category comment_number copyright created_at data_source dataset dataset_name date date_captured difficulty
error_message exif finish format guid hash idx index key lang language license licence link md5 meta metadata mime
mime_type mode model nsfw num_bytes origin phash punsafe pwatermark sha1 sha256 similarity size source sources split
status subset subcategory task timestamp uid uri url urls uuid watermark height width original_height original_width
imgid cocoid sentid sentids kind type answer_type question_type l2-category
"""
_HARMLESS = frozenset(_NAMES.split())
_ENDINGS = ("_id", "_ids", "_url", "_hash", "_score", "_similarity", "_width", "_height", "_license")
_INDEX = re.compile(r"(|unnamed: ?\d+|__.*__|ids?)")  # a table program's own, which has no name at times


def is_harmless(key: object) -> bool:
    """Whether a key of a record says nothing that a model could be meant to learn."""
    name = str(key).strip().casefold()
    return name in _HARMLESS or name.endswith(_ENDINGS) or _INDEX.fullmatch(name) is not None


def empty(value: object) -> bool:
    """Whether a value says nothing: none, blanks, an empty list or object (also as JSON), a table's missing number."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == [] or value == {}
