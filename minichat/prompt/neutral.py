"""A person's words never spell a template's role marker or stop.

One rule: **a hyphen goes before the last character of the marker**. `[INST]` becomes `[INST-]`; `### Assistant :`, with
the template `vicuna-v0`, becomes `##-# Assistant :`; `USER:`, with `vicuna-v1.1`, becomes `USER-:`. All else stays, and
what is no marker of the template in use stays whole: `Human: 5`, `### Title` and `#1` with `llama2`, or `[INST]` with
`vicuna-v0`.

A role marker is found in every disguise that a reader might see through: other cases, other Unicode forms (full-width,
mathematical, ligatures: NFKC), spaces and invisible characters inside it. A stop is found where it is spelled without
spaces, for only that ends a reply. A stop of one character (the line break of `plain`) becomes a space.

The words are changed in the prompt alone; the conversation keeps them as they were typed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from minichat.prompt.template import Template

_BREAK = "-"
_UNSEEN = dict.fromkeys([*range(33), 127])  # ASCII's spaces and control characters


def neutralise(text: str, template: Template) -> str:
    """`text` with the template's markers and stops broken; the same object where there are none."""
    if text.isascii() and not _may_hold(text, (*template.markers, *template.stops)):
        return text
    while True:
        # Stops first: to break one often breaks the marker that begins with it.
        cuts = _find(text, template.stops, keep_spaces=True) or _find(text, template.markers, keep_spaces=False)
        if not cuts:
            return text
        text = _break(text, cuts)


def _may_hold(text: str, markers: tuple[str, ...]) -> bool:
    """False where ASCII text surely holds none of the markers: the quick answer for almost all that people write."""
    seen = text.lower().translate(_UNSEEN)
    bare = ((marker, marker.lower().translate(_UNSEEN)) for marker in markers)
    return any(marker in text if not letters else letters in seen for marker, letters in bare)


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    """What one character looks like to a reader who minds neither case nor form; "" if it is invisible."""
    if char.isspace():
        return " " if char != "\n" else "\n"
    category = unicodedata.category(char)
    if category in ("Cf", "Cc") or 0xFE00 <= ord(char) <= 0xFE0F or char == "\u034f":
        return ""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", char).casefold())


def _find(text: str, markers: tuple[str, ...], *, keep_spaces: bool) -> set[tuple[int, int]]:
    """(start, cut) of each marker in `text`: its first character, and the one before which it is to be broken."""
    if not markers:
        return set()
    folded, places = [], []
    for place, char in enumerate(text):
        for letter in _fold(char):
            if keep_spaces or not letter.isspace():
                folded.append(letter)
                places.append(place)
    patterns = ("".join(_fold(c) for c in marker) for marker in markers)
    wanted = [p if keep_spaces else "".join(p.split()) for p in patterns]
    found = re.finditer("|".join(re.escape(w) for w in sorted(wanted, key=len, reverse=True)), "".join(folded))
    return {(places[match.start()], places[match.end() - 1]) for match in found}


def _break(text: str, cuts: set[tuple[int, int]]) -> str:
    pieces, done = [], 0
    for start, cut in sorted(cuts, key=lambda pair: pair[1]):
        if cut < done:
            continue  # two markers end in the same character: one cut breaks both
        pieces.append(text[done:cut])
        if start == cut:  # one character is the whole marker
            pieces.append(" ")
            done = cut + 1
        else:
            pieces.append(_BREAK)
            pieces.append(text[cut])
            done = cut + 1
    pieces.append(text[done:])
    return "".join(pieces)
