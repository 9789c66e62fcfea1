"""How the texts of captions are changed before they are learnt: as they are, or as MiniGPT-4's first stage did."""

from __future__ import annotations

import re
from collections.abc import Callable

MOST_WORDS = 50
_MARKS = dict.fromkeys(map(ord, '.!"()*#:;~'), " ")


def blip_caption(text: str) -> str:
    """Lower case, ten marks of punctuation as spaces, single spaces, and the first 50 words.

    Source: LAVIS's `BlipCaptionProcessor` with its own settings, as MiniGPT-4's first stage uses it
    (minigpt4/processors/blip_processors.py, train_configs/minigpt4_stage1_pretrain.yaml).
    """
    single = re.sub(r"\s{2,}", " ", text.lower().translate(_MARKS)).strip(" \n")
    return " ".join(single.split(" ")[:MOST_WORDS])


CAPTIONS: dict[str, Callable[[str], str]] = {"verbatim": lambda text: text, "blip": blip_caption}
