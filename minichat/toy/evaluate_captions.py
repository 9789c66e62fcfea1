"""Texts and replies held against a scene: captions, stories, POPE's polls, retrieval, and people's wordings."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minichat.evaluate.metrics import Figure, Outcome, by_kind, ratio, share
from minichat.evaluate.replies import Ask, Shown, Teller
from minichat.evaluate.tasks import (
    CAPTION_TOKENS,
    PAIRS,
    RERANKED,
    SETTINGS,
    Gallery,
    Poll,
    Polls,
    fails,
    wording_figures,
)
from minichat.toy.captions import (
    DETAILED_REQUESTS,
    SHORT_REQUESTS,
    STORY_REQUESTS,
    Facts,
    detailed,
    facts,
    plain_words,
    short,
)
from minichat.toy.evaluate import Drawn, held_out_scene
from minichat.toy.speech.answers import Answer
from minichat.toy.speech.nouns import Program, Unsayable
from minichat.toy.speech.propose import SHARES, Proposer
from minichat.toy.speech.speaker import TOPICS, speak, topic
from minichat.toy.speech.verdict import PERTURBATIONS, VERDICTS, judge
from minichat.toy.world import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Look,
    Scene,
    Thing,
    at,
    background_colours,
    background_words,
    beside,
    named,
    place,
    some,
)

# --- What a text says of a scene, held against the scene: what is right, what is missed, what is invented.
#
# As CHAIR does for COCO (Rohrbach et al., arXiv:1809.02156): the share of the objects named that are not there, and
# the share of the texts that name such a one. Here colours, numbers, sizes and places are held against the truth, too.


Named = tuple[str | None, str | None]  # colour, shape; None where the text names the other alone


@dataclass(frozen=True)
class Tally:
    """`there`: how many there are; `said`: how many were named; `right`: how many of those are there."""

    there: int
    said: int
    right: int

    @property
    def missed(self) -> int:
        return self.there - self.right

    @property
    def invented(self) -> int:
        return self.said - self.right


def tally(said: Counter[Named], there: Counter[Named]) -> Tally:
    """Match what was named with what is there, one with one; what names colour and shape first."""
    left = there.copy()
    right = 0
    for (colour, shape), number in sorted(said.items(), key=lambda item: item[0].count(None)):
        for _ in range(number):
            fits = [key for key in left if colour in (None, key[0]) and shape in (None, key[1])]
            if fits:
                right += 1
                left -= Counter({fits[0]: 1})
    return Tally(there.total(), said.total(), right)


@dataclass
class Check:
    """One text held against its scene."""

    objects: Tally
    colours: Tally
    number: bool
    background: bool | None  # None: the text says nothing of it
    sizes: list[bool] = field(default_factory=list)  # of the objects that are there once by that name
    places: list[bool] = field(default_factory=list)
    relations: list[bool] = field(default_factory=list)


_A = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_THE = rf"the ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_SPOTS = {at(spot): spot for spot in PLACES}
_SIZED = re.compile(rf"\b{_A}\b")
_PLACED = re.compile(rf"\b{_A} is ({'|'.join(sorted(_SPOTS, key=len, reverse=True))})\b")
_RELATED = re.compile(rf"\b{_THE} is (left of|right of|above|below) {_THE}\b")


def check(text: str, scene: Scene) -> Check:
    """Hold a caption or a story against its scene."""
    stated = facts(_as_caption(text))
    there = Counter[Named]((thing.colour, thing.shape) for thing in scene.things)
    number = stated.total if stated.total is not None else stated.things.total()
    found = Check(
        objects=tally(stated.things, there),
        colours=tally(_part(stated.things, 0), _part(there, 0)),
        number=number == len(scene.things),
        background=_background(stated, scene),
    )
    words = plain_words(text).replace("color", "colour")
    alone = {key: thing for key, number in there.items() if number == 1 for thing in scene.things if _key(thing) == key}
    for size, colour, shape in _SIZED.findall(words):
        if thing := alone.get((colour, shape)):
            found.sizes.append(thing.size == size)
    for _, colour, shape, spot in _PLACED.findall(words):
        if thing := alone.get((colour, shape)):
            found.places.append(place(thing) == _SPOTS[spot])
    for colour, shape, way, other_colour, other_shape in _RELATED.findall(words):
        one, other = alone.get((colour, shape)), alone.get((other_colour, other_shape))
        true = one is not None and other is not None and beside(one, other, way.removesuffix(" of")) is True
        found.relations.append(true)
    return found


def _key(thing: Thing) -> Named:
    return named(thing)[1:]


def _part(things: Counter[Named], which: int) -> Counter[Named]:
    """Colours alone, or shapes."""
    parts: Counter[Named] = Counter()
    for key, number in things.items():
        if key[which] is not None:
            parts[(key[0], None) if which == 0 else (None, key[1])] += number
    return parts


def _background(stated: Facts, scene: Scene) -> bool | None:
    kind, colours = stated.background
    if not colours:
        return None
    return kind in (None, scene.background.kind) and colours == background_colours(scene.background)


def _as_caption(text: str) -> str:
    """A story's land is a caption's background."""
    text = re.sub(r"\bland that went from\b", "background that goes from", text)
    return re.sub(r"\bland\b", "background", text)


def fact_figures(checks: Sequence[Check], prefix: str = "") -> dict[str, Figure]:
    """What of all that is there was said rightly, and what of all that was said is not so."""
    objects, colours = _sum(c.objects for c in checks), _sum(c.colours for c in checks)
    figures = {
        "objects right": ratio(objects.right, objects.there),
        "objects missed": ratio(objects.missed, objects.there),
        "objects invented": ratio(objects.invented, objects.said),
        "texts that invent an object": share(c.objects.invented > 0 for c in checks),
        "colours right": ratio(colours.right, colours.there),
        "colours missed": ratio(colours.missed, colours.there),
        "colours invented": ratio(colours.invented, colours.said),
        "number right": share(c.number for c in checks),
        "background right": share(c.background is True for c in checks),
        "sizes right": share(right for c in checks for right in c.sizes),
        "places right": share(right for c in checks for right in c.places),
        "relations right": share(right for c in checks for right in c.relations),
    }
    return {prefix + name: figure for name, figure in figures.items() if figure.count}


def _sum(tallies: Iterable[Tally]) -> Tally:
    listed = list(tallies)
    return Tally(sum(t.there for t in listed), sum(t.said for t in listed), sum(t.right for t in listed))


# --- Captions: their facts against the scene, their wording against references, and whether they fail outright.

REFERENCES = 5  # drawn for each scene: the same things are told in a few ways


@dataclass(frozen=True)
class _Wanted:
    """One caption asked for."""

    style: str
    request: str
    scene: Scene
    number: int
    references: tuple[str, ...]


@dataclass(frozen=True)
class SceneCaptions:
    """A short and a detailed caption of each of `count` held-out scenes."""

    count: int
    seed: int = 0
    wanted: tuple[_Wanted, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = []
        for index in range(self.count):
            scene, _ = held_out_scene(index, self.seed)
            rng = random.Random(f"held out captions {self.seed} {index}")
            for style, requests, tell in (("short", SHORT_REQUESTS, short), ("detailed", DETAILED_REQUESTS, detailed)):
                told = dict.fromkeys(tell(scene, rng) for _ in range(REFERENCES))
                wanted.append(_Wanted(style, rng.choice(requests), scene, index, tuple(told)))
        object.__setattr__(self, "wanted", tuple(wanted))

    def content(self) -> Iterator[str]:
        for want in self.wanted:
            yield json.dumps([want.scene.to_dict(), want.request, want.references])

    def take(self, teller: Teller) -> Outcome:
        asks = [Ask(want.request, (Drawn(want.scene, want.number),)) for want in self.wanted]
        replies = teller.replies(asks, CAPTION_TOKENS)
        checks = [check(reply.text, want.scene) for want, reply in zip(self.wanted, replies, strict=True)]
        invented = sum(c.objects.invented for c in checks)
        figures = {"objects invented": ratio(invented, sum(c.objects.said for c in checks))}
        for style in ("short", "detailed"):
            picked = [i for i, want in enumerate(self.wanted) if want.style == style]
            figures |= fact_figures([checks[i] for i in picked], f"{style}: ")
            told, references = [replies[i] for i in picked], [self.wanted[i].references for i in picked]
            figures |= wording_figures(told, references, f"{style}: ")
        records: list[dict[str, Any]] = [
            {"picture": want.number, "style": want.style, "request": want.request, "reply": reply.text,
             "reference": want.references[0], "missed": c.objects.missed, "invented": c.objects.invented,
             "relations": c.relations, "places": c.places, "sizes": c.sizes,
             "fails": fails(reply, want.references)}
            for want, reply, c in zip(self.wanted, replies, checks, strict=True)
        ]  # fmt: skip
        return Outcome(figures, records, "detailed: objects right")


# --- Stories about held-out scenes: whether what they say of the things is so.


STORY_TOKENS = 200


@dataclass(frozen=True)
class SceneStories:
    """A story about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    wanted: tuple[tuple[Scene, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scenes = [held_out_scene(index, self.seed)[0] for index in range(self.count)]
        rng = random.Random(f"held out stories {self.seed}")
        object.__setattr__(self, "wanted", tuple((scene, rng.choice(STORY_REQUESTS)) for scene in scenes))

    def content(self) -> Iterator[str]:
        for scene, request in self.wanted:
            yield json.dumps([scene.to_dict(), request])

    def take(self, teller: Teller) -> Outcome:
        asks = [Ask(request, (Drawn(scene, index),)) for index, (scene, request) in enumerate(self.wanted)]
        replies = teller.replies(asks, STORY_TOKENS)
        checks = [check(reply.text, scene) for (scene, _), reply in zip(self.wanted, replies, strict=True)]
        unsaid = ("number right", "relations right")  # a story counts nothing, and says "right of it"
        figures = {name: figure for name, figure in fact_figures(checks).items() if name not in unsaid}
        figures["stories that end"] = share(reply.whole and bool(reply.text) for reply in replies)
        records = [
            {"picture": index, "request": request, "reply": reply.text, "missed": c.objects.missed,
             "invented": c.objects.invented, "fails": fails(reply)}
            for index, ((_, request), reply, c) in enumerate(zip(self.wanted, replies, checks, strict=True))
        ]  # fmt: skip
        return Outcome(figures, records, "objects right")


# --- Questions in people's words about held-out scenes: as they are written, typed in other ways, and put together
# anew.
#
# Each reply is right, wrong, evasive or nonsense. Of a perturbation, the figure is the share of right replies that
# stay right among the questions that it changes. The composition split asks in combinations of meaning and form that
# no training shows (`minichat.toy.speech.speaker`).


PER_SCENE = 4  # questions as they are written
COMPOSED = 2  # in held-out combinations
PERTURBED = 250  # so many of the scenes are asked about in other ways of typing, too
WORDING_TOKENS = 32
MAX_CAPTION_TOKENS = 120
_TRIES = 40


@dataclass(frozen=True)
class Worded:
    """A question about a held-out scene, what it means, and the true answer. `meaning`, `manner`: how it is put."""

    picture: int
    scene: Scene
    text: str
    program: Program
    answer: Answer
    meaning: str
    manner: str

    @property
    def topic(self) -> str:
        return topic(self.program)


def worded(index: int, seed: int, count: int, *, held_out: bool) -> list[Worded]:
    """`count` different questions about a held-out scene, over the topics in turn.

    `held_out`: in combinations that training never shows, or in those that it may.
    """
    scene, _ = held_out_scene(index, seed)
    rng = random.Random(f"held out wording {seed} {index} {held_out}")
    proposer = Proposer(Look(scene), rng)
    operations = list(SHARES)
    found: dict[Program, Worded] = {}
    topics = [TOPICS[(index * count + number) % len(TOPICS)] for number in range(count)]
    for tries in range(_TRIES * count):
        if len(found) == count:
            break
        drawn = proposer.propose(rng.choices(operations, list(SHARES.values()))[0])
        if drawn is None or drawn[0] in found or "story" in drawn[0].operation:
            continue
        if topic(drawn[0]) != topics[len(found)] and tries < _TRIES * count // 2:
            continue
        try:
            said = speak(drawn[0], rng, held_out=held_out)
        except Unsayable:
            continue
        found[drawn[0]] = Worded(index, scene, said.text, *drawn, said.meaning, said.manner)
    return list(found.values())


@dataclass(frozen=True)
class SceneWordings:
    """Questions in people's words about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    asked: tuple[Worded, ...] = field(init=False, repr=False)
    composed: tuple[Worded, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, number, held_out in (("asked", PER_SCENE, False), ("composed", COMPOSED, True)):
            every = [one for i in range(self.count) for one in worded(i, self.seed, number, held_out=held_out)]
            object.__setattr__(self, name, tuple(every))

    def content(self) -> Iterator[str]:
        for one in (*self.asked, *self.composed):
            yield json.dumps([one.scene.to_dict(), one.text, one.answer.reply])

    def take(self, teller: Teller) -> Outcome:
        texts = [one.text for one in self.asked]
        records = self._records(teller, self.asked, texts, "as written")
        figures = by_kind(((str(r["topic"]), float(r["verdict"] == "right")) for r in records), "right")
        for verdict in VERDICTS[1:]:
            figures[verdict] = share(r["verdict"] == verdict for r in records)
        composed = self._records(teller, self.composed, [one.text for one in self.composed], "composition split")
        figures["composition split"] = share(r["verdict"] == "right" for r in composed)
        records += composed
        if not teller.blind:
            right = {(r["picture"], r["question"]) for r in records if r["verdict"] == "right"}
            for name in PERTURBATIONS:
                again = self._perturbed(teller, name, right)
                records += again
                figures[f"stays right: {name}"] = share(r["verdict"] == "right" for r in again)
        return Outcome(figures, records, "right")

    def _perturbed(self, teller: Teller, name: str, right: set[tuple[Any, Any]]) -> list[dict[str, Any]]:
        """What was answered rightly, asked again as it is typed otherwise; what that leaves as it is, is left out."""
        rng = random.Random(f"typed {self.seed} {name}")
        pairs = [
            (one, PERTURBATIONS[name](one.text, rng))
            for one in self.asked
            if one.picture < PERTURBED and (one.picture, one.text) in right
        ]
        changed = [(one, text) for one, text in pairs if text != one.text]
        return self._records(teller, [one for one, _ in changed], [text for _, text in changed], name)

    @staticmethod
    def _records(teller: Teller, asked: Sequence[Worded], texts: Sequence[str], typed: str) -> list[dict[str, Any]]:
        replies: dict[int, str] = {}
        for long, most in ((False, WORDING_TOKENS), (True, MAX_CAPTION_TOKENS)):
            part = [number for number, one in enumerate(asked) if (one.topic == "caption") == long]
            asks = [Ask(texts[number], (Drawn(asked[number].scene, asked[number].picture),)) for number in part]
            replies |= {n: reply.text for n, reply in zip(part, teller.replies(asks, most), strict=True)}
        return [
            {"picture": one.picture, "typed": typed, "topic": one.topic, "meaning": one.meaning, "manner": one.manner,
             "question": text, "answer": one.answer.reply, "reply": replies[number],
             "verdict": judge(one.program, one.answer, one.scene, replies[number])}
            for number, (one, text) in enumerate(zip(asked, texts, strict=True))
        ]  # fmt: skip


EACH = 3  # at most so many things that are there are asked for in a picture, and as many that are not

Pair = tuple[str, str]  # colour, shape


def scene_polls(scenes: Sequence[Scene], seed: int = 0) -> list[Poll]:
    """The polls about scenes; `popular` is counted over these scenes."""
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    popular = Counter(pair for scene in scenes for pair in _there(scene))
    by_popularity = sorted(every, key=lambda pair: -popular[pair])
    polls = []
    for index, scene in enumerate(scenes):
        rng = random.Random(f"held out polls {seed} {index}")
        there = _there(scene)
        absent = [pair for pair in every if pair not in there]
        asked = rng.sample(there, min(EACH, len(there)))
        denied = {
            "random": rng.sample(absent, len(asked)),
            "popular": [pair for pair in by_popularity if pair not in there][: len(asked)],
            "adversarial": _adversarial(there, absent, rng)[: len(asked)],
        }
        picture = Drawn(scene, index)
        for setting in SETTINGS:
            for pairs, true in ((asked, True), (denied[setting], False)):
                polls += [Poll(setting, picture, _question(pair), true, str(index)) for pair in pairs]
    return polls


def _question(pair: Pair) -> str:
    """POPE's own wording."""
    return f"Is there {some((None, *pair))} in the image?"


def _there(scene: Scene) -> list[Pair]:
    return list(dict.fromkeys((thing.colour, thing.shape) for thing in scene.things))


def _adversarial(there: Sequence[Pair], absent: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """What is absent, the more of it is there the earlier."""
    colours, shapes = {colour for colour, _ in there}, {shape for _, shape in there}
    shuffled = rng.sample(list(absent), len(absent))
    return sorted(shuffled, key=lambda pair: -((pair[0] in colours) + (pair[1] in shapes)))


def polls_about_scenes(count: int, seed: int = 0) -> Polls:
    """Polls about `count` held-out scenes."""
    return Polls(tuple(scene_polls([held_out_scene(index, seed)[0] for index in range(count)], seed)))


def gallery_of_scenes(count: int = PAIRS, seed: int = 0, reranked: int = RERANKED) -> Gallery:
    """Held-out scenes with a short caption each, no two of which name the same things on the same background."""
    pictures: list[Shown] = []
    texts: list[tuple[int, str]] = []
    told: set[tuple[Any, ...]] = set()
    index = 0
    while len(pictures) < count:
        scene, _ = held_out_scene(index, seed)
        if (tale := _tale(scene)) not in told:
            told.add(tale)
            texts.append((len(pictures), short(scene, random.Random(f"held out caption {seed} {index}"))))
            pictures.append(Drawn(scene, index))
        index += 1
    return Gallery(tuple(pictures), tuple(texts), reranked)


def _tale(scene: Scene) -> tuple[Any, ...]:
    """What a short caption of the scene tells, in whatever order."""
    return tuple(sorted((thing.colour, thing.shape) for thing in scene.things)), background_words(scene.background)
