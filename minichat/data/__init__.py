"""Conversations about pictures on disk: formats in, batches out."""

from typing import Literal

# What `formats.Options` may say.
SeveralCaptions = Literal["each", "first", "random"]
UnknownKeys = Literal["refuse", "ignore"]
