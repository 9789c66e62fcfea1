#!/usr/bin/env bash
# peft 0.21.2: a name in modules_to_save stands for every module whose name ends in these letters, also within a word:
# "norm" is every input_layernorm and post_attention_layernorm, "head" is lm_head, and "projection" would be a
# vision_projection, too. Names in target_modules of the same configuration are whole words between dots, and one that
# fits none is an error. So more trains, and is saved, than was named: here 5 modules for the one called norm.
# Instead: give a name with what stands before it ("model.norm"), and look at print_trainable_parameters().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6 accelerate==1.15.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), sep="\n  ")


def adapted(**more):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)), LoraConfig(r=4, **more))


def saved(name):
    """The modules of the LLM that are saved beside LoRA's matrices."""
    adapted(target_modules=["q_proj"], modules_to_save=[name]).save_pretrained("adapter")
    with safe_open("adapter/adapter_model.safetensors", "pt") as file:
        return sorted(key.removeprefix("base_model.model.") for key in file.keys() if "lora_" not in key)


def refused(name):
    """Whether a name that is part of a word alone fits no module in target_modules."""
    try:
        adapted(target_modules=[name])
    except ValueError:
        return True
    return False


norm, whole, head = saved("norm"), saved("model.norm"), saved("head")
print('expected: modules_to_save=["norm"] is the module model.norm, as it would be in target_modules')
print(f"seen, norm: {norm}\nseen, model.norm: {whole}\nseen, head: {head}")
print(f'seen, target_modules=["proj"], a part of q_proj: refused: {refused("proj")}')
seen = len(norm) == 5 and whole == ["model.norm.weight"] and head == ["lm_head.weight"] and refused("proj")
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
