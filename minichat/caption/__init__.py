"""Captions for many pictures: from files and folders to rows, one for every picture, whatever happens to some."""

from __future__ import annotations

from minichat.caption.rows import Row, append_row, caption_paths, named_from
from minichat.folders import Skipped, find_pictures

__all__ = ["Row", "Skipped", "append_row", "caption_paths", "find_pictures", "named_from"]
