"""The tokenizer of a GGUF file → a Hugging Face one, split as the LLM learnt it."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minichat.errors import ModelError
from minichat.prompt.fast import bpe_merges
from minichat.weights.gguf_file import GgufFile

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
