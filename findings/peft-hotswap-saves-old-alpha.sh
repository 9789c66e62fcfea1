#!/usr/bin/env bash
# peft 0.21.2: hotswap_adapter takes an adapter with another lora_alpha (its docstring promises an error) and computes
# with the new alpha, but leaves the old one in the model's config. save_pretrained then writes the new weights with
# the old lora_alpha, so that the saved adapter is loaded at another strength: here an eighth of the right one.
# A vision chatbot that swaps adapters by task and saves one passes every check before the save and is wrong after it.
# Instead: set model.peft_config[name].lora_alpha to the new adapter's after the swap.
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
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaConfig, LlamaForCausalLM

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), sep="\n  ")


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        )
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(10)[None]).logits


def alpha(folder):
    return json.loads(Path(folder, "adapter_config.json").read_text())["lora_alpha"]


for folder, strength in (("old", 8), ("new", 64)):
    config = LoraConfig(r=4, lora_alpha=strength, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base(), config).save_pretrained(folder)
right = logits(PeftModel.from_pretrained(base(), "new"))
model = PeftModel.from_pretrained(base(), "old")
hotswap_adapter(model, "new", adapter_name="default", torch_device="cpu")
swapped = (logits(model) - right).abs().max().item()
model.save_pretrained("saved")
saved = (logits(PeftModel.from_pretrained(base(), "saved")) - right).abs().max().item()
model.peft_config["default"].lora_alpha = 64
model.save_pretrained("mended")
mended = (logits(PeftModel.from_pretrained(base(), "mended")) - right).abs().max().item()
print("expected: lora_alpha 64 in the saved adapter, and logits that differ by 0.0 from the new adapter's")
print(f"seen after the swap: logits differ by {swapped:.4f}")
print(f"seen saved and loaded: lora_alpha {alpha('saved')}, logits differ by {saved:.4f}")
print(f"seen with lora_alpha set by hand: lora_alpha {alpha('mended')}, logits differ by {mended:.4f}")
seen = swapped < 1e-5 and alpha("saved") == 8 and saved > 0.01 and mended < 1e-5
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
