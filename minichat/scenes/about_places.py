"""Questions about places, about how two things lie to each other, and about the background.

Each function draws one question of its kind, or None where the scene allows none that nobody could dispute.
"""

from __future__ import annotations

from minichat.scenes.about_things import CORNERS, alone
from minichat.scenes.asking import HALF_WORDINGS, Asker, Question
from minichat.scenes.truth import (
    DIRECTIONS,
    MARGIN,
    OPPOSITE,
    Look,
    at,
    background_colours,
    background_words,
    beside,
    half,
    named,
    offset,
    possible_places,
    some,
    sure_place,
    toward,
    words,
)
from minichat.scenes.world import BACKGROUNDS, COLOURS, Thing

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
