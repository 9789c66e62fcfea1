"""The built-in language model's tokenizer: LLaMA's kind, for the words of the drawn world."""

from __future__ import annotations

import io
import random
from itertools import chain

import sentencepiece

from minichat.errors import SettingsError
from minichat.prompt.template import BOS, get_template
from minichat.prompt.tokenizer import SentencePieceTokenizer
from minichat.scenes.description import SYMBOLS, WORDS
from minichat.scenes.speech.lessons import spoken_corpus
from minichat.scenes.training import ORDINALS, vocabulary_corpus

_LINES = 60_000  # of dialogue that it is trained on
_SPOKEN_LINES = 30_000  # of dialogue in people's words, which are longer


def train_tokenizer(size: int, template: str, seed: int = 0, *, people: bool = False) -> SentencePieceTokenizer:
    """A tokenizer of `size` pieces; bytes spell what it has never read.

    The template's delimiters are part of what it reads, so that they cost few tokens. Each of `description.WORDS` is
    one piece. Raises `SettingsError` where there are too few pieces for that.

    Args:
        people: it reads dialogues in people's words (`minichat.scenes.speech`), not those of templates.
    """
    rng = random.Random(seed)
    corpus = spoken_corpus(rng, _SPOKEN_LINES) if people else vocabulary_corpus(rng, _LINES)
    model = io.BytesIO()
    spelled = get_template(template)
    question = spelled.user_prefix.removeprefix(BOS)
    delimiters = (question + spelled.picture_prefix, spelled.picture_suffix, question, spelled.user_suffix)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain(corpus, delimiters * 2_000),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            user_defined_symbols=list(SYMBOLS),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            character_coverage=1.0,
            minloglevel=2,
        )
        tokenizer = SentencePieceTokenizer(model.getvalue())
        word_ids(tokenizer)
    except (RuntimeError, KeyError):
        raise SettingsError(
            f"language.vocabulary is {size}, which is no number of pieces for the words of the drawn world: use 1024."
        ) from None
    return tokenizer


def word_ids(tokenizer: SentencePieceTokenizer) -> dict[str, int]:
    """The id of each of `description.WORDS` and `training.ORDINALS`, as it is spelled after another word.

    `KeyError` where one has none.
    """
    ids = {piece: number for number, (piece, _) in enumerate(tokenizer.pieces())}
    return {word: ids[word if word in SYMBOLS else f"▁{word}"] for word in (*WORDS, *ORDINALS)}
