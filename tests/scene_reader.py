"""An independent reader of questions about scenes, for tests.

It shares no code with the package's language: it reads the question's words and works the answer out from coordinates.
"""

from __future__ import annotations

import re

from minichat.toy.asking import Question
from minichat.toy.world import BORDER, COLOURS, HALVES, MARGIN, SHAPES, THIRDS, Scene, Thing

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
COLOUR, SHAPE = "|".join(COLOURS), "|".join(SHAPES)
NOUN = rf"(?:(?P<shape>{SHAPE})(?:e?s)?|objects?|things?|shapes?)"
PHRASE = re.compile(rf"(?:\b(?P<size>small|large) )?(?:\b(?P<colour>{COLOUR}) )?\b{NOUN}\b")
SPOT = re.compile(r"(?:at|in) the (?P<spot>(?:top|upper|bottom) (?:left|right)|centre|middle)\b(?! half)")


def simple(text: str) -> str:
    """Lower case, British, without marks and without saying which picture is meant."""
    text = text.lower().replace("grey", "gray").replace("color", "colour").replace("center", "centre").strip("?. ")
    text = re.sub(r"^in the (first|second) picture, ", "", text)
    text = re.sub(r" (in (the|this) (first |second )?(picture|image)|here|of the picture)\b", "", text)
    return text.replace("the shape of", "the form of").replace("upper", "top").replace("which shape", "which form")


def described(scene: Scene, match: re.Match[str]) -> list[Thing]:
    return [
        thing
        for thing in scene.things
        if all(match[key] in (None, getattr(thing, key)) for key in ("size", "colour", "shape"))
    ]


def spot(thing: Thing) -> str:
    """The thing's place; the thing must be well inside it."""
    for value in (thing.x, thing.y):
        assert all(abs(value - border) >= BORDER - 1e-9 for border in THIRDS), "a place that could be disputed"
    column = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    row = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    return f"{row} {column}".strip() or "centre"


def maybe_at(thing: Thing, where: str) -> bool:
    """Whether somebody could say that the thing is there."""
    columns = {"left": (-1, 0.4), "right": (0.6, 2)}
    rows = {"top": (-1, 0.4), "bottom": (0.6, 2)}
    left, right = next((v for k, v in columns.items() if k in where), (0.32, 0.68))
    top, bottom = next((v for k, v in rows.items() if k in where), (0.32, 0.68))
    return left <= thing.x <= right and top <= thing.y <= bottom


def the_one(scene: Scene, text: str) -> tuple[Thing, str]:
    """The only thing that the text speaks of, and the text without it."""
    for match in PHRASE.finditer(text):
        if not any(match[key] for key in ("size", "colour", "shape")):
            continue
        found = described(scene, match)
        assert len(found) == 1, f"{match[0]!r} means {len(found)} things"
        return found[0], text[: match.start()] + text[match.end() :]
    match = SPOT.search(text)
    assert match is not None, text
    where = match["spot"].replace("middle", "centre")
    found = [thing for thing in scene.things if maybe_at(thing, where)]
    assert len(found) == 1 and spot(found[0]) == where
    return found[0], text[: match.start()] + text[match.end() :]


def attribute(scene: Scene, text: str, name: str, values: tuple[str, ...]) -> str:
    if name == "size" and re.search(r"larger|bigger|smaller", text):
        pair = [described(scene, match) for match in PHRASE.finditer(text)]
        assert [len(found) for found in pair] == [1, 1]
        first, second = pair[0][0], pair[1][0]
        assert first.size != second.size
        chosen = min if "smaller" in text else max
        thing = chosen((first, second), key=lambda t: t.radius)
        return f"the {thing.colour} {thing.shape}"
    if name == "shape":  # a shape asked about has "a" before it, the thing has "the"
        options = re.findall(rf"\ba ({SHAPE})\b", text)
        text = re.sub(rf"\ba ({SHAPE})\b", "", text)
    else:
        options = []
    if name == "size":
        text = re.sub(r"\b(large|small|big) or (large|small)\b|a (large|small) one\b", r"\3", text)
    thing, rest = the_one(scene, text)
    truth = str(getattr(thing, name))
    options = options or [value for value in values if re.search(rf"\b{value}\b", rest)]
    if len(options) == 1:
        return "yes" if options[0] == truth else "no"
    assert truth in options if options else not re.search(rf"\b{truth}\b", text), "the question names its answer"
    return truth


def number(scene: Scene, text: str) -> str:
    matches = list(PHRASE.finditer(text))
    counts = [len(described(scene, match)) for match in matches]
    if " more " in text:
        return "yes" if counts[0] > counts[1] else "no"
    for value, word in enumerate(NUMBER_WORDS):
        if re.search(rf"\b{word}\b", text):
            return "yes" if counts[0] == value else "no"
    assert len(counts) == 1
    return str(counts[0])


def position(scene: Scene, text: str) -> str:
    halves = re.findall(r"\b(left|right|top|bottom)\b", text) if re.search(r"\b(half|side)\b", text) else []
    if halves:
        thing, _ = the_one(scene, text)
        value = thing.x if halves[0] in ("left", "right") else thing.y
        assert value < HALVES[0] or value > HALVES[1]
        names = ("left", "right") if halves[0] in ("left", "right") else ("top", "bottom")
        truth = names[value > 0.5]
        return truth if len(halves) == 2 else "yes" if truth == halves[0] else "no"
    where = SPOT.search(text)
    if where is None:
        return spot(the_one(scene, text)[0])
    place = where["spot"].replace("middle", "centre")
    if PHRASE.search(text) and any(PHRASE.search(text)[key] for key in ("size", "colour", "shape")):  # type: ignore[index]
        return "yes" if spot(the_one(scene, text[: where.start()])[0]) == place else "no"
    there = [thing for thing in scene.things if maybe_at(thing, place)]
    if re.search(r"\b(anything|an object)\b", text):
        return "yes" if there else "no"
    assert len(there) <= 1
    return f"{article(there[0])} {there[0].colour} {there[0].shape}" if there else "nothing"


def article(thing: Thing) -> str:
    return "an" if thing.colour == "orange" else "a"


SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "over": (0, -1), "higher": (0, -1),
         "below": (0, 1), "under": (0, 1), "lower": (0, 1)}  # fmt: skip


def way(word: str) -> str:
    return {"over": "above", "higher": "above", "under": "below", "lower": "below"}.get(word, word)


def relation(scene: Scene, text: str) -> str:
    things = [described(scene, match) for match in PHRASE.finditer(text) if match[0] not in ("object", "thing")]
    assert all(len(found) == 1 for found in things)
    words = re.findall(r"\b(left|right|above|over|higher|below|under|lower)\b", text)
    if len(things) == 1:
        (thing,) = things[0]
        across, down = SIDES[words[0]]
        steps = {other: (other.x - thing.x) * across + (other.y - thing.y) * down for other in scene.things}
        there = [other for other, step in steps.items() if other is not thing and step > -BORDER]
        assert len(there) <= 1 and all(steps[other] >= MARGIN for other in there)
        return f"{article(there[0])} {there[0].colour} {there[0].shape}" if there else "nothing"
    (first,), (second,) = things
    if text.startswith("on which side of"):
        first, second = second, first
    dx, dy = first.x - second.x, first.y - second.y
    if not words:
        assert min(abs(dx), abs(dy)) < MARGIN <= max(abs(dx), abs(dy))
        if abs(dx) > abs(dy):
            return "left" if dx < 0 else "right"
        return "above" if dy < 0 else "below"
    across, down = SIDES[words[0]]
    step = dx * across + dy * down
    assert abs(step) >= MARGIN
    if len(words) == 1:
        return "yes" if step > 0 else "no"
    assert SIDES[words[0]] == tuple(-value for value in SIDES[words[1]])
    return way(words[0] if step > 0 else words[1])


def background(scene: Scene, text: str) -> str:
    kind = scene.background.kind
    colours = sorted(scene.background.colours, key=COLOURS.index)
    kinds = re.findall(r"\b(plain|noisy|gradient)\b", text)
    asked = re.findall(rf"\b({COLOUR})\b", text)
    if len(kinds) == 3:
        return kind
    if kinds:
        return "yes" if kinds[0] == kind else "no"
    if asked:
        assert kind != "gradient"
        return "yes" if asked[0] == colours[0] else "no"
    if "colour" in text:
        return " and ".join(colours)
    return f"a gradient from {colours[0]} to {colours[1]}" if kind == "gradient" else f"{kind} {colours[0]}"


def truth(scene: Scene, question: Question) -> str:
    """The answer to a question, from its words and the coordinates alone."""
    text = simple(question.text)
    if question.kind == "existence":
        match = PHRASE.search(text)
        assert match is not None
        return "yes" if described(scene, match) else "no"
    if question.kind in ("colour", "shape", "size"):
        values = {"colour": COLOURS, "shape": SHAPES, "size": ("large", "small")}[question.kind]
        return attribute(scene, text, question.kind, values)
    readers = {"count": number, "position": position, "relation": relation, "background": background}
    return readers[question.kind](scene, text)
