"""Captions for many pictures: found anywhere, each captioned once, and written where they are wanted.

`sources` finds pictures, `journal` shapes words and remembers what is done, `outputs` and `formats` are views of it,
`captioner` asks the bot, `cluster` has workers ask theirs, and `run` puts them together.
"""

from __future__ import annotations

from minichat.captioning.journal import Shape, read_prompts
from minichat.captioning.outputs import Output
from minichat.captioning.run import Asked, Chosen, Progress, Run, open_output, sources_for
from minichat.captioning.sources import Sources

__all__ = [
    "Asked",
    "Chosen",
    "Output",
    "Progress",
    "Run",
    "Shape",
    "Sources",
    "open_output",
    "read_prompts",
    "sources_for",
]
