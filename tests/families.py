"""Published kinds of LLMs and vision encoders, at sizes that are made in a moment, with random weights.

An LLM has the configuration, the tokenizer's class and control tokens, and the chat template of its family; its words
are a small BPE of our own.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from tests.tiny import SENTENCES, noise_picture

TEMPLATES = Path(__file__).parent / "data" / "chat_templates"


class Family(NamedTuple):
    """An LLM's: how it is configured and how its tokenizer is made. `words`: kinds of BPE, see `tokenizer_of`."""

    config: dict[str, Any]
    words: str
    controls: tuple[str, ...]
    bos: str | None
    eos: str
    begins: bool = False  # the tokenizer puts its begin token before each text by itself
    thinks: tuple[str, ...] = ()  # added tokens that are not special
    rstrip: bool = False  # control tokens swallow the white space after them


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THINKS = ("<think>", "</think>")
_HEADS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_PHI = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
LLMS = {
    "llama3_2": Family({"model_type": "llama"}, "bytes", _HEADS, "<|begin_of_text|>", "<|eot_id|>", begins=True),
    "qwen2_5": Family({"model_type": "qwen2"}, "bytes", _CHATML, None, "<|im_end|>"),
    "qwen3": Family({"model_type": "qwen3"}, "bytes", _CHATML, None, "<|im_end|>", thinks=_THINKS),
    "gemma3": Family(
        {"model_type": "gemma3_text", **_SLIDING},
        "gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        begins=True,
    ),
    "phi3_5": Family({"model_type": "phi3"}, "llama", _PHI, "<s>", "<|endoftext|>", rstrip=True),
    "smollm2": Family({"model_type": "llama"}, "bytes", _CHATML, "<|im_start|>", "<|im_end|>"),
    "smollm3": Family(
        {"model_type": "smollm3", "no_rope_layers": [1, 0]}, "bytes", _CHATML, None, "<|im_end|>", thinks=_THINKS
    ),
    "mistral": Family(
        {"model_type": "mistral", "sliding_window": None}, "bytes", ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>"
    ),
    "olmo2": Family({"model_type": "olmo2"}, "bytes", ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>"),
    "lfm2": Family(
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        "bytes",
        ("<|startoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|startoftext|>",
        "<|im_end|>",
        begins=True,
    ),
}
#: Of these, the ones whose template begins a reply with an empty block of thoughts and leaves it out of earlier turns.
THINKING = ("qwen3",)
_LETTERS = [*(chr(number) for number in range(33, 127)), "▁"]


def _words(kind: str, first: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A small BPE's vocabulary, in which `first` come first, and its merges."""
    trained = Tokenizer(models.BPE())
    if kind == "bytes":
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        trained.normalizer = normalizers.Replace(" ", "▁")
        trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        alphabet = _LETTERS
        first = (*first, *(f"<0x{byte:02X}>" for byte in range(256)))
    trainer = trainers.BpeTrainer(
        vocab_size=440, special_tokens=list(first), initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(SENTENCES, trainer)
    held = json.loads(trained.to_str())["model"]
    return held["vocab"], [tuple(merge) for merge in held["merges"]]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """`bytes`: as GPT-2, LLaMA 3 and Qwen; `llama`: LLaMA's, with byte fallback and a space before a text; `gemma`:
    Gemma's, without that space."""
    family, common = LLMS[name], {"clean_up_tokenization_spaces": False}
    chat = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    if family.words == "bytes":
        vocab, merges = _words("bytes", ())
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.controls])
        made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos, chat_template=chat, **common
        )
    elif family.words == "llama":
        vocab, merges = _words("llama", ("<unk>", "<s>", "</s>"))
        made = LlamaTokenizer(
            vocab=vocab, merges=merges, bos_token=family.bos, eos_token=family.eos, chat_template=chat, **common
        )
    else:
        vocab, merges = _words("gemma", ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
        made = GemmaTokenizer(vocab=vocab, merges=merges, chat_template=chat, **common)
    if family.words != "bytes":
        made.add_tokens(
            [AddedToken(t, special=True, normalized=False, rstrip=family.rstrip) for t in family.controls],
            special_tokens=True,
        )
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.thinks])
    if family.begins:
        pair = (str(family.bos), made.convert_tokens_to_ids(family.bos))
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[pair]
        )
    return made


def write_llm(name: str, folder: Path) -> Path:
    """Save an LLM of this family, its tokenizer and its chat template, as one downloads them."""
    tokenizer = tokenizer_of(name)
    sizes = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LLMS[name].config
    sizes |= {"head_dim": 8} if config["model_type"] not in ("phi3", "lfm2", "olmo2", "qwen2") else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**sizes, **config}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


#: Vision encoders: configurations, with pictures of 28 pixels and patches of 7 unless they say another thing.
VISIONS: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model"},
    "siglip": {"model_type": "siglip_vision_model"},
    "siglip2": {"model_type": "siglip2_vision_model", "num_patches": 16},
    "dinov2": {"model_type": "dinov2"},
    "dinov2_registers": {"model_type": "dinov2_with_registers", "num_register_tokens": 2},
    "dinov3": {"model_type": "dinov3_vit", "num_register_tokens": 2},
}
SIDE = 28


def vision_of(name: str) -> Any:
    """The encoder as transformers makes it, random."""
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 7,
        "initializer_range": 0.2,
    }
    if name == "siglip2":
        del sizes["image_size"]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(**{**sizes, **VISIONS[name]})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def step(bot: MiniChat) -> tuple[float, float]:
    """The loss of a reply about a picture before and after a small step along the projection's own gradient.

    The bot is left as it was.
    """
    parts = ({"type": "image", "image": noise_picture(1)}, {"type": "text", "text": "What is it?"})
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A red star."}]
    batch = bot.processor.batch([bot.processor.render(Conversation.from_messages(messages))], labels=True)
    bot.model.requires_grad_(False)
    weight = bot.model.projection.weight
    kept = weight.detach().clone()
    weight.requires_grad_(True)
    loss = bot.model(**batch).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    weight.requires_grad_(False)
    weight -= 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        after = bot.model(**batch).loss
    weight.copy_(kept)
    return loss.item(), after.item()
