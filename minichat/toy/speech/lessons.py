"""Lessons for a language model: dialogues in people's words, about one picture or several."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from minichat.toy.dialogues import NEED, ORDINALS, Turn
from minichat.toy.off_distribution import OUTSIDE
from minichat.toy.off_distribution import REQUESTS as OUTSIDE_REQUESTS
from minichat.toy.pairs import BOTH, random_pair
from minichat.toy.speech import chat
from minichat.toy.speech.chat import task
from minichat.toy.speech.grammar import drawn
from minichat.toy.speech.nouns import Nouns, Program, Things, Unsayable, called, plural
from minichat.toy.speech.propose import SHARES, Proposer
from minichat.toy.speech.speaker import speak, written
from minichat.toy.speech.talk import MOVES, Talk
from minichat.toy.speech.verdict import answer, typed
from minichat.toy.world import COLOURS, SHAPES, Look, Name, Scene, background_colours, join, named, random_scene, some

# --- Several pictures in one dialogue: a new one in a later turn, two at once, one that shows no drawn shapes in
# between.
#
# Who names no picture means the newest. As soon as there are more, one may be meant by its number, or as "the new
# one", "the one before".


#: Before or after a question with which a new picture comes; {q}: the question.
ARRIVALS = (
    "{q}", "{q}", "{q}", "{q}", "now {q}", "and now: {q}", "here is another one: {q}", "and in this one, {q}",
    "and this one: {q}", "new picture. {q}", "next one: {q}", "look at this: {q}", "now this one: {q}",
    "for this picture: {q}", "another picture: {q}", "what about this one: {q}", "ok, next picture: {q}",
    "in this picture, {q}", "take this one. {q}", "and here, {q}", "same for this one: {q}",
)  # fmt: skip
AGAIN = (
    "and this one?", "and in this one?", "what about this one?", "how about this one?", "and here?", "and now?",
    "now this one.", "same question for this picture.", "and this picture?", "this one?",
    "and what about this picture?", "the same again, please.", "what about this?", "here's another one.",
    "and for this one?", "next one?", "and in the new picture?",
)  # fmt: skip
NEWEST = ("new", "last", "latest", "current", "second")
OLDER = ("previous", "earlier", "other", "first", "old")

_COMPARED: dict[str, tuple[str, ...]] = {
    "which has": (
        "which (picture|image|one|pic) has {a}?", "which (picture|image|one) shows {a}?",
        "in which (picture|image|one) is there {a}?", "which of the two [pictures|images] has {a}?",
        "where is there {a}?", "which one (contains|has) {a}?", "in which one do you see {a}?",
        "is {a} in the first or the second [picture]?", "(tell|show) me which (picture|one) has {a}.", "which has {a}?",
        "{a}: in which one?", "does the first or the second have {a}?",
    ),
    "both have": (
        "is there {a} in both [pictures|images|of them]?", "do both [pictures|images] (have|show|contain) {a}?",
        "can you see {a} in both?", "do the two [pictures] both have {a}?", "is {a} in both [of them]?", "{a} in both?",
        "does each [picture] have {a}?", "do you see {a} in each of (them|the pictures)?",
        "are there {s} in both [pictures|of them]?",
    ),
    "more": (
        "which (picture|image|one|pic) has {more} {s}?", "which (picture|image|one) shows {more} {s}?",
        "where are there {more} {s}?", "which of the two [pictures] has {more} {s}?",
        "in which (picture|image|one) are there {more} {s}?", "which has {more} {s}?", "{more} {s}, in which one?",
        "are there {more} {s} in the first or the second [picture|one]?", "where do you see {more} {s}?",
    ),
    "same number": (
        "do both (pictures|images|of them) have the same number of (objects|things|shapes)?",
        "are there as many (objects|things) in the first as in the second?",
        "is the number of (objects|things|shapes) the same [in both]?",
        "do the two [pictures|images] show equally many (objects|things)?", "do they have the same number of things?",
        "same number of (objects|things|shapes) in both?", "are there equally many (objects|things) in both?",
    ),
    "same background": (
        "is the background the same [in both]?", "do both (pictures|images|of them) have the same background?",
        "same background?", "do the two [pictures] have the same background?",
        "are the backgrounds [of the two pictures] the same?", "are both backgrounds the same?",
        "do they have the same background?", "is it the same background in both?", "do the backgrounds match?",
    ),
    "only in": (
        "what is in the {one} (picture|image|one) but not in the {other} [one|picture]?",
        "what does the {one} (picture|one) have that the {other} (has not|hasn't|doesn't)?",
        "which (object|thing)[s] (is|are) in the {one} (picture|one) but not in the {other} [one]?",
        "what does the {other} one lack?", "what is only in the {one} (picture|one|image)?",
        "what's missing in the {other} (picture|one)?", "what do you see only in the {one} [picture|one]?",
        "what's in the {one} one that's not in the {other}?",
        "what is new in the {one} [picture|one] compared to the {other}?",
    ),
    "common": (
        "what (is|do you see) in both [pictures]?", "what do (they|the two pictures|both pictures) have in common?",
        "which (objects|things) are in both [pictures]?", "what do they share?", "what's the same in both?",
        "is there anything in common?",
    ),
    "total": (
        "how many (objects|things|shapes) are there in both together?",
        "how many (objects|things) do the two pictures have together?",
        "how many (objects|things|shapes) (are there|do you see) in total, in both pictures?",
        "how many (things|objects) altogether in both?",
    ),
}  # fmt: skip


class Album:
    """A running dialogue about up to three pictures; `scenes[i]` is None for one that shows no drawn shapes."""

    def __init__(self, scenes: Sequence[Scene | None], rng: random.Random, *, held_out: bool | None = False) -> None:
        self.scenes, self.rng, self.held_out = scenes, rng, held_out

    def one_after_another(self, turns: int) -> list[Turn]:
        """Each picture comes with a question of its own; now and then an older one is asked about, or two compared."""
        rng = self.rng
        starts = [0, *sorted(rng.sample(range(1, turns), len(self.scenes) - 1))]
        said: list[Turn] = []
        talk: Talk | None = None
        for number in range(turns):
            newest = sum(start <= number for start in starts) - 1
            scene = self.scenes[newest]
            comes = (newest,) if number in starts else ()
            if scene is None:
                said.append(Turn(self._outside(), comes, OUTSIDE))
                continue
            if comes:
                before = talk
                talk = Talk(scene, rng, held_out=self.held_out)
                said.append(Turn(*self._arrival(talk, before, newest)))
                continue
            told = None
            if newest and rng.random() < 0.35:
                told = self._elsewhere(newest)
            if told is None and talk is not None:
                turn = talk.turn()
                told = (turn.text, turn.reply)
            if told is not None:
                said.append(Turn(told[0], (), told[1]))
        return said

    def at_once(self, turns: int) -> list[Turn]:
        """Two pictures with the first question: they are compared, or one of them is asked about by its number."""
        rng = self.rng
        said: list[Turn] = []
        asked: set[str] = set()
        while len(said) < turns:
            told = self.compared(0, 1) if rng.random() < 0.55 else self._about(rng.randrange(2))
            if told is not None and told[0].lower() not in asked:
                asked.add(told[0].lower())
                said.append(Turn(told[0], () if said else (0, 1), told[1]))
        return said

    def _outside(self) -> str:
        rng = self.rng
        if rng.random() < 0.4:
            return rng.choice(OUTSIDE_REQUESTS)
        operation = rng.choice(("names", "caption", "describe", "ground", "ground colour", "story"))
        return speak(Program(operation), rng, held_out=None).text

    def _arrival(self, talk: Talk, before: Talk | None, newest: int) -> tuple[str, tuple[int, ...], str]:
        """What is asked with a new picture: anew, or "and this one?"."""
        rng = self.rng
        last = before.last.program if before is not None and before.last is not None else None
        if (last is not None and not last.things and rng.random() < 0.5) or (last is not None and rng.random() < 0.25):
            found = answer(last, talk.look)
            if found is not None:
                talk.turn_to(last, found)
                return written(rng.choice(AGAIN), rng), (newest,), found.reply
        turn = talk.fresh() or talk.whole()
        text = turn.text
        if newest:
            frame = rng.choice(ARRIVALS)
            if frame != "{q}":
                text = written(
                    frame.replace("{q}", text[0].lower() + text[1:] if text[:2] not in ("I ", "I'") else text), rng
                )
        return text, (newest,), turn.reply

    def _elsewhere(self, newest: int) -> tuple[str, str] | None:
        """A question about an older picture, or one that compares the last two."""
        drawn_before = [index for index in range(newest) if self.scenes[index] is not None]
        if not drawn_before:
            return None
        if newest == 1 and self.rng.random() < 0.5:
            return self.compared(0, 1)
        index = self.rng.choice([*drawn_before, newest])
        return self._about(index, newest)

    def _about(self, index: int, newest: int | None = None) -> tuple[str, str] | None:
        """A question about one picture that says which."""
        rng, scene = self.rng, self.scenes[index]
        if scene is None:
            return None
        which = ORDINALS[index] if index < 2 else "third"
        if newest is not None and rng.random() < 0.5:
            if index == newest:
                which = rng.choice([word for word in NEWEST if newest == 1 or word != "second"])
            elif newest == 1:
                which = rng.choice(OLDER)
            elif index == newest - 1:
                which = "previous"
        proposer = Proposer(Look(scene), rng)
        found = proposer.propose(rng.choices(list(SHARES), list(SHARES.values()))[0])
        if found is None:
            return None
        try:
            return speak(found[0], rng, held_out=self.held_out, which=which).text, found[1].reply
        except Unsayable:
            return None

    def compared(self, one: int, other: int) -> tuple[str, str] | None:
        """A question that compares two pictures, and the reply."""
        first, second = self.scenes[one], self.scenes[other]
        if first is None or second is None:
            return None
        kind = self.rng.choice((
            "which has", "which has", "which has", "both have", "more", "more", "only in", "only in", "same number",
            "same background", "common", "total",
        ))  # fmt: skip
        found = _COMPARE[kind](Look(first), Look(second), self.rng)
        if found is None:
            return None
        reply, slots = found
        return written(drawn(self.rng.choice(_COMPARED[kind]), self.rng).format(**slots), self.rng), reply


Compared = tuple[str, dict[str, str]] | None


def _some_name(first: Look, second: Look, rng: random.Random) -> Name:
    """A name of something in either, or in neither; each of the four cases about equally often."""
    names: list[Name] = [named(thing) for look in (first, second) for thing in look.things]
    names += [(None, None, shape) for shape in SHAPES] + [(None, colour, None) for colour in COLOURS]
    names += [first.absent(rng), second.absent(rng)]
    cases: dict[str, list[Name]] = {}
    for name in names:
        cases.setdefault(BOTH[first.number(name) > 0, second.number(name) > 0], []).append(name)
    return rng.choice(cases[rng.choice(list(cases))])


def _which_has(first: Look, second: Look, rng: random.Random) -> Compared:
    name = _some_name(first, second, rng)
    told = BOTH[first.number(name) > 0, second.number(name) > 0]
    return f"{told[0].upper()}{told[1:]}.", {"a": Nouns(rng).a(Things.of(name))}


def _both_have(first: Look, second: Look, rng: random.Random) -> Compared:
    name = _some_name(first, second, rng)
    case = BOTH[first.number(name) > 0, second.number(name) > 0]
    things, nouns = Things.of(name), Nouns(rng)
    reply = {
        "both": f"Yes, there is {some(name)} in both.",
        "neither": f"No, there is no {called(things)} in either.",
    }.get(case, f"No, there is {some(name)} only in {case}.")
    return reply, {"a": nouns.a(things), "s": nouns.many(things)}


def _more(first: Look, second: Look, rng: random.Random) -> Compared:
    name: Name = rng.choice(((None, None, None), (None, None, None), _some_name(first, second, rng)))
    a, b = first.number(name), second.number(name)
    more = rng.choice(("more", "more", "fewer"))
    if a == b and rng.random() < 0.4:
        return None
    told = (
        "Neither, the number is the same." if a == b else "The first." if (a > b) == (more == "more") else "The second."
    )
    return told, {
        "more": more if more == "more" or rng.random() < 0.6 else "less",
        "s": Nouns(rng).many(Things.of(name)),
    }


def _same(what: str, sames: Callable[[Look], object]) -> Callable[[Look, Look, random.Random], Compared]:
    def compare(first: Look, second: Look, rng: random.Random) -> Compared:
        truth = sames(first) == sames(second)
        return f"Yes, the {what} is the same." if truth else f"No, the {what} is not the same.", {}

    return compare


def _only_in(first: Look, second: Look, rng: random.Random) -> Compared:
    flip = rng.random() < 0.5
    here, there = (second, first) if flip else (first, second)
    extra = list(dict.fromkeys(named(thing) for thing in here.things if named(thing) not in there.count))
    if len(extra) > 3:
        return None
    one, other = ("second", "first") if flip else ("first", "second")
    told = join([some(name) for name in extra]) if extra else "nothing"
    return f"{told[0].upper()}{told[1:]}.", {"one": one, "other": other}


def _in_common(first: Look, second: Look, rng: random.Random) -> Compared:
    shared = list(dict.fromkeys(named(thing) for thing in first.things if named(thing) in second.count))
    if not shared and rng.random() < 0.6:
        return None
    told = join([some(name) for name in shared]) if shared else "nothing"
    return f"{told[0].upper()}{told[1:]}.", {}


def _total(first: Look, second: Look, rng: random.Random) -> Compared:
    number = len(first.things) + len(second.things)
    words = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return f"There are {words[number - 2]} {plural('object')}.", {}


_COMPARE: dict[str, Callable[[Look, Look, random.Random], Compared]] = {
    "which has": _which_has, "both have": _both_have, "more": _more,
    "same number": _same("number", lambda look: len(look.things)),
    "same background": _same("background",
    lambda look: (look.scene.background.kind, background_colours(look.scene.background))),
    "only in": _only_in, "common": _in_common, "total": _total,
}  # fmt: skip


# --- Whole dialogues in people's words, as a language model is taught with them: a kind of lesson for each skill.
#
# A scene costs a model its picture's 32 places once, so much is asked about each. Combinations of meaning and form
# that the split keeps are left out.


Lesson = tuple[list[Turn], Sequence[Scene | None]]  # turns, and the scenes that they number
NOISE = 0.5  # of dialogues, the share of questions that are typed hastily
ASKED = range(10, 15)  # questions about one scene

#: What is slow to learn.
HARD = (
    "count", "number is", "more", "as many", "which more", "how many more", "kinds", "common", "every", "any",
    "both are", "only", "same", "alike", "beside", "choose beside", "where from", "what beside", "count beside",
    "nearest", "between", "is between", "further", "first", "is first", "order", "values",
)  # fmt: skip
_LEANING = MOVES | {"fresh": 22, "about it": 30, "other": 16, "they": 14, "of two": 12, "aside": 1}
_CLOSE = (2, 2, 2, 3, 3, 4)
_NUMBERS = (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)


def _scene(rng: random.Random, easy: bool) -> Scene:
    return random_scene(rng, things=rng.choice((1, 1, 2, 2, 3) if easy else _NUMBERS))


def asked(rng: random.Random, easy: bool, operations: Sequence[str] = tuple(SHARES)) -> Lesson:
    """Separate questions about one picture, each of which must be looked up."""
    scene = _scene(rng, easy)
    proposer = Proposer(Look(scene), rng)
    shares = [SHARES[operation] for operation in operations]
    turns: list[Turn] = []
    wanted, seen = rng.choice(ASKED), set[Program]()
    for operation in rng.choices(operations, shares, k=4 * wanted):
        found = proposer.propose(operation)
        if found is None or found[0] in seen:
            continue
        seen.add(found[0])
        try:
            turns.append(Turn(speak(found[0], rng).text, () if turns else (0,), found[1].reply))
        except Unsayable:
            continue
        if len(turns) == wanted:
            break
    return turns or talk(rng, easy)[0], [scene]


def talk(rng: random.Random, easy: bool, moves: dict[str, float] = MOVES, numbers: Sequence[int] = _NUMBERS) -> Lesson:
    """A dialogue in which later turns may lean on earlier ones."""
    scene = random_scene(rng, things=rng.choice((1, 2, 2, 3) if easy else numbers))
    running = Talk(scene, rng, moves=moves)
    said = [running.turn() for _ in range(rng.randint(7, 11))]
    return [Turn(turn.text, () if number else (0,), turn.reply) for number, turn in enumerate(said)], [scene]


def album(rng: random.Random, easy: bool) -> Lesson:
    """Two or three pictures, one after another or at once, now and then one of no drawn shapes among them."""
    first, second = random_pair(rng, lambda rng: _scene(rng, easy or rng.random() < 0.4))
    which = rng.random()
    if which < 0.34:
        return Album((first, second), rng).at_once(rng.randint(6, 9)), [first, second]
    scenes: list[Scene | None] = [first, second]
    if which < 0.55:
        scenes[rng.randrange(2)] = None
    elif which < 0.75:
        scenes.insert(rng.randrange(3), None if rng.random() < 0.6 else _scene(rng, True))
    return Album(scenes, rng).one_after_another(rng.randint(len(scenes) + 3, len(scenes) + 7)), scenes


def boxes(rng: random.Random, easy: bool) -> Lesson:
    """MiniGPT-v2's task words, and plain questions between them, which no box answers."""
    scene = _scene(rng, easy)
    running = Talk(scene, rng)
    turns: list[Turn] = []
    for _ in range(rng.randint(5, 8)):
        if rng.random() < 0.8:
            question, reply = task(scene, rng)
        else:
            said = running.fresh() or running.whole()
            question, reply = said.text, said.reply
        turns.append(Turn(question, () if turns else (0,), reply))
    return turns, [scene]


def asides(rng: random.Random, easy: bool) -> Lesson:
    """What no picture answers, said beside one, among questions that it does answer."""
    scene = _scene(rng, easy)
    running = Talk(scene, rng, moves=MOVES | {"aside": 90})
    said = [running.turn() for _ in range(rng.randint(5, 9))]
    return [Turn(turn.text, () if number else (0,), turn.reply) for number, turn in enumerate(said)], [scene]


def without_picture(rng: random.Random, easy: bool) -> Lesson:
    """Of a model of drawn shapes alone, before a picture comes: civil words, and that it needs one. Often it comes."""
    scene = _scene(rng, easy)
    proposer = Proposer(Look(scene), rng)
    turns = []
    for _ in range(rng.randint(1, 4)):
        which = rng.random()
        if which < 0.35:
            question, reply = chat.social(rng)
        elif which < 0.5:
            question, reply = chat.general(rng)
        elif which < 0.6:
            question, reply = rng.choice((chat.gibberish, chat.language))(rng)
        else:
            found = proposer.propose(rng.choices(list(SHARES), list(SHARES.values()))[0])
            program = found[0] if found else Program("names")
            question, reply = speak(program, rng, held_out=None).text, NEED
        turns.append(Turn(question, (), reply))
    if rng.random() < 0.6:
        running = Talk(scene, rng)
        said = [running.turn() for _ in range(rng.randint(2, 6))]
        turns += [Turn(turn.text, () if number else (0,), turn.reply) for number, turn in enumerate(said)]
        return turns, [scene]
    return turns, []


def captions(rng: random.Random, easy: bool) -> Lesson:
    """Captions, lists and descriptions; a story now and then. Of three scenes the one in which most is alike."""
    scenes = [_scene(rng, easy) for _ in range(3)]
    scene = min(scenes, key=lambda each: len({(t.colour, t.shape) for t in each.things}) / len(each.things))
    turns: list[Turn] = []
    for operation in rng.sample(("names", "caption", "describe", "story", "order"), rng.choice((1, 2, 2, 3))):
        along = (rng.choice(("left", "right", "top", "bottom")),) if operation == "order" else ()
        program = Program(operation, (), along)
        if (found := answer(program, Look(scene))) is not None:
            turns.append(Turn(speak(program, rng, held_out=None).text, () if turns else (0,), found.reply))
    return turns or talk(rng, easy)[0], [scene]


def hastily(turns: Sequence[Turn], rng: random.Random, amount: float) -> list[Turn]:
    """The turns as a person types them who is now careful, now not; `amount`: 0 to 1, how many are not, on average."""
    hasty = min(1.0, amount * rng.choice((0, 0.4, 1, 1.6, 2)))
    return [Turn(typed(turn.question, rng, hasty), turn.pictures, turn.reply) for turn in turns]


def spoken_corpus(rng: random.Random, lines: int) -> Iterator[str]:
    """Sample text for training a tokenizer: one question or reply per line."""
    while lines > 0:
        turns, _ = LESSONS[rng.choice(list(LESSONS))](rng, False)
        for turn in hastily(turns, rng, NOISE / 2):
            for line in (turn.question, turn.reply):
                if lines > 0:
                    yield line
                lines -= 1


LESSONS: dict[str, Callable[[random.Random, bool], Lesson]] = {
    "asked": asked,
    "hard asked": lambda rng, easy: asked(rng, easy, HARD),
    "talks": talk,
    "leaning talks": lambda rng, easy: talk(rng, easy, _LEANING, _CLOSE),
    "albums": album,
    "boxes": boxes,
    "asides": asides,
    "without a picture": without_picture,
    "told": captions,
}
