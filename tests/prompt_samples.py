"""Small things that the prompt's tests share: a SentencePiece model, pictures, wordings that try to break out."""

from __future__ import annotations

import io
import unicodedata
from functools import cache

import sentencepiece
from hypothesis import strategies as st
from PIL import Image

from minichat.prompt.conversation import Conversation, Message, Part, Picture, Text
from minichat.prompt.template import Template
from minichat.prompt.tokenizer import SentencePieceTokenizer

SLOT_ID = 100_000
SLOTS = 3
RED, BLUE = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (3, 5), "blue")

_CORPUS = (
    "Give the following image: you will be able to see it once I provide it. Please answer my questions.",
    "###Human: <Img></Img> What is in the picture?###Assistant: A red circle and a blue star.###",
    "[INST] <Img></Img> How many stars are there? [/INST] There are two small stars, left of a large ring.</s>",
    "A chat between a curious user and an assistant. USER: Where is it? ASSISTANT: It is below the cross.",
)


@cache
def tokenizer_model(kind: str = "bpe") -> bytes:
    """A SentencePiece model of about 300 pieces, with LLaMA's settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 50),
        model_writer=model,
        model_type=kind,
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(tokenizer_model())


def folded(text: str) -> str:
    """What a reader sees who minds neither case, nor Unicode's forms, nor spaces; not the program's own folding."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def turns_in(text: str, template: Template) -> list[int]:
    """How often each of the template's role markers is to be read in a prompt."""
    return [folded(text).count(folded(marker)) for marker in template.markers]


_BITS = (
    "###", "#", "##", "Human", "human:", "Assistant", ":", "：", "###Human:", "### Assistant :", "＃＃＃Ｈｕｍａｎ：",
    "[INST]", "[/INST]", "[ inst ]", "[", "/", "INST", "]", "［ＩＮＳＴ］", "[IN\u200bST]", "[INﬆ]", "USER", "USER:",
    "us er :", "ASSISTANT:", "𝐀𝐒𝐒𝐈𝐒𝐓𝐀𝐍𝐓:", "ſ", "\u212aı", "⩴", "</s>", "<s>", "<unk>", "<0x0A>", "<Img>",
    "</Img>", "<ImageHere>",
    "<image>", " ", "\n", "\t", "\u00a0", "\u2028", "\u200b", "\u00ad", "\ufe0f", "-", "é", "e\u0301",
    "你好", "🙂", "\x00", "What is this?", "Human: 5", "the assistant: a robot",
)  # fmt: skip

# Any character below the surrogates; st.characters would first sort all of Unicode, which takes seconds.
hostile_text = st.lists(st.one_of(st.sampled_from(_BITS), st.integers(0, 0xD7FF).map(chr)), max_size=8).map("".join)


@st.composite
def conversations(draw: st.DrawFn, *, text: st.SearchStrategy[str] = hostile_text, system: bool = True) -> Conversation:
    """A conversation of one to three questions, each but perhaps the last with a reply, pictures anywhere."""
    messages: list[Message] = []
    if system and draw(st.booleans()):
        messages.append(Message("system", (Text(draw(text)),)))
    for _ in range(draw(st.integers(1, 3))):
        part = st.one_of(text.map(Text), st.sampled_from([Picture(RED), Picture(BLUE)]))
        parts: list[Part] = draw(st.lists(part, max_size=4))
        messages.append(Message("user", tuple(parts)))
        replies = draw(st.lists(text.map(Text), min_size=1, max_size=2))
        messages.append(Message("assistant", tuple(replies)))
    return Conversation(tuple(messages[: -1 if draw(st.booleans()) else None]))


def harmless(conversation: Conversation) -> Conversation:
    """The same conversation with every text replaced by a word."""
    return Conversation(
        tuple(
            Message(m.role, tuple(p if isinstance(p, Picture) else Text("word") for p in m.parts)) for m in conversation
        )
    )
