"""Held-out scenes, drawn in many ways and by another program, and questions and dialogues about them."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from minichat.evaluate.metrics import Figure, Outcome, by_kind, share
from minichat.evaluate.replies import Ask, Blank, Reply, Shown, Teller
from minichat.evaluate.tasks import QUESTION_TOKENS, REDRAWN
from minichat.toy.asking import ALL_KINDS, KINDS, Question, score
from minichat.toy.dialogues import ORDINALS, Talk
from minichat.toy.pairs import pair_questions, random_pair
from minichat.toy.questions import questions
from minichat.toy.world import Background, Scene, Style, Thing, draw, random_scene

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat


# --- Scenes drawn by another program, in the same vocabulary.
#
# What a model sees of a scene must not hang on how the generator it learned from puts pixels. This drawer shares
# nothing with `minichat.toy.world`: it asks of each point of a picture, several to a pixel, what lies there (signed
# distances, as in ray tracing), has palettes, proportions, outlines, noise and textures of its own, and looks at the
# scene from slightly aside where it is told to.


Grid = NDArray[np.float64]  # a value for each sample point, (K, K)

# Two ways to understand the colour words: as web pages name them, and as poster paints.
PALETTES = (
    {
        "red": "#e60000", "orange": "#ff8c00", "yellow": "#ffe600", "green": "#008a1c", "blue": "#0a3cff",
        "purple": "#800080", "pink": "#ffa6c9", "brown": "#8b4513", "black": "#000000", "white": "#ffffff",
        "gray": "#808080",
    },
    {
        "red": "#d32f2f", "orange": "#f57c00", "yellow": "#fbd84a", "green": "#43a047", "blue": "#1e63d0",
        "purple": "#7b2fa0", "pink": "#f48fb1", "brown": "#6d4428", "black": "#1c1c1e", "white": "#f4f4f2",
        "gray": "#8e8e90",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Manner:
    """How a scene is drawn.

    `outline`: width over the thing's radius. `texture`: strength of hatching and grain on the things, in 1/255.
    `light`: how much brighter one side of the picture is than the other. `tilt`: how far the corners are moved by the
    point of view, as a fraction of the side. `blur`: radius in hundredths of the side.
    """

    side: int = 128
    outline: float = 0.0
    texture: float = 0.0
    light: float = 0.0
    tilt: float = 0.0
    blur: float = 0.0
    jpeg: int | None = None

    def draw(self, scene: Scene, seed: int) -> Image.Image:
        return redraw(scene, self, seed)


MANNERS = {
    "another program": Manner(),
    "another program, outlined": Manner(outline=0.14),
    "another program, textured": Manner(texture=16),
    "another program, uneven light": Manner(light=0.16),
    "another program, from aside": Manner(tilt=0.06),
    "another program, blurred": Manner(blur=0.8),
    "another program, JPEG": Manner(side=200, jpeg=35),
    "another program, all of these": Manner(160, 0.1, 12, 0.1, 0.05, 0.4, 50),
}
STRAY = 8  # a paint is mixed this far from its code, in 1/255
SAMPLES = 3  # points across a pixel
SHIFT = 0.03  # the point of view moves no thing further: places and directions that are sure stay true


def redraw(scene: Scene, manner: Manner = Manner(), seed: int = 0) -> Image.Image:
    """Draw `scene` as an RGB picture. Equal arguments give equal pixels."""
    rng = random.Random(f"another program {seed}")
    noise = np.random.default_rng(rng.getrandbits(32))
    paints = PALETTES[rng.randrange(len(PALETTES))]
    palette = {word: _rgb(code) + [rng.uniform(-STRAY, STRAY) for _ in range(3)] for word, code in paints.items()}
    x, y = _points(scene, manner, rng)
    canvas = _background(scene.background, palette, x, y, rng, noise)
    for thing in scene.things:
        _put(canvas, thing, palette[thing.colour], manner, x, y, rng)
    if manner.light:
        angle = rng.uniform(0, 2 * math.pi)
        slope = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
        canvas *= (1 + manner.light * slope)[..., None]
    side = manner.side
    pixels = canvas.reshape(side, SAMPLES, side, SAMPLES, 3).mean((1, 3))  # (S, S, 3)
    picture = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), "RGB")
    if manner.blur:
        picture = picture.filter(ImageFilter.BoxBlur(manner.blur * side / 100))
    if manner.jpeg is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=manner.jpeg)
        picture = Image.open(buffer).convert("RGB")
    return picture


def _rgb(code: str) -> NDArray[np.float64]:
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.float64)


def _points(scene: Scene, manner: Manner, rng: random.Random) -> tuple[Grid, Grid]:
    """For each sample point of the picture the place in the scene that is seen there."""
    count = manner.side * SAMPLES
    steps = (np.arange(count) + 0.5) / count
    x, y = np.meshgrid(steps, steps)
    tilt = manner.tilt
    while tilt > 0.005:
        view = _homography([(rng.uniform(-tilt, tilt), rng.uniform(-tilt, tilt)) for _ in range(4)])
        moved = [view(np.array(t.x), np.array(t.y)) for t in scene.things]
        shifts = [max(abs(a - t.x), abs(b - t.y)) for (a, b), t in zip(moved, scene.things, strict=True)]
        if max(shifts) <= SHIFT:
            return view(x, y)
        tilt *= 0.9
    return x, y


def _homography(shifts: list[tuple[float, float]]) -> Callable[[Grid, Grid], tuple[Grid, Grid]]:
    """The projective map that moves the unit square's corners by `shifts` (Hartley and Zisserman, section 4.1)."""
    rows, wanted = [], []
    for (u, v), (a, b) in zip(((0, 0), (1, 0), (1, 1), (0, 1)), shifts, strict=True):
        s, t = u + a, v + b
        rows += [[u, v, 1, 0, 0, 0, -u * s, -v * s], [0, 0, 0, u, v, 1, -u * t, -v * t]]
        wanted += [s, t]
    h = np.linalg.solve(np.array(rows, np.float64), np.array(wanted, np.float64))

    def view(x: Grid, y: Grid) -> tuple[Grid, Grid]:
        depth = h[6] * x + h[7] * y + 1
        return (h[0] * x + h[1] * y + h[2]) / depth, (h[3] * x + h[4] * y + h[5]) / depth

    return view


def _background(
    background: Background,
    palette: dict[str, NDArray[np.float64]],
    x: Grid,
    y: Grid,
    rng: random.Random,
    noise: np.random.Generator,
) -> Grid:
    """The colour (K, K, 3) of every point."""
    first = palette[background.colours[0]]
    canvas = np.broadcast_to(first, (*x.shape, 3)).copy()
    if background.kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
        reach = (abs(math.cos(angle)) + abs(math.sin(angle))) / 2
        share = np.clip(along / (2 * reach) + 0.5, 0, 1)[..., None]
        canvas += share * (palette[background.colours[1]] - first)
    if background.kind == "noisy":
        cells = rng.choice((64, 96))
        column, row = ((np.clip(v, 0, 0.9999) * cells).astype(int) for v in (x, y))
        specks = noise.uniform(-1, 1, (cells, cells, 1)) * 42 + noise.uniform(-1, 1, (cells, cells, 3)) * 14
        canvas += specks[row, column]
    return canvas


def _put(
    canvas: Grid, thing: Thing, colour: NDArray[np.float64], manner: Manner, x: Grid, y: Grid, rng: random.Random
) -> None:
    """Colour the points that the thing covers."""
    turn = math.radians(thing.angle)
    near = np.hypot(x - thing.x, y - thing.y) < 1.02 * thing.radius
    dx, dy = (x[near] - thing.x) / thing.radius, (y[near] - thing.y) / thing.radius
    u = dx * math.cos(turn) + dy * math.sin(turn)
    v = dy * math.cos(turn) - dx * math.sin(turn)
    inside = DISTANCES[thing.shape](u, v)  # negative inside, in radii
    points = canvas[near]
    shade = np.zeros_like(u)
    if manner.texture:
        pitch, slant = rng.uniform(9, 16), rng.uniform(0, math.pi)
        shade = manner.texture * np.sin(pitch * (u * math.cos(slant) + v * math.sin(slant)))
    points[inside < 0] = (colour + shade[:, None])[inside < 0]
    if manner.outline:
        ink = np.array([235.0] * 3) if colour.sum() < 180 else np.zeros(3)
        points[(inside < 0) & (inside > -manner.outline)] = ink
    canvas[near] = points


def _polygon(corners: list[tuple[float, float]]) -> Callable[[Grid, Grid], Grid]:
    """Signed distance to a polygon: to its nearest edge, negative where a ray to the right crosses it an odd number of
    times."""

    def distance(u: Grid, v: Grid) -> Grid:
        nearest, within = np.full_like(u, np.inf), np.zeros(u.shape, bool)
        for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True):
            along = np.clip(((u - a) * (c - a) + (v - b) * (d - b)) / ((c - a) ** 2 + (d - b) ** 2), 0, 1)
            nearest = np.minimum(nearest, np.hypot(u - a - along * (c - a), v - b - along * (d - b)))
            if b != d:
                within ^= ((b > v) != (d > v)) & (u < a + (v - b) * (c - a) / (d - b))
        return np.where(within, -nearest, nearest)

    return distance


def _round(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners at even angles, the first at the top, `radii` taken in turn."""
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart(u: Grid, v: Grid) -> Grid:
    """Two discs and the wedge below them."""
    lobes = np.hypot(np.abs(u) - 0.44, v + 0.33) - 0.47
    return np.minimum(lobes, _polygon([(-0.86, -0.13), (0.0, -0.5), (0.86, -0.13), (0.0, 0.97)])(u, v))


def _cross(u: Grid, v: Grid) -> Grid:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.28, b - 0.95), np.maximum(b - 0.28, a - 0.95))


DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.98,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.23,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.7,
    "diamond": _polygon([(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]),
    "triangle": _polygon(_round(3, (1.0,))),
    "star": _polygon(_round(10, (1.0, 0.45))),
    "cross": _cross,
    "heart": _heart,
}


# --- Held-out scenes: none that a training draws, drawn in many ways, and questions about them.
#
# A model that has learned the wordings but not to look does as well with a blank picture as with the real one, so each
# figure stands beside the blank one's.


class Drawer(Protocol):
    """A way to draw a scene; hashable."""

    def draw(self, scene: Scene, seed: int) -> Image.Image: ...


class Drawing(NamedTuple):
    """The training's own drawer: the side in pixels and the style."""

    size: int = 96
    style: Style = Style()

    def draw(self, scene: Scene, seed: int) -> Image.Image:
        return draw(scene, self.size, seed, self.style)


DRAWINGS: dict[str, Drawing] = {
    "as in training": Drawing(),
    "hard edges": Drawing(style=Style(oversample=1)),
    "all outlined": Drawing(style=Style(outline=True, edge=0.24)),
    "no outlines": Drawing(style=Style(outline=False)),
    "JPEG quality 25": Drawing(style=Style(jpeg=25)),
    "blurred": Drawing(style=Style(blur=1.2)),
    "pure colours": Drawing(style=Style(jitter=0)),
    "64 pixels": Drawing(64),
    "400 pixels": Drawing(400),
    "1,000 pixels, JPEG": Drawing(1000, Style(jpeg=60)),
}
WAYS: dict[str, Drawer] = {**DRAWINGS, **MANNERS}  # all ways to draw a scene

PLAIN = DRAWINGS["as in training"]


@dataclass(frozen=True)
class Drawn:
    """A scene as one drawer draws it."""

    scene: Scene
    seed: int
    drawer: Drawer = PLAIN

    def open(self) -> Image.Image:
        return self.drawer.draw(self.scene, self.seed)

    def content(self) -> dict[str, Any]:
        return self.scene.to_dict()


@dataclass(frozen=True)
class Asked:
    """One question about one held-out scene."""

    scene: Scene
    seed: int
    question: Question


def held_out_scene(index: int, seed: int = 0) -> tuple[Scene, random.Random]:
    """A scene that no training draws (their seeds are other words), and the randomness for what is asked of it."""
    rng = random.Random(f"held out {seed} {index}")
    return random_scene(rng), rng


def held_out(scenes: int, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Asked]:
    """One question of each kind about each of `scenes` held-out scenes, where the scene allows it."""
    asked = []
    for index in range(scenes):
        scene, rng = held_out_scene(index, seed)
        for kind in kinds:
            asked += [Asked(scene, index, question) for question in questions(scene, rng, 1, (kind,))]
    return asked


def accuracy(
    bot: MiniChat, asked: Sequence[Asked], drawing: Drawer | None = PLAIN, batch_size: int = 32
) -> dict[str, float]:
    """The share of right replies for each kind of question and `overall`; `drawing=None`: a blank picture."""

    def shown(a: Asked) -> Shown:
        return Blank() if drawing is None else Drawn(a.scene, a.seed, drawing)

    replies = Teller(bot, batch_size=batch_size).replies([Ask(a.question.text, (shown(a),)) for a in asked])
    right = [(a.question.kind, score(a.question, reply.text)) for a, reply in zip(asked, replies, strict=True)]
    return {name: figure.value for name, figure in by_kind(right).items() if figure.value is not None}


# --- Questions about one picture: held-out scenes scored against the truth, or a user's files by VQA accuracy.


@dataclass(frozen=True)
class SceneQuestions:
    """One question of each kind about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    redrawn: int = REDRAWN
    asked: tuple[Asked, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked", tuple(held_out(self.count, self.seed, ALL_KINDS)))

    def content(self) -> Iterator[str]:
        yield json.dumps({"redrawn": min(self.redrawn, self.count)})
        for a in self.asked:
            yield json.dumps([a.scene.to_dict(), a.question.text, a.question.answer])

    def take(self, teller: Teller) -> Outcome:
        replies = _replies(teller, self.asked, Drawing())
        records = []
        for a, reply in zip(self.asked, replies, strict=True):
            question, right = a.question, score(a.question, reply)
            records.append(
                {"picture": a.seed, "things": len(a.scene.things), "kind": question.kind, "question": question.text,
                 "answer": question.answer, "reply": reply, "right": right}
            )  # fmt: skip
        figures = by_kind((str(r["kind"]), float(bool(r["right"]))) for r in records)
        if self.redrawn and not teller.blind:
            part = [a for a in self.asked if a.seed < self.redrawn]
            every: list[bool] = []
            for name, manner in MANNERS.items():
                here = [score(a.question, r) for a, r in zip(part, _replies(teller, part, manner), strict=True)]
                figures[f"drawn by {name}"] = share(here)
                every += here
            figures["drawn by another program, overall"] = share(every)
        return Outcome(figures, records, "overall")


def _replies(teller: Teller, asked: Sequence[Asked], drawer: Drawer) -> list[str]:
    asks = [Ask(a.question.text, (Drawn(a.scene, a.seed, drawer),)) for a in asked]
    return [reply.text for reply in teller.replies(asks, QUESTION_TOKENS)]


# --- Dialogues about held-out scenes in which later questions need earlier turns ("And what colour is it?").
#
# The model goes on from its own replies, as in a chat, whether they were right or not; beside that stands how it does
# when the replies so far were the true ones.


TURNS = 5
TOLD = 500  # so many dialogues are gone through again with true replies
TURN_TOKENS = 32


@dataclass(frozen=True)
class Turn:
    """A question, and whether it can only be understood from the turns before."""

    question: Question
    leans: bool


def turns_about(scene: Scene, rng: random.Random, count: int = TURNS) -> tuple[Turn, ...]:
    """A dialogue of questions; captions and stories, which have no one answer, are left out."""
    talk = Talk(scene, rng)
    turns: list[Turn] = []
    while len(turns) < count:
        spoken_of = talk.focus
        question = talk.turn()
        if question.answer:
            # A turn that stands by itself ends what was spoken of; one that leans goes on with it, or from it.
            turns.append(Turn(question, spoken_of is not None and talk.focus is not None))
    return tuple(turns)


@dataclass(frozen=True)
class SceneDialogues:
    """A dialogue of five questions about each of `count` held-out scenes."""

    count: int
    seed: int = 0
    dialogues: tuple[tuple[Scene, tuple[Turn, ...]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        dialogues = []
        for index in range(self.count):
            scene, _ = held_out_scene(index, self.seed)
            rng = random.Random(f"held out dialogue {self.seed} {index}")
            dialogues.append((scene, turns_about(scene, rng)))
        object.__setattr__(self, "dialogues", tuple(dialogues))

    def content(self) -> Iterator[str]:
        for scene, turns in self.dialogues:
            yield json.dumps([scene.to_dict(), [(t.question.text, t.question.answer, t.leans) for t in turns]])

    def take(self, teller: Teller) -> Outcome:
        own = self._play(teller, self.dialogues, told=False)
        told = self._play(teller, self.dialogues[:TOLD], told=True)
        records = [
            {"picture": index, "turn": number + 1, "kind": turn.question.kind, "leans": turn.leans,
             "question": turn.question.text, "answer": turn.question.answer, "reply": own[index][number],
             "right": score(turn.question, own[index][number])}
            for index, (_, turns) in enumerate(self.dialogues)
            for number, turn in enumerate(turns)
        ]  # fmt: skip
        figures: dict[str, Figure] = {}
        for number in range(1, TURNS + 1):
            figures[f"turn {number}"] = share(bool(r["right"]) for r in records if r["turn"] == number)
        figures["turns that need earlier ones"] = share(bool(r["right"]) for r in records if r["leans"])
        later = [r for r in records if int(str(r["turn"])) > 1]
        figures["all later turns"] = share(bool(r["right"]) for r in later)
        figures["turns that need earlier ones, after true replies"] = share(
            score(turn.question, reply)
            for (_, turns), replies in zip(self.dialogues[:TOLD], told, strict=True)
            for turn, reply in zip(turns, replies, strict=True)
            if turn.leans
        )
        return Outcome(figures, records, "turn 1")

    @staticmethod
    def _play(teller: Teller, dialogues: Sequence[tuple[Scene, tuple[Turn, ...]]], told: bool) -> list[list[str]]:
        """The replies of each dialogue, all dialogues turn by turn together. `told`: after true replies."""
        asks: list[Ask] = []
        for index, (scene, turns) in enumerate(dialogues):
            shown: tuple[Shown, ...] = (Drawn(scene, index),)
            asks.append(Ask(turns[0].question.text, shown))
        said: list[list[str]] = [[] for _ in dialogues]
        for number in range(TURNS):
            replies = teller.replies(asks, TURN_TOKENS)
            for index, (_, turns) in enumerate(dialogues):
                said[index].append(replies[index].text)
                if number + 1 < TURNS:
                    reply = Reply(turns[number].question.reply) if told else replies[index]
                    asks[index] = asks[index].then(reply, turns[number + 1].question.text)
        return said


# --- Questions about two pictures: what they have in common, what only one has, and which of them is meant.


COMPARING = 3  # questions that compare the two

# What a comparing question asks, by a word that only its wordings have; the first that is found.
_FORMS = (
    (r"\bbackgrounds?\b", "same background"),
    (r"\bnumber of objects\b|\bequally\b", "same number"),
    (r"\bbut not\b|\bhas not\b", "only in one"),
    (r"\bmore\b|\bfewer\b", "more or fewer"),
    (r"\bboth\b", "in both"),
    (r"\bwhich\b", "which has it"),
)


def form(question: Question) -> str:
    """What is compared; "one of the two" where the question is about one of them."""
    if question.kind != "pair":
        return "one of the two"
    return next(name for pattern, name in _FORMS if re.search(pattern, question.text.lower()))


@dataclass(frozen=True)
class ScenePairs:
    """Three comparing questions, and one about either picture, for each of `count` held-out pairs."""

    count: int
    seed: int = 0
    asked: tuple[tuple[int, tuple[Scene, Scene], Question], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        asked = []
        for index in range(self.count):
            rng = random.Random(f"held out pair {self.seed} {index}")
            pair = random_pair(rng)
            drawn = pair_questions(*pair, rng, COMPARING)
            which = rng.randrange(2)
            drawn += questions(pair[which], rng, 1, KINDS, ORDINALS[which])
            asked += [(index, pair, question) for question in drawn]
        object.__setattr__(self, "asked", tuple(asked))

    def content(self) -> Iterator[str]:
        for _, pair, question in self.asked:
            yield json.dumps([[scene.to_dict() for scene in pair], question.text, question.answer])

    def take(self, teller: Teller) -> Outcome:
        asks = [
            Ask(question.text, (Drawn(pair[0], 2 * index), Drawn(pair[1], 2 * index + 1)))
            for index, pair, question in self.asked
        ]
        replies = [reply.text for reply in teller.replies(asks, TURN_TOKENS)]
        records = [
            {"pair": index, "kind": question.kind, "form": form(question), "question": question.text,
             "answer": question.answer, "reply": reply, "right": score(question, reply)}
            for (index, _, question), reply in zip(self.asked, replies, strict=True)
        ]  # fmt: skip
        figures = by_kind((str(r["form"]), float(bool(r["right"]))) for r in records)
        return Outcome(figures, records, "overall")
