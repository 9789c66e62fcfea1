"""An encoder–decoder LLM that is made in a moment, with a tokenizer like T5's: padding, end, unknown, and no begin."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.tiny import SENTENCES


@cache
def t5_tokenizer() -> PreTrainedTokenizerBase:
    """About 100 pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=120,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def t5_config(**changes: Any) -> T5Config:
    sizes = {"d_model": 40, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 8, "dropout_rate": 0.0}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5Config(**{**sizes, **ends, "vocab_size": len(t5_tokenizer()) + 3, **changes})


def publish_t5(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face folder with random weights that are large enough to tell prompts apart."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(t5_config(**changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.4)
    model.save_pretrained(folder)
    t5_tokenizer().save_pretrained(folder)
    return folder
