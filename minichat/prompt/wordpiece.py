"""BERT's word pieces, in which the Q-Former reads texts, with `[DEC]`, the token that begins what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase

from minichat.errors import ModelError, PromptError

BEGINNING = "[DEC]"
_FILES = ("vocab.txt", "tokenizer.json")


def read_wordpiece(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that holds BERT's `vocab.txt`, or a saved `tokenizer.json`.

    Where it has no BOS, `[DEC]` is added as one, after the last word piece, as BLIP-2 does. Raises `ModelError` for a
    folder that holds neither file, or a tokenizer without BERT's control tokens.
    """
    if not any((folder / name).is_file() for name in _FILES):
        raise ModelError(f"The folder {folder.name!r} has no {' or '.join(_FILES)}: it holds no BERT tokenizer.")
    try:
        tokenizer: PreTrainedTokenizerBase = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # the tokenizers library raises plain ones
        raise ModelError(f"The BERT tokenizer in {folder.name!r} cannot be read: download it again.") from None
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]", "[PAD]", "[UNK]")}
    lacking = [name for name, number in ids.items() if number >= tokenizer.vocab_size]  # the library adds its own
    if lacking:
        raise ModelError(f"The tokenizer in {folder.name!r} has no {lacking[0]}: it is none of BERT's.")
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": BEGINNING})
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int = 32, *, pad: bool | str = True
) -> dict[str, Tensor]:
    """Texts → `input_ids` and `attention_mask` (B, T): `[CLS]`, word pieces, `[SEP]`, padding on the right.

    A text is cut to `max_length` ids, its `[SEP]` kept. `pad="max_length"` pads all to that length, as the original
    does. A control token's name that a text spells is ordinary letters. Raises `PromptError` for a `max_length` that
    has no room for a word.
    """
    if max_length < 3:
        raise PromptError(f"max_length is {max_length}; a text's two control tokens and a word need 3.")
    batch = tokenizer(
        list(texts),
        padding=pad,
        truncation=True,
        max_length=max_length,
        padding_side="right",
        split_special_tokens=True,
        return_token_type_ids=False,
        return_tensors="pt",
    )
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
