"""Tiny LLMs in GGUF files, written with the `gguf` package as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ġ hello", "1 2")
TOKENS = (*CONTROLS, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES))
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
F32, F16, Q8_0, Q4_1 = (GGMLQuantizationType[kind] for kind in ("F32", "F16", "Q8_0", "Q4_1"))


def tiny_llm(model_type: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random LLM whose sizes are blocks of 32, and whose norms and biases are not as they were made."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(TOKENS) + 5,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: GGMLQuantizationType = F32,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    leave_out: str = "",
) -> Path:
    """Matrices become `kind`, vectors stay; `keys` (None: left out) and `tensors` are put in place of those that are.

    llama.cpp wants LLaMA's queries and keys with the two halves of each pair side by side.
    """
    config = model.config
    arch = config.model_type
    writer = GGUFWriter(path, arch)
    values: dict[str, Any] = {
        "general.name": "tiny",
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": config.rope_parameters["rope_theta"],
        f"{arch}.rope.dimension_count": config.head_dim,
        f"{arch}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": [3] * len(CONTROLS) + [1] * (len(TOKENS) - len(CONTROLS)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHATML,
        **(keys or {}),
    }
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in values.items():
        if value is not None:
            (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
    names = get_tensor_name_map(
        next(a for a, name in MODEL_ARCH_NAMES.items() if name == arch), config.num_hidden_layers
    )
    held: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        base, _, end = name.rpartition(".")
        theirs = f"{names.get_name(base)}.{end}"
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and (".attn_q." in theirs or ".attn_k." in theirs):
            heads = config.num_attention_heads if ".attn_q." in theirs else config.num_key_value_heads
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        held[theirs] = tensor.numpy().copy()
    for name, values_ in {**held, **(tensors or {})}.items():
        if name == leave_out:
            continue
        if values_.ndim == 1 or kind == F32:
            writer.add_tensor(name, values_.astype(np.float32))
        elif kind == F16:
            writer.add_tensor(name, values_.astype(np.float16))
        else:
            writer.add_tensor(name, quantize(values_.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
