#!/usr/bin/env bash
# peft 0.21.2: where two patterns of alpha_pattern fit a module, the first of the dictionary holds; save_pretrained
# writes adapter_config.json with sorted keys, so in the file another one may be first. What is loaded then adds its
# matrices at another strength than was trained, without a word: here the vision tower's at eight times its own.
# Patterns that say "the vision tower gently, all else as usual" are such, since "vision_tower" sorts after "q_proj".
# rank_pattern is read alike; there the adapter that was just saved cannot be loaded, for its shapes do not fit.
# Instead: write patterns of which one fits each module, or in the order of the alphabet, before training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6 accelerate==1.15.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), sep="\n  ")


def base():
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    eyes = CLIPVisionConfig(image_size=28, patch_size=14, **size)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eyes, text_config=LlamaConfig(vocab_size=64, **size), image_token_id=63)
    )


def strengths(model):
    """The scalings in the two parts of the model."""
    layers = {name: layer.scaling["default"] for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    return {part: {scale for name, scale in layers.items() if part in name} for part in ("vision_tower", "language_model")}


def logits(model):
    ids = torch.tensor([[63, 63, 63, 63, 1, 2, 3]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=torch.ones(1, 3, 28, 28)).logits


def adapted(folder, **more):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more)
    model = get_peft_model(base(), config)
    model.save_pretrained(folder)
    return model


def compared(name, patterns):
    """The strengths in training and after loading, and by how much the logits differ."""
    trained = adapted(name, alpha_pattern=patterns)
    loaded = PeftModel.from_pretrained(base(), name)
    stored = list(json.loads(Path(name, "adapter_config.json").read_text())["alpha_pattern"])
    apart = (logits(loaded) - logits(trained)).abs().max().item()
    print(f"patterns {[*patterns]}, in the file {stored}")
    print(f"  expected {strengths(trained)}, seen {strengths(loaded)}; logits differ by {apart:.4f}")
    return strengths(trained), strengths(loaded), apart


gentle, usual = "vision_tower.*", "[qv]_proj"
trained, loaded, apart = compared("gentle-first", {gentle: 4, usual: 32})
seen = trained == {"vision_tower": {1.0}, "language_model": {8.0}} and apart > 0.001
seen &= loaded == {"vision_tower": {8.0}, "language_model": {8.0}}
trained, loaded, apart = compared("apart", {gentle: 4, "language_model.*": 32})
seen &= trained == loaded == {"vision_tower": {1.0}, "language_model": {8.0}} and apart == 0
adapted("ranks", rank_pattern={gentle: 2, usual: 8})
try:
    PeftModel.from_pretrained(base(), "ranks")
    refused = "nothing"
except RuntimeError as error:
    refused = "a size mismatch" if "size mismatch" in str(error) else str(error)
print(f"the same with rank_pattern: expected nothing raised, seen {refused}")
seen &= refused == "a size mismatch"
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
