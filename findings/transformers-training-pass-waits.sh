#!/usr/bin/env bash
# transformers 5.23.0: a training pass of a causal LLM asks the device for a value once, so on a GPU the host waits there
# until all that was queued is done, and launches nothing ahead. Without an attention_mask it looks whether the rows hold
# several packed texts; with one it looks whether all of it is ones. Neither is named in the documentation of `forward`,
# and use_cache=False changes nothing. With an empty cache in `past_key_values` the same pass asks for nothing and
# gives the same logits.
# A training loop that accumulates small batches of short dialogues loses the time between two passes.
# Instead: hand in an empty DynamicCache where rows are padded on the right, or a mask of four dimensions.
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
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")


class Asked(TorchDispatchMode):
    """Counts how often the host asks for a tensor's value: on a GPU each is a wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


torch.manual_seed(0)
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config).train()
ids = torch.randint(0, 32, (2, 8))
ways = {
    "no mask": {},
    "a mask of ones": {"attention_mask": torch.ones_like(ids)},
    "an empty cache": {"past_key_values": DynamicCache(config=config)},
}
logits, counts = {}, {}
for name, more in ways.items():
    with Asked() as asked:
        logits[name] = model(input_ids=ids, use_cache=False, **more).logits
    counts[name] = asked.count
    print(f"{name}: expected 0 values asked for, seen {asked.count}")
same = all(torch.allclose(each, logits["no mask"], atol=1e-6) for each in logits.values())
print("logits are the same:", same)
seen = same and counts == {"no mask": 1, "a mask of ones": 1, "an empty cache": 0}
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
