"""A small grammar: `[x]` may be left out, `(a|b)` is one of several, `{slot}` is filled in later.

Few templates stand for many wordings: "(what|which) colour is {the}[ here]" is four.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import cache

_OPTIONAL = 0.4  # how often what may be left out is said
_TOKEN = re.compile(r"[\[\](|)]|\{\w+\}|[^\[\](|){}]+")

Tree = tuple["str | tuple[str, tuple[Tree, ...]]", ...]  # text and slots, or ("any" | "maybe", alternatives)


@cache
def parsed(template: str) -> Tree:
    """The template as a tree. Raises `ValueError` for brackets that do not match."""
    tokens = _TOKEN.findall(template)
    if "".join(tokens) != template:
        raise ValueError(f"{template!r} has a brace that opens no slot.")
    tree, rest = _sequence(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"{template!r} has brackets that do not match.")
    return tree


def _sequence(tokens: list[str], at: int) -> tuple[Tree, int]:
    found: list[str | tuple[str, tuple[Tree, ...]]] = []
    while at < len(tokens) and tokens[at] not in ("]", ")", "|"):
        if tokens[at] in ("(", "["):
            closing, kind = (")", "any") if tokens[at] == "(" else ("]", "maybe")
            alternatives = []
            while True:
                inner, at = _sequence(tokens, at + 1)
                alternatives.append(inner)
                if at == len(tokens) or tokens[at] != "|":
                    break
            if at == len(tokens) or tokens[at] != closing:
                raise ValueError(f"{''.join(tokens)!r} has brackets that do not match.")
            found.append((kind, tuple(alternatives)))
        else:
            found.append(tokens[at])
        at += 1
    return tuple(found), at


def drawn(template: str, rng: random.Random) -> str:
    """One of the wordings, its slots still open."""
    return tidy(_drawn(parsed(template), rng))


def _drawn(tree: Tree, rng: random.Random) -> str:
    parts = []
    for node in tree:
        if isinstance(node, str):
            parts.append(node)
        elif node[0] == "any" or rng.random() < _OPTIONAL:
            parts.append(_drawn(rng.choice(node[1]), rng))
    return "".join(parts)


def tidy(text: str) -> str:
    """Single blanks, and none before a mark."""
    return re.sub(r" +([,?.!:])", r"\1", re.sub(r" +", " ", text)).strip(" ,")


def wordings(template: str) -> int:
    """How many wordings the template stands for, whatever its slots hold."""
    return _count(parsed(template))


def _count(tree: Tree) -> int:
    count = 1
    for node in tree:
        if not isinstance(node, str):
            count *= sum(_count(inner) for inner in node[1]) + (node[0] == "maybe")
    return count


def pattern(template: str, slots: Mapping[str, str]) -> str:
    """A regular expression that matches what the template can spell; `slots`: one for each slot's name.

    Blanks are free: the text is to be in single ones.
    """
    return _pattern(parsed(template), slots)


def _pattern(tree: Tree, slots: Mapping[str, str]) -> str:
    parts = []
    for node in tree:
        if isinstance(node, str):
            is_slot = node.startswith("{")
            parts.append(f"(?:{slots[node[1:-1]]})" if is_slot else re.escape(node).replace(r"\ ", " ?"))
        else:
            inner = "|".join(_pattern(alternative, slots) for alternative in node[1])
            parts.append(f"(?:{inner})" + ("?" if node[0] == "maybe" else ""))
    return "".join(parts)
