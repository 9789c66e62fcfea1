"""Hugging Face's tokenizers: one that stands in for a `tokenizer.model`, and any of them as a content tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minichat.errors import ModelError, PromptError
from minichat.prompt.tokenizer import SentencePieceTokenizer


class FastTokenizer:
    """Any Hugging Face fast tokenizer as a `ContentTokenizer`, for models that come without a `tokenizer.model`.

    `begins`: a prompt begins with a token of its own. Raises ModelError if it names no such token, or no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, begins: bool = True) -> None:
        self._tokenizer = tokenizer
        if (begins and tokenizer.bos_token_id is None) or tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer names no begin or no end token: set bos_token and eos_token, or for an encoder–decoder "
                "use the template 't5', which needs no begin."
            )
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size: int = len(tokenizer)
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        self._controls = {str(token): number for number, token in added.items() if token.special}
        self._control = {*tokenizer.all_special_ids, *self._controls.values()} - {tokenizer.unk_token_id}

    def control_id(self, token: str) -> int:
        if token not in self._controls:
            raise PromptError(f"The tokenizer has no control token {token!r}, which the template spells.")
        return self._controls[token]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        stray = self._control.intersection(ids)
        if stray:
            raise PromptError(f"The tokenizer makes the control id {min(stray)} of plain text: it cannot be used here.")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        kept = [i for i in ids if 0 <= i < self.vocab_size]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> FastTokenizer:
        return self


def to_hugging_face(model: SentencePieceTokenizer) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer with the vocabulary of a SentencePiece model, made without the protobuf library.

    Its ids mean the same pieces; it may split a text in a few places differently (" ###"), so content is tokenised by
    the SentencePiece model itself.
    """
    pieces = model.pieces()
    names = [piece for piece, _ in pieces]
    special = {
        "unk_token": names[0],
        "bos_token": names[model.bos_id],
        "eos_token": names[model.eos_id],
        "pad_token": names[model.pad_id] if model.pad_id != model.eos_id else None,
    }
    if _is_bpe(pieces):
        vocab = {piece: number for number, piece in enumerate(names)}
        return LlamaTokenizer(vocab=vocab, merges=bpe_merges(pieces), **special)
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback="<0x00>" in names))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _is_bpe(pieces: list[tuple[str, float]]) -> bool:
    """SentencePiece scores BPE's pieces 0, −1, −2, …; a unigram model's scores are logarithms."""
    return all(score == int(score) for _, score in pieces)


def bpe_merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """BPE's merges, the first to be done first: each way to make a piece of two others, in the order of the pieces."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        whole = [(left, right) for left, right in halves if left in ids and right in ids]
        merges += [(-score, ids[left], ids[right], left, right) for left, right in whole]
    return [(left, right) for *_, left, right in sorted(merges)]
