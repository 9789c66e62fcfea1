"""Questions about the things themselves: whether they are there, their colour, shape and size, how many they are.

Each function draws one question of its kind, or None where the scene allows none. Truth is drawn before the wording, so
that the same words are asked where they are true and where they are false.
"""

from __future__ import annotations

from minichat.scenes.asking import Asker, Question
from minichat.scenes.truth import NUMBERS, Look, Name, named, plural, possible_places, some, sure_place, words
from minichat.scenes.world import COLOURS, SHAPES, SIZES, Thing


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
    asked = {"a": some(name, 1, noun), "s": plural(words(name, noun))}
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
    s = plural(words(name, noun))
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
    return asker.yes_no("count", "is count", truth, reply, reply, w=NUMBERS[asked], s=plural(words(name, noun)))


def _more(asker: Asker, noun: str) -> Question | None:
    look, rng = asker.look, asker.rng
    by_shape = rng.random() < 0.5
    names = [key for key in look.count if key[0] is None and (key[1] is None) != (key[2] is None)]
    names = [key for key in names if (key[1] is None) == by_shape]
    pairs = [(a, b) for a in names for b in names if look.count[a] > look.count[b]]
    if not pairs:
        return None
    most, least = (plural(words(name, noun)) for name in rng.choice(pairs))
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
