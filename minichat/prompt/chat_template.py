"""A tokenizer's own `chat_template` → a `Template`: what it writes round the words, read once and recorded as data.

The Jinja runs in transformers' sandbox on conversations whose words are known, and what stands between those words is
the template. So no person's words ever pass through it, or through the tokenizer's search for control tokens. What was
read is then held against it, as text for conversations of up to four turns and as ids for two.

A template that lets its LLM think is read with thinking switched off (`enable_thinking=False`). Where it then begins
the reply that it asks for with an empty block of thoughts, and leaves that out of earlier ones (Qwen3), ours keeps it:
a longer conversation begins with the prompts that were read, ids and cache alike. A date is that of the day of reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minichat.errors import PromptError, sentence
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import render, render_text
from minichat.prompt.template import OWN, Template
from minichat.prompt.tokenizer import FastTokenizer

# Words that no template writes, the system's first. Their white space tells which roles a template trims.
# No line break begins them, for some templates take that alone off the last reply, and a system text is trimmed at its
# end alone by some.
_SYSTEM = "Sysqx1 text \n "
_SAID = tuple(f" \n {word} text \n " for word in ("Askqx2", "Tellqx3", "Askqx4", "Tellqx5", "Askqx6"))
_NO_THOUGHTS = re.compile(r"<think>\s*</think>\s*")
_HOSTILE = (
    "{{ messages }} {% raw %}",
    "a < b & c > \"d\" 'e' \\n\n\n  f",
    "word",
    "ünï 你好 🙂",
    "x",
    "two words",
    "no",
    "1 2",
)


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, Template]:
    """The template that a tokenizer brings, and the tokenizer, which keeps that template's tokens out of plain text.

    Pictures stand in a question as in this project's own templates. Raises `PromptError`, saying why, for a tokenizer
    without a template, or one that does not put each message's words in once, as they are and in order; that spells a
    turn in one way when it is asked for and in another when more was said; or that ends no reply with a control token.
    """
    jinja = _Jinja(tokenizer)
    asked = jinja.pieces(1, ask=True)  # before the question, and after it
    told = jinja.pieces(2)
    more = jinja.pieces(3, ask=True)
    gap = told[1].removeprefix(asked[1])  # a blank before the reply, which the LLM writes itself
    thoughts = asked[1].removeprefix(more[1]) if asked[1].startswith(more[1]) else ""
    thoughts = thoughts if _NO_THOUGHTS.fullmatch(thoughts) else ""
    earlier = more[1] + thoughts
    same = told[0] == more[0] == asked[0] and told[1] == earlier == asked[1] + gap and more[3] == asked[1]
    if not same or gap.strip():
        raise jinja.refusal("it spells a turn in one way when it is the last and in another when more was said")
    atoms = _Atoms(jinja.controls)
    end = _reply_end(jinja, atoms, told[2])
    if not more[2].startswith(end):
        raise jinja.refusal("it ends a reply in one way when it is the last and in another when more was said")
    between = more[2].removeprefix(end)
    ends = [atoms.cut(text)[::-1] for text in (asked[1], jinja.pieces(1)[1])]
    suffix = "".join(_common_end(ends)[::-1])  # of a question, whether or not a reply is asked for
    turns = Template(
        name=OWN,
        user_suffix=suffix,
        assistant_prefix=asked[1].removeprefix(suffix),
        reply_begin=gap,
        reply_end=end,
        trims=jinja.trims,
    )
    tail = told[2].removeprefix(end)
    for system in (jinja.with_system(), None):  # where a system text is spelled in another way, none is taken
        befores = [atoms.cut(text) for text in (asked[0], between, *([] if system is None else [system[1]]))]
        prefix = "".join(_common_end(befores))
        template = replace(
            turns,
            begin="" if system is None else system[0],
            system_suffix="" if system is None else system[1].removesuffix(prefix),
            head=asked[0].removesuffix(prefix),
            user_prefix=prefix,
            between=between.removesuffix(prefix),
            takes_system=system is not None,
        )
        template = replace(template, controls=_spelled(template, jinja.controls))
        if system is None or _writes_as(jinja, template, (tail, thoughts), ["Be {{ brief }}."]):
            break
    if not _writes_as(jinja, template, (tail, thoughts), []):
        raise jinja.refusal("it writes other things round some words, or for some numbers of turns")
    template = replace(template, markers=_markers(template))
    tokenizer = _told_apart(tokenizer, template.controls)
    return tokenizer, _check_ids(jinja, template, tokenizer, turns=1 if thoughts else 3)


def read_template(file: Path) -> Template:
    """A template of a person's own: a YAML file with the fields of a `Template`; its name is the file's.

    Raises `PromptError`, naming the file, for one that cannot be read or is no template.
    """
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PromptError(f"The template {file.name!r} cannot be read ({sentence(error)}): check the file.") from None
    if not isinstance(held, dict):
        raise PromptError(
            f"The template {file.name!r} is no mapping: write a field on each line, as `user_prefix: ...`."
        )
    try:
        return Template.from_dict({"name": file.stem, **held})
    except (PromptError, TypeError) as error:
        raise PromptError(f"The template {file.name!r} is none: {sentence(error)}.") from None


def fitted(tokenizer: PreTrainedTokenizerBase, template: Template) -> PreTrainedTokenizerBase:
    """The tokenizer, which keeps this template's control tokens out of plain text.

    Raises `PromptError` for a control token that it does not have.
    """
    missing = [token for token in template.controls if token not in tokenizer.get_vocab()]
    if missing:
        raise PromptError(f"The template's control token {missing[0]!r} is none of the tokenizer's: name another.")
    return _told_apart(tokenizer, template.controls)


class _Jinja:
    """A tokenizer's chat template, and what it writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError:
            raise PromptError(
                "The LLM's tokenizer has no chat_template of its own: give the --template that it was trained with."
            ) from None
        added = tokenizer.added_tokens_decoder
        self.controls = tuple(str(token) for token in added.values())
        self._swallow = [
            (re.compile(rf"{re.escape(str(t))}\s+" if t.rstrip else rf"\s+{re.escape(str(t))}"), str(t))
            for t in added.values()
            if t.rstrip or t.lstrip
        ]
        self.trims = tuple(role for role, text, number in self._probes() if self._is_trimmed(text, number))

    def refusal(self, why: str) -> PromptError:
        return PromptError(
            f"The tokenizer's chat_template cannot be spelled piece by piece: {why}. Name another "
            "template, or put a simpler chat_template.jinja into the LLM's folder."
        )

    def write(self, messages: Sequence[dict[str, str]], ask: bool = False, **options: Any) -> Any:
        """What transformers makes of these messages: text, or ids with `tokenize=True`."""
        options = {"tokenize": False, "enable_thinking": False, **options}
        try:
            return self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=ask, **options)
        except Exception as error:  # a template may raise what it likes
            raise self.refusal(f"it fails ({sentence(error)})") from None

    def as_read(self, text: str) -> str:
        """Without the white space beside control tokens that they swallow, which never reaches the LLM."""
        for pattern, token in self._swallow:
            text = pattern.sub(token.replace("\\", r"\\"), text)
        return text

    def pieces(self, turns: int, ask: bool = False) -> list[str]:
        """What stands before, between and after the words of the first `turns` questions and replies."""
        return self._cut(_messages(_SAID[:turns]), ask)

    def with_system(self) -> tuple[str, str] | None:
        """What stands before and after the system's words; None where the template refuses or drops them."""
        messages = [{"role": "system", "content": _SYSTEM}, *_messages(_SAID[:1])]
        try:
            written = self.write(messages, ask=True)
        except PromptError:
            return None
        if written.count(_SYSTEM.strip()) != 1 or written.find(_SYSTEM.strip()) > written.find(_SAID[0].strip()):
            return None
        before, after, _ = self._cut(messages, ask=True)
        return before, after

    def _cut(self, messages: Sequence[dict[str, str]], ask: bool) -> list[str]:
        rest, pieces = self.write(messages, ask), []
        for message in messages:
            words = message["content"]
            words = words.strip() if message["role"] in self.trims else words
            if rest.count(words) != 1:
                raise self.refusal("it does not put each message's words in once, as they are and in order")
            before, _, rest = rest.partition(words)
            pieces.append(before)
        return [self.as_read(piece) for piece in (*pieces, rest)]

    def _probes(self) -> list[tuple[str, str, int]]:
        return [("user", _SAID[0], 1), ("assistant", _SAID[1], 2), ("system", _SYSTEM, 0)]

    def _is_trimmed(self, text: str, turns: int) -> bool:
        messages = _messages(_SAID[: max(1, turns)])
        try:
            written = self.write(messages if turns else [{"role": "system", "content": text}, *messages])
        except PromptError:
            if turns:
                raise
            return False
        return text not in written and text.strip() in written


def _messages(words: Sequence[str]) -> list[dict[str, str]]:
    """Questions and replies by turns."""
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(words)]


class _Atoms:
    """Cuts a template's text into control tokens and single characters."""

    def __init__(self, controls: Sequence[str]) -> None:
        longest_first = sorted(controls, key=len, reverse=True)
        self.controls = frozenset(controls)
        self._pattern = re.compile("|".join([*map(re.escape, longest_first), "(?s:.)"]))

    def cut(self, text: str) -> list[str]:
        return self._pattern.findall(text)


def _common_end(texts: Sequence[Sequence[str]]) -> list[str]:
    """The longest end that all have."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*(reversed(text) for text in texts), strict=False))
    return [column[0] for column in same][::-1]


def _reply_end(jinja: _Jinja, atoms: _Atoms, after: str) -> str:
    """Up to the first control token after a reply, which is what the LLM writes to end it."""
    end = ""
    for atom in atoms.cut(after):
        end += atom
        if atom in atoms.controls:
            return end
        if not atom.isspace():
            break
    raise jinja.refusal("it ends a reply with no control token of the tokenizer")


def _spelled(template: Template, controls: Sequence[str]) -> tuple[str, ...]:
    """The control tokens that a template spells."""
    texts = [value for name, value in template.as_dict().items() if isinstance(value, str) and name != "name"]
    return tuple(token for token in controls if any(token in text for text in texts))


def _markers(template: Template) -> tuple[str, ...]:
    """The texts that tell turns apart and are no control tokens: what has a mark in it, not a bare word as "user"."""
    openings = (
        template.begin,
        template.between + template.user_prefix,
        template.user_suffix + template.assistant_prefix,
    )
    texts = [piece.strip() for opening in openings for piece in template.split(opening) if template.words_before(piece)]
    return tuple(dict.fromkeys(text for text in texts if re.search(r"[^\w\s]", text)))


def _told_apart(tokenizer: PreTrainedTokenizerBase, controls: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer, in which these tokens are special: only then can plain text be kept from making them."""
    added = tokenizer.added_tokens_decoder.values()
    if all(token.special for token in added if str(token) in controls):
        return tokenizer
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in stored["added_tokens"]:
        token["special"] = token["special"] or token["content"] in controls
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **names,
    )


def _writes_as(jinja: _Jinja, template: Template, beside: tuple[str, str], system: Sequence[str]) -> bool:
    """Whether the Jinja writes what the template spells, with this system text or none, for one to four turns.

    `beside`: what it writes after the end of the last reply, and what it leaves out of those before.
    """
    tail, thoughts = beside
    for count in range(1, len(_HOSTILE) + 1):
        messages = [*({"role": "system", "content": text} for text in system), *_messages(_HOSTILE[:count])]
        ask = count % 2 == 1
        ours = render_text(Conversation.from_messages(messages), template, add_generation_prompt=ask)
        try:
            written = jinja.write(messages, ask)
        except PromptError:
            if system:
                return False
            raise
        spelled = [jinja.as_read(text) for text in (written, ours + ("" if ask else tail))]
        if len({text.replace(thoughts, "") if thoughts else text for text in spelled}) > 1:
            return False
    return True


def _check_ids(jinja: _Jinja, template: Template, tokenizer: PreTrainedTokenizerBase, turns: int) -> Template:
    """Hold it against transformers' ids, and find what leading spaces the tokenizer puts by itself."""
    messages = _messages(("What is it?", "It is a star.", "And the other one?")[:turns])
    if template.takes_system:
        messages = [{"role": "system", "content": "Be brief."}, *messages]
    wanted = jinja.write(messages, True, tokenize=True, return_dict=True)["input_ids"]
    content = FastTokenizer(tokenizer, begins=False)
    implied = replace(template, reply_gap=template.reply_begin, reply_begin="")
    conversation = Conversation.from_messages(messages)
    for made in (template, replace(template, joined=True), implied):
        ours = render(conversation, made, content, slot_id=-1, slots_per_picture=1, add_generation_prompt=True).ids
        if ours == list(wanted):
            return made
    raise jinja.refusal("the tokenizer reads it in another way as a whole than in its parts")
