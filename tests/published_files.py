"""A tiny network's weights in the files and under the names in which the originals publish theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.inference.bot import MiniChat
from minichat.weights.key_map import EVA_VIT, MINIGPT4, KeyMap
from tests.tiny import tiny_bot, tokenizer_model

VIT, QFORMER, PROJECTION, LLM = "eva_vit.pth", "blip2.pth", "minigpt4.pth", "llm"


def their_names(keys: KeyMap, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names that `keys` reads."""
    theirs = {}
    for pattern, ours in keys.used.items():
        if ours.endswith("]"):
            continue
        wanted = re.compile(re.escape(ours).replace(r"\#", r"(\d+)"))
        for name, tensor in state.items():
            if found := wanted.fullmatch(name):
                theirs[pattern.replace("#", found[1]) if found.groups() else pattern] = tensor.clone()
    return theirs


def vision_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision encoder as EVA publishes it: one block more, and its own end."""
    vit = their_names(EVA_VIT, state)
    width = vit["cls_token"].shape[-1]
    layers = sum(name.endswith("attn.qkv.weight") for name in vit)
    for number in range(layers):
        bias = state[f"vision_model.encoder.layers.{number}.self_attn.qkv.bias"]
        vit[f"blocks.{number}.attn.q_bias"], _, vit[f"blocks.{number}.attn.v_bias"] = (b.clone() for b in bias.chunk(3))
    last = {name: tensor.clone() for name, tensor in vit.items() if name.startswith(f"blocks.{layers - 1}.")}
    vit |= {name.replace(f".{layers - 1}.", f".{layers}.", 1): tensor for name, tensor in last.items()}
    return vit | {
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
        "head.weight": torch.ones(3, width),
    }


def publish(folder: Path, kind: str = "qformer", seed: int = 0) -> MiniChat:
    """Write the files of a random bot, whose key biases are zero as EVA's are; returns the bot."""
    bot = tiny_bot("vicuna-v0" if kind == "qformer" else "llama2", kind, seed)
    with torch.no_grad():
        for name, tensor in bot.model.named_parameters():
            if name.endswith("qkv.bias"):
                width = tensor.shape[0] // 3
                tensor.normal_()
                tensor[width : 2 * width] = 0
    state = {name: tensor.detach() for name, tensor in bot.model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(vision_file(state), folder / VIT)
    bridge = their_names(MINIGPT4, state)
    projection = {name: bridge.pop(name) for name in list(bridge) if name.startswith("llama_proj.")}
    if kind == "qformer":
        unused = {"t5_proj.weight": torch.ones(2, 2), "Qformer.bert.embeddings.position_ids": torch.arange(4)[None]}
        torch.save({"model": bridge | unused}, folder / QFORMER)
    run: dict[str, Any] = {"optimizer": {"state": {}}, "config": {"model": {"arch": "minigpt4"}}, "epoch": 3}
    torch.save({"model": projection, **run}, folder / PROJECTION)
    bot.model.language_model.save_pretrained(folder / LLM)
    (folder / LLM / "tokenizer.model").write_bytes(tokenizer_model())
    return bot


def publish_blip2(bot: MiniChat, folder: Path) -> set[str]:
    """Write a Hugging Face BLIP-2 in shards with the bot's vision side, as far as it has one, and an LLM of its own.

    Returns the files that hold nothing but the LLM and the projection to it.
    """
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    parts = bot.model.config
    qformer = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if parts.bridge_config.kind == "qformer":
        qformer = parts.bridge_config.qformer.to_dict()
    config = Blip2Config(
        vision_config=parts.vision_config.to_dict(),
        qformer_config={**qformer, "encoder_hidden_size": parts.vision_config.hidden_size},
        text_config={"model_type": "opt", "vocab_size": 20, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "word_embed_proj_dim": 16},
        num_query_tokens=4,
    )
    blip2 = Blip2ForConditionalGeneration(config)
    state = {n: t for n, t in bot.model.state_dict().items() if not n.startswith(("language_model.", "projection."))}
    renamed = {
        n.replace("bridge.ln_vision", "vision_model.post_layernorm").replace("bridge.", ""): t for n, t in state.items()
    }
    # Its LLM and projection are as they were made, and a Q-Former where the bot has none.
    assert not blip2.load_state_dict(renamed, strict=False).unexpected_keys
    blip2.save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith(("vision_model", "qformer", "query_tokens"))}
    return set(index.values()) - needed


def publish_pickled(bot: MiniChat, folder: Path) -> None:
    """Write the bot's LLM as MiniGPT-4 publishes Vicuna: pickles in shards, with buffers, and wrong control ids."""
    bot.model.language_model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    (folder / "model.safetensors").unlink()
    state = dict(bot.model.language_model.state_dict())
    state |= {f"model.layers.{number}.self_attn.rotary_emb.inv_freq": torch.ones(10) for number in range(2)}
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, held in shards.items():
        torch.save({name: state[name].clone() for name in held}, folder / file)
    index = {name: file for file, held in shards.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("config.json", "generation_config.json"):
        wrong = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **wrong}))


def arguments(folder: Path, kind: str = "qformer") -> dict[str, Any]:
    """What `convert` takes for the files that `publish` wrote."""
    return {
        "vit": folder / VIT,
        "qformer": folder / QFORMER if kind == "qformer" else None,
        "projection": folder / PROJECTION,
        "llm": str(folder / LLM),
        "template": "vicuna-v0" if kind == "qformer" else "llama2",
        "vision_heads": 2,
        "qformer_heads": 2 if kind == "qformer" else None,
    }
