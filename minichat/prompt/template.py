"""How each model's prompt is spelled, as data; and a person's words, which never spell a marker of it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from minichat.errors import PromptError

# --- How each model's prompt is spelled: data, and nothing but data.
#
# Every delimiter of every prompt stands in this file once, save those that are read from a tokenizer's own chat
# template (`minichat.prompt.chat_template`). `<s>` and `</s>` in these strings are the control ids of the tokenizer;
# the same letters in a person's words are letters (`minichat.prompt.render`).


BOS = "<s>"
EOS = "</s>"
SLOT = "<ImageHere>"
CAPTION_PROMPT = "Describe this image in detail."  # of most; a template may have another
OWN = "tokenizer"  # the name of a template that was read from a tokenizer's own


@dataclass(frozen=True)
class Template:
    """The words round a conversation, in the order in which they are spelled.

    `begin` system `system_suffix`
    { `user_prefix` question `user_suffix` `assistant_prefix` reply `reply_end` `between` }
    """

    name: str
    #: Before everything else; empty for a tokenizer that has no `<s>`.
    begin: str = BOS
    #: System text where the conversation brings none.
    system: str = ""
    #: Always follows the system text, also an empty one.
    system_suffix: str = ""
    user_prefix: str = ""
    user_suffix: str = ""
    #: Begins a reply; the last thing in a prompt that asks for one.
    assistant_prefix: str = ""
    #: Between `assistant_prefix` and the reply's text. Not tokenised where a reply is tokenised by itself: there the
    #: tokenizer's own leading space stands for it.
    reply_gap: str = ""
    #: Begins a reply's own words, is tokenised and supervised with them: what the model generates first.
    reply_begin: str = ""
    #: Ends a reply, is supervised with it, and is what the model is expected to generate.
    reply_end: str = EOS
    #: Ends a reply in a history that is spelled anew as text; None: as `reply_end`.
    text_reply_end: str | None = None
    #: Before each question but the first.
    between: str = ""
    picture_prefix: str = "<Img>"
    picture_suffix: str = "</Img>"
    #: Between a picture and what stands beside it in the same message.
    picture_gap: str = " "
    #: Texts that end a reply while it is generated, besides the tokenizer's end token.
    stops: tuple[str, ...] = ()
    #: Texts by which a reader tells turns apart; with `stops`, what a person's words must never spell.
    markers: tuple[str, ...] = ()
    #: In place of `begin`, `system` and `system_suffix` where the conversation brings no system text; None: those.
    head: str | None = None
    #: The tokenizer's control tokens that these texts spell, by their own names; empty: `<s>` and `</s>`.
    controls: tuple[str, ...] = ()
    #: Roles whose texts lose white space at either end.
    trims: tuple[str, ...] = ()
    #: What a person types is tidied (`tidied`): for an LLM that learned little of such.
    tidy: bool = False
    #: What follows a control token goes on from it: the tokenizer puts no leading space of its own there.
    joined: bool = False
    #: Whether a conversation may bring a system text.
    takes_system: bool = True
    #: The first question's pictures stand before everything else, `begin` too.
    pictures_first: bool = False
    #: Where nothing is asked, `begin` is learnt with the reply, which comes without `reply_begin`.
    learns_begin: bool = False
    #: What asks for a caption where nobody says another thing, and the template that it is asked by; empty: this one.
    caption: str = CAPTION_PROMPT
    captions: str = ""
    #: The end of a question that is kept where questions are cut, "first" or "last"; empty: none may be cut.
    keeps: str = ""
    #: A reply that is cut has its end all the same.
    cut_ends: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("text_reply_end", "head") and value is None:
                continue
            if field.type == "bool":
                if not isinstance(value, bool):
                    raise PromptError(f"Template {self.name!r}: {field.name} must be true or false, not {value!r}.")
                continue
            strings = value if field.type == "tuple[str, ...]" else (value,)
            if not isinstance(strings, tuple) or not all(isinstance(text, str) for text in strings):
                raise PromptError(f"Template {self.name!r}: {field.name} must be text, not {value!r}.")
        if self.keeps not in ("", "first", "last"):
            raise PromptError(f"Template {self.name!r}: keeps must be 'first', 'last' or empty, not {self.keeps!r}.")
        if any(not text for text in (*self.stops, *self.markers, *self.controls)):
            raise PromptError(f"Template {self.name!r}: an empty stop or marker would match everywhere.")

    @property
    def opening(self) -> str:
        """What stands before the first turn where the conversation brings no system text."""
        return self.begin + self.system + self.system_suffix if self.head is None else self.head

    def split(self, spelled: str) -> list[str]:
        """This template's own text, cut at its control tokens, which stay as pieces of their own; no empty pieces."""
        return split_controls(spelled, self.controls or (BOS, EOS))

    @property
    def end(self) -> tuple[str, str | None]:
        """`reply_end` as its text and the control token after it, None where there is none."""
        pieces = self.split(self.reply_end)
        if pieces and pieces[-1] in (self.controls or (EOS,)):
            return self.reply_end.removesuffix(pieces[-1]), pieces[-1]
        return self.reply_end, None

    def words_before(self, spelled: str) -> str:
        """The text with which `spelled` begins, up to its first control token."""
        first = next(iter(self.split(spelled)), "")
        return "" if first in (self.controls or (BOS, EOS)) else first

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Template:
        """What `as_dict` gave. Raises PromptError for what is no template."""
        tuples = {field.name for field in fields(cls) if field.type == "tuple[str, ...]"}
        unknown = stored.keys() - {field.name for field in fields(cls)}
        if unknown or "name" not in stored:
            raise PromptError(
                f"A recorded template has {min(unknown)!r}, which is not known." if unknown else "No name."
            )
        given: dict[str, Any] = {k: tuple(v) if k in tuples and isinstance(v, list) else v for k, v in stored.items()}
        return cls(**given)


# MiniGPT-4, minigpt4/conversation/conversation.py (BSD-3-Clause, Copyright 2023 Deyao Zhu).
_MINIGPT4_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)
# FastChat, fastchat/conversation.py, "vicuna_v1.1" (Apache-2.0, LMSYS).
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_BARE: dict[str, Any] = {"picture_prefix": "", "picture_suffix": "", "picture_gap": "", "pictures_first": True}
_SHORTLY = "Write a short description for the image."

_ALL = (
    # Chat. MiniGPT-4's conversation.py: CONV_VISION_Vicuna0, CONV_VISION_LLama2, CONV_VISION_minigptv2. The Llama-2
    # forms spell <s> before every question, also the first, after the sequence's own, and no </s> in their history.
    Template(
        name="vicuna-v0",
        system=_MINIGPT4_SYSTEM,
        system_suffix="###",
        user_prefix="Human: ",
        user_suffix="###",
        assistant_prefix="Assistant: ",
        reply_end="###",
        stops=("###",),
        markers=("###Human:", "###Assistant:"),
    ),
    Template(
        name="vicuna-v1.1",
        system=_VICUNA_SYSTEM,
        system_suffix=" ",
        user_prefix="USER: ",
        user_suffix=" ",
        assistant_prefix="ASSISTANT:",
        reply_gap=" ",
        markers=("USER:", "ASSISTANT:"),
    ),
    Template(
        name="llama2",
        system=_MINIGPT4_SYSTEM,
        user_prefix="<s>[INST] ",
        user_suffix=" [/INST] ",
        text_reply_end="",
        markers=("[INST]", "[/INST]"),
    ),
    Template(
        name="minigpt-v2",
        user_prefix="<s>[INST] ",
        user_suffix=" [/INST]",
        text_reply_end="",
        markers=("[INST]", "[/INST]"),
    ),
    # MiniGPT-4's first stage: a picture, its caption, a line break (minigpt_base.py with an empty prompt list).
    Template(name="plain", reply_end="\n", picture_prefix="", picture_suffix="", stops=("\n",)),
    # An encoder–decoder: the encoder reads a prompt up to its `</s>`, the decoder writes the reply up to its own.
    Template(name="t5", begin="", assistant_prefix=EOS, picture_prefix="", picture_suffix=""),
    # BLIP-2 and InstructBLIP: the picture, then a text to go on with (lavis/models/blip2_models/blip2_opt.py,
    # blip2_t5.py, blip2_vicuna_instruct.py, blip2_t5_instruct.py). `</s>` begins it for OPT and for their Vicuna. What
    # asks for a caption is of lavis/projects/blip2/eval, and of InstructBLIP's paper (arXiv:2305.06500, table 5).
    Template(
        name="blip2-opt",
        begin=EOS,
        reply_begin=" ",
        reply_end="\n",
        stops=("\n",),
        learns_begin=True,
        caption="a photo of",
        keeps="first",
        **_BARE,
    ),
    # The words of BLIP-2's dialogues (examples/blip2_instructed_generation.ipynb), by which OPT tells that it is asked.
    Template(
        name="blip2-opt-chat",
        begin=EOS,
        user_prefix="Question: ",
        assistant_prefix=" Answer:",
        reply_begin=" ",
        reply_end="\n",
        stops=("\n",),
        markers=("Question:", "Answer:"),
        caption="a photo of",
        captions="blip2-opt",
        **_BARE,
    ),
    Template(
        name="blip2-t5", begin="", assistant_prefix=EOS, caption="a photo of", keeps="first", cut_ends=True, **_BARE
    ),
    Template(name="instructblip", begin=EOS, reply_gap=" ", caption=_SHORTLY, keeps="last", **_BARE),
    Template(
        name="instructblip-t5", begin="", assistant_prefix=EOS, caption=_SHORTLY, keeps="last", cut_ends=True, **_BARE
    ),
    # Training as the originals did it: prompt_template and end_sym of train_configs/*.yaml, minigpt_base.py.
    Template(
        name="vicuna-v0-train",
        user_prefix="###Human: ",
        assistant_prefix=" ###Assistant: ",
        reply_end="###",
        between=BOS,
        stops=("###",),
        markers=("###Human:", "###Assistant:"),
    ),
    Template(
        name="llama2-train",
        user_prefix="[INST] ",
        user_suffix=" [/INST] ",
        between=BOS,
        markers=("[INST]", "[/INST]"),
    ),
    Template(
        name="minigpt-v2-train",
        user_prefix="[INST] ",
        user_suffix=" [/INST]",
        between=BOS,
        markers=("[INST]", "[/INST]"),
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}


def spells_begin(template: Template) -> bool:
    """Whether `<s>` is among what the template spells, and stands for whatever token begins."""
    return not template.controls and any(
        BOS in value for field in fields(template) if isinstance(value := getattr(template, field.name), str)
    )


def get_template(name: str | Template) -> Template:
    """The template of this name (or the template itself). PromptError names the known ones."""
    if isinstance(name, Template):
        return name
    if name not in TEMPLATES:
        if name == OWN:
            raise PromptError(f"The template {name!r} is the tokenizer's own, and this model records none.")
        raise PromptError(f"The template {name!r} is not known: use one of {', '.join(sorted(TEMPLATES))}, {OWN}.")
    return TEMPLATES[name]


def split_controls(spelled: str, controls: tuple[str, ...] = (BOS, EOS)) -> list[str]:
    """A template's own text, cut at its control tokens, which stay as pieces of their own; no empty pieces."""
    longest_first = sorted(controls, key=len, reverse=True)
    return [piece for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", spelled) if piece]


_JINJA = """\
{%- macro typed(text, role) -%}
{%- set said = namespace(text=text) -%}
{%- if <tidy> and role == "user" -%}
{%- for _ in range(6) -%}
{%- set said.text = said.text|replace("  ", " ") -%}
{%- endfor -%}
{%- set said.text = said.text|capitalize if said.text is upper else said.text[:1]|upper ~ said.text[1:] -%}
{%- set said.text = said.text|replace(" i ", " I ") -%}
{%- endif -%}
{{- said.text -}}
{%- endmacro -%}
{%- macro words(message, bare=false) -%}
{%- if message.content is string -%}
{{- typed(message.content, message.role) -}}
{%- else -%}
{%- set before = namespace(kind="") -%}
{%- for part in message.content if (part.type == "image" and not bare) or part.text -%}
{%- if before.kind and "image" in (before.kind, part.type) -%}
{{- <picture_gap> -}}
{%- endif -%}
{%- if part.type == "image" -%}
{{- <picture> -}}
{%- else -%}
{{- typed(part.text, message.role) -}}
{%- endif -%}
{%- set before.kind = part.type -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if <pictures_first> -%}
{%- for part in (messages | selectattr("role", "equalto", "user") | first | default({"content": ""})).content -%}
{%- if part.type == "image" -%}
{{- <picture> -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if messages and messages[0].role == "system" -%}
{{- <start> -}}{{- words(messages[0])<system_filter> -}}{{- <system_suffix> -}}
{%- set turns = messages[1:] -%}
{%- else -%}
{{- <opening> -}}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role == "user" -%}
{%- if not loop.first -%}
{{- <between> -}}
{%- endif -%}
{{- <user_prefix> -}}{{- words(message, <pictures_first> and loop.first)<user_filter> -}}{{- <user_suffix> -}}
{%- else -%}
{{- <assistant_prefix> -}}
{%- if not (<learns_begin> and loop.index0 == 1 and turns[0] == messages[0] and not words(turns[0], true)) -%}
{{- <reply_start> -}}
{%- endif -%}
{{- words(message)<assistant_filter> -}}{{- <reply_end> -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- <assistant_prefix> -}}
{%- endif -%}
"""


_SWITCHES = ("pictures_first", "learns_begin", "tidy")


def to_jinja(template: Template, *, slots_per_picture: int = 1, slot: str = SLOT) -> str:
    """The template as a Hugging Face `chat_template`; it renders what `minichat.prompt.render.render_text` gives.

    It spells `bos_token` and `eos_token`, and each picture as `slots_per_picture` times `slot`. It is for programs that
    know nothing else: whoever tokenises its text makes control ids of a `</s>` that a person typed. MiniChat never
    does; `MiniChatProcessor.apply_chat_template` goes through the renderer.
    """
    names = [field.name for field in fields(template) if isinstance(getattr(template, field.name), str)]
    values = {name: getattr(template, name) for name in names}
    values |= {"start": template.begin, "opening": template.opening}
    values["reply_start"] = template.reply_gap + template.reply_begin
    values["picture"] = template.picture_prefix + slot * slots_per_picture + template.picture_suffix
    spelled = {name: _expression(value) for name, value in values.items()}
    spelled |= {name: str(getattr(template, name)).lower() for name in _SWITCHES}
    for role in ("system", "user", "assistant"):
        spelled[f"{role}_filter"] = "|trim" if role in template.trims else ""
    return re.sub(r"<(\w+)>", lambda match: spelled[match[1]], _JINJA)


def _expression(spelled: str) -> str:
    """A Jinja expression for a template's text."""
    controls = {BOS: "bos_token", EOS: "eos_token"}
    return " ~ ".join(controls.get(piece, json.dumps(piece)) for piece in split_controls(spelled)) or '""'


def tidied(text: str) -> str:
    """With one blank for a run of up to 64, "I" for "i", a capital first; in sentence case where all is in capitals."""
    for _ in range(6):  # Jinja has no other way
        text = text.replace("  ", " ")
    return (text.capitalize() if text.isupper() else text[:1].upper() + text[1:]).replace(" i ", " I ")


# --- A person's words never spell a template's role marker or stop.
#
# One rule: **a hyphen goes before the last character of the marker**. `[INST]` becomes `[INST-]`; `### Assistant :`,
# with the template `vicuna-v0`, becomes `##-# Assistant :`; `USER:`, with `vicuna-v1.1`, becomes `USER-:`. All else
# stays, and what is no marker of the template in use stays whole: `Human: 5`, `### Title` and `#1` with `llama2`, or
# `[INST]` with `vicuna-v0`.
#
# A role marker is found in every disguise that a reader might see through: other cases, other Unicode forms
# (full-width, mathematical, ligatures: NFKC), spaces and invisible characters inside it. A stop is found where it is
# spelled without spaces, for only that ends a reply. A stop of one character (the line break of `plain`) becomes a
# space.
#
# The words are changed in the prompt alone; the conversation keeps them as they were typed.


_BREAK = "-"
_UNSEEN = dict.fromkeys([*range(33), 127])  # ASCII's spaces and control characters


def neutralise(text: str, template: Template) -> str:
    """`text` with the template's markers and stops broken; the same object where there are none."""
    if text.isascii() and not _may_hold(text, (*template.markers, *template.stops)):
        return text
    while True:
        # Stops first: to break one often breaks the marker that begins with it.
        cuts = _find(text, template.stops, keep_spaces=True) or _find(text, template.markers, keep_spaces=False)
        if not cuts:
            return text
        text = _break(text, cuts)


def _may_hold(text: str, markers: tuple[str, ...]) -> bool:
    """False where ASCII text surely holds none of the markers: the quick answer for almost all that people write."""
    seen = text.lower().translate(_UNSEEN)
    bare = ((marker, marker.lower().translate(_UNSEEN)) for marker in markers)
    return any(marker in text if not letters else letters in seen for marker, letters in bare)


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    """What one character looks like to a reader who minds neither case nor form; "" if it is invisible."""
    if char.isspace():
        return " " if char != "\n" else "\n"
    category = unicodedata.category(char)
    if category in ("Cf", "Cc") or 0xFE00 <= ord(char) <= 0xFE0F or char == "\u034f":
        return ""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", char).casefold())


def _find(text: str, markers: tuple[str, ...], *, keep_spaces: bool) -> set[tuple[int, int]]:
    """(start, cut) of each marker in `text`: its first character, and the one before which it is to be broken."""
    if not markers:
        return set()
    folded, places = [], []
    for place, char in enumerate(text):
        for letter in _fold(char):
            if keep_spaces or not letter.isspace():
                folded.append(letter)
                places.append(place)
    patterns = ("".join(_fold(c) for c in marker) for marker in markers)
    wanted = [p if keep_spaces else "".join(p.split()) for p in patterns]
    found = re.finditer("|".join(re.escape(w) for w in sorted(wanted, key=len, reverse=True)), "".join(folded))
    return {(places[match.start()], places[match.end() - 1]) for match in found}


def _break(text: str, cuts: set[tuple[int, int]]) -> str:
    pieces, done = [], 0
    for start, cut in sorted(cuts, key=lambda pair: pair[1]):
        if cut < done:
            continue  # two markers end in the same character: one cut breaks both
        pieces.append(text[done:cut])
        if start == cut:  # one character is the whole marker
            pieces.append(" ")
            done = cut + 1
        else:
            pieces.append(_BREAK)
            pieces.append(text[cut])
            done = cut + 1
    pieces.append(text[done:])
    return "".join(pieces)
