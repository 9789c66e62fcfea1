"""How people ask about scenes: answers are true, wordings say what is meant, the split holds out what it says.

The truth is computed here a second time, by loops over the things of a scene.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from minichat.toy.speech.answers import Answer
from minichat.toy.speech.answers_places import COMPARED
from minichat.toy.speech.grammar import YesNo, drawn, parsed, pattern, widened, wordings
from minichat.toy.speech.nouns import COLOUR_WORDS, SHAPE_WORDS, Program, Things, Unsayable
from minichat.toy.speech.propose import SHARES, Proposer
from minichat.toy.speech.speaker import WORDINGS, Utterance, meaning, speak, topic
from minichat.toy.speech.verdict import OPERATIONS, answer
from minichat.toy.world import COLOURS, NUMBERS, SHAPES, Look, Scene, Thing, random_scene

SCENES = 40


def asked(seed: int, scenes: int, held_out: bool | None = False) -> Iterator[tuple[Scene, Program, Answer, Utterance]]:
    """Every operation about each of some scenes, where the scene allows it."""
    rng = random.Random(seed)
    for _ in range(scenes):
        scene = random_scene(rng)
        proposer = Proposer(Look(scene), rng)
        for operation in SHARES:
            found = proposer.propose(operation)
            if found is not None:
                try:
                    yield scene, *found, speak(found[0], rng, held_out=held_out)
                except Unsayable:
                    assert held_out


# --- the truth, again


def those(scene: Scene, what: Things) -> list[Thing]:
    found = []
    for thing in scene.things:
        own = all(want is None or want == has for want, has in (
            (what.size, thing.size), (what.colour, thing.colour), (what.shape, thing.shape)))  # fmt: skip
        own = own and what.without not in (thing.size, thing.colour, thing.shape)
        if own or (what.also is not None and thing in those(scene, what.also)):
            found.append(thing)
    middle = {
        "left": lambda t: t.x < 0.5,
        "right": lambda t: t.x > 0.5,
        "top": lambda t: t.y < 0.5,
        "bottom": lambda t: t.y > 0.5,
    }
    return [thing for thing in found if what.side is None or middle[what.side](thing)]


def shown(thing: Thing, attribute: str) -> str:
    if attribute != "place":
        return str(getattr(thing, attribute))
    column = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    row = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    return f"{row} {column}".strip() or "centre"


def lies(thing: Thing, other: Thing, way: str) -> bool:
    return {
        "left": thing.x < other.x,
        "right": thing.x > other.x,
        "above": thing.y < other.y,
        "below": thing.y > other.y,
    }[way]


def inside(thing: Thing, side: str) -> bool:
    return those(Scene((thing,), None), Things(side=side)) != []  # type: ignore[arg-type]


def yes_no(scene: Scene, program: Program) -> bool:
    """Whether what is asked is so; only where nothing is taken for granted that is not so."""
    sets, words = [those(scene, things) for things in program.things], program.words
    things = sets[0] if sets else []
    match program.operation:
        case "exists":
            return len(things) > 0
        case "none":
            return len(things) == 0
        case "both exist":
            return bool(things) and bool(sets[1])
        case "either exists":
            return bool(things) or bool(sets[1])
        case "every" | "both are":
            return bool(things) and all(shown(t, words[0]) == words[1] for t in things)
        case "any":
            return any(shown(t, words[0]) == words[1] for t in things)
        case "none are":
            return bool(things) and not any(shown(t, words[0]) == words[1] for t in things)
        case "only":
            return len(things) == len(scene.things)
        case "same":
            return len({shown(t, words[0]) for t in things}) == 1
        case "differ":
            return len({shown(t, words[0]) for t in things}) > 1
        case "repeats":
            return len({shown(t, words[0]) for t in scene.things}) < len(scene.things)
        case "sole":
            return bool(things) and things == sets[1]
        case "number is":
            number = program.number
            exact, more = len(things) == number, len(things) > (number or 0)
            how = {"exactly": exact, "at least": exact or more, "at most": not more, "more than": more}
            return how.get(words[0], not exact and not more)
        case "more":
            return len(things) > len(sets[1]) if words == ("more",) else len(things) < len(sets[1])
        case "as many":
            return len(things) == len(sets[1])
        case "verify":
            if words[0] in ("left", "right", "top", "bottom"):
                return bool(things) and all(inside(t, words[0]) for t in things)
            return bool(things) and all(shown(t, words[0]) == words[1] for t in things)
        case "is bigger":
            sizes = [s[0].size for s in sets if s]
            return sizes == (["large", "small"] if words == ("larger",) else ["small", "large"])
        case "alike":
            return all(sets) and shown(things[0], words[0]) == shown(sets[1][0], words[0])
        case "anything at":
            return any(shown(t, "place") == words[0] for t in scene.things)
        case "empty at":
            return not any(shown(t, "place") == words[0] for t in scene.things)
        case "is first":
            return bool(things) and things[0] is first(scene.things, words[0])
        case "beside":
            return all(sets) and lies(things[0], sets[1][0], words[0])
        case "anything beside":
            return bool(things) and any(lies(t, things[0], words[0]) for t in scene.things if t is not things[0])
        case "next to":
            return all(sets) and apart(things[0], sets[1][0]) - things[0].radius - sets[1][0].radius < 0.2
        case "is between":
            return all(sets) and between(things[0], sets[1][0], sets[2][0])
        case "ground is":
            return words[0] == scene.background.kind or (words[0],) == scene.background.colours
    raise AssertionError(program)


def apart(one: Thing, other: Thing) -> float:
    return math.hypot(one.x - other.x, one.y - other.y)


def between(thing: Thing, one: Thing, other: Thing) -> bool:
    """In the plane turned and stretched so that the two are 0 and 1."""
    way = complex(other.x - one.x, other.y - one.y)
    at = complex(thing.x - one.x, thing.y - one.y) / way
    return 0.1 < at.real < 0.9 and abs(at.imag) * abs(way) < 0.18


def first(things: tuple[Thing, ...] | list[Thing], which: str) -> Thing:
    corners = {
        "top left": (0, 0),
        "top right": (1, 0),
        "bottom left": (0, 1),
        "bottom right": (1, 1),
        "centre": (0.5, 0.5),
    }
    if which in corners:
        return min(things, key=lambda t: (t.x - corners[which][0]) ** 2 + (t.y - corners[which][1]) ** 2)
    keys = {"leftmost": lambda t: t.x, "rightmost": lambda t: -t.x, "topmost": lambda t: t.y,
            "bottommost": lambda t: -t.y, "largest": lambda t: -t.radius, "smallest": lambda t: t.radius}  # fmt: skip
    return min(things, key=keys[which])


def value(scene: Scene, program: Program) -> object:
    """What is asked for, as the answers hold it; `...` where another test looks at it."""
    sets, words = [those(scene, things) for things in program.things], program.words
    things = sets[0] if sets else []
    match program.operation:
        case "count" | "count choose":
            return len(things)
        case "count beside":
            return sum(lies(t, things[0], words[0]) for t in scene.things if t is not things[0])
        case "how many more":
            return max(0, len(things) - len(sets[1]))
        case "which more":
            more = len(things) - len(sets[1])
            return "neither" if more == 0 else 0 if (more > 0) == (words == ("more",)) else 1
        case "kinds":
            return len({shown(t, words[0]) for t in scene.things})
        case "common":
            numbers = Counter(shown(t, words[0]) for t in scene.things)
            most = {word for word, number in numbers.items() if number == max(numbers.values())}
            return set() if len(scene.things) > 1 and len(most) > 1 and max(numbers.values()) == 1 else most
        case "query":
            values = [shown(t, words[0]) for t in things]
            return values[0] if len(values) == 1 else sorted(values)
        case "list" | "names":
            return sorted((None, t.colour, t.shape) for t in (things if program.things else scene.things))
        case "at":
            found = [t for t in scene.things if shown(t, "place") == words[0]]
            if len(found) == 1 and words[1] != "thing":
                return shown(found[0], words[1])
            return sorted((None, t.colour, t.shape) for t in found)
        case "what beside":
            found = [t for t in scene.things if t is not things[0] and lies(t, things[0], words[0])]
            if len(found) == 1 and words[1] != "thing":
                return shown(found[0], words[1])
            return sorted((None, t.colour, t.shape) for t in found)
        case "between":
            found = [t for t in scene.things if t not in (things[0], sets[1][0]) and between(t, things[0], sets[1][0])]
            return sorted((None, t.colour, t.shape) for t in found)
        case "nearest":
            others = [t for t in scene.things if t is not things[0]]
            if not others:
                return []
            nearest = min(others, key=lambda t: apart(t, things[0]))
            return (None, nearest.colour, nearest.shape) if words[0] == "thing" else shown(nearest, words[0])
        case "first":
            if words[0] in ("largest", "smallest") and len(things) > 1:
                best = [t for t in things if t.size == {"largest": "large", "smallest": "small"}[words[0]]]
                if len(best) != 1:
                    return sorted((None, t.colour, t.shape) for t in best)
            thing = first(things, words[0])
            return (None, thing.colour, thing.shape) if words[1] == "thing" else shown(thing, words[1])
        case "choose beside":
            return words[0 if lies(things[0], sets[1][0], words[0]) else 1]
        case "further":
            return 0 if lies(things[0], sets[1][0], words[0]) else 1
        case "bigger":
            one, other = things[0].size, sets[1][0].size
            return "neither" if one == other else 0 if (one == "large") == (words == ("larger",)) else 1
        case "order":
            axis = {"left": lambda t: t.x, "right": lambda t: -t.x, "top": lambda t: t.y, "bottom": lambda t: -t.y}[
                words[0]
            ]
            return [(None, t.colour, t.shape) for t in sorted(scene.things, key=axis)]
        case "ground kind":
            return scene.background.kind
        case "ground colour":
            return sorted(scene.background.colours)
    return ...


def plain(found: object) -> object:
    """Tuples of values in no order, save one value alone."""
    if isinstance(found, tuple) and not (len(found) == 3 and found[0] is None):
        return sorted(found)
    return found


def is_true(scene: Scene, program: Program, found: Answer) -> bool | None:
    """Whether an answer is what is computed here; None where nothing is."""
    if found.yes is not None:
        return found.yes == yes_no(scene, program)
    true = ... if found.value is None else value(scene, program)
    if true is ...:
        return None
    if isinstance(true, set):
        return isinstance(found.value, tuple) and set(found.value) == true
    if program.operation == "order":
        return found.value == tuple(true)  # type: ignore[arg-type]
    return plain(found.value) == true


def test_every_answer_is_true() -> None:
    seen: Counter[str] = Counter()
    for scene, program, found, _ in asked(1, SCENES):
        truth = is_true(scene, program, found)
        assert truth is not False, (program, found)
        seen[program.operation] += truth is True
        if found.yes is not None:
            assert found.reply.startswith("Yes, " if found.yes else "No, "), found
    assert all(seen[operation] for operation in SHARES if operation not in
               ("tell", "values", "where from", "ground", "ground choose", "names", "caption", "describe", "story",
               "choose")
               ), seen  # fmt: skip


def test_replies_state_what_the_answers_hold() -> None:
    """Numbers and names in the reply are those of the value, and what is said to be there is there."""
    for scene, program, found, _ in asked(2, SCENES):
        words = re.findall(r"[a-z]+", found.reply.lower())
        if program.operation in ("count", "count beside") and isinstance(found.value, int):
            assert (NUMBERS[found.value] if found.value else "no") in words, found
        if isinstance(found.value, str):
            assert found.value in found.reply.lower() or found.value in ("True", "False"), found
        named = {w for w in words if w in COLOURS}
        there = {t.colour for t in scene.things} | set(scene.background.colours)
        mentioned = {
            w for things in program.things for w in (things.colour, things.without, things.also and things.also.colour)
        }
        assert named <= there | mentioned | set(program.words), (program, found)


def test_what_is_taken_for_granted_and_not_so_is_said() -> None:
    scene = Scene((Thing("star", "red", "large", 0.2, 0.2, 0.15), Thing("star", "blue", "large", 0.8, 0.8, 0.15)),
                  random_scene(random.Random(0), backgrounds=("noisy",)).background)  # fmt: skip
    star, ring = Things(shape="star"), Things(shape="ring")
    for program, reply in (
        (Program("query", (ring,), ("colour",)), "There is no ring."),
        (Program("verify", (ring,), ("colour", "red")), "No, there is no ring."),
        (Program("query", (star,), ("colour",)), "There are two stars: one is red, one is blue."),
        (Program("query", (star,), ("size",)), "Both stars are large."),
        (
            Program("query", (star,), ("place",)),
            "There are two stars: one is at the top left, one is at the bottom right.",
        ),
        (Program("beside", (star, ring), ("left",)), "There are two stars."),
        (Program("first", (Things(),), ("largest", "colour")), "There are two large ones: a red star and a blue star."),
        (Program("exists", (Things(without="star"),)), "No, there are only stars."),
        (Program("count", (Things(colour="red", also=Things(colour="green")),)), "There is one red or green object."),
        (Program("count", (Things(shape="star", also=ring),)), "There are two stars and rings."),
        (Program("count", (Things(shape="heart", also=ring),)), "There are no hearts or rings."),
    ):
        found = answer(program, Look(scene))
        assert found is not None and found.reply == reply, program


# --- wordings


def test_a_wording_names_what_is_meant_and_nothing_else() -> None:
    """The colours and shapes of the program are in the text under one of their names, and no others."""
    names = {word: shape for shape, forms in SHAPE_WORDS.items() for form in forms for word in (form,)}
    colours = {form: colour for colour in COLOURS for form in COLOUR_WORDS.get(colour, (colour,))} | {"grey": "gray"}
    for _, program, _, said in asked(3, SCENES, held_out=None):
        text = said.text.lower()
        wanted = {*program.words}
        for things in program.things:
            every = [things, things.also] if things.also else [things]
            wanted |= {w for each in every for w in (each.colour, each.shape, each.without)}
        found = {colour for form, colour in colours.items() if re.search(rf"\b{form}\b", text)}
        assert found == {w for w in wanted if w in COLOURS}, (said, program)
        shapes = {shape for form, shape in names.items() if re.search(rf"\b{form}(e?s)?\b", text)}
        assert shapes == {w for w in wanted if w in SHAPES}, (said, program)
        assert not re.search(r"[{}\[\]()|@]|  |\ba [aeio]", said.text), said
        assert said.text[0].isupper() or not said.text[0].isalpha(), said


def test_every_operation_has_wordings_and_a_topic() -> None:
    assert set(SHARES) == set(OPERATIONS)
    heard = {said.meaning for _, program, _, said in asked(4, 90) if topic(program)}
    assert heard == set(WORDINGS)


def test_there_are_very_many_wordings() -> None:
    texts = [said.text for *_, said in asked(5, 15)]
    assert len(set(texts)) > 0.97 * len(texts)
    for wording in WORDINGS.values():
        cores = [core for group in vars(wording).values() if isinstance(group, tuple) for core in group]
        assert sum(wordings(core.partition("@")[0]) for core in cores) >= 5


# --- the split


def test_the_split_holds_out_combinations_alone() -> None:
    """Training never shows a held-out pair of meaning and form, and shows each meaning and each form."""
    trained, kept = Counter(), Counter()
    manners: Counter[str] = Counter()
    for *_, said in asked(6, 40):
        assert not said.held_out
        trained[said.meaning] += 1
        manners[said.manner] += 1
    forms: Counter[str] = Counter()
    for *_, said in asked(7, 8, held_out=True):
        assert said.held_out
        kept[said.meaning] += 1
        forms[said.manner] += 1
    assert len(kept) > 30 and set(kept) <= set(trained)
    unseen = {form for form in forms if form not in manners}
    assert len(unseen) <= 3, unseen


def test_yes_and_no_come_about_equally_often() -> None:
    truths: Counter[bool] = Counter(found.yes for _, _, found, _ in asked(8, SCENES) if found.yes is not None)
    assert 0.4 < truths[True] / truths.total() < 0.6


def test_programs_are_read_back_equal() -> None:
    for _, program, _, _ in asked(9, 10):
        assert Program.from_dict(program.to_dict()) == program
        assert meaning(program) in WORDINGS


# --- the grammar


def test_a_template_matches_all_that_it_draws() -> None:
    template = "(what|which) [bright |]colour is {the}[, please]"
    assert wordings(template) == 12
    rng = random.Random(0)
    texts = {drawn(template, rng) for _ in range(300)}
    assert "what colour is {the}" in texts and "which bright colour is {the}, please" in texts
    spelled = pattern(template, {"the": "the [a-z ]+"})
    assert all(re.fullmatch(spelled, text.replace("{the}", "the red star")) for text in texts)
    assert not re.fullmatch(spelled, "what shape is the red star")
    for wrong in ("(a|b", "a]", "{a b}", "a {b"):
        with pytest.raises(ValueError, match=r"brace|bracket"):
            parsed(wrong)


def test_wordings_are_widened_under_the_headings_of_their_lists() -> None:
    plain = {"exists": YesNo(ask=("is there {a}",), tag="isn't there")}
    wide = widened(plain, "# a remark\n\n@exists.ask\nhas it got {a}\n@exists.bare\nany {many}\n")
    assert wide == {"exists": YesNo(ask=("is there {a}", "has it got {a}"), tag="isn't there", bare=("any {many}",))}
    for wrong in ("@exist.ask\nx", "@exists.tag\nx", "x\n@exists.ask"):
        with pytest.raises(ValueError, match="heading"):
            widened(plain, wrong)


def test_comparisons_of_numbers_are_those_of_english() -> None:
    assert [how for how, holds in COMPARED.items() if holds(2, 2)] == ["exactly", "at least", "at most"]
    assert [how for how, holds in COMPARED.items() if holds(3, 2)] == ["at least", "more than"]
