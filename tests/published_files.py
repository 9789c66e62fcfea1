"""A tiny network's weights in the files and under the names in which the originals publish theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.chat import MiniChat
from minichat.weights.keys import EVA_VIT, MINIGPT4, KeyMap
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
