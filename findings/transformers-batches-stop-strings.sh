#!/usr/bin/env bash
# transformers 5.23.0: generate_batch (continuous batching) takes a GenerationConfig and leaves out some of it without a
# word: with stop_strings each reply goes on to max_new_tokens, and with num_beams the search is greedy. The documents of
# GenerationConfig promise both, and those of generate_batch do not take them back. Of logits processors that it leaves
# out, such as that of repetition_penalty, it does warn. What a request to "transformers serve --continuous-batching"
# has as "stop" is put into stop_strings, too. Replies that should end at a line break or at "User:" go on past it.
# Instead: cut each reply at its stop string afterwards, or end it at a token by eos_token_id, which holds in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6 accelerate==1.15.0 \
    psutil==7.2.2
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
venv/bin/python - <<'PYTHON'
import logging
import sys
import warnings
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=256)
).eval()
signs = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
made = Tokenizer(models.BPE(signs, []))
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
prompt = tokenizer("a dog").input_ids
small = ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=64)
lines = []


class Kept(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())


for name in ("transformers", "ContinuousBatchingLogger"):
    logging.getLogger(name).addHandler(Kept())
warnings.showwarning = lambda message, *more: lines.append(str(message))


def replies(**settings):
    """The reply of generate, that of generate_batch, and whether the latter said anything of the settings."""
    config = GenerationConfig(**{"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 255} | settings)
    ids = torch.tensor([prompt])
    alone = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, tokenizer=tokenizer)
    lines.clear()
    (batched,) = model.generate_batch([prompt], config, small, warmup=False).values()
    assert batched.error is None, batched.error
    told = [line for line in lines if any(word in line.lower() for word in ("stop", "beam", "penalty"))]
    return alone[0, len(prompt) :].tolist(), batched.generated_tokens, told


greedy, batched, _ = replies()
print(f"no settings: generate {greedy}, generate_batch {batched}")
seen = greedy == batched and len(greedy) == 8
cases = {
    "stop_strings": ({"stop_strings": tokenizer.decode(greedy[2])}, greedy[:3]),
    "num_beams": ({"num_beams": 4}, None),
}
for name, (settings, expected) in cases.items():
    alone, batched, told = replies(**settings)
    print(f"{name}: expected {alone}, seen {batched}, and log lines of it: {told}")
    seen &= alone != greedy and expected in (alone, None) and batched == greedy and not told
alone, batched, told = replies(eos_token_id=greedy[2])
print(f"eos_token_id: expected {alone}, seen {batched}")
seen &= alone == batched == greedy[:3]
_, _, told = replies(repetition_penalty=5.0)
print(f"repetition_penalty: log lines of it: {told}")
seen &= bool(told)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
