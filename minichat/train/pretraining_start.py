"""What a Q-Former's pre-training begins with: a new one, or the folder that an earlier run left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from minichat.errors import SettingsError
from minichat.model.freezing import set_trainable
from minichat.model.pretraining_config import PretrainingConfig
from minichat.prompt.wordpiece import read_wordpiece
from minichat.train.config import Config, ModelConfig, NewQFormer, PretrainingOptions
from minichat.train.network import precision, save_memory, top
from minichat.weights.begin import begin, read_bert, read_vision
from minichat.weights.files import find_folder
from minichat.weights.stage1 import BESIDE, read_stage1

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from minichat.weights.stage1 import Stage1


def read_start(config: Config) -> Stage1:
    """The model as the run begins with it, in float32 on the CPU; the same whenever it is read.

    Raises `SettingsError` for a beginning that is none or two, and as reading the parts does.
    """
    options = config.pretraining or PretrainingOptions()
    named = config.model.name != ModelConfig.name
    if options.new is None and not named:
        raise SettingsError(
            "The stage pretraining begins with nothing: give pretraining.new for a new Q-Former, or as model.name the "
            "folder of a stage 1 to go on with."
        )
    if options.new is not None and named:
        raise SettingsError(
            f"pretraining.new makes a new Q-Former, but model.name is {config.model.name!r}, to go on with: drop one."
        )
    stage1 = read_stage1(config.model.name) if options.new is None else _new(options.new, config.seed)
    stage1.model.config.objectives = options.objectives
    stage1.model.config.label_smoothing = options.label_smoothing
    return stage1


def open_start(config: Config, device: torch.device) -> Stage1:
    """The same on a device, ready to train: what trains in float32, the frozen vision encoder as it was asked for."""
    stage1 = read_start(config)
    model, asked = stage1.model, config.model
    trainable = config.trainable or model.config.trainable
    set_trainable(model, trainable)
    if "vision_model" not in map(top, trainable):
        model.vision_model.to(precision(asked.vision_dtype or asked.dtype, device))
    save_memory(model, asked)
    model.to(device)
    return stage1


def begun_anew(stage1: Stage1, config: Config) -> list[str]:
    """What begins as it was made although a model was named to go on with, in a sentence: its files lack it."""
    if config.pretraining is not None and config.pretraining.new is not None:
        return []
    objectives = stage1.model.config.objectives
    parts = []
    if "itg" in objectives and any(name.startswith("cls.") for name in stage1.made):
        parts.append("the head that predicts words (cls) begins at random")
    if "itc" in objectives and "temp" in stage1.made:
        parts.append(f"the temperature of the contrast begins at {stage1.model.config.temperature}")
    return [f"{config.model.name} has no {BESIDE}: {', and '.join(parts)}."] if parts else []


def _new(options: NewQFormer, seed: int) -> Stage1:
    vision_config, vision = read_vision(options.vision, options.vision_heads, options.image_size)
    sizes, bert = (options.sizes, None) if options.bert is None else read_bert(options.bert)
    tokenizer = _tokenizer(options)
    config = PretrainingConfig(
        vision_config=vision_config,
        bridge_config={
            "num_query_tokens": options.queries,
            "qformer": {
                "vocab_size": len(tokenizer),
                **sizes,
                "cross_attention_frequency": options.cross_attention_frequency,
                "hidden_dropout_prob": options.dropout,
                "attention_probs_dropout_prob": options.dropout,
            },
        },
        contrast_size=options.contrast_width,
        temperature=options.temperature,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    return begin(config, tokenizer, vision=vision, bert=bert, seed=seed)


def _tokenizer(options: NewQFormer) -> PreTrainedTokenizerBase:
    """BERT's, or the one that is named."""
    name = options.bert or options.tokenizer or ""
    what = "The BERT model" if options.bert else "The tokenizer"
    patterns = ["*.json", "vocab.txt"] + (["*.safetensors"] if options.bert else [])
    return read_wordpiece(find_folder(name, what, patterns))
