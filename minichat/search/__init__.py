"""Find pictures by words or by a picture: `Index.open("photos").find("a red star left of a blue circle")`."""

from __future__ import annotations

from minichat.data.formats.folder import Skipped
from minichat.search.encoder import DEFAULT, Reader, load_reader
from minichat.search.index import RERANK, TOP, Hit, Index, contact_sheet

__all__ = ["DEFAULT", "RERANK", "TOP", "Hit", "Index", "Reader", "Skipped", "contact_sheet", "load_reader"]
