"""An LLM from a GGUF file → a Hugging Face folder: every key and every tensor used, known to be harmless, or refused.

transformers opens such files, too, but leaves out in silence what it has no name for (scaled positions, biases, a
second end token, how a tokenizer splits), and holds the whole LLM in float32. Here nothing is left out, and one tensor
at a time is in memory. Names of keys are those of ggml's docs/gguf.md, of tensors the `gguf` package's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from minichat.errors import ModelError, sentence, some
from minichat.fileio import new_folder
from minichat.weights.checkpoint_io import Entry, write_tensors
from minichat.weights.gguf import WORDS, GgufFile, read_tokenizer
from minichat.weights.hub import quiet


@dataclass(frozen=True)
class _Architecture:
    """How one of llama.cpp's architectures is read. `permuted`: queries and keys have the halves of each pair apart."""

    model_type: str
    permuted: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)  # a tensor → the setting that it being there switches on


# llama.cpp's converter (convert_hf_to_gguf.py) reorders LLaMA's rows for its own rotary embedding, and no others'.
_ARCHITECTURES = {
    "llama": _Architecture(
        "llama", permuted=True, biases={"blk.0.attn_q.bias": "attention_bias", "blk.0.ffn_up.bias": "mlp_bias"}
    ),
    "qwen2": _Architecture("qwen2"),
    "qwen3": _Architecture("qwen3", biases={"blk.0.attn_q.bias": "attention_bias"}),
}
_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
# Keys of an architecture that are read below, beside its sizes.
_READ = (
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
)
# What may be left out: it names and describes, or repeats what the tensors say.
_HARMLESS = ("general.*", "quantize.imatrix.*", "split.count", "split.no", "split.tensors.count")
_HARMLESS_OF_AN_ARCHITECTURE = ("rope.scaling.finetuned",)
_EXACT = 1024**3  # numbers that may take 4 bytes each


def unpack(path: Path, out: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """Write the new folder `out` with the LLM of a GGUF file: safetensors, configuration, tokenizer; whole or not.

    Quantized tensors become float32, which holds their values exactly, or float16 where all of them would take more
    than 4 GiB so; others stay as they are. Raises `ModelError`, naming it, for a file that cannot be read, a key whose
    meaning would be lost, and a tensor that is missing, left over, of another shape or not finite.
    """
    file = GgufFile(path)
    config = read_config(file)
    tokenizer, ends = read_tokenizer(file)
    sources = _sources(file, config)
    reorder = _ARCHITECTURES[file.keys["general.architecture"]].permuted
    config.update({"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends[0]})
    config.pad_token_id = tokenizer.pad_token_id
    dtype = torch.float32 if sum(_numbers(file, theirs) for _, theirs in sources) <= _EXACT else torch.float16
    say(f"Unpacking {path.name}, once, to {str(dtype).removeprefix('torch.')}")
    entries = [
        Entry(
            ours, dtype.itemsize * _numbers(file, theirs), _maker(file, theirs, dtype, _heads(theirs, config, reorder))
        )
        for ours, theirs in sources
    ]
    with new_folder(out, ModelError) as folder:
        write_tensors(folder, entries)
        config.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends[0] if len(ends) == 1 else ends,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def read_config(file: GgufFile) -> PreTrainedConfig:
    """The LLM's configuration. Raises `ModelError` for a key that is missing or would be lost."""
    keys = file.keys
    name = str(keys.get("general.architecture"))
    if name not in _ARCHITECTURES:
        raise ModelError(
            f"{file.name} holds an LLM of the architecture {name!r}; of GGUF files {', '.join(_ARCHITECTURES)} are "
            "read: give its Hugging Face folder instead."
        )
    if keys.get("split.count", 1) not in (0, 1):
        raise ModelError(
            f"{file.name} is one of {keys['split.count']} parts of an LLM: join them with llama.cpp's gguf-split."
        )
    _refuse_unknown(file, name)
    architecture = _ARCHITECTURES[name]
    sizes = {ours: _number(file, f"{name}.{theirs}") for theirs, ours in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    width = _number(file, f"{name}.attention.key_length", sizes["hidden_size"] // heads)
    for theirs in ("attention.value_length", "rope.dimension_count"):
        if (found := _number(file, f"{name}.{theirs}", width)) != width:
            raise ModelError(
                f"{file.name} says {name}.{theirs} = {found}, but its attention heads have the width {width}: such an "
                "LLM cannot be read."
            )
    if (scaling := keys.get(f"{name}.rope.scaling.type", "none")) != "none":
        raise ModelError(
            f"{file.name} says {name}.rope.scaling.type = {scaling!r}: scaled positions cannot be read from GGUF; give "
            "the LLM's Hugging Face folder instead."
        )
    settings = {
        **sizes,
        "num_key_value_heads": _number(file, f"{name}.attention.head_count_kv", heads),
        "head_dim": width,
        "rms_norm_eps": _number(file, f"{name}.attention.layer_norm_rms_epsilon", kind=float),
        "rope_parameters": {"rope_type": "default", "rope_theta": _number(file, f"{name}.rope.freq_base", 1e4, float)},
        "vocab_size": _rows(file),
        "tie_word_embeddings": "output.weight" not in file.stored,
        **{setting: tensor in file.stored for tensor, setting in architecture.biases.items()},
    }
    try:
        config: PreTrainedConfig = AutoConfig.for_model(architecture.model_type, **settings)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file.name} describes no LLM that can be made ({sentence(error)}).") from None
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    return config


def _refuse_unknown(file: GgufFile, name: str) -> None:
    known = {f"{name}.{key}" for key in (*_SIZES, *_READ)}
    harmless = (*_HARMLESS, *(f"{name}.{key}" for key in _HARMLESS_OF_AN_ARCHITECTURE), *WORDS)
    lost = [key for key in file.keys if key not in known and not any(fnmatchcase(key, glob) for glob in harmless)]
    if lost:
        raise ModelError(
            f"{file.name} says {some(lost)}, which would be lost on the way: give the LLM's Hugging Face folder "
            "instead."
        )


def _number(file: GgufFile, key: str, missing: Any = None, kind: Any = int) -> Any:
    value: Any = file.keys.get(key, missing)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        raise ModelError(
            f"{file.name} says {key} = {value!r}, which must be {'one whole number' if kind is int else 'a number'} "
            "above 0: it cannot be read."
        )
    return value


def _rows(file: GgufFile) -> int:
    if "token_embd.weight" not in file.stored:
        raise ModelError(f"{file.name} has no tensor token_embd.weight: it holds no LLM, or not a whole one.")
    return file.stored["token_embd.weight"].shape[0]


def _sources(file: GgufFile, config: PreTrainedConfig) -> list[tuple[str, str]]:
    """(our name, theirs) of every tensor, by the `gguf` package's table of names; shapes are compared."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[file.keys["general.architecture"]]
    names = get_tensor_name_map(number, config.num_hidden_layers)
    try:
        with quiet(), torch.device("meta"):
            wanted = AutoModelForCausalLM.from_config(config).state_dict()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{file.name} describes no LLM that can be made ({sentence(error)}).") from None
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    sources = []
    for ours, tensor in wanted.items():
        base, _, kind = ours.rpartition(".")
        theirs = f"{names.get_name(base)}.{kind}"
        if theirs not in file.stored:
            raise ModelError(f"{file.name} has no tensor {theirs}: the LLM in it is not whole.")
        if (shape := file.stored[theirs].shape) != tuple(tensor.shape):
            raise ModelError(
                f"The tensor {theirs} in {file.name} has the shape {shape}, but its keys ask for "
                f"{tuple(tensor.shape)}: the file is damaged."
            )
        sources.append((ours, theirs))
    _refuse_left_over(file, {theirs for _, theirs in sources})
    return sources


def _refuse_left_over(file: GgufFile, used: Iterable[str]) -> None:
    if left := file.stored.keys() - set(used):
        raise ModelError(
            f"{file.name} holds {some(left)}, which this network has no place for: give the LLM's Hugging Face folder "
            "instead."
        )


def _numbers(file: GgufFile, name: str) -> int:
    return math.prod(file.stored[name].shape)


def _heads(name: str, config: PreTrainedConfig, reorder: bool) -> int | None:
    """How many heads a tensor's rows are of, where they are to be reordered."""
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), None) if reorder else None


def _maker(file: GgufFile, name: str, dtype: torch.dtype, heads: int | None) -> Callable[[], Tensor]:
    def make() -> Tensor:
        tensor = file.tensor(name)
        if file.is_quantized(name):
            tensor = tensor.to(dtype)
        if not torch.isfinite(tensor).all():
            raise ModelError(f"The tensor {name} in {file.name} holds values that are not finite: the file is damaged.")
        return tensor if heads is None else _in_halves(tensor, heads)

    return make


def _in_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows (heads · width, …) in pairs, as llama.cpp keeps them → the first of all pairs, then the second."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
