"""What goes into the slots of a core: phrases for a program's things and words, drawn anew for each question."""

from __future__ import annotations

from collections.abc import Callable

from minichat.scenes.speech.nouns import DIRECTION_WORDS, FURTHER, Nouns, Unsayable, article, plural
from minichat.scenes.speech.program import ATTRIBUTES, Program, kind_of
from minichat.scenes.truth import NUMBERS
from minichat.scenes.world import COLOURS, SHAPES

HOW: dict[str, tuple[str, ...]] = {
    "exactly": ("exactly", "precisely", "just", ""),
    "at least": ("at least", "at least", "no fewer than", "a minimum of"),
    "at most": ("at most", "at most", "no more than", "a maximum of"),
    "more than": ("more than", "more than", "over"),
    "fewer than": ("fewer than", "less than", "under"),
}
HOW_ONE = {"exactly": ("only", "just", "exactly"), "more than": ("more than",)}
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "plain", "solid", "uniform", "a single colour", "one solid colour", "a plain colour"),
    "noisy": ("noisy", "noisy", "grainy", "speckled", "textured"),
    "gradient": (
        "a gradient",
        "a gradient",
        "a colour gradient",
        "a blend of two colours",
        "fading from one colour to another",
    ),
}
GROUND_ADJECTIVES = {
    "plain": ("plain", "solid", "uniform"), "noisy": ("noisy", "grainy", "speckled"), "gradient": ("gradient",
    "graded"),
}  # fmt: skip
_DOES = {
    "gradient": (
        "change colour",
        "fade",
        "go from one colour to another",
        "have two colours",
        "have more than one colour",
    ),
    "noisy": ("have noise", "have grain"),
}
_ALONG = {
    "left": ("from left to right", "left to right", "from the left to the right", "starting from the left"),
    "right": ("from right to left", "right to left", "starting from the right"),
    "top": ("from top to bottom", "top to bottom", "from the top down", "starting at the top"),
    "bottom": ("from bottom to top", "bottom to top", "from the bottom up", "starting at the bottom"),
}
PLACED = {
    "left": ("on the left", "to the left", "left"), "right": ("on the right", "to the right", "right"),
    "above": ("above", "on top", "above the other"), "below": ("below", "underneath", "below the other"),
}  # fmt: skip
ITS_SIDE = {
    "left": ("to its left", "on its left", "on its left side"), "right": ("to its right", "on its right"),
    "above": ("above it", "over it"), "below": ("below it", "under it", "beneath it"),
}  # fmt: skip
_GROUNDS = (
    "the background", "background", "the backdrop", "the background of the {pic}", "its background", "the back",
    "the bg", "the canvas",
)  # fmt: skip
_GROUND_WEIGHTS = (12, 1, 1, 2, 1, 1, 0.7, 0.7)
_COMPARED = {
    "more": ("more",), "fewer": ("fewer", "fewer", "less"), "larger": ("larger", "bigger"),
    "smaller": ("smaller", "smaller", "tinier"),
}  # fmt: skip


class Slots(dict[str, str]):
    """Fills slots as they are asked for. `it`: a pronoun in the place of the first set's phrase."""

    def __init__(self, program: Program, nouns: Nouns, it: str | None = None) -> None:
        super().__init__()
        self.program, self.nouns, self.rng, self.it = program, nouns, nouns.rng, it

    def __missing__(self, name: str) -> str:
        stem = name.rstrip("23") if name not in _WORDS else name
        number = int(name[len(stem) :] or 1) - 1
        text = self._phrase(stem, number) if stem in _PHRASES else _WORDS[name](self)
        if name != "pic":
            self[name] = text
        return text

    def _phrase(self, stem: str, number: int) -> str:
        things, nouns = self.program.things[number], self.nouns
        if self.it is not None and number == 0:
            if stem == "the":
                return self.it
            if stem == "whose" and self.it == "it":
                return "its"
            raise Unsayable
        return str(getattr(nouns, stem)(things))

    # --- words

    @property
    def value(self) -> str:
        return self.program.words[1]

    def said(self, index: int, form: str) -> str:
        """A value: `form` "is" ("a star"), "are" ("stars") or "word" ("star")."""
        value = self.program.words[index]
        if value in SHAPES:
            word = self.nouns.shape(value)
            return {"is": article(word), "are": plural(word), "word": word}[form]
        if value in COLOURS:
            return self.nouns.colour(value)
        if value in ("large", "small"):
            word = self.nouns.size(value)
            one = form == "is" and self.rng.random() < 0.1
            return f"a {word} one" if one else word
        if form == "word":
            return value
        return self.nouns.at(value)

    def attribute(self) -> str:
        return next(word for word in reversed(self.program.words) if word in ATTRIBUTES)

    def predicate(self, *, many: bool, index: int = 0) -> str:
        """What a set is, after "are" or "is": "red", "stars", "not red"."""
        things = self.program.things[index]
        if things.also or things.side:
            raise Unsayable
        if things.without:
            if any(things.name):
                raise Unsayable
            word = self.nouns.word(things.without)
            if things.without in SHAPES:
                word = plural(word) if many else article(word)
            return f"not {word}"
        given = [word for word in things.name if word]
        if not given:
            raise Unsayable
        if things.shape is None and len(given) == 1:
            return self.nouns.word(given[0])
        return self.nouns.many(things) if many else self.nouns.a(things)

    def others(self) -> str:
        things = self.program.things[0]
        if things.without is None or any(things.name) or things.side:
            raise Unsayable
        word = self.nouns.word(things.without)
        return plural(word) if kind_of(things.without) == "shape" else f"{word} {self.rng.choice(('ones', 'things'))}"

    def how(self) -> str:
        how = self.program.words[0]
        return self.rng.choice((HOW_ONE if self.program.number == 1 else HOW)[how])

    def number(self) -> str:
        number = self.program.number or 0
        return NUMBERS[number] if self.rng.random() < 0.75 else str(number)

    def compared(self, index: int = 0) -> str:
        return self.rng.choice(_COMPARED[self.program.words[index]])

    def ground(self) -> str:
        text = self.rng.choices(_GROUNDS, _GROUND_WEIGHTS)[0]
        return text.format(pic=self.nouns.picture())

    def kind(self, index: int) -> str:
        return self.rng.choice(KINDS[self.program.words[index]])

    def does(self) -> str:
        kind = self.program.words[0]
        if kind not in _DOES:
            raise Unsayable
        return self.rng.choice(_DOES[kind])

    def direction(self, index: int) -> str:
        return self.rng.choice(DIRECTION_WORDS[self.program.words[index]][:-1])

    def further(self, index: int) -> str:
        return self.rng.choice(FURTHER[self.program.words[index]])

    def half(self) -> str:
        return self.nouns.side(self.program.words[0])


_PHRASES = ("the", "a", "many", "bare", "whose", "adj")
_WORDS: dict[str, Callable[[Slots], str]] = {
    "pic": lambda slots: slots.nouns.picture(),
    "a_pic": lambda slots: article(slots.nouns.picture()),
    "is": lambda slots: slots.said(1, "is"),
    "are": lambda slots: slots.said(1, "are"),
    "word": lambda slots: slots.said(0 if slots.program.operation.startswith("ground") else 1, "word"),
    "a_word": lambda slots: article(slots.said(0, "word")),
    "a_word2": lambda slots: article(slots.said(1, "word")),
    "is2": lambda slots: slots.said(2, "is"),
    "word2": lambda slots: slots.said(1 if slots.program.operation.startswith("ground") else 2, "word"),
    "are1": lambda slots: slots.predicate(many=True),
    "is1": lambda slots: slots.predicate(many=False),
    "others": Slots.others,
    "is_2": lambda slots: slots.predicate(many=False, index=1),
    "n1": lambda slots: slots.program.words[0],
    "n2": lambda slots: slots.program.words[1],
    "placed": lambda slots: slots.rng.choice(PLACED[slots.program.words[0]]),
    "itsside": lambda slots: slots.rng.choice(ITS_SIDE[slots.program.words[0]]),
    "how": Slots.how,
    "n": Slots.number,
    "more": Slots.compared,
    "larger": Slots.compared,
    "greater": lambda slots: "greater" if slots.program.words[0] == "more" else "smaller",
    "commoner": lambda slots: "more common" if slots.program.words[0] == "more" else "less common",
    "attr": Slots.attribute,
    "attrs": lambda slots: plural(slots.attribute()),
    "what": Slots.attribute,
    "kind": lambda slots: (
        slots.kind(0)
        if slots.program.operation.startswith("ground")
        else slots.rng.choice(("objects", "things", "shapes", "items"))
    ),
    "kind2": lambda slots: slots.kind(1),
    "a_ground": lambda slots: article(slots.rng.choice(GROUND_ADJECTIVES[slots.program.words[0]])) + " background",
    "does": Slots.does,
    "ground": Slots.ground,
    "at": lambda slots: slots.nouns.at(next(word for word in slots.program.words if word != "place")),
    "half": Slots.half,
    "to": lambda slots: slots.direction(0),
    "tov": lambda slots: slots.direction(1),
    "further": lambda slots: slots.further(0),
    "furtherv": lambda slots: slots.further(1),
    "first": lambda slots: slots.nouns.first(slots.program.things[-1], slots.program.words[0]),
    "along": lambda slots: slots.rng.choice(_ALONG[slots.program.words[0]]),
}
