#!/usr/bin/env bash
# transformers 5.23.0: generate(new_ids, past_key_values=cache) with only the new turn's ids and no attention_mask
# takes these ids for the whole conversation and cuts as many off their front as the cache holds. With 8 tokens cached
# and 12 new ones, 4 are read, and an answer to the last third of the question comes back without a warning.
# A chatbot about a picture keeps the picture in the cache and sends each new turn: a turn longer than the cache is cut,
# a shorter one is a reshape error that does not name the cause.
# Instead: pass an attention_mask of the length of cache and new ids together, or pass the ids of the whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )
).eval()
for weight in model.parameters():
    if weight.ndim == 2:
        torch.nn.init.normal_(weight, std=0.3)
ids = torch.randint(1, 64, (1, 20))
read = []  # the number of tokens in each pass
model.model.embed_tokens.register_forward_hook(lambda module, given, made: read.append(given[0].shape[1]))


def answer(given, **more):
    read.clear()
    made = model.generate(given, max_new_tokens=8, do_sample=False, **more)[0, given.shape[1] :].tolist()
    return read[0], made


def cache(old):
    held = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :old], past_key_values=held)
    return held


_, right = answer(ids)
cut = answer(ids[:, 8:], past_key_values=cache(8))
masked = answer(ids[:, 8:], past_key_values=cache(8), attention_mask=torch.ones(1, 20, dtype=torch.long))
whole = answer(ids, past_key_values=cache(8))
try:
    short = f"{answer(ids[:, 15:], past_key_values=cache(15))}"
except RuntimeError as error:
    short = f"RuntimeError: {str(error)[:60]}..."
print("expected: 12 new tokens read; the answer to the whole:", right)
print("seen, new ids alone:           read", *cut)
print("seen, with the attention_mask: read", *masked)
print("seen, with the whole ids:      read", *whole)
print("seen, 5 new ids after 15:      ", short)
seen = cut[0] == 4 and cut[1] != right and masked == (12, right) and whole == (12, right)
seen = seen and short.startswith("RuntimeError")
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
