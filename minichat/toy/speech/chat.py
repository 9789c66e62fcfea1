"""What is said that no program answers: greetings, what a picture does not tell; and MiniGPT-v2's task words."""

from __future__ import annotations

import math
import random
from importlib.resources import files

from minichat.toy.captions import setting
from minichat.toy.dialogues import BYE, CAN, GREETING, NO_SUCH, THANKS, WHO, WORLD
from minichat.toy.speech.grammar import drawn, headed
from minichat.toy.speech.nouns import Nouns, Things, article, matching, numbered, plural
from minichat.toy.speech.propose import Proposer
from minichat.toy.speech.speaker import written
from minichat.toy.world import POLYGONS, Look, Scene, Thing, join, named, some

# --- What is said that no scene answers: greetings and thanks, what a picture does not tell, what is no part of this
# world, what cannot be understood.


HELLO = "Hello! Ask me about the picture."
FINE = "I am fine, thank you. Ask me about the picture."
SEEN = "I see it in the picture."
CANNOT = "I cannot tell that from the picture. I can tell you shapes, colours, sizes, numbers and places."
NOT_UNDERSTOOD = "I did not understand that. Please ask me about the picture."
ENGLISH = "I only understand English. Please ask me in English."
GLAD = "I am glad that helps."
SORRY = "I am sorry. Please ask me again."

_LISTS = headed((files("minichat") / "assets" / "small_talk.txt").read_text(encoding="utf-8"))
_SAID: dict[str, tuple[str, ...]] = {
    GREETING: _LISTS["greeting"], FINE: _LISTS["fine"], WHO: _LISTS["who"], CAN: _LISTS["can"],
    THANKS: _LISTS["thanks"], GLAD: _LISTS["glad"], BYE: _LISTS["bye"], SORRY: _LISTS["sorry"],
    CANNOT: _LISTS["cannot"],
}  # fmt: skip
SOCIAL = (GREETING, FINE, WHO, CAN, THANKS, GLAD, BYE, SORRY)


def social(rng: random.Random) -> tuple[str, str]:
    """What people say to be civil, and the reply."""
    reply = rng.choices(SOCIAL, (10, 4, 10, 10, 12, 8, 10, 4))[0]
    return _say(rng.choice(_SAID[reply]), rng), reply


def unknowable(rng: random.Random) -> tuple[str, str]:
    """What a picture of shapes does not tell."""
    return _say(rng.choice(_SAID[CANNOT]), rng), CANNOT


def foreign(rng: random.Random) -> tuple[str, str]:
    """A thing that is no part of the synthetic world: it is named as it was said."""
    if rng.random() < 0.3:
        if rng.random() < 0.6:
            what = rng.choice(_LISTS["shapes"])
        else:
            noun = rng.choice(("object", "thing", "shape", "star", "circle", "square", "ring"))
            what = f"{rng.choice(_LISTS['colours'])} {noun}"
        return _about(
            rng.choice(_LISTS["shapes asked"]), what, rng
        ), f"No, there is no {what.replace('thing', 'object')}."
    what = rng.choice(_LISTS["things"])
    return _about(rng.choice(_LISTS["things asked"]), what, rng), NO_SUCH.format(what)


def _about(template: str, what: str, rng: random.Random) -> str:
    text = drawn(template, rng).replace("{xs}", plural(what))
    return _written(text.replace("a {x}", article(what)).replace("{x}", what), rng)


def how_known(rng: random.Random) -> tuple[str, str]:
    return _say(rng.choice(_LISTS["how known"]), rng), SEEN


def language(rng: random.Random) -> tuple[str, str]:
    """A question in another language."""
    return rng.choice(_LISTS["languages"]), ENGLISH


def gibberish(rng: random.Random) -> tuple[str, str]:
    """What means nothing: keys that were hit at random, marks, or words in no order."""
    which = rng.random()
    if which < 0.45:
        rows = ("asdfghjkl", "qwertyuiop", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz")
        words = [
            "".join(rng.choice(rng.choice(rows)) for _ in range(rng.randint(3, 9))) for _ in range(rng.randint(1, 4))
        ]
        return " ".join(words), NOT_UNDERSTOOD
    if which < 0.65:
        return "".join(rng.choice("?!.,;:#*+-_()%&$/0123456789") for _ in range(rng.randint(2, 10))), NOT_UNDERSTOOD
    others = (
        "the",
        "of",
        "and",
        "is",
        "so",
        "than",
        "why",
        "blub",
        "florp",
        "snarg",
        "wibble",
        "because",
        "if",
        "not",
        "grumf",
        "zonk",
        "until",
    )
    return " ".join(rng.sample(others, rng.randint(3, 6))), NOT_UNDERSTOOD


def general(rng: random.Random) -> tuple[str, str]:
    """What a general assistant could answer, and a model of drawn shapes cannot."""
    return _say(rng.choice(_LISTS["general"]).replace("{place}", rng.choice(_LISTS["countries"])), rng), WORLD


def aside(rng: random.Random) -> tuple[str, str]:
    """Something that no scene answers, said beside a picture."""
    make = rng.choices((social, unknowable, foreign, language, gibberish), (34, 24, 26, 8, 8))[0]
    text, reply = make(rng)
    return text, HELLO if reply == GREETING else reply


def _say(template: str, rng: random.Random) -> str:
    text = drawn(template, rng).replace(
        "{thing}", rng.choice(("star", "circle", "square", "heart", "shape", "ring", "object", "triangle"))
    )
    return _written(text, rng)


def _written(text: str, rng: random.Random) -> str:
    text = written(text, rng)
    return text if text[-1:] in "?.!" or rng.random() < 0.6 else text + rng.choice(("!", "."))


# --- MiniGPT-v2's task words (arXiv:2310.09478): `[refer]`, `[identify]` and `[grounding]`, with boxes in hundredths.
#
# A box is `{<x1><y1><x2><y2>}`: left, top, right and bottom, each from 0 to 100 of the picture's side.


Box = tuple[int, int, int, int]


def box(thing: Thing) -> Box:
    """The smallest upright box round a thing as it is drawn."""
    turn = math.radians(thing.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = POLYGONS.get(thing.shape)
    if corners is None:  # a circle or a ring
        left, top, right, bottom = -1.0, -1.0, 1.0, 1.0
    else:
        xs = [a * cos - b * sin for a, b in corners]
        ys = [a * sin + b * cos for a, b in corners]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    sides = (thing.x + left * thing.radius, thing.y + top * thing.radius,
             thing.x + right * thing.radius, thing.y + bottom * thing.radius)  # fmt: skip
    one, two, three, four = (min(100, max(0, round(100 * side))) for side in sides)
    return one, two, three, four


def spelled(where: Box) -> str:
    """ "{<12><30><45><63>}"."""
    return "{" + "".join(f"<{side}>" for side in where) + "}"


def refer(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """ "[refer] the small red star" → its box, those of all that answer, or that there is none."""
    proposer = Proposer(Look(scene), rng)
    things = proposer.one() or proposer.some(plain=True)
    nouns = Nouns(rng)
    text = rng.choice((nouns.the, nouns.the, nouns.bare, nouns.a))(things)
    frame = rng.choice(
        (
            "[refer] {x}",
            "[refer] {x}",
            "[refer] where is {x}?",
            "[refer] give me the location of {x}",
            "[refer] {x}?",
            "[refer] from this image, tell me the location of {x}",
            "[refer] could you tell me the location for {x}?",
            "[refer] where can i locate {x}?",
        )
    )
    return frame.format(x=text), referred(scene, things)


def referred(scene: Scene, things: Things) -> str:
    """The reply to `[refer]`."""
    found = matching(Look(scene), things) or []
    return " ".join(spelled(box(thing)) for thing in found) or f"There is {numbered(things, 0)}."


def identify(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """ "[identify] {<…>}" → what is there; the box may be a little off."""
    thing = rng.choice(scene.things)
    one, two, three, four = (min(100, max(0, side + rng.randint(-2, 2))) for side in box(thing))
    frame = rng.choice(
        (
            "[identify] {x}",
            "[identify] {x}",
            "[identify] what is this {x}",
            "[identify] what object is in this location {x}",
            "[identify] identify the object present at this location {x}",
            "[identify] describe this object in {x}",
        )
    )
    told = some((thing.size, thing.colour, thing.shape))
    return frame.replace("{x}", spelled((one, two, three, four))), f"{told.capitalize()}."


def grounding(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """ "[grounding] describe the picture" → a caption in which each thing has its box."""
    frame = rng.choice(
        (
            "describe this image as detailed as possible",
            "describe the picture",
            "please describe this image in detail",
            "what is in the picture?",
            "can you provide a description of the image?",
            "give me a caption",
            "describe what you see",
        )
    )
    return f"[grounding] {frame}", grounded(scene)


def grounded(scene: Scene) -> str:
    """The reply to `[grounding]`."""
    told = [f"<p>{some(named(thing))}</p> {spelled(box(thing))}" for thing in Look(scene).things]
    return f"{join(told)} {setting(scene)}."


def task(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One of the three."""
    which = rng.random()
    if which < 0.5 and (referring := refer(scene, rng)) is not None:
        return referring
    return identify(scene, rng) if which < 0.8 else grounding(scene, rng)
