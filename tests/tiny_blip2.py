"""Whole BLIP-2 and InstructBLIP models of transformers', small and random, as the hub has them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    GPT2Tokenizer,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from minichat.prompt.tokenizer import SentencePieceTokenizer, read_wordpiece, to_hugging_face, write_vocabulary
from tests.tiny import SENTENCES, tokenizer_model
from tests.tiny_t5 import t5_config, t5_tokenizer

#: Kind → the template that it is given.
KINDS = {"opt": "blip2-opt-chat", "t5": "blip2-t5", "vicuna": "instructblip", "instructed t5": "instructblip-t5"}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.02,
}
QFORMER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LLM = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}


@cache
def opt_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with `</s>` as begin and end, as OPT's."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=320, special_tokens=["<s>", "<pad>", "</s>"])
    vocab = trained.get_vocab()
    merges = [tuple(pair) for pair in json.loads(trained._tokenizer.to_str())["model"]["merges"]]
    return GPT2Tokenizer(
        vocab=vocab, merges=merges, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )


def words_of(kind: str) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """A tokenizer and the configuration of the LLM that it is for."""
    if kind == "opt":
        tokenizer = opt_tokenizer()
        ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
        sizes = {"ffn_dim": 64, "word_embed_proj_dim": 40, "dropout": 0.0, "attention_dropout": 0.0}
        return tokenizer, {"model_type": "opt", "vocab_size": len(tokenizer) + 5, **LLM, **sizes, **ends}
    if kind == "vicuna":
        tokenizer = to_hugging_face(SentencePieceTokenizer(tokenizer_model()))
        return tokenizer, {"model_type": "llama", "vocab_size": len(tokenizer) + 1, "intermediate_size": 64, **LLM}
    return t5_tokenizer(), t5_config(feed_forward_proj="gated-gelu").to_dict() | {
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
        "scale_decoder_outputs": False,
    }


def publish_whole(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a model of this kind with weights that are large enough to tell rows apart."""
    tokenizer, text = words_of(kind)
    instructed = kind in ("vicuna", "instructed t5")
    make = InstructBlipForConditionalGeneration if instructed else Blip2ForConditionalGeneration
    sizes: dict[str, Any] = {"vision_config": VISION, "qformer_config": {**QFORMER}, "text_config": text}
    if instructed:
        write_vocabulary(folder / "words", SENTENCES, 150)
        pieces = read_wordpiece(folder / "words")
        sizes["qformer_config"] |= {"vocab_size": len(pieces), "max_position_embeddings": 40}
    config = (InstructBlipConfig if instructed else Blip2Config)(
        **sizes, num_query_tokens=4, image_token_index=text["vocab_size"] - 1
    )
    torch.manual_seed(seed)
    model = make(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.4 if name.startswith("language_model") else 0.3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if kind == "vicuna":
        (folder / "model" / "tokenizer.model").write_bytes(tokenizer_model())
    if instructed:
        pieces.save_pretrained(folder / "model" / "qformer_tokenizer")
    return folder / "model"
