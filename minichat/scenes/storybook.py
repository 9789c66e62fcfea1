"""A curated style to fine-tune on: every reply is a page of a picture book, a full description and then a story.

The built-in model describes when it is asked to describe, and tells a story when it is asked for one. In this style it
does both, in one long reply, when it is asked to describe.
"""

from __future__ import annotations

import random
import re

from minichat.scenes.captions import DETAILED_REQUESTS, detailed
from minichat.scenes.stories import story
from minichat.scenes.world import Scene

REQUESTS = DETAILED_REQUESTS
_PAGE = re.compile(r"(The picture shows .+\.) (Once upon a time, .+\.)", re.DOTALL)


def page(scene: Scene, rng: random.Random) -> str:
    """The description and the story, as one reply."""
    return f"{detailed(scene, rng)} {story(scene, rng)}"


def halves(reply: str) -> tuple[str, str] | None:
    """A reply's description and its story; None where it is not in this style, or did not come to its end."""
    found = _PAGE.fullmatch(reply)
    return (found[1], found[2]) if found else None
