"""Questions with answers about one scene: about its things, about places, evenly over the kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from minichat.errors import SettingsError
from minichat.toy.asking import ALL_KINDS, HALF_WORDINGS, KINDS, Asker, Question
from minichat.toy.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    MARGIN,
    NUMBERS,
    OPPOSITE,
    SHAPES,
    SIZES,
    Look,
    Name,
    Scene,
    Thing,
    at,
    background_colours,
    background_words,
    beside,
    half,
    named,
    offset,
    plural_shape,
    possible_places,
    some,
    sure_place,
    toward,
    words,
)

# --- Questions about the things themselves: whether they are there, their colour, shape and size, how many they are.
#
# Each function draws one question of its kind, or None where the scene allows none. Truth is drawn before the wording,
# so that the same words are asked where they are true and where they are false.


def existence(asker: Asker) -> Question | None:
    """Is there a red star? Half yes; half of the pairs of colour and shape that are denied are there apart."""
    return presence(asker)[0]


def presence(asker: Asker) -> tuple[Question, Name]:
    """A question of existence, and the name that it asks about."""
    look, rng = asker.look, asker.rng
    truth = rng.random() < 0.5
    name = _present(asker, rng.random()) if truth else None
    if name is None:
        name = _missing(asker, rng.random())
    noun = asker.noun()
    number = look.number(name)
    form = "is there" if rng.random() < 0.7 else "are there"
    asked = {"a": some(name, 1, noun), "s": plural_shape(words(name, noun))}
    there = f"there {'are' if number > 1 else 'is'} {some(name, number, noun)}"
    return asker.yes_no("existence", form, truth, there, there, **asked), name


def _present(asker: Asker, which: float) -> Name:
    thing = asker.rng.choice(asker.look.things)
    if which < 0.6:
        return named(thing)
    if which < 0.72:
        return (None, None, thing.shape)
    if which < 0.84:
        return (None, thing.colour, None)
    return asker.rng.choice([(thing.size, None, thing.shape), (thing.size, thing.colour, None)])


def _missing(asker: Asker, which: float) -> Name:
    look, rng = asker.look, asker.rng
    if which < 0.6:
        return look.absent(rng)
    if which < 0.72:
        return (None, None, rng.choice([shape for shape in SHAPES if (None, None, shape) not in look.count]))
    if which < 0.84:
        return (None, rng.choice([colour for colour in COLOURS if (None, colour, None) not in look.count]), None)
    flipped: list[Name] = []
    for thing in look.things:
        size = SIZES[1 - SIZES.index(thing.size)]
        flipped += [(size, None, thing.shape), (size, thing.colour, None)]
    flipped = [name for name in flipped if name not in look.count]
    return rng.choice(flipped) if flipped else look.absent(rng)


def colour(asker: Asker) -> Question | None:
    """What colour is the star?"""
    found = _one(asker, colour=False)
    if found is None:
        return None
    thing, x = found
    rng = asker.rng
    form = rng.choices(("colour", "is colour", "which colour"), (70, 15, 15))[0]
    short, long = f"It is {thing.colour}.", f"{x[0].upper()}{x[1:]} is {thing.colour}."
    if form == "colour":
        return asker.ask("colour", form, thing.colour, short, long, x=x)
    other = _other(asker, thing.colour, [t.colour for t in asker.look.things], COLOURS)
    if form == "is colour":
        truth = rng.random() < 0.5
        reply = f"it is {thing.colour}"
        return asker.yes_no("colour", form, truth, reply, reply, x=x, w=thing.colour if truth else other)
    w, v = rng.sample((thing.colour, other), 2)
    return asker.ask("colour", form, thing.colour, short, x=x, w=w, v=v)


def shape(asker: Asker) -> Question | None:
    """What shape is the red object?"""
    found = _one(asker, shape=False)
    if found is None:
        return None
    thing, x = found
    rng = asker.rng
    form = rng.choices(("shape", "is shape", "which shape"), (70, 15, 15))[0]
    short, long = f"It is a {thing.shape}.", f"{x[0].upper()}{x[1:]} is a {thing.shape}."
    if form == "shape":
        return asker.ask("shape", form, thing.shape, short, long, x=x)
    other = _other(asker, thing.shape, [t.shape for t in asker.look.things], SHAPES)
    if form == "is shape":
        truth = rng.random() < 0.5
        reply = f"it is a {thing.shape}"
        return asker.yes_no("shape", form, truth, reply, reply, x=x, w=thing.shape if truth else other)
    w, v = rng.sample((thing.shape, other), 2)
    return asker.ask("shape", form, thing.shape, short, x=x, w=w, v=v)


def size(asker: Asker) -> Question | None:
    """Is the red star large or small?"""
    rng = asker.rng
    wanted = rng.choice(SIZES)
    form = rng.choices(("size", "is size", "which size"), (60, 20, 20))[0]
    if form == "which size":
        return _larger(asker)
    found = _one(asker, only=wanted, size=False)
    if found is None:
        return None
    x = found[1]
    if form == "size":
        return asker.ask("size", form, wanted, f"It is {wanted}.", f"{x[0].upper()}{x[1:]} is {wanted}.", x=x)
    asked = rng.choice(SIZES)
    reply = f"it is {wanted}"
    return asker.yes_no("size", form, asked == wanted, reply, reply, x=x, w=asked)


def _larger(asker: Asker) -> Question | None:
    look, rng = asker.look, asker.rng
    pair = []
    for wanted in SIZES:
        things = [thing for thing in look.things if thing.size == wanted and look.count[named(thing)] == 1]
        if not things:
            return None
        pair.append(f"the {words(named(rng.choice(things)))}")
    word = rng.choice(("larger", "bigger", "smaller"))
    answer = pair[0] if word == "smaller" else pair[1]
    x, y = rng.sample(pair, 2)
    return asker.ask("size", "which size", answer, f"{answer[0].upper()}{answer[1:]}.", x=x, y=y, w=word)


def count(asker: Asker) -> Question | None:
    """How many red stars are there? Large numbers and zero come up more often than by chance."""
    look, rng = asker.look, asker.rng
    form = rng.choices(("total", "part", "is count", "more"), (25, 58, 9, 8))[0]
    noun = asker.noun()
    if form == "total":
        name: Name = (None, None, None)
    elif form == "part":
        name = _counted(asker)
    else:
        return _exactly(asker, noun) if form == "is count" else _more(asker, noun)
    number = look.number(name)
    s = plural_shape(words(name, noun))
    verb = "is" if number == 1 else "are"
    short = f"There {verb} {NUMBERS[number] if number else 'none'}."
    long = f"There {verb} {NUMBERS[number] if number else 'no'} {words(name, noun) if number == 1 else s}."
    return asker.ask("count", "count", str(number), short, long, s=s)


def _counted(asker: Asker) -> Name:
    """A colour, shape, size or pair to count. Its number is drawn first, lest one and zero crowd out the rest."""
    look, rng = asker.look, asker.rng
    which = rng.randrange(4)
    if which == 0:
        names: list[Name] = [(None, colour, None) for colour in COLOURS]
    elif which == 1:
        names = [(None, None, shape) for shape in SHAPES]
    elif which == 2:
        names = [(None, thing.colour, thing.shape) for thing in look.things] + [look.absent(rng) for _ in range(2)]
    else:
        names = [(size, None, thing.shape) for thing in look.things for size in SIZES]
        names += [(size, None, None) for size in SIZES]
    numbers = sorted({look.number(name) for name in names})
    number = rng.choices(numbers, [(3, 3, 6, 8, 8, 8, 8)[value] for value in numbers])[0]
    return rng.choice([name for name in names if look.number(name) == number])


def _exactly(asker: Asker, noun: str) -> Question | None:
    """Are there exactly three stars? A number is asked of what has it and of what has not, equally often."""
    look, rng = asker.look, asker.rng
    total = len(look.things)
    if rng.random() < 0.5:  # numbers are paired, (2, 3) (4, 5) or (3, 4) (5, 6): each is asked for the other
        first = rng.choice((2, 3))
        if not first <= total <= first + 3:
            return None
        partner = first + ((total - first) ^ 1)
        truth = rng.random() < 0.5
        name: Name = (None, None, None)
        asked = total if truth else partner
    else:
        names: list[Name] = [
            key for key in look.count if key[0] is None and (key[1] is None) != (key[2] is None)
        ]  # a colour or a shape
        by_shape = rng.random() < 0.5
        names = [key for key in names if (key[1] is None) == by_shape]
        asked = rng.choice((2, 3))
        right = [key for key in names if look.count[key] == asked]
        wrong = [key for key in names if look.count[key] != asked]
        if not right or not wrong:
            return None
        truth = rng.random() < 0.5
        name = rng.choice(right if truth else wrong)
    number = look.number(name)
    reply = f"there {'are' if number > 1 else 'is'} {NUMBERS[number]}"
    return asker.yes_no("count", "is count", truth, reply, reply, w=NUMBERS[asked], s=plural_shape(words(name, noun)))


def _more(asker: Asker, noun: str) -> Question | None:
    look, rng = asker.look, asker.rng
    by_shape = rng.random() < 0.5
    names = [key for key in look.count if key[0] is None and (key[1] is None) != (key[2] is None)]
    names = [key for key in names if (key[1] is None) == by_shape]
    pairs = [(a, b) for a in names for b in names if look.count[a] > look.count[b]]
    if not pairs:
        return None
    most, least = (plural_shape(words(name, noun)) for name in rng.choice(pairs))
    truth = rng.random() < 0.5
    s, t = (most, least) if truth else (least, most)
    reply = f"there are more {most} than {least}"
    return asker.yes_no("count", "more", truth, reply, reply, s=s, t=t)


def alone(look: Look, places: tuple[str, ...]) -> list[tuple[Thing, str]]:
    """Things that are surely in one of `places`, with no other thing that might be said to be there."""
    sure = [(thing, where) for thing in look.things if (where := sure_place(thing)) in places]
    if not sure:
        return []
    possible = [(thing, possible_places(thing)) for thing in look.things]
    return [
        (thing, where)
        for thing, where in sure
        if where is not None and not any(where in spots for other, spots in possible if other is not thing)
    ]


CORNERS = ("top left", "top right", "bottom left", "bottom right", "centre")


def _one(
    asker: Asker, only: str | None = None, *, size: bool = True, colour: bool = True, shape: bool = True
) -> tuple[Thing, str] | None:
    """A thing and a phrase that means it alone without giving away what is asked, or None."""
    look, rng = asker.look, asker.rng
    if only is None and rng.random() < 0.15:
        spots = alone(look, CORNERS)
        if spots:
            thing, where = rng.choice(spots)
            return thing, f"the {asker.noun()} {asker.at(where)}"
    for thing in rng.sample(look.things, len(look.things)):
        if only in (None, thing.size):
            name = look.reference(thing, rng, size=size, colour=colour, shape=shape)
            if name is not None:
                return thing, "the " + words(name, asker.noun())
    return None


def _other(asker: Asker, truth: str, near: list[str], every: tuple[str, ...]) -> str:
    """A wrong word: half the time one that is true of another thing."""
    rng = asker.rng
    if rng.random() < 0.5:
        near = [word for word in near if word != truth]
        if near:
            return rng.choice(near)
    return rng.choice([word for word in every if word != truth])


# --- Questions about places, about how two things lie to each other, and about the background.
#
# Each function draws one question of its kind, or None where the scene allows none that nobody could dispute.


OTHER_HALF = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
ALMOST = 0.04  # a thing this far on the other side of another is surely not in the direction asked about


def position(asker: Asker) -> Question | None:
    """Where is the red star? What is at the top left? Is the star in the left half?"""
    forms = ("where", "what is at", "anything at", "is at", "in half", "which half")
    form = asker.rng.choices(forms, (46, 18, 8, 8, 12, 8))[0]
    if form == "where":
        return _where(asker)
    if form in ("what is at", "anything at"):
        return _what_is_at(asker, form)
    return _is_at(asker) if form == "is at" else _half(asker, form)


def _where(asker: Asker) -> Question | None:
    found = _sure(asker)
    if found is None:
        return None
    x, where, _ = found
    spot = at(where)
    return asker.ask("position", "where", where, f"{_capital(spot)}.", f"{_capital(x)} is {spot}.", x=x)


def _sure(asker: Asker) -> tuple[str, str, Thing] | None:
    """A phrase for a thing that is surely in one place, the place, and the thing."""
    look, rng = asker.look, asker.rng
    for thing in rng.sample(look.things, len(look.things)):
        where = sure_place(thing)
        if where is not None and (name := look.reference(thing, rng)) is not None:
            return "the " + words(name, asker.noun()), where, thing
    return None


def _what_is_at(asker: Asker, form: str) -> Question | None:
    look, rng = asker.look, asker.rng
    places = CORNERS if form == "what is at" else CORNERS[:4]  # the centre is taken less often than a corner
    taken: set[str] = set().union(*(possible_places(thing) for thing in look.things))
    free = [where for where in places if where not in taken]
    spots = alone(look, places)
    if form == "anything at" and not (free and spots):
        return None  # asked only where yes and no are both possible
    if rng.random() < (0.2 if form == "what is at" else 0.5):
        if not free:
            return None
        where = rng.choice(free)
        if form == "anything at":
            return asker.yes_no("position", form, False, "", "there is nothing", at=asker.at(where))
        return asker.ask("position", form, "nothing", "Nothing.", f"Nothing is {at(where)}.", at=asker.at(where))
    if not spots:
        return None
    thing, where = rng.choice(spots)
    what, asked = some(named(thing)), asker.at(where)
    if form == "anything at":
        return asker.yes_no("position", form, True, f"there is {what}", "", at=asked)
    return asker.ask("position", form, what, f"{_capital(what)}.", f"{_capital(what)} is {at(where)}.", at=asked)


def _is_at(asker: Asker) -> Question | None:
    """A place is asked about only where one thing is surely there and another surely elsewhere."""
    look, rng = asker.look, asker.rng
    sure = [(thing, where) for thing in look.things if (where := sure_place(thing)) and look.count[named(thing)] == 1]
    asked = [place for place in CORNERS if 0 < sum(where == place for _, where in sure) < len(sure)]
    if not asked:
        return None
    place = rng.choice(asked)
    truth = rng.random() < 0.5
    thing, where = rng.choice([pair for pair in sure if (pair[1] == place) == truth])
    x = "the " + words(look.reference(thing, rng) or named(thing), asker.noun())
    reply = f"it is {at(where)}"
    return asker.yes_no("position", "is at", truth, reply, reply, x=x, at=asker.at(place))


def _half(asker: Asker, form: str) -> Question | None:
    look, rng = asker.look, asker.rng
    side = rng.choice(tuple(OTHER_HALF))
    for thing in rng.sample(look.things, len(look.things)):
        there = half(thing, side)
        name = look.reference(thing, rng)
        if there is None or name is None:
            continue
        x = "the " + words(name, asker.noun())
        where = side if there else OTHER_HALF[side]
        reply = f"it is in the {where} half"
        if form == "which half":
            return asker.ask("position", form, where, f"{_capital(reply)}.", x=x, w=side, v=OTHER_HALF[side])
        return asker.yes_no("position", form, there, reply, reply, x=x, half=rng.choice(HALF_WORDINGS).format(side))
    return None


def relation(asker: Asker) -> Question | None:
    """Is the star left of the circle? What is above the ring?"""
    form = asker.rng.choices(("is beside", "which side", "what is beside", "where from"), (40, 20, 20, 20))[0]
    if form == "what is beside":
        return _what_is_beside(asker)
    found = _two(asker, narrow=form == "where from")
    if found is None:
        return None
    x, y, direction = found  # x lies in `direction` of y
    side = f"{toward(direction)} {y}"
    if form == "is beside":
        truth = asker.rng.random() < 0.5
        to = asker.to(direction if truth else OPPOSITE[direction])
        reply = f"it is {side}"
        return asker.yes_no("relation", form, truth, reply, reply, x=x, y=y, to=to)
    if form == "which side":
        to, other = asker.rng.sample((direction, OPPOSITE[direction]), 2)
        return asker.ask("relation", form, direction, f"It is {side}.", x=x, y=y, to=toward(to), tv=toward(other))
    return asker.ask("relation", form, direction, f"{_capital(side)}.", f"{_capital(x)} is {side}.", x=x, y=y)


def _two(asker: Asker, narrow: bool) -> tuple[str, str, str] | None:
    """Phrases for two things and a direction in which the first clearly lies of the second.

    `narrow`: clearly in that direction alone, hardly shifted along the other axis.
    """
    look, rng = asker.look, asker.rng
    things = [thing for thing in look.things if look.count[named(thing)] == 1]
    pairs = [(a, b) for a in things for b in things if a is not b]
    for thing, other in rng.sample(pairs, len(pairs)):
        for direction in rng.sample(DIRECTIONS, 4):
            if not beside(thing, other, direction):
                continue
            aside = abs(offset(thing, other, "above" if direction in ("left", "right") else "left"))
            if narrow and (aside >= MARGIN - ALMOST or offset(thing, other, direction) < MARGIN + ALMOST):
                continue
            x, y = ("the " + words(look.reference(t, rng) or named(t), asker.noun()) for t in (thing, other))
            return x, y, direction
    return None


def _what_is_beside(asker: Asker) -> Question | None:
    look, rng = asker.look, asker.rng
    empty = rng.random() < 0.2
    for thing in rng.sample(look.things, len(look.things)):
        if look.count[named(thing)] > 1:
            continue
        name = look.reference(thing, rng) or named(thing)
        for direction in rng.sample(DIRECTIONS, 4):
            found = lone(look, thing, direction)
            if found is None or (found == []) != empty:
                continue
            x = "the " + words(name, asker.noun())
            answer = some(named(found[0])) if found else "nothing"
            short, long = f"{_capital(answer)}.", f"{_capital(answer)} is {toward(direction)} {x}."
            return asker.ask("relation", "what is beside", answer, short, long, x=x, to=asker.to(direction))
    return None


def lone(look: Look, thing: Thing, direction: str) -> list[Thing] | None:
    """The one thing in `direction` of `thing` as a list, an empty list where nothing is, None where it is not clear."""
    near = [other for other in look.things if other is not thing and offset(other, thing, direction) > -ALMOST]
    clear = [other for other in near if offset(other, thing, direction) >= MARGIN]
    return clear if len(near) == len(clear) <= 1 else None


def background(asker: Asker) -> Question | None:
    """What does the background look like? Is it red?"""
    rng = asker.rng
    scenery = asker.look.scene.background
    colours = background_colours(scenery)
    form = rng.choices(("background", "background colour", "background kind", "is background"), (40, 30, 15, 15))[0]
    kind = "a gradient" if scenery.kind == "gradient" else scenery.kind
    if form == "background":
        what = background_words(scenery)
        return asker.ask("background", form, what, f"It is {what}.", f"The background is {what}.")
    if form == "background colour":
        if scenery.kind == "gradient":
            goes = f"goes from {colours[0]} to {colours[1]}."
            return asker.ask("background", form, " and ".join(colours), "It " + goes, "The background " + goes)
        return asker.ask("background", form, colours[0], f"It is {colours[0]}.", f"The background is {colours[0]}.")
    if form == "background kind":
        return asker.ask("background", form, scenery.kind, f"It is {kind}.")
    truth = rng.random() < 0.5
    if rng.random() < 0.5:
        others = [other for other in BACKGROUNDS if other != scenery.kind]
        word = scenery.kind if truth else rng.choice(others)
        word = "a gradient" if word == "gradient" else word
        return asker.yes_no("background", form, truth, f"it is {kind}", f"it is {kind}", w=word)
    if scenery.kind == "gradient":
        return None  # whether it "is red" could be disputed
    others = [thing.colour for thing in asker.look.things] if rng.random() < 0.5 else list(COLOURS)
    word = colours[0] if truth else rng.choice([colour for colour in others if colour != colours[0]])
    return asker.yes_no("background", form, truth, f"it is {colours[0]}", f"it is {colours[0]}", w=word)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- Questions with answers about one scene, evenly over the kinds.


_MAKERS: dict[str, Callable[[Asker], Question | None]] = {
    "existence": existence,
    "colour": colour,
    "shape": shape,
    "count": count,
    "position": position,
    "relation": relation,
    "background": background,
    "size": size,
}
_TRIES = 4  # a form that the scene does not allow, or one already asked, is drawn again this often


def questions(
    scene: Scene, rng: random.Random, count: int, kinds: Sequence[str] = KINDS, picture: str | None = None
) -> list[Question]:
    """Draw `count` different questions about `scene`, evenly over `kinds`.

    A kind that the scene does not allow (a relation, where there is one thing) leaves its share to the others; a scene
    and kinds that allow fewer than `count` questions give fewer.

    Args:
        picture: "first" or "second" where the questions must say which of two pictures they mean.

    Raises:
        SettingsError: a kind is unknown.
    """
    unknown = set(kinds) - set(ALL_KINDS)
    if unknown or not kinds:
        raise SettingsError(f"kinds: {sorted(unknown)} unknown or empty; choose from {', '.join(ALL_KINDS)}.")
    asker = Asker(Look(scene), rng, picture)
    chosen: list[Question] = []
    asked: set[str] = set()
    round_: list[str] = []
    idle = 0
    while len(chosen) < count and idle < 2 * len(kinds):
        if not round_:
            round_ = rng.sample(list(kinds), len(kinds))
        question = one(asker, round_.pop(), asked)
        idle = 0 if question else idle + 1
        if question:
            chosen.append(question)
    return chosen


def one(asker: Asker, kind: str, asked: set[str]) -> Question | None:
    """One question of `kind` that is not in `asked` (lower-case texts; it is added), or None."""
    for _ in range(_TRIES):
        question = _MAKERS[kind](asker)
        if question is not None and (key := question.text.lower()) not in asked:
            asked.add(key)
            return question
    return None
