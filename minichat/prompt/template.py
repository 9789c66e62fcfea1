"""How each model's prompt is spelled: data, and nothing but data.

Every delimiter of every prompt stands in this file once. `<s>` and `</s>` in these strings are the control ids of the
tokenizer; the same letters in a person's words are letters (`minichat.prompt.render`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields

from minichat.errors import PromptError

BOS = "<s>"
EOS = "</s>"
SLOT = "<ImageHere>"


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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "text_reply_end" and value is None:
                continue
            strings = value if field.name in ("stops", "markers") else (value,)
            if not isinstance(strings, tuple) or not all(isinstance(text, str) for text in strings):
                raise PromptError(f"Template {self.name!r}: {field.name} must be text, not {value!r}.")
        if any(not text for text in (*self.stops, *self.markers)):
            raise PromptError(f"Template {self.name!r}: an empty stop or marker would match everywhere.")


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
    # An encoder–decoder: the encoder reads a prompt up to its `</s>`, the decoder writes the reply up to its own. With
    # FLAN-T5, BLIP-2 puts the picture before the bare words (lavis/models/blip2_models/blip2_t5.py).
    Template(name="t5", begin="", assistant_prefix=EOS, picture_prefix="", picture_suffix=""),
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
    """Whether `<s>` is among what the template spells."""
    return any(BOS in value for field in fields(template) if isinstance(value := getattr(template, field.name), str))


def get_template(name: str | Template) -> Template:
    """The template of this name (or the template itself). PromptError names the known ones."""
    if isinstance(name, Template):
        return name
    if name not in TEMPLATES:
        raise PromptError(f"The template {name!r} is not known: use one of {', '.join(sorted(TEMPLATES))}.")
    return TEMPLATES[name]


def split_controls(spelled: str) -> list[str]:
    """A template's own text, cut at `<s>` and `</s>`, which stay as pieces of their own; no empty pieces."""
    return [piece for piece in re.split(f"({BOS}|{EOS})", spelled) if piece]


_JINJA = """\
{%- macro words(message) -%}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- set before = namespace(kind="") -%}
{%- for part in message.content if part.type == "image" or part.text -%}
{%- if before.kind and "image" in (before.kind, part.type) -%}
{{- <picture_gap> -}}
{%- endif -%}
{%- if part.type == "image" -%}
{{- <picture> -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- set before.kind = part.type -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- <start> -}}
{%- if messages and messages[0].role == "system" -%}
{{- words(messages[0]) -}}
{%- set turns = messages[1:] -%}
{%- else -%}
{{- <system> -}}
{%- set turns = messages -%}
{%- endif -%}
{{- <system_suffix> -}}
{%- for message in turns -%}
{%- if message.role == "user" -%}
{%- if not loop.first -%}
{{- <between> -}}
{%- endif -%}
{{- <user_prefix> -}}{{- words(message) -}}{{- <user_suffix> -}}
{%- else -%}
{{- <assistant_prefix> -}}{{- <reply_gap> -}}{{- words(message) -}}{{- <reply_end> -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- <assistant_prefix> -}}
{%- endif -%}
"""


def to_jinja(template: Template, *, slots_per_picture: int = 1, slot: str = SLOT) -> str:
    """The template as a Hugging Face `chat_template`; it renders what `minichat.prompt.render.render_text` gives.

    It spells `bos_token` and `eos_token`, and each picture as `slots_per_picture` times `slot`. It is for programs that
    know nothing else: whoever tokenises its text makes control ids of a `</s>` that a person typed. MiniChat never
    does; `MiniChatProcessor.apply_chat_template` goes through the renderer.
    """
    names = [field.name for field in fields(template) if isinstance(getattr(template, field.name), str)]
    values = {name: getattr(template, name) for name in names}
    values["start"] = template.begin
    values["picture"] = template.picture_prefix + slot * slots_per_picture + template.picture_suffix
    return re.sub(r"<(\w+)>", lambda match: _expression(values[match[1]]), _JINJA)


def _expression(spelled: str) -> str:
    """A Jinja expression for a template's text."""
    controls = {BOS: "bos_token", EOS: "eos_token"}
    return " ~ ".join(controls.get(piece, json.dumps(piece)) for piece in split_controls(spelled)) or '""'
