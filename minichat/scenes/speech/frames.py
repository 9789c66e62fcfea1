"""Frames: the sentence forms that any question can be put into, and what a wording of one meaning consists of.

A meaning has its own cores ("what colour is {the}", "what colour {the} is"); the frames here go round them ("can you
tell me …?", "…, right?"). Their product is what a model hears, and combinations of the two can be held out.
"""

from __future__ import annotations

from dataclasses import dataclass


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
}

#: Frames that take a phrase ("the colour of {the}") as well as a clause, and those that take "about {the}".
WITH_PHRASES = frozenset(
    {
        "can you tell me",
        "tell me",
        "do you know",
        "would like to know",
        "want to know",
        "say",
        "can you say",
        "let me know",
        "would you mind",
        "cannot see",
        "mind if i ask",
        "have to",
        "find out",
        "check",
    }
)
WITH_ABOUT = frozenset({"can you tell me", "tell me", "would like to know", "want to know", "have to"})

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
}

#: Frames that a statement of what one sees oneself fits into ("i see no stars").
WITH_ME = frozenset({"right", "correct", "rising", "so", "is that"})

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
}
