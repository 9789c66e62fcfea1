"""Tokenizers: content → ids by SentencePiece or Hugging Face's tokenizers, and BERT's word pieces for the Q-Former."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import BertTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minichat.errors import DataError, ModelError, PromptError, SettingsError
from minichat.fileio import new_folder

# --- Content to ids: a person's words never become a control id, whatever they spell.


class ContentTokenizer(Protocol):
    """What the renderer needs of a tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """None: there is no such token, and no template may spell it."""
        ...

    eos_id: int
    pad_id: int
    vocab_size: int

    def control_id(self, token: str) -> int:
        """The id of a control token, by its own name. Raises PromptError where there is none of this name."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text` standing by itself; never a control id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids, image slots and ids outside of the vocabulary are skipped."""
        ...

    def spelled(self, token: int) -> bytes:
        """What one id stands for in the middle of a text, in UTF-8: it may be a part of a character."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece `tokenizer.model`, as LLaMA's slow tokenizer used it: each text with its own leading space.

    `model` is the file's path or its bytes. Raises ModelError where it cannot be read or has no begin or end symbol.
    """

    def __init__(self, model: str | Path | bytes) -> None:
        name = "The tokenizer model" if isinstance(model, bytes) else f"The tokenizer model “{Path(model).name}”"
        try:
            data = model if isinstance(model, bytes) else Path(model).read_bytes()
        except OSError as error:
            raise ModelError(f"{name} cannot be read ({error.strerror}): check the path.") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError:
            raise ModelError(f"{name} is not a SentencePiece model: put the LLM's own tokenizer.model there.") from None
        #: The file's bytes, so that a saved processor keeps them.
        self.serialized = data
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ModelError(f"{name} has no begin or no end symbol: train it with both.")
        # A padded position is masked, so any id of the vocabulary serves where the model names none.
        self.pad_id: int = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        # As with skip_special_tokens: the unknown symbol is no text either.
        self._silent = {i for i in range(self.vocab_size) if self._model.is_control(i) or self._model.is_unknown(i)}

    def control_id(self, token: str) -> int:
        number = self._model.piece_to_id(token)
        if not self._model.is_control(number) or self._model.id_to_piece(number) != token:
            raise PromptError(f"The tokenizer has no control token {token!r}, which the template spells.")
        return int(number)

    def encode(self, text: str) -> list[int]:
        # SentencePiece reads no control symbol from text: "<s>" gives the pieces of its letters.
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in ids if 0 <= i < self.vocab_size and i not in self._silent])

    def spelled(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size or token in self._silent:
            return b""
        piece = self._model.id_to_piece(token)
        return bytes.fromhex(piece[3:-1]) if self._model.is_byte(token) else piece.replace("▁", " ").encode()

    def pieces(self) -> list[tuple[str, float]]:
        """Every piece of the vocabulary with its score, in the order of their ids."""
        return [(self._model.id_to_piece(i), self._model.get_score(i)) for i in range(self.vocab_size)]

    def __reduce__(self) -> tuple[Any, ...]:
        return (SentencePieceTokenizer, (self.serialized,))

    def __deepcopy__(self, memo: dict[int, Any]) -> SentencePieceTokenizer:
        return self  # it never changes


# Texts that keep to themselves in most vocabularies: a line break is a byte of its own in LLaMA's.
_ANCHORS = ("\n", ".")


def encode_inside(tokenizer: ContentTokenizer, text: str) -> list[int]:
    """The ids of `text` as they are in the middle of a line: without a leading space of their own.

    LLaMA's "###" by itself is one id (835, with a leading space), after other text two (2277, 29937). Tokenisers have
    no call for the second, so the text is encoded behind an anchor whose own ids are then dropped; where none of the
    anchors stays apart from the text, the text is encoded by itself.
    """
    for anchor in _ANCHORS:
        head = tokenizer.encode(anchor)
        ids = tokenizer.encode(anchor + text)
        if head and ids[: len(head)] == head:
            return ids[len(head) :]
    return tokenizer.encode(text)


# --- Hugging Face's tokenizers: one that stands in for a `tokenizer.model`, and any of them as a content tokenizer.


_BYTE = re.compile("<0x[0-9A-F]{2}>")


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

    def spelled(self, token: int) -> bytes:
        before = self.encode("a")
        text = self.decode([*before, token]).removeprefix(self.decode(before))
        if "\ufffd" not in text:
            return text.encode()
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if _BYTE.fullmatch(name):  # as SentencePiece calls it
            return bytes.fromhex(name[3:-1])
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # as GPT-2 does
        return bytes(letters[letter] for letter in name) if set(name) <= letters.keys() else text.encode()

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


# --- BERT's word pieces, in which the Q-Former reads texts, with `[DEC]`, the token that begins what it writes.


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
