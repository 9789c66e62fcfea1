"""BERT's word pieces, in which the Q-Former reads texts, with `[DEC]`, the token that begins what it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase

from minichat.disk import new_folder
from minichat.errors import DataError, ModelError, PromptError, SettingsError

BEGINNING = "[DEC]"
_FILES = ("vocab.txt", "tokenizer.json")
_CONTROLS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SMALLEST = 100  # word pieces: letters and little more
_AT_ONCE = 1000  # times that a word is handed over in one string


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


def make_vocabulary(texts: Iterable[str], size: int = 1000) -> list[str]:
    """At most `size` word pieces that spell these texts well, in BERT's order; without `[DEC]`, which reading adds.

    BERT's five control tokens, the letters (the most frequent, of at most half of the places), each also as the
    continuation of a word, and what the WordPiece trainer of `tokenizers` merges of them. All is in lower case. The
    same texts give the same pieces. Raises `SettingsError` for a size without room, `DataError` where there is no text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    if size < _SMALLEST:
        raise SettingsError(f"size is {size}; a vocabulary needs at least {_SMALLEST} word pieces.")
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not words:
        raise DataError("There is no text to make a vocabulary of.")
    counted: Counter[str] = Counter()
    for word, times in words.items():
        counted.update(dict.fromkeys(word, times))
    frequent = sorted(counted, key=lambda letter: (-counted[letter], letter))[: (size - len(_CONTROLS)) // 4]
    letters = sorted(frequent)
    # As special tokens, or the trainer would number the continuations in an order that changes from run to run.
    first = [*_CONTROLS, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=first,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    spelled = (
        f"{word} " * min(_AT_ONCE, times - start)
        for word, times in sorted(words.items())
        for start in range(0, times, _AT_ONCE)
    )
    tokenizer.train_from_iterator(spelled, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda piece: vocabulary[piece])


def write_vocabulary(out: Path, texts: Iterable[str], size: int = 1000) -> int:
    """Write the new folder `out` with the `vocab.txt` of `make_vocabulary`; returns how many word pieces it has.

    Raises as that does, and `DataError` where `out` is there already.
    """
    pieces = make_vocabulary(texts, size)
    with new_folder(out, DataError) as folder:
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    return len(pieces)


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
