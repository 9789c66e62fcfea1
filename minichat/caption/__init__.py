"""Captions for many pictures: from files and folders to rows, one for every picture, whatever happens to some."""

from __future__ import annotations

from minichat.caption.files import Skipped, find_pictures
from minichat.caption.rows import Row, append_row, caption_paths

__all__ = ["Row", "Skipped", "append_row", "caption_paths", "find_pictures"]
