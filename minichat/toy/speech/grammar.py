"""Sentence forms: a small grammar, frames for any question, and wordings about the picture as a whole."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

# --- A small grammar: `[x]` may be left out, `(a|b)` is one of several, `{slot}` is filled in later.
#
# Few templates stand for many wordings: "(what|which) colour is {the}[ here]" is four.


_OPTIONAL = 0.4  # how often what may be left out is said
_TOKEN = re.compile(r"[\[\](|)]|\{\w+\}|[^\[\](|){}]+")

Tree = tuple["str | tuple[str, tuple[Tree, ...]]", ...]  # text and slots, or ("any" | "maybe", alternatives)


@cache
def parsed(template: str) -> Tree:
    """The template as a tree. Raises `ValueError` for brackets that do not match."""
    tokens = _TOKEN.findall(template)
    if "".join(tokens) != template:
        raise ValueError(f"{template!r} has a brace that opens no slot.")
    tree, rest = _sequence(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"{template!r} has brackets that do not match.")
    return tree


def _sequence(tokens: list[str], at: int) -> tuple[Tree, int]:
    found: list[str | tuple[str, tuple[Tree, ...]]] = []
    while at < len(tokens) and tokens[at] not in ("]", ")", "|"):
        if tokens[at] in ("(", "["):
            closing, kind = (")", "any") if tokens[at] == "(" else ("]", "maybe")
            alternatives = []
            while True:
                inner, at = _sequence(tokens, at + 1)
                alternatives.append(inner)
                if at == len(tokens) or tokens[at] != "|":
                    break
            if at == len(tokens) or tokens[at] != closing:
                raise ValueError(f"{''.join(tokens)!r} has brackets that do not match.")
            found.append((kind, tuple(alternatives)))
        else:
            found.append(tokens[at])
        at += 1
    return tuple(found), at


def drawn(template: str, rng: random.Random) -> str:
    """One of the wordings, its slots still open."""
    return tidy(_drawn(parsed(template), rng))


def _drawn(tree: Tree, rng: random.Random) -> str:
    parts = []
    for node in tree:
        if isinstance(node, str):
            parts.append(node)
        elif node[0] == "any" or rng.random() < _OPTIONAL:
            parts.append(_drawn(rng.choice(node[1]), rng))
    return "".join(parts)


def tidy(text: str) -> str:
    """Single blanks, and none before a mark."""
    return re.sub(r" +([,?.!:])", r"\1", re.sub(r" +", " ", text)).strip(" ,")


def wordings(template: str) -> int:
    """How many wordings the template stands for, whatever its slots hold."""
    return _count(parsed(template))


def _count(tree: Tree) -> int:
    count = 1
    for node in tree:
        if not isinstance(node, str):
            count *= sum(_count(inner) for inner in node[1]) + (node[0] == "maybe")
    return count


def pattern(template: str, slots: Mapping[str, str]) -> str:
    """A regular expression that matches what the template can spell; `slots`: one for each slot's name.

    Blanks are free: the text is to be in single ones.
    """
    return _pattern(parsed(template), slots)


def _pattern(tree: Tree, slots: Mapping[str, str]) -> str:
    parts = []
    for node in tree:
        if isinstance(node, str):
            is_slot = node.startswith("{")
            parts.append(f"(?:{slots[node[1:-1]]})" if is_slot else re.escape(node).replace(r"\ ", " ?"))
        else:
            inner = "|".join(_pattern(alternative, slots) for alternative in node[1])
            parts.append(f"(?:{inner})" + ("?" if node[0] == "maybe" else ""))
    return "".join(parts)


# --- Frames: the sentence forms that any question can be put into, and what a wording of one meaning consists of.
#
# A meaning has its own cores ("what colour is {the}", "what colour {the} is"); the frames here go round them ("can you
# tell me …?", "…, right?"). Their product is what a model hears, and combinations of the two can be held out.


@dataclass(frozen=True)
class Wh:
    """A meaning that is asked with what, which, where or how many.

    `ask`: questions; `clause`: the same after "tell me"; `bare`: fragments; `order`: in the imperative.
    """

    ask: tuple[str, ...]
    clause: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class YesNo:
    """A meaning that is so or not.

    `ask`: questions; `state`: statements; `doubt`: negative questions, which are answered as `ask`; `tag`: what follows
    a statement ("isn't it"); `bare`: fragments.
    """

    ask: tuple[str, ...]
    state: tuple[str, ...] = ()
    doubt: tuple[str, ...] = ()
    tag: str = ""
    bare: tuple[str, ...] = ()


Wording = Wh | YesNo


def headed(text: str) -> dict[str, tuple[str, ...]]:
    """The lines under each heading "@heading"; empty lines, and those that begin with "#", are left out.

    Raises `ValueError` for a line before the first heading.
    """
    found: dict[str, list[str]] = {}
    under: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("@"):
            under = found.setdefault(line[1:], [])
        elif line and not line.startswith("#"):
            if under is None:
                raise ValueError(f"Line {number}, {line!r}, is under no heading: begin with a line such as @heading.")
            under.append(line)
    return {heading: tuple(lines) for heading, lines in found.items()}


def widened(wordings: Mapping[str, Wording], text: str) -> dict[str, Wording]:
    """The wordings with those that `text` adds under headings "@meaning.list".

    Raises `ValueError` for a heading that names no list of them.
    """
    found = dict(wordings)
    for heading, lines in headed(text).items():
        key, _, part = heading.rpartition(".")
        had = getattr(found.get(key), part, None)
        if not isinstance(had, tuple):
            raise ValueError(f"The heading @{heading} names no list of wordings.")
        found[key] = replace(found[key], **{part: had + lines})  # type: ignore[arg-type]
    return found


#: {c}: a clause.
INDIRECT: dict[str, str] = {
    "can you tell me": "(can|could|would|will) you [please] tell me {c}?",
    "tell me": "[please ](tell|show) me {c}.",
    "do you know": "do you [happen to] know {c}?",
    "would like to know": "i('d| would) (like|love) to know {c}.",
    "want to know": "i (want|need) to know {c}.",
    "wonder": "i('m wondering| wonder| was wondering) {c}.",
    "any idea": "(any idea|any clue|got any idea) {c}?",
    "say": "[please |just ](say|state|specify) {c}.",
    "can you say": "(can|could) you (say|see|work out|make out|find out) {c}?",
    "let me know": "[please ]let me know {c}.",
    "would you mind": "would you mind (telling me|saying) {c}?",
    "help": "help me (find out|see) {c}.",
    "cannot see": "i (can't|cannot) (see|tell|make out) {c}. (can|could) you?",
    "mind if i ask": "(may|can|could) i ask {c}?",
    "find out": "[can you ]find out {c}[ for me].",
    "have to": "you (have to|must|should) tell me {c}.",
    "curious": "i'm curious {c}.",
    "explain": "(can you )explain to me {c}?",
    "interested": "what i('d like to| want to) know is {c}.",
    "check": "check {c}[ for me].",
    "not sure": "i'm not sure {c}.",
    "remind me": "remind me {c}.",
    "depends": "the question is {c}.",
    "please": "(be so kind as to|kindly|please do|would you kindly) tell me {c}.",
    "any chance": "any chance (you could|you can) tell me {c}?",
    "possible": "would it be possible to (know|say|tell me|find out) {c}?",
    "would help": "it would (help|be good|be nice|be useful) to know {c}.",
    "trying to": "i('m| am) trying to (find out|work out|see|figure out|understand) {c}.",
    "no idea": "i have no (idea|clue) {c}.",
    "do not know": "i (don't|do not) know {c}.",
    "someone asks": "(someone|my friend|my teacher|my son|my boss) (asks|wants to know|would like to know) {c}.",
    "tell us": "[please ]tell us {c}.",
    "mind telling": "((you mind|mind|do you mind) telling|care to tell) me {c}?",
    "wanna know": "i (wanna|gotta|just wanna|really want to|just need to) know {c}.",
    "guess": "(guess|decide|determine|establish|work out|figure out) {c}.",
    "are you able": "are you able to (tell|say|see|recognise|tell me) {c}?",
    "do you see": "(do|can) you [actually ]see {c}?",
    "is it clear": "is it clear [to you] {c}?",
    "may i know": "(may|might|could) i know {c}?",
    "hoping": "i was hoping (you could|you would|you might) tell me {c}.",
    "ask you": "i('d like to| want to| have to| must) ask [you] {c}.",
    "my question": "my [next|first|only|other] question is {c}.",
    "that is what": "{c}, that('s| is) (what i want to know|what i'm asking|my question|the question).",
    "look and say": "(have a look|take a look|look closely|look at it|look) and (tell me|say) {c}.",
    "try": "[please ]try to (tell|see|find out|say|figure out) {c}.",
    "let us see": "let('s| us) (see|find out|check|look at) {c}.",
    "forgot": "i (forgot|forget|don't remember|missed|didn't see) {c}.",
    "go on": "(go on|come on|now|well), tell me {c}.",
    "homework": "(for my homework|for a quiz|for a game|for a bet), i need to know {c}.",
}

#: Frames that take a phrase ("the colour of {the}") as well as a clause, and those that take "about {the}".
WITH_PHRASES = frozenset({
    "can you tell me", "tell me", "do you know", "would like to know", "want to know", "say", "can you say",
    "let me know", "would you mind", "cannot see", "mind if i ask", "have to", "find out", "check", "please",
    "any chance", "possible", "would help", "trying to", "do not know", "tell us", "wanna know", "are you able",
    "may i know", "hoping", "look and say", "forgot", "go on", "homework",
})  # fmt: skip
WITH_ABOUT = frozenset({
    "can you tell me", "tell me", "would like to know", "want to know", "have to", "please", "any chance", "tell us",
    "hoping", "look and say", "go on",
})  # fmt: skip

#: {s}: a statement; {q}: its question.
CONFIRM: dict[str, str] = {
    "is it true": "is it (true|right|correct|the case) that {s}?",
    "would you say": "would you say [that ]{s}?",
    "do you think": "do you (think|believe|reckon) [that ]{s}?",
    "can you confirm": "(can|could) you (confirm|verify) [that ]{s}?",
    "whether": "(can|could) you [please ]tell me (if|whether) {s}?",
    "tell me if": "[please ](tell me|let me know|say) (if|whether) {s}.",
    "wonder if": "i('m wondering| wonder) (if|whether) {s}.",
    "right": "{s}, right?",
    "correct": "{s}, (correct|yes|yeah|no|true)?",
    "rising": "{s}?",
    "so": "so {s}?",
    "true or false": "true or false: {s}[?|.]",
    "am i right": "am i (right|correct) (that|in thinking [that]) {s}?",
    "i think": "i (think|believe|guess|suppose) [that ]{s}.",
    "is that": "{s}. is that (right|true|correct|so)?",
    "yes or no": "{q}, yes or no?",
    "yes or no first": "yes or no: {q}?",
    "want to know if": "i('d like to| want to) know (if|whether) {s}.",
    "check that": "(check|verify|confirm) that {s}.",
    "looks like": "(it looks like|it seems [that]|i see [that]|i can see that) {s}[, right|, don't you think]?",
    "do you see that": "(do|can) you see (if|whether) {s}?",
    "do you agree": "do you agree [that ]{s}?",
    "find out if": "(can you )(find out|check|see) (if|whether) {s}?",
    "is it so": "(is it so|could it be|can it be|may it be|might it be) that {s}?",
    "right to say": "(would it be|is it) (right|correct|fair|true|accurate) to say [that ]{s}?",
    "i bet": "i('d bet| bet|'m sure|'m certain|'m quite sure|'m fairly sure) [that ]{s}.",
    "is that not so": "{s}, isn't that (so|right|true)?",
    "or not": "{s}, (or not|or no|or isn't that so|or am i wrong|or am i mistaken)?",
    "huh": "{s}, (huh|eh|hm|innit|ok|okay|agreed)?",
    "you agree": "{s}, (don't you agree|wouldn't you say|you agree|do you agree|don't you think)?",
    "right or wrong": "(right or wrong|fact or fiction|true|correct|yes or no): {s}?",
    "check if": "[please ](check|see|find out|work out|figure out|determine|decide|look) (if|whether) {s}.",
    "someone says": "(my friend|someone|my sister|he) (says|claims|thinks) [that ]{s}. is (that|it) (right|true|so)?",
    "seems to me": "(it seems to me|i would say|i'd say|i have the feeling|i notice|i believe) [that ]{s}.",
    "can you tell if": "(can|could) you (tell|see|say|make out|find out|figure out|work out) (if|whether) {s}?",
    "curious if": "(i'm curious|just curious|i was wondering|i ask myself|i can't tell|i'm not sure) (if|whether) {s}.",
    "any idea if": "(any idea|any clue|do you know|would you know|can you judge|can i ask) (if|whether) {s}?",
    "need to know if": "i( need| have| just want| would like|'ve got) to know (if|whether) {s}.",
    "answer yes or no": "(answer|answer with|answer me|say|just say|only) yes or no: {q}?",
    "a yes or a no": "{q}? (yes or no|yes or no will do|just yes or no|a simple yes or no|answer with yes or no).",
    "can i assume": "(may|can|should|do) i (assume|take it|conclude|understand|gather) [that ]{s}?",
    "correct me": "correct me if i('m| am) wrong(, but|:|,) {s}.",
    "please confirm": "[please ](confirm|verify|check)(: | this: ){s}.",
    "the claim": "(claim|statement|my guess): {s}. (true or false|true|right|correct|right or wrong)?",
    "as if": "(does it look to you as if|does it look like|does it seem to you that) {s}?",
    "is there a chance": "(any chance|is there a chance|is it possible|is it a fact|is it certain) that {s}?",
    "suppose": "(suppose i say|i would claim|my guess is|my impression is) that {s}. (right|true|correct|am i right)?",
}

#: Frames that a statement of what one sees oneself fits into ("i see no stars").
WITH_ME = frozenset({
    "right", "correct", "rising", "so", "is that", "is that not so", "or not", "huh", "correct me",
})  # fmt: skip

#: Before any question.
LEADS: dict[str, str] = {
    "so": "so[,] {q}",
    "ok": "(ok|okay|alright|right), {q}",
    "hey": "(hey|hi|hello), {q}",
    "now": "now[,] {q}",
    "question": "(quick question|question|one question|one more question|another question): {q}",
    "and": "and {q}",
    "also": "also, {q}",
    "hmm": "(hmm|um|well|er), {q}",
    "please": "please, {q}",
    "sorry": "(sorry|excuse me), {q}",
    "look": "look at the picture: {q}",
    "next": "(next|next question|moving on): {q}",
    "in the picture": "in (the|this) (picture|image|photo), {q}",
    "tell me": "[please ]tell me, {q}",
    "tell me this": "(tell me this|answer me this|here's a question|here's one|let me ask|i have a question): {q}",
    "bot": "(hey bot|minichat|bot|dear bot|computer|dear minichat|my friend|buddy|mate), {q}",
    "curious": "(just curious|out of curiosity|just wondering|i'm curious|i wonder), {q}",
    "pardon": "(pardon|pardon me|excuse me|one moment|wait|hold on|quickly), {q}",
    "looking at it": "(looking at|judging by|going by|judging from|according to|from) (the|this) (picture|image), {q}",
    "listen": "(actually|basically|listen|say|alright then|ok so|so tell me|right then|well then|anyway), {q}",
    "but": "(but|then|yes but|ok but|and now|but then|so then|and so|now then) {q}",
    "first": "(first|first of all|to begin with|for a start|finally|lastly|secondly|for starters), {q}",
    "quiz": "(quiz|quiz time|riddle|exercise|task|test|q|question 1|question two|problem|challenge): {q}",
    "may i ask": "(may i ask|can i ask|do you know|can you tell me|i want to know|i need to know)(:|,) {q}",
    "help": "(can you help me|help me out|i need your help|i need help|help me with this|could you help)(:|,) {q}",
    "my teacher": "(my teacher asks|my friend asks|the kids ask|for my homework|i was asked)(:|,) {q}",
    "easy one": "(simple|easy|hard|silly|tricky|small|little|short|stupid|final|last|new|fun) (question|one): {q}",
    "good day": "(good morning|good evening|good day|hi there|hello there|hey there|greetings|hi again)(,|.|!) {q}",
    "thanks": "(thanks|thank you|great|nice|cool|i see|ah|oh|wow|good|fine|perfect|got it)(,|.|!) {q}",
    "look closely": "(look closely|look carefully|look again|think|have a look|use your eyes)(:|,|.) {q}",
}

#: After any question, before its mark.
TAILS: dict[str, str] = {
    "please": "{q}, please",
    "do you think": "{q}, do you think",
    "would you say": "{q}, would you say",
    "can you tell": "{q}, can you (tell|see)",
    "thanks": "{q}, thanks",
    "by the way": "{q}, by the way",
    "now": "{q} now",
    "mate": "{q}, (my friend|mate|buddy|bot)",
    "then": "{q} then",
    "tell": "{q}, (tell me|do tell|pray tell|can you tell me|please tell me)",
    "do you know": "{q}, (do you know|any idea|would you know|any clue|do you happen to know)",
    "wonder": "{q}, (i wonder|i ask you|i'm wondering|i'd like to know|i want to know)",
    "in your view": "{q}, (in your view|in your opinion|as far as you can tell|from what you see)",
    "if i may": "{q}, (if i may ask|if you don't mind|may i ask|if you please|if you can|if you would)",
    "friend": "{q}, (minichat|dear bot|computer|sir|pal|bro|dude|love|my dear)",
    "quick": "{q}, (quick|quickly|real quick|be quick|hurry)",
    "again": "{q} (again|right now|actually|exactly)",
    "pls": "{q} (pls|plz|please|thx)",
    "curious": "{q}, (just curious|out of curiosity|just wondering|i'm curious|be honest)",
}


# --- What people say who ask about the background, or about the picture as a whole.
#
# {ground}: "the background" by one of its names; {kind}: "plain", "noisy", "a gradient"; {word}: a colour.


WHOLE_WORDINGS: dict[str, Wording] = {
    "ground": Wh(
        ask=("what is {ground} like", "what does {ground} look like", "how does {ground} look", "what's {ground} like",
            "what kind of background is there", "what is {ground}", "what's {ground}",
            "how would you describe {ground}", "what sort of background (is there|do you see|does it have)",
            "what type of background is it", "what can you say about {ground}",
            "what is behind the (shapes|objects|things)", "can you describe {ground}", "what is in {ground}",
            "what's behind everything", "what are the (shapes|things|objects) drawn on",
            "what background (is there|does the {pic} have|do you see)", "what is it all drawn on"),
        clause=("what {ground} is like", "what {ground} looks like", "about {ground}",
            "what is behind the (shapes|things)", "what kind of background there is", "how {ground} looks"),
        bare=("{ground}", "background", "kind of background", "the look of {ground}", "background details"),
        order=("describe {ground}", "tell me about {ground}", "tell me something about {ground}"),
    ),
    "ground colour": Wh(
        ask=("what colour (canvas|paper|page) is it on", "what colour's behind it all", "what is the bg colour",
            "which colour do i see behind everything", "what colour is {ground}", "which colour is {ground}",
            "what is the colour of {ground}", "what's the colour of {ground}", "what colour does {ground} have",
            "{ground} is what colour", "which colour does {ground} have", "what's the background colour",
            "what is the background colour", "what colours are in {ground}", "which colours does {ground} have",
            "what colour is behind the (shapes|things)", "in which colour is {ground}",
            "what colour(s|) (is|was) used for {ground}", "what colour is it in the back",
            "against what colour are the (shapes|things)", "what colour did they (paint|make) {ground}",
            "how is {ground} coloured", "what colour are the (shapes|objects|things) on",
            "on what colour are the (shapes|things) drawn"),
        clause=("what colour {ground} is", "which colour {ground} has", "the colour of {ground}",
            "the background colour", "what the background colour is", "what colour is behind the (shapes|things)"),
        bare=("background colour", "colour of {ground}", "the colour of {ground}", "{ground}, what colour",
            "colour behind the (shapes|things)", "{ground}: which colour"),
        order=("name the colour of {ground}", "give me the background colour", "state the colour of {ground}",
            "identify the background colour"),
    ),
    "ground kind": Wh(
        ask=("is {ground} plain, noisy or a gradient", "is {ground} a gradient, noisy or plain",
            "which is {ground}: noisy, plain or a gradient", "is {ground} plain or [is it] (textured|patterned)",
            "what kind of background is it: plain, noisy or a gradient", "does {ground} have (any|a) (texture|pattern)",
            "what texture does {ground} have", "is {ground} (even|uniform|smooth) or not",
            "is {ground} one colour or (more|several)", "what pattern does {ground} have",
            "is {ground} a single colour or [does it] change", "is {ground} flat, grainy or blended",
            "is it plain, noisy or a gradient behind the (shapes|things)"),
        clause=("whether {ground} is plain, noisy or a gradient", "if {ground} is plain or not",
            "whether {ground} is plain or textured", "what texture {ground} has"),
        bare=("{ground}: plain, noisy or a gradient", "texture of {ground}", "background texture",
            "plain background or not"),
    ),
    "ground is kind": YesNo(
        ask=("is {ground} {kind}", "does {ground} look {kind}", "would you call {ground} {kind}",
            "is it {kind} behind the shapes", "is {ground} {kind} or not", "does {ground} {does}",
            "is the background of this {pic} {kind}", "is there {a_ground}", "does the {pic} have {a_ground}"),
        state=("{ground} is {kind}", "{ground} looks {kind}", "{ground}'s {kind}", "there is {a_ground}",
            "the {pic} has {a_ground}"),
        doubt=("isn't {ground} {kind}", "is {ground} not {kind}"),
        tag="isn't it",
        bare=("{ground} {kind}", "{a_ground}"),
    ),
    "ground is colour": YesNo(
        ask=("is {ground} {word}", "is the background colour {word}", "is the colour of {ground} {word}",
            "does {ground} have the colour {word}", "would you call {ground} {word}", "is it {word} behind the shapes",
            "is there {a_word} background", "does the {pic} have {a_word} background", "are the shapes on {word}",
            "does {ground} look {word}", "is everything on {a_word} background", "is {ground} really {word}"),
        state=("{ground} is {word}", "the background colour is {word}", "{ground}'s {word}",
            "there is {a_word} background", "the {pic} has {a_word} background", "{ground} looks {word}",
            "the shapes are on {a_word} background"),
        doubt=("isn't {ground} {word}", "isn't the background colour {word}", "is {ground} not {word}"),
        tag="isn't it",
        bare=("{ground} {word}", "{word} background", "{a_word} background"),
    ),
    "ground choose colour": Wh(
        ask=("is {ground} {word} or {word2}", "which colour is {ground}, {word} or {word2}",
            "is the background colour {word} or {word2}", "{word} or {word2}: which is {ground}",
            "what colour is {ground}: {word} or {word2}", "is it {word} or {word2} behind the shapes",
            "would you say {ground} is {word} or {word2}", "is there a {word} or {a_word2} background"),
        clause=("whether {ground} is {word} or {word2}", "if {ground} is {word} or {word2}"),
        bare=("{ground}, {word} or {word2}", "background: {word} or {word2}"),
    ),
    "ground choose kind": Wh(
        ask=("is {ground} {kind} or {kind2}", "which is {ground}, {kind} or {kind2}",
            "what is {ground}: {kind} or {kind2}", "would you say {ground} is {kind} or {kind2}",
            "is {ground} more {kind} or more {kind2}@plain noisy"),
        clause=("whether {ground} is {kind} or {kind2}", "if {ground} is {kind} or {kind2}"),
        bare=("{ground}, {kind} or {kind2}", "background: {kind} or {kind2}"),
    ),
    "names": Wh(
        ask=("what do we see", "what are we looking at", "what's happening here", "what's up with this {pic}",
            "what all have we got here", "what is in the {pic}", "what's in the {pic}", "what do you see",
            "what can you see [here|in (the|this) {pic}]", "what (objects|things|items) are [there] in the {pic}",
            "what is this", "what's this", "what are these", "what (objects|things|items|figures) (do|can) you see",
            "what is there", "what's there to see", "what all is in [the|this] {pic}",
            "which (objects|things|items) are in the {pic}", "what is shown [here]",
            "what (objects|things|items) does the {pic} (show|contain|have)", "what have we got here",
            "what is drawn here", "what do we have here", "what am i looking at", "what's going on (here|in the {pic})",
            "what is on the {pic}", "what's on (here|the {pic})", "what (things|objects|shapes) are there",
            "what is depicted"),
        clause=("what is in the {pic}", "what you see", "what you can see", "what (objects|things|items) there are",
            "what there is in the {pic}", "everything you see", "which (objects|things|items) are there"),
        bare=("contents of the {pic}", "everything in the {pic}", "all (objects|things|items)", "what in the {pic}",
            "the (objects|things|items) in the {pic}", "list of (objects|things|items)"),
        order=("list the (objects|things|items) [in the {pic}]", "name everything [in the {pic}]",
            "list everything [you see]", "name all [the] (objects|things|items)", "list all (objects|things|items)",
            "name what you see", "enumerate the (objects|things|items)", "make a list of the (objects|things|items)",
            "name each (object|thing)"),
    ),
    "caption": Wh(
        ask=("what's the gist of (it|the {pic})", "can you sum (it|this) up [for me]", "how would you sum (it|this) up",
            "what does the {pic} show", "what is this {a_pic} of",
            "can you (describe|sum up|summarise) the {pic} (briefly|in one sentence|in a few words)",
            "could you (write|give me) a [short] caption [for (this|the) {pic}]",
            "what would be a good caption [for this {pic}]", "what would you write under this {pic}",
            "what is the {pic} about", "how would you caption this [{pic}]", "what's the {pic} of",
            "what would be a fitting title", "what title would you give [this {pic}|it]",
            "can you (write|make|give me) a (title|heading|headline) for (it|this|the {pic})",
            "what is [on] this {pic}, in short"),
        clause=("in one sentence what you see", "briefly what is in the {pic}", "what the {pic} shows",
            "in short what this is", "in a few words what you see", "what this is {a_pic} of"),
        bare=("in a nutshell", "the gist", "alt text", "headline", "caption", "short caption", "caption please",
            "a short description", "title", "one sentence about the {pic}", "summary", "a title for (this|the) {pic}",
            "brief description", "in one sentence", "in short"),
        order=("give me the gist", "write an alt text [for this {pic}]", "put it in a nutshell",
            "write a [short] caption for (this|the) {pic}", "give me a [short|brief] caption",
            "caption (this|the {pic}|it)", "describe the {pic} (briefly|in one sentence|in short|in a few words)",
            "sum up the {pic}", "sum it up", "describe [it] in one sentence", "give a brief description [of the {pic}]",
            "summarise (the|this) {pic}", "write one sentence about (the|this) {pic}",
            "write a (title|headline) for (the|this) {pic}", "give (it|this {pic}) a title",
            "put (it|this) in one sentence", "briefly describe (the|this) {pic}",
            "write a line [of text] about (the|this) {pic}", "make a caption [for it]"),
    ),
    "describe": Wh(
        ask=("can you describe the {pic} [in detail]", "could you describe (this|the) {pic} [for me]",
            "what can you tell me about (this|the) {pic}", "how would you describe (this|the) {pic}",
            "could you describe the contents of (this|the) {pic}",
            "can you give me (all the|the) details [of the {pic}]", "what does it look like",
            "can you describe what you see [in detail]", "how does the {pic} look", "can you describe it to me",
            "would you describe (this|it|the {pic})",
            "how would you describe it to (someone who cannot see it|a blind person)"),
        clause=("everything about the {pic}", "about (this|the) {pic}", "all about the {pic}",
            "more about (this|the) {pic}", "what you see, in detail", "all you can about (this|the) {pic}",
            "everything you see in detail"),
        bare=("full description", "detailed description", "description [of the {pic}]", "all details", "in detail",
            "a description", "details"),
        order=("walk me through (it|the {pic})", "talk me through (it|the {pic}|this)",
            "explain (it|the {pic}|this {pic}) to me", "give me a rundown [of the {pic}]",
            "tell me everything [you see]", "describe (the|this) {pic}", "describe (the|this) {pic} in detail",
            "describe it", "describe this", "describe what you see", "describe everything [you see]",
            "give me a [detailed|full] description [of the {pic}]",
            "take a look at (this|the) {pic} and describe (it|what you notice)",
            "provide a [detailed] description of the {pic}", "give a full description",
            "describe (this|it) as well as you can", "go into detail about (this|the) {pic}"),
    ),
    "story": Wh(
        ask=("can you tell [me] a story about (this|the) {pic}",
            "could you make up a story about these (shapes|things)",
            "can you write a [short] story about (it|this|the {pic})"),
        bare=("a story", "story about (this|the {pic})", "story time"),
        order=("tell me a story about (this|the) {pic}", "write a [short] story about (this|the) {pic}",
            "make up a [little] story [about (this|it)]", "tell a [little] story about what you see",
            "invent a story about these shapes"),
    ),
}  # fmt: skip
