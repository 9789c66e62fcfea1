"""A GGUF file: its keys, its tensors, and its tokenizer as a Hugging Face one."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minichat.errors import ModelError
from minichat.prompt.tokenizer import bpe_merges
from minichat.weights.checkpoint_io import refuse_downloads
from minichat.weights.hub import GGUF_MAGIC

# --- A GGUF file: its keys and its tensors, read within its bounds (the format: ggml's docs/gguf.md, versions 2 and
# 3).


_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # by GGML's numbers of the types


@dataclass(frozen=True)
class Stored:
    """A tensor in a GGUF file: its shape as PyTorch has it, GGML's number of its type, and where its bytes are."""

    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


class GgufFile:
    """An open GGUF file: `keys` (name → value, an array as a list) and `stored` (name → `Stored`).

    The `gguf` package reads tensors; its own reader of headers believes every count that a file gives, so a damaged one
    may keep it busy for ever. Raises `ModelError`, naming the file, for one that is damaged or cut off, of another
    version or byte order, or holds tensors of a type that the package cannot read, and where the package is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError:
            raise ModelError(
                "To open a GGUF file needs the package gguf, which is not installed: pip install 'minichat[gguf]'."
            ) from None
        self.name = path.name
        try:
            with path.open("rb") as opened:
                self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelError(f"There is no file {path.name!r}: check the path.") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path.name} cannot be read ({_reason(error)}): check the file.") from None
        refuse_downloads(self.name, self._data[:512])
        self._sizes = {kind.value: GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType}
        try:
            self.keys, self.stored = self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError, _BeyondTheEnd):
            raise self._damaged("its header ends too early or is none") from None

    def is_quantized(self, name: str) -> bool:
        return self.stored[name].kind not in _FLOATS

    def tensor(self, name: str) -> Tensor:
        """A tensor in the float type that it is stored in; a quantized one in float32. It is read now.

        Raises `ModelError` for a type that the package cannot read.
        """
        from gguf import GGMLQuantizationType, dequantize

        stored = self.stored[name]
        data = np.frombuffer(self._data, np.uint8, stored.bytes, stored.start)
        if stored.kind in _FLOATS:
            return torch.from_numpy(data.copy()).view(_FLOATS[stored.kind]).reshape(stored.shape)
        rows = data.reshape(*stored.shape[:-1], -1)
        try:
            values = dequantize(rows, GGMLQuantizationType(stored.kind))
        except NotImplementedError:
            kind = GGMLQuantizationType(stored.kind).name
            raise ModelError(
                f"{self.name} holds tensors of the type {kind}, which the package gguf cannot read: give a file with "
                "another quantization, such as Q8_0 or Q4_K_M."
            ) from None
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(stored.shape)

    def _read_header(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        if self._data[: len(GGUF_MAGIC)] != GGUF_MAGIC:
            raise ModelError(f"{self.name} is no GGUF file: it does not begin with the letters GGUF.")
        self._place = len(GGUF_MAGIC)
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ModelError(
                f"{self.name} has the GGUF version {version}, but 2 and 3 are read (in little-endian order): convert "
                "it with a newer llama.cpp."
            )
        tensors, count = self._count(8), self._count(8)
        keys: dict[str, Any] = {}
        for _ in range(count):
            name = self._string()
            if name in keys:
                raise self._damaged(f"it holds the key {name} twice")
            keys[name] = self._value(self._scalar("I"))
        listed = [self._described() for _ in range(tensors)]
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"general.alignment is {alignment!r}")
        start = math.ceil(self._place / alignment) * alignment
        stored: dict[str, Stored] = {}
        for name, shape, kind, offset in listed:
            if name in stored:
                raise self._damaged(f"it holds the tensor {name} twice")
            stored[name] = self._within(name, shape, kind, start + offset)
        return keys, stored

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape as PyTorch has it (GGML's begins with the last dimension), type and offset of a tensor."""
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _within(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Stored:
        if kind not in self._sizes:
            raise ModelError(f"{self.name} holds {name} in GGML's type {kind}, which the package gguf does not know.")
        block, size = self._sizes[kind]
        if min(shape) < 1 or shape[-1] % block:
            raise self._damaged(f"the tensor {name} has the shape {shape}")
        held = math.prod(shape) // block * size
        if start + held > len(self._data):
            raise self._damaged(f"the tensor {name} goes beyond its end")
        return Stored(shape, kind, start, held)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"it holds a value of the unknown type {kind}")
        of = self._scalar("I")
        if of == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if of not in _SCALARS:
            raise self._damaged(f"it holds an array of the type {of}")
        size = struct.calcsize(f"<{_SCALARS[of]}")
        count = self._count(size)
        values = struct.unpack_from(f"<{count}{_SCALARS[of]}", self._data, self._place)
        self._place += count * size
        return list(values)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._place)
        self._place += struct.calcsize(f"<{code}")
        return value

    def _count(self, size: int) -> int:
        """A number of things that take at least `size` bytes each, of which the file must have so many left."""
        count = int(self._scalar("Q"))
        if count * size > len(self._data) - self._place:
            raise _BeyondTheEnd
        return count

    def _string(self) -> str:
        length = self._count(1)
        text = self._data[self._place : self._place + length].decode("utf-8")
        self._place += length
        return text

    def _damaged(self, how: str) -> ModelError:
        return ModelError(f"{self.name} is damaged or cut off ({how}): download it again.")


class _BeyondTheEnd(Exception):
    """The header counts more than the file holds."""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or ("it is empty" if isinstance(error, ValueError) else str(error))


# --- The tokenizer of a GGUF file → a Hugging Face one, split as the LLM learned it.


_CONTROL, _USER_DEFINED = 3, 4  # ggml's kinds of tokens
#: Keys that are read here, or that change nothing: prompts are spelled by a template, and nothing is put round them.
WORDS = (
    "tokenizer.chat_template",
    "tokenizer.chat_template.*",  # under other names, for other uses: tools, documents
    "tokenizer.chat_templates",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.*_token_id",
)
_GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES = ByteLevel(add_prefix_space=False, use_regex=False)


def _split(numbers: str) -> pre_tokenizers.PreTokenizer:
    """Llama 3's way to cut a text into words, which others took over with another cut of numbers."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence([Split(Regex(pattern), behavior="isolated"), _BYTES])


# llama.cpp, src/llama-vocab.cpp: `tokenizer.ggml.pre` and how each cuts a text.
_SPLITS = {
    "gpt-2": _GPT2,
    "smollm": pre_tokenizers.Sequence([Digits(individual_digits=True), _GPT2]),
    "llama-bpe": _split(r"\p{N}{1,3}"),
    "llama3": _split(r"\p{N}{1,3}"),
    "llama-v3": _split(r"\p{N}{1,3}"),
    "qwen2": _split(r"\p{N}"),
    "deepseek-r1-qwen": _split(r"\p{N}"),
}
_WHOLE = ("llama-bpe", "llama3", "llama-v3")  # of these, a word that is a token is one, whatever merges would give
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # of these, Unicode's composed form (NFC) is cut


def read_tokenizer(file: GgufFile) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with its chat template, and the ids that end a reply, its own end token first.

    Raises `ModelError`, naming key and value, for a tokenizer that cannot be made as it was.
    """
    tokens = _tokens(file)
    kind = file.keys.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece(file, tokens)
    else:
        raise ModelError(
            f"{file.name} says tokenizer.ggml.model = {kind!r}; 'gpt2' and 'llama' are read: give the LLM's Hugging "
            "Face folder instead."
        )
    _add_controls(file, backend, tokens)
    named = {
        name: None if (number := _id(file, key, tokens)) is None else tokens[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    if named["eos"] is None:
        raise ModelError(f"{file.name} has no tokenizer.ggml.eos_token_id: nothing would end a reply.")
    template = file.keys.get("tokenizer.chat_template")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": token for name, token in named.items()},
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
    )
    ends = [_id(file, key, tokens) for key in ("eos", "eot", "eom")]
    return tokenizer, list(dict.fromkeys(end for end in ends if end is not None))


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelError(f"{file.name} has no tokenizer.ggml.tokens: it holds no tokenizer.")
    if len(set(tokens)) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if token in tokens[:number])
        raise ModelError(f"{file.name} holds the token {twice!r} twice: its tokenizer cannot be made.")
    if len(tokens) > (rows := file.stored["token_embd.weight"].shape[0]):
        raise ModelError(f"{file.name} has {len(tokens)} tokens, but embeddings of {rows}: the file is damaged.")
    return tokens


def _id(file: GgufFile, name: str, tokens: list[str]) -> int | None:
    number = file.keys.get(key := f"tokenizer.ggml.{name}_token_id")
    if number is not None and (not isinstance(number, int) or not 0 <= number < len(tokens)):
        raise ModelError(f"{file.name} says {key} = {number!r}, but it has {len(tokens)} tokens: the file is damaged.")
    return number


def _refuse(file: GgufFile, key: str) -> ModelError:
    return ModelError(
        f"{file.name} says {key} = {file.keys.get(key)!r}, which would be lost on the way: give the LLM's Hugging Face "
        "folder instead."
    )


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Byte-level BPE, as GPT-2's."""
    given = file.keys.get("tokenizer.ggml.pre")
    cut = str(given)
    if cut not in _SPLITS:
        raise ModelError(
            f"{file.name} says tokenizer.ggml.pre = {given!r}; {', '.join(_SPLITS)} are known ways to cut a text into "
            "words: give the LLM's Hugging Face folder instead."
        )
    if file.keys.get(key := "tokenizer.ggml.add_space_prefix", False):
        raise _refuse(file, key)
    merges = file.keys.get("tokenizer.ggml.merges")
    pairs: list[Any] = [tuple(str(merge).split(" ")) for merge in merges] if isinstance(merges, list) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ModelError(f"{file.name} has no tokenizer.ggml.merges that can be used: it holds no whole tokenizer.")
    try:
        model = models.BPE({token: n for n, token in enumerate(tokens)}, pairs, ignore_merges=cut in _WHOLE)
    except Exception as error:  # the tokenizers library raises plain ones
        raise ModelError(f"The tokenizer in {file.name} cannot be made ({error}): the file is damaged.") from None
    backend = Tokenizer(model)
    backend.pre_tokenizer = _SPLITS[cut]
    if cut in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """SentencePiece's BPE, as LLaMA's: merges follow from the scores."""
    from transformers import LlamaTokenizer

    if not file.keys.get(key := "tokenizer.ggml.add_space_prefix", True):
        raise _refuse(file, key)
    scores = file.keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError(f"{file.name} has no tokenizer.ggml.scores for its tokens: it holds no whole tokenizer.")
    merges = bpe_merges(list(zip(tokens, scores, strict=True)))
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer: Any = LlamaTokenizer(vocab=vocab, merges=merges, unk_token=tokens[0])
    return tokenizer.backend_tokenizer


def _add_controls(file: GgufFile, backend: Tokenizer, tokens: list[str]) -> None:
    """Control tokens, and those that are found whole in any text."""
    kinds = file.keys.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError(f"{file.name} has no tokenizer.ggml.token_type for its tokens: it holds no whole tokenizer.")
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [token for token, of in zip(tokens, kinds, strict=True) if of == kind]
        backend.add_tokens([AddedToken(token, special=special, normalized=False) for token in found])
    if backend.get_vocab_size() != len(tokens):
        raise ModelError(f"{file.name} names control tokens that are not among its tokens: the file is damaged.")
