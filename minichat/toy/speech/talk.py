"""A dialogue about one scene in which people go on from what was said: "and its size?", "the other one",
"are you sure?"

What "it" is, is the thing that the last turn spoke of. Each follow-up is a program like any other, worded shortly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from minichat.toy.speech import chat
from minichat.toy.speech.answers import Answer
from minichat.toy.speech.grammar import drawn
from minichat.toy.speech.nouns import ATTRIBUTES, VALUES, Nouns, Program, Things, Unsayable, matching
from minichat.toy.speech.propose import SHARES, Proposer
from minichat.toy.speech.speaker import Slots, speak, written
from minichat.toy.speech.verdict import answer
from minichat.toy.world import DIRECTIONS, NUMBERS, Look, Name, Scene, Thing

PRONOUNS = ("it", "it", "it", "it", "that one", "that", "this one", "that thing")
OTHERS = ("the other one", "the other one", "the other", "the other thing", "the other object", "the remaining one")
AND = (
    "and {x}?", "what about {x}?", "how about {x}?", "and what about {x}?", "{x}?", "and {x}",
    "same (question|) for {x}[?]", "ok, and {x}?", "now {x}[?]", "and for {x}?", "what of {x}?", "then {x}?",
    "and how about {x}?", "and {x} then?", "do the same for {x}.", "the same for {x}, please.", "as for {x}?",
    "or {x}?", "and as to {x}?", "also for {x}?", "next: {x}.", "now the same for {x}.", "and if i ask about {x}?",
    "what about {x} then?", "i ask the same about {x}.", "and in the case of {x}?", "same thing for {x}?",
    "and the same about {x}?", "so what about {x}?",
)  # fmt: skip
ITS = (
    "and its {w}?", "its {w}?", "what about its {w}?", "and the {w}?", "and what's its {w}?", "the {w}?",
    "what's its {w}?", "and the {w} [of it]?", "how about the {w}?", "{w}?", "also its {w}", "and its {w} then?",
    "what is the {w} of it?", "tell me its {w}.", "what about the {w}?", "what {w}?", "which {w}?", "and what {w}?",
    "what {w} does it have?", "now its {w}.", "how about its {w}?", "name its {w}.", "do you know its {w}?",
    "can you tell its {w}?", "{w}, please", "and what is the {w}?", "the {w} too, please", "its {w}, please.",
    "and as to its {w}?", "what would its {w} be?", "give me its {w} as well.", "i need its {w}, too.",
)  # fmt: skip
SURE = (
    "are you sure[ (about that|of that|)]?", "really?", "sure?", "is that (right|so|true|correct)?", "you sure?",
    "are you certain?", "(seriously|for real)?", "are you absolutely sure?",
    "can you (double-check|check again|look again)?", "look again.", "are you (positive|sure) about it?",
    "(double-check|check again|check that)[, please].", "hm, really?", "is it[ really]?",
    "are you (really|quite|very) sure?", "(quite|totally|100 percent) sure?", "is (it|that) a fact?", "truly?",
    "honestly?", "oh[,] really?", "no doubt?", "can that be?", "are you sure that is (right|true)?",
    "do you (really|truly|honestly) (think|believe) so?", "do you mean (it|that)?",
    "can you (be sure|swear to it|look closer)?", "please (check|look) again.", "look closer.",
    "(take|have) another look[, please].", "would you bet on (it|that)?",
    "(look|check) (once more|one more time)[, please].", "is this your final answer?", "is that really so?",
)  # fmt: skip
AGAIN = (
    "(what|pardon|sorry|huh|come again|excuse me)?", "(say|repeat) that[ again][, please].",
    "can you (repeat|say) that[ again]?", "i didn't (catch|get) that.", "what did you say?", "once more, please.",
    "sorry, what?", "what was that?", "could you (repeat|say) that[ again|, please]?", "say again?",
    "i missed (that|it).", "one more time[, please].", "again, please.",
    "(please repeat|repeat)[ (that|it|your answer)].", "what did you just say?", "i did not hear you.", "eh?",
    "tell me again.", "how was that again?", "what was the answer again?", "i wasn't listening, what did you say?",
    "can you say it once more?",
)  # fmt: skip
MEANT = (
    "i meant {x}.", "no, {x}.", "sorry, i meant {x}.", "no, i mean {x}", "not that one, {x}.",
    "i was asking about {x}.", "i mean {x}", "oops, {x}", "no no, {x}", "wrong one, i mean {x}",
    "i was talking about {x}.", "actually[,] i meant {x}.", "i wanted {x}.", "rather {x}.", "make that {x}.",
    "let me correct myself: {x}.", "i should have said {x}.", "my mistake, {x}.", "wait, {x}.", "not that, {x}.",
    "correction: {x}.", "i was thinking of {x}.", "hm, i meant {x}.", "i had {x} in mind.", "no, not that: {x}.",
    "i mixed that up, i mean {x}.", "change that to {x}.",
)  # fmt: skip
CLAIM = (
    "no, it is {w}.", "no, it's {w}.", "but it is {w}.", "i think it's {w}.", "it's {w}, isn't it?", "isn't it {w}?",
    "no it's {w}", "you're wrong, it's {w}.", "it looks {w} to me.", "that's wrong, it is {w}.",
    "are you sure it isn't {w}?", "not {w}?", "so it's {w}?", "i'd say it is {w}.", "i believe it is {w}.",
    "surely it's {w}.", "to me it is {w}.", "it must be {w}.", "it should be {w}.", "look, it's {w}.",
    "could it be {w}?", "isn't that {w}?", "wouldn't you say it's {w}?", "my friend says it is {w}.",
    "i see it as {w}.", "that is {w}, no?", "but isn't it {w}?", "no, surely {w}.", "i'm sure it is {w}.",
    "you mean it's {w}?", "and not {w}?", "it is {w}, i think.",
)  # fmt: skip
CLAIM_NUMBER = (
    "no, there are {n}.", "i (count|see) {n}.", "but there are {n}.", "aren't there {n}?", "isn't it {n}?",
    "are you sure it isn't {n}?", "i think there are {n}.", "so {n}?", "not {n}?", "i'd say {n}.",
    "i believe there are {n}.", "it must be {n}.", "surely there are {n}.", "could it be {n}?", "shouldn't it be {n}?",
    "wouldn't you say {n}?", "i get {n}.", "my count is {n}.", "i (find|found) {n}.", "are there not {n}?", "no, {n}.",
    "you mean {n}?", "i counted {n}.", "are you sure there aren't {n}?", "it looks like {n} to me.",
)  # fmt: skip
OF_TWO = {
    "leftmost": (
        "the left one", "the one on the left", "the left-hand one", "the leftmost", "the one to the left",
        "the one further left", "the first one from the left",
    ),
    "rightmost": (
        "the right one", "the one on the right", "the right-hand one", "the rightmost", "the one to the right",
        "the one further right", "the first one from the right",
    ),
    "topmost": (
        "the upper one", "the top one", "the higher one", "the one at the top", "the one further up", "the topmost one",
        "the one that is higher",
    ),
    "bottommost": (
        "the lower one", "the bottom one", "the one at the bottom", "the one below", "the one further down",
        "the lowest one", "the one that is lower",
    ),
    "largest": (
        "the big one", "the large one", "the bigger one", "the larger one", "the huge one", "the biggest one",
        "the largest one", "the one that is bigger",
    ),
    "smallest": (
        "the small one", "the little one", "the smaller one", "the tiny one", "the smallest one", "the tiniest one",
        "the teeny one", "the one that is smaller",
    ),
}  # fmt: skip
WHICH_ONES = (
    "which (ones|one)?", "what are they?", "(name|list) them.", "which ones are they?", "what exactly?", "such as?",
    "which?", "can you name them?", "tell me which.", "and which are they?", "which ones exactly?",
    "list them, please.", "can you list them?", "tell me what they are.", "what are those?", "name each of them.",
    "like what?", "namely?", "point them out.", "show me which.", "do you know which?", "and those are?",
    "and they are?", "what are they exactly?", "tell me each of them.", "give me their names.", "could you name them?",
    "which (things|objects|ones) are that?",
)  # fmt: skip
HOW_MANY = (
    "how many?", "how many (of them|are there|is that)?", "and how many?", "how many is that in total?", "the number?",
    "how many do you see?", "how many in (all|total)?", "what number?", "count them[, please].", "can you count them?",
    "how many were there?", "tell me how many.", "and the number?", "what's the count?", "how many of those?",
    "how many altogether?", "and how many is that?",
)  # fmt: skip
THEY = {
    "colour": (
        "what colour are they?", "and their colours?", "which colours?", "their colours?", "what colours are those?",
        "what colour does each have?", "(tell me|name) their colours.", "which colours do they have?",
        "what are their colours?", "and what colour are they?", "in what colours are they?",
        "what colours do they have?", "how are they coloured?", "their colours, please.",
    ),
    "shape": (
        "what shapes are they?", "and their shapes?", "which shapes are those?", "what are their shapes?",
        "what shape are they?", "which shapes are they?", "(tell me|name) their shapes.", "what shapes do they have?",
        "and what shape are they?", "how are they shaped?", "what kinds of shape are they?",
    ),
    "size": (
        "how big are they?", "are they large or small?", "and their sizes?", "what size are they?",
        "how large are they?", "tell me their sizes.", "are they small or large?", "what are their sizes?",
        "are they big or little?", "and how big are they?", "what sizes do they have?",
    ),
    "place": (
        "where are they?", "and where are they?", "where are those?", "where do you see them?",
        "tell me where they are.", "where can i find them?", "their places?", "where in the picture are they?",
        "where do they lie?", "what are their positions?", "locate them.", "where did they put them?",
        "and their positions?",
    ),
}  # fmt: skip
LONGER = (
    "(more|more detail|more details)[, please].", "in more detail.",
    "can you (say more|be more precise|go into detail)?", "tell me more.", "(longer|a longer one)[, please].",
    "elaborate.", "(what|anything) else?", "say more about it.", "be more specific.", "go on.", "say more.",
    "give me more [details].", "could you describe (it|that) in detail?", "expand on that.",
    "i want (more|more details|to know more).", "with more words.", "now in detail.", "that's too short.", "too short.",
    "make it longer.", "can you (add details|elaborate|expand on that|tell me more)?", "a (bit|little) more[, please].",
    "describe (it|everything) (fully|in full|in detail).", "be more detailed.", "and in detail?", "more, please.",
    "what more can you say?", "i'd like a longer description.", "be (more thorough|more exact|less brief).",
)  # fmt: skip
SHORTER = (
    "(shorter|a shorter one)[, please].", "in one sentence.", "in short?",
    "can you (say|put) it (shorter|briefly|in one sentence)?", "too long.", "make it shorter.", "briefly.",
    "sum it up.", "in fewer words.", "shorten (it|that).", "can you shorten (it|that)?", "keep it (short|brief).",
    "that's too long.", "the short version[, please].", "cut it down.", "fewer words[, please].", "just the gist.",
    "in a nutshell.", "summarise (it|that).", "in brief.", "one line[, please].", "can you be brief?", "condense it.",
    "now briefly.", "that was long, shorter please.", "make it (brief|snappier|one sentence).",
    "only one sentence, please.", "could you sum that up?", "be brief.",
)  # fmt: skip
ABOUT_IT = (
    "query", "verify", "beside", "what beside", "nearest", "alike", "choose", "tell", "is bigger", "anything beside",
    "count beside", "choose beside", "where from", "next to",
)  # fmt: skip
MOVES: dict[str, float] = {
    "fresh": 40, "about it": 22, "its": 8, "and": 12, "other": 9, "sure": 4, "again": 1, "meant": 4, "claim": 9,
    "of two": 6, "they": 9, "detail": 4, "why": 1, "aside": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A turn: what the person says, the reply, and the program behind it, where there is one.

    `leans`: whether it can be understood only from earlier turns.
    """

    text: str
    reply: str
    program: Program | None = None
    answer: Answer | None = None
    leans: bool = False


class Talk:
    """A running dialogue about a scene. `moves`: the ways to go on, and how often each comes."""

    def __init__(
        self, scene: Scene, rng: random.Random, *, moves: dict[str, float] | None = None, held_out: bool | None = False
    ) -> None:
        self.look, self.rng, self.held_out = Look(scene), rng, held_out
        self.proposer = Proposer(self.look, rng)
        self.moves = moves or MOVES
        self.focus: Thing | None = None
        self.pronoun: str | None = None
        self.last: Said | None = None
        self.asked: set[Program] = set()

    def turn(self) -> Said:
        """What is said next."""
        if self._of_two() and self.rng.random() < 0.5 and (said := self.of_two()) is not None:
            return self._told(said)
        for move in self.rng.choices(list(self.moves), list(self.moves.values()), k=12):
            said = _GO_ON[move](self)
            if said is not None:
                return self._told(said)
        return self._told(self.fresh() or self.whole())

    def _told(self, said: Said) -> Said:
        self.last = said if said.program is not None or self.last is None else self.last
        return said

    def turn_to(self, program: Program, found: Answer) -> None:
        """Go on as if this had been asked last."""
        self._told(Said("", found.reply, program, found))
        self._attend(program, found)

    def whole(self) -> Said:
        """What is in the picture: of this, every scene has something to tell."""
        program = Program("names")
        return self._said(program, speak(program, self.rng, held_out=None).text)

    def _said(self, program: Program, text: str, leans: bool = False, found: Answer | None = None) -> Said:
        found = found or answer(program, self.look)
        if found is None:
            raise Unsayable
        self.asked.add(program)
        self._attend(program, found)
        return Said(text, found.reply, program, found, leans)

    def _attend(self, program: Program, found: Answer) -> None:
        """What "it" is from now on: the one thing that was spoken of, or that the reply brought in."""
        self.focus = self.pronoun = None
        if isinstance(found.value, tuple) and len(found.value) == 3 and found.value[0] is None:
            self._look_at(found.value)
        elif (
            isinstance(found.value, tuple)
            and len(found.value) == 1
            and program.operation in ("at", "what beside", "between", "list")
        ):
            self._look_at(found.value[0])
        elif program.operation in (
            "query",
            "verify",
            "choose",
            "tell",
            "beside",
            "exists",
            "where from",
            "choose beside",
            "is between",
        ):
            things = matching(self.look, program.things[0])
            self.focus = things[0] if things and len(things) == 1 else None

    def _look_at(self, name: Name) -> None:
        if isinstance(name, tuple) and len(name) == 3 and self.look.number(name) == 1:
            self.focus, self.pronoun = self.look.matching(name)[0], self.rng.choice(("it", "that one", "that one"))

    # --- ways to go on

    def fresh(self) -> Said | None:
        """A question that stands by itself."""
        for _ in range(4):
            operation = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
            found = self.proposer.propose(operation)
            if found is not None and found[0] not in self.asked:
                try:
                    return self._said(found[0], speak(found[0], self.rng, held_out=self.held_out).text, found=found[1])
                except Unsayable:
                    continue
        return None

    def _name(self, thing: Thing, hide: str = "") -> Things | None:
        name = self.look.reference(thing, self.rng, size=hide != "size", colour=hide != "colour", shape=hide != "shape")
        return None if name is None else Things.of(name)

    def about_it(self) -> Said | None:
        """ "Is it red?", "what is left of it?"."""
        if self.focus is None:
            return None
        proposer, focus = self.proposer, self.focus
        things = self._name(focus)
        found = None
        for _ in range(4):
            operation = self.rng.choice(ABOUT_IT)
            found = found or proposer.propose(operation)
        if things is None or found is None:
            return None
        program = found[0]
        operation = program.operation
        if operation == "choose" and getattr(focus, program.words[0], "") not in ("", *program.words):
            return None
        if operation in ("beside", "alike", "is bigger", "choose beside", "where from", "next to") and focus in (
            matching(self.look, program.things[1]) or ()
        ):
            return None
        program = Program(operation, (things, *program.things[1:]), program.words, program.number)
        if program in self.asked or answer(program, self.look) is None:
            return None
        it = self.pronoun or self.rng.choice(PRONOUNS)
        try:
            return self._said(program, speak(program, self.rng, held_out=self.held_out, it=it).text, leans=True)
        except Unsayable:
            return None

    def its(self) -> Said | None:
        """ "And its size?"."""
        if self.focus is None or (things := self._name(self.focus)) is None:
            return None
        attribute = self.rng.choice((*ATTRIBUTES, "place"))
        program = Program("query", (things,), (attribute,))
        if program in self.asked or answer(program, self.look) is None:
            return None
        word = self.rng.choice(("position", "place", "location")) if attribute == "place" else attribute
        return self._said(program, self._write(ITS, w=word), leans=True)

    def _write(self, templates: tuple[str, ...], **slots: str) -> str:
        return written(drawn(self.rng.choice(templates), self.rng).format(**slots), self.rng)

    def and_x(self) -> Said | None:
        """ "And the circle?": the last question about other things."""
        return self._changed(AND)

    def meant(self) -> Said | None:
        """ "I meant the circle."."""
        return self._changed(MEANT)

    def _changed(self, templates: tuple[str, ...]) -> Said | None:
        last = self.last.program if self.last else None
        if last is None:
            return None
        rng, nouns = self.rng, Nouns(self.rng)
        if (
            last.operation in ("query", "verify") and last.words[0] in (*ATTRIBUTES, "place")
        ) or last.operation == "tell":
            hide = last.words[0] if last.words else ""
            things = self.proposer.one(hide=hide)
            phrase = None if things is None else nouns.the(things)
        elif last.operation == "count" and not last.things[0].side:
            things = self.proposer.some(plain=True)
            phrase = nouns.many(things)
        elif last.operation == "exists":
            things = self.proposer.some(plain=True)
            phrase = nouns.a(things)
        elif last.operation in ("what beside", "nearest", "anything beside"):
            things = self.proposer.one()
            phrase = None if things is None else nouns.the(things)
            if last.operation == "what beside" and rng.random() < 0.5:
                way = rng.choice(DIRECTIONS)
                program = Program("what beside", last.things, (way, last.words[1]))
                text = Slots(program, nouns)["to"] + " it"
                return self._retold(program, templates, text) if self.focus is None else None
        elif last.operation == "ground colour":
            return None
        else:
            return None
        if things is None or phrase is None or matching(self.look, things) == matching(self.look, last.things[0]):
            return None
        return self._retold(Program(last.operation, (things,), last.words, last.number), templates, phrase)

    def _retold(self, program: Program, templates: tuple[str, ...], phrase: str) -> Said | None:
        if program in self.asked or answer(program, self.look) is None:
            return None
        return self._said(program, self._write(templates, x=phrase), leans=True)

    def other(self) -> Said | None:
        """ "What colour is the other one?", where there are two things, or two of the focus's shape or colour."""
        if self.focus is None:
            return None
        others = [thing for thing in self.look.things if thing is not self.focus]
        phrase = self.rng.choice(OTHERS)
        if len(others) != 1:
            key = self.rng.choice(("shape", "colour"))
            others = [thing for thing in others if getattr(thing, key) == getattr(self.focus, key)]
            if key == "shape":
                phrase = f"the other {self.focus.shape}"
            else:
                phrase = f"the other {self.focus.colour} {self.rng.choice(('one', 'thing', 'object'))}"
            if len(others) != 1:
                return None
        things = self._name(others[0])
        if things is None:
            return None
        last = self.last.program if self.last else None
        if last is not None and last.operation == "query" and self.rng.random() < 0.4:
            return self._retold(Program("query", (things,), last.words), AND, phrase)
        attribute = self.rng.choice((*ATTRIBUTES, "place"))
        if self.rng.random() < 0.3 and attribute in ATTRIBUTES:
            program = Program("verify", (things,), (attribute, self.proposer.value(attribute)))
        else:
            program = Program("query", (things,), (attribute,))
        if program in self.asked or answer(program, self.look) is None:
            return None
        try:
            return self._said(program, speak(program, self.rng, held_out=self.held_out, it=phrase).text, leans=True)
        except Unsayable:
            return None

    def sure(self) -> Said | None:
        """ "Are you sure?"."""
        if self.last is None or self.last.program is None or len(self.last.reply) > 120:
            return None
        return Said(self._write(SURE), insisted(self.last.reply), leans=True)

    def again(self) -> Said | None:
        if self.last is None or self.last.program is None:
            return None
        return Said(self._write(AGAIN), self.last.reply, leans=True)

    def claim(self) -> Said | None:
        """The person says what it is, rightly or not: "no, it's blue"."""
        last = self.last.program if self.last else None
        if last is None:
            return None
        if last.operation == "query" and self.focus is not None and last.words[0] in ATTRIBUTES:
            value = self.rng.choice(VALUES[last.words[0]])
            if self.rng.random() < 0.25:
                value = str(getattr(self.focus, last.words[0]))
            program = Program("verify", last.things, (last.words[0], value))
            return self._said(program, self._write(CLAIM, w=Slots(program, Nouns(self.rng))["is"]), leans=True)
        if last.operation == "count" and self.last and self.last.answer and isinstance(self.last.answer.value, int):
            number = max(2, self.last.answer.value + self.rng.choice((-2, -1, 0, 1, 1, 2)))
            program = Program("number is", last.things, ("exactly",), number)
            word = NUMBERS[number] if self.rng.random() < 0.7 else str(number)
            return self._said(program, self._write(CLAIM_NUMBER, n=word), leans=True)
        return None

    def of_two(self) -> Said | None:
        """After "there are two stars": "the left one"; or what leads to it, a question that could mean either."""
        last = self._of_two()
        if last is None:
            return self._ambiguous()
        which = self.rng.choice(list(OF_TWO))
        program = Program("first", last.things, (which, last.words[0]))
        told = answer(program, self.look)
        if told is None or program in self.asked or "ones" in told.reply or "they" in told.reply.lower():
            return None
        phrase = self.rng.choice(OF_TWO[which])
        text = self._write(self.rng.choice((MEANT, AND, ("{x}.", "{x}", "{x}, please"))), x=phrase)
        return self._said(program, text, leans=True, found=told)

    def _of_two(self) -> Program | None:
        """The last question, where it could mean either of two things."""
        last = self.last.program if self.last else None
        if last is None or last.operation != "query":
            return None
        found = matching(self.look, last.things[0])
        return last if found and len(found) == 2 else None

    def _ambiguous(self) -> Said | None:
        """ "What colour is the star?", where there are two."""
        names = [name for name, number in self.look.count.items() if number == 2 and sum(map(bool, name)) < 3]
        if not names:
            return None
        things = Things.of(self.rng.choice(names))
        free = [each for each in (*ATTRIBUTES, "place") if getattr(things, each, None) is None]
        program = Program("query", (things,), (self.rng.choice(free),))
        if program in self.asked or answer(program, self.look) is None:
            return None
        return self._said(program, speak(program, self.rng, held_out=self.held_out).text)

    def they(self) -> Said | None:
        """After a number or a list: "which ones?", "where are they?"."""
        last = self.last.program if self.last else None
        if last is None or last.operation not in ("count", "exists", "list", "number is") or last.things[0].also:
            return None
        found = matching(self.look, last.things[0])
        if not found or len(found) < 2:
            return None
        ways: list[tuple[Program, tuple[str, ...]]] = []
        if last.operation != "list":
            ways.append((Program("list", last.things), WHICH_ONES))
        if last.operation in ("list", "exists"):
            ways.append((Program("count", last.things), HOW_MANY))
        for attribute in ATTRIBUTES:
            if getattr(last.things[0], attribute) is None:
                ways.append((Program("values", last.things, (attribute,)), THEY[attribute]))
        ways.append((Program("query", last.things, ("place",)), THEY["place"]))
        program, templates = self.rng.choice(ways)
        if program in self.asked or answer(program, self.look) is None:
            return None
        return self._said(program, self._write(templates), leans=True)

    def detail(self) -> Said | None:
        """After a caption or a list: longer, or shorter."""
        last = self.last.program if self.last else None
        if last is None or last.operation not in ("names", "caption", "describe"):
            return None
        longer = last.operation != "describe"
        program = Program("describe" if longer else "caption")
        return self._said(program, self._write(LONGER if longer else SHORTER), leans=True)

    def why(self) -> Said | None:
        if self.last is None or self.last.program is None:
            return None
        return Said(*chat.how_known(self.rng), leans=True)

    def aside(self) -> Said | None:
        text, reply = chat.aside(self.rng)
        return None if reply in (chat.SORRY, chat.GLAD) and self.last is None else Said(text, reply)


def insisted(reply: str) -> str:
    """To "are you sure?": "Yes, I am sure: it is red."."""
    clause = reply.removeprefix("Yes, ").removeprefix("No, ")
    return f"Yes, I am sure: {clause[0].lower()}{clause[1:]}"


_GO_ON: dict[str, Callable[[Talk], Said | None]] = {
    "fresh": Talk.fresh, "about it": Talk.about_it, "its": Talk.its, "and": Talk.and_x, "other": Talk.other,
    "sure": Talk.sure, "again": Talk.again, "meant": Talk.meant, "claim": Talk.claim, "of two": Talk.of_two,
    "they": Talk.they, "detail": Talk.detail, "why": Talk.why, "aside": Talk.aside,
}  # fmt: skip
