"""The one place that turns a conversation into ids: for training, chat, captions and the API alike.

Two spellings of a history:

`"ids"` (chat, training)
    Each question and each reply is tokenised by itself; a reply that was generated keeps the ids that were generated.
    Law: the ids of a longer conversation begin with the ids of the prompt that asked for its last reply, then that
    reply's ids. So a key–value cache of the prompt and the reply stays true, and what is supervised in training is
    exactly what is generated in chat.
`"text"` (as the original programs chat)
    Everything between two pictures or control ids is one text, tokenised as a whole. A token may then reach over the
    end of a reply, so nothing is marked as supervised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from minichat.errors import PromptError
from minichat.prompt.conversation import Conversation, Message, Picture
from minichat.prompt.template import EOS, SLOT, Template, neutralise, tidied
from minichat.prompt.tokenizer import ContentTokenizer, encode_inside

History = Literal["ids", "text"]
IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


@dataclass(frozen=True)
class Rendered:
    """A prompt: T ids, a mask of the T that are supervised, and the pictures in the order of their slots.

    `question`: the words of the last one, with which an instructed Q-Former reads every picture.
    """

    ids: list[int]
    loss_mask: list[bool]
    pictures: tuple[Image.Image, ...]
    question: str = ""

    @property
    def labels(self) -> list[int]:
        """The ids where they are supervised, −100 elsewhere."""
        return [i if learn else IGNORED for i, learn in zip(self.ids, self.loss_mask, strict=True)]


@dataclass(frozen=True)
class Words:
    """Text that is tokenised as a whole; `inside`: it goes on from the text before it, without a leading space."""

    text: str
    learn: bool = False
    inside: bool = False


@dataclass(frozen=True)
class Gap:
    """Text that no ids of its own stand for: the leading space that the tokenizer gives the words after it."""

    text: str


@dataclass(frozen=True)
class Control:
    """A control token, spelled by a template: `<s>`, `</s>`, or one by the tokenizer's own name for it."""

    symbol: str
    learn: bool = False


@dataclass(frozen=True)
class Slot:
    """The place of one picture."""

    image: Image.Image


@dataclass(frozen=True)
class Generated:
    """A reply's ids as the model gave them."""

    ids: tuple[int, ...]
    text: str


Segment = Words | Gap | Control | Slot | Generated


def render(
    conversation: Conversation,
    template: Template,
    tokenizer: ContentTokenizer,
    *,
    slot_id: int,
    slots_per_picture: int,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    history: History = "ids",
) -> Rendered:
    """The conversation's ids, which of them are supervised, and its pictures, in one pass.

    Args:
        slot_id: the id of an image slot; it needs no embedding and may lie beyond the vocabulary.
        slots_per_picture: how many slots each picture takes (n query tokens).
        add_generation_prompt: end with what asks for the next reply.
        continue_final_message: end with the last reply's words, without its end, for a model to go on with.
        history: how replies so far are spelled, see above.

    Raises PromptError for a conversation that cannot be spelled so.
    """
    ids: list[int] = []
    mask: list[bool] = []
    pictures: list[Image.Image] = []
    for segment in spell(
        conversation,
        template,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        history=history,
    ):
        learn = False
        match segment:
            case Words(text, learn, inside):
                new = encode_inside(tokenizer, text) if inside else tokenizer.encode(text)
                _refuse_slots(new, slot_id, "a text spells")
            case Control(symbol, learn):
                new = [control_id(symbol, template, tokenizer)]
            case Generated(kept, _):
                new, learn = list(kept), True
                _refuse_slots(new, slot_id, "a reply's generated ids hold")
            case Slot(image):
                new = [slot_id] * slots_per_picture
                pictures.append(image)
            case Gap():
                continue
        ids += new
        mask += [learn] * len(new)
    question = next((message.text for message in reversed(conversation.turns) if message.role == "user"), "")
    return Rendered(ids, mask, tuple(pictures), question.strip() if "user" in template.trims else question)


def render_text(
    conversation: Conversation,
    template: Template,
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    history: History = "ids",
    slot: str = SLOT,
) -> str:
    """The same prompt as text for human eyes, with `<s>`, `</s>` and `slot` for each picture; not to be tokenised."""
    segments = spell(
        conversation,
        template,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        history=history,
    )
    return "".join(slot if isinstance(s, Slot) else s.symbol if isinstance(s, Control) else s.text for s in segments)


def spell(
    conversation: Conversation,
    template: Template,
    *,
    add_generation_prompt: bool,
    history: History,
    continue_final_message: bool = False,
) -> Iterator[Segment]:
    """What a conversation is made of, in order. Neighbouring texts that are tokenised together are one segment."""
    if history not in get_args(History):
        raise PromptError(f"history is {history!r}: use one of {', '.join(get_args(History))}.")
    turns = conversation.turns
    if add_generation_prompt and (not turns or turns[-1].role != "user"):
        raise PromptError("A reply can only be asked for after a user's message: add one, or ask for no reply.")
    if continue_final_message and (not turns or turns[-1].role != "assistant"):
        raise PromptError("Only a reply can be continued: let the last message be an assistant's.")
    return _Speller(template, history).spell(conversation, add_generation_prompt, continue_final_message)


class _Speller:
    """Collects text until something that is not text, or a reply, ends it."""

    def __init__(self, template: Template, history: History) -> None:
        self._template = template
        self._history = history
        self._text = ""
        self._inside = False  # the segment before ended in text
        self._begins = False  # a first question without words, whose reply begins the text

    def spell(self, conversation: Conversation, ask: bool, go_on: bool = False) -> Iterator[Segment]:
        t = self._template
        system = conversation.system
        if t.pictures_first:
            for picture in conversation.turns[0].pictures if conversation.turns else ():
                yield from self._slot(picture)
        if t.learns_begin and system is None and len(conversation.turns) > 1:
            self._begins = not conversation.turns[0].text
        if system is None:
            for segment in self._words(t.opening):
                yield replace(segment, learn=True) if self._begins and isinstance(segment, Control) else segment
        elif not t.takes_system:
            raise PromptError("This model's chat template takes no system message: say it in the first question.")
        else:
            yield from self._words(t.begin)
            yield from self._content(system, t.system_suffix)
            yield from self._words(t.system_suffix)
        for number, message in enumerate(conversation.turns):
            if message.role == "assistant":
                yield from self._words(t.assistant_prefix)
                yield from self._reply(message, open_end=go_on and number == len(conversation.turns) - 1)
                continue
            if number > 0:
                yield from self._words(t.between)
            yield from self._words(t.user_prefix)
            message = _without_pictures(message) if number == 0 and t.pictures_first else message
            yield from self._content(message, t.user_suffix + t.assistant_prefix)
            yield from self._words(t.user_suffix)
        if ask:
            yield from self._words(t.assistant_prefix)
        yield from self._flush()

    def _words(self, spelled: str) -> Iterator[Segment]:
        """The template's own words, in which control tokens are ids."""
        t = self._template
        for piece in t.split(spelled):
            if not t.words_before(piece):
                yield from self._flush()
                yield Control(piece)
                self._inside = t.joined
            else:
                self._text += piece

    def _content(self, message: Message, following: str) -> Iterator[Segment]:
        """A person's words and pictures. Neighbouring text parts are one text: a marker may be split over them."""
        t = self._template
        tidy = t.tidy and message.role == "user"
        following = t.words_before(following)
        groups: list[str | Picture] = []
        for part in message.parts:
            if isinstance(part, Picture):
                groups.append(part)
                continue
            text = tidied(part.text) if tidy else part.text
            if groups and isinstance(groups[-1], str):
                groups[-1] += text
            elif text:
                groups.append(text)
        if message.role in t.trims:
            groups = _trimmed(groups)
        for number, group in enumerate(groups):
            if number > 0:
                self._text += t.picture_gap
            if isinstance(group, str):
                words = neutralise(group, t)
                self._text += keep_apart(words, following) if number == len(groups) - 1 else words
                continue
            yield from self._slot(group.image)

    def _slot(self, image: Image.Image) -> Iterator[Segment]:
        t = self._template
        self._text += t.picture_prefix
        yield from self._flush()
        yield Slot(image)
        self._inside = t.joined
        self._text = t.picture_suffix

    def _reply(self, message: Message, open_end: bool) -> Iterator[Segment]:
        t = self._template
        said = message.text.strip() if "assistant" in t.trims else message.text
        begin, self._begins = "" if self._begins else t.reply_begin, False
        text = begin + neutralise(said, t)
        if self._history == "text":
            if open_end:
                self._text += t.reply_gap + text
                return
            end = t.reply_end if t.text_reply_end is None else t.text_reply_end
            self._text += t.reply_gap + keep_apart(text, t.words_before(end))
            # The originals' get_prompt ends no empty reply (`if message: … + sep`, MiniGPT-4's conversation.py).
            yield from self._words(end if said or t.controls else "")
            return
        yield from self._flush()
        if gap := t.reply_gap + (begin if message.ids is not None else ""):
            yield Gap(gap)
        if open_end:
            yield (Words(text, True, t.joined) if message.ids is None else Generated(message.ids, message.text))
            return
        end_text, control = t.end
        if message.ids is None:
            yield Words(keep_apart(text, end_text) + end_text, learn=True, inside=t.joined)
        else:
            yield Generated(message.ids, message.text)
            if end_text:
                yield Words(end_text, learn=True, inside=True)
        self._inside = control is None or t.joined
        if control is not None:
            yield Control(control, learn=True)

    def _flush(self) -> Iterator[Segment]:
        if self._text:
            yield Words(self._text, inside=self._inside)
            self._inside = True
        self._text = ""


def _without_pictures(message: Message) -> Message:
    return replace(message, parts=tuple(part for part in message.parts if not isinstance(part, Picture)))


def _trimmed(groups: list[str | Picture]) -> list[str | Picture]:
    """Without white space at either end of the message; what that leaves empty is gone."""
    if groups and isinstance(groups[0], str):
        groups = [groups[0].lstrip(), *groups[1:]]
    if groups and isinstance(groups[-1], str):
        groups = [*groups[:-1], groups[-1].rstrip()]
    return [group for group in groups if group]


def control_id(symbol: str, template: Template, tokenizer: ContentTokenizer) -> int:
    """The id of a control token that a template spells. Raises PromptError where the tokenizer has none."""
    if template.controls:
        return tokenizer.control_id(symbol)
    if symbol == EOS:
        return tokenizer.eos_id
    if tokenizer.bos_id is None:
        raise PromptError("The template spells <s>, but the tokenizer has no begin token: use the template 't5'.")
    return tokenizer.bos_id


def keep_apart(words: str, following: str) -> str:
    """`words`, and a space where their last character would blur the delimiter that follows ("C#" before "###")."""
    return words + " " if words and words[-1] == following[:1].strip() else words


def _refuse_slots(ids: list[int], slot_id: int, what: str) -> None:
    if slot_id in ids:
        raise PromptError(
            f"The image slot's id {slot_id} is not reserved: {what} it. Choose an id beyond the vocabulary."
        )


# --- Hugging Face's options of a batch: padding and cutting.


#: What changes nothing here: rows are always padded to the longest, masks returned, and control tokens never made.
_GRANTED = ("return_attention_mask", "add_special_tokens", "sanitize_control_tokens")
_NESTED = ("common_kwargs", "text_kwargs", "images_kwargs")  # groups of options, as `ProcessingKwargs` has them


@dataclass(frozen=True)
class Layout:
    """How prompts become one batch.

    `length`: rows are padded to at least so many tokens. `multiple`: and to a multiple of it. `most`: what is longer is
    cut at its end; None: nothing is.
    """

    padding_side: Literal["left", "right"] = "left"
    length: int = 0
    multiple: int = 1
    most: int | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Layout:
        """From Hugging Face's keywords. Raises PromptError for one that is not known or out of range."""
        given = {name: value for name, value in options.items() if name not in _NESTED}
        for group in _NESTED:
            given |= options.get(group) or {}
        side = given.pop("padding_side", None) or "left"
        if side not in ("left", "right"):
            raise PromptError(f"padding_side is {side!r}; it must be 'left' or 'right'.")
        padding, truncation = given.pop("padding", None), given.pop("truncation", None)
        most = _positive("max_length", given.pop("max_length", None))
        multiple = _positive("pad_to_multiple_of", given.pop("pad_to_multiple_of", None))
        for name, value in given.items():
            if name not in _GRANTED and value not in (None, False, [], {}):
                raise PromptError(f"The option {name!r} is not known to MiniChat's processor: leave it out.")
        return cls(
            "right" if side == "right" else "left",
            length=most or 0 if str(padding) == "max_length" else 0,
            multiple=multiple or 1,
            most=most if truncation not in (None, False, "do_not_truncate") else None,
        )

    def cut(self, rendered: Rendered, slot: int) -> Rendered:
        """The beginning of a prompt. Raises PromptError where that would leave a picture out."""
        if self.most is None or len(rendered.ids) <= self.most:
            return rendered
        if slot in rendered.ids[self.most :]:
            raise PromptError(
                f"max_length is {self.most}, which cuts a picture off a prompt of {len(rendered.ids)} tokens: raise it."
            )
        return replace(rendered, ids=rendered.ids[: self.most], loss_mask=rendered.loss_mask[: self.most])

    def padded(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """Rows of numbers (B, width), zeros where they are padded."""
        gaps = [[0] * (width - len(row)) for row in rows]
        left = self.padding_side == "left"
        return torch.tensor(
            [[*gap, *map(int, row)] if left else [*map(int, row), *gap] for row, gap in zip(rows, gaps, strict=True)]
        )


def _positive(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise PromptError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return value
