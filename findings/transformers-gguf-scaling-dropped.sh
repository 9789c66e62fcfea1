#!/usr/bin/env bash
# transformers 5.23.0: from_pretrained(gguf_file=...) of a llama file leaves out what its tables have no name for: the
# RoPE scaling (llama.rope.scaling.type and .factor), the RoPE factors of LLaMA 3.1 and later (the tensor
# rope_freqs.weight), and the biases of the attention. The loading info reports no missing and no unexpected key.
# A long-context Vicuna, or a LLaMA 3.1, is then another model: each of the files below should give logits of its own.
# Instead: set rope_parameters (and attention_bias) from the original's config.json, or load the original.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.4.6 accelerate==1.15.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import numpy
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "gguf")), sep="\n  ")
vocabulary, hidden, inner, heads = 64, 32, 64, 4


def write(name, factor=None, frequencies=None, biases=False):
    """A LLaMA of one block; the weights are the same in all files."""
    random = numpy.random.default_rng(0)
    file = gguf.GGUFWriter(f"{name}.gguf", "llama")
    file.add_context_length(64)
    file.add_embedding_length(hidden)
    file.add_block_count(1)
    file.add_feed_forward_length(inner)
    file.add_head_count(heads)
    file.add_head_count_kv(heads)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(10000.0)
    file.add_rope_dimension_count(hidden // heads)
    file.add_vocab_size(vocabulary)
    if factor:
        file.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        file.add_rope_scaling_factor(factor)
    shapes = {"token_embd": (vocabulary, hidden), "output": (vocabulary, hidden)}
    shapes |= {f"blk.0.attn_{part}": (hidden, hidden) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (inner, hidden) for part in ("gate", "up")} | {"blk.0.ffn_down": (hidden, inner)}
    for tensor, shape in shapes.items():
        file.add_tensor(f"{tensor}.weight", 0.3 * random.standard_normal(shape).astype(numpy.float32))
    for tensor in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        file.add_tensor(f"{tensor}.weight", numpy.ones(hidden, numpy.float32))
    if frequencies:
        file.add_tensor("rope_freqs.weight", numpy.array(frequencies, numpy.float32))
    if biases:
        for part in "qkv":
            file.add_tensor(f"blk.0.attn_{part}.bias", numpy.full(hidden, 2.0, numpy.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def read(name, **more):
    model, info = AutoModelForCausalLM.from_pretrained(".", gguf_file=f"{name}.gguf", output_loading_info=True, **more)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None]).logits, sum(len(keys) for keys in info.values())


write("plain")
write("linear", factor=4.0)
write("factors", frequencies=[1, 1, 8, 8])
write("biases", biases=True)
plain, _ = read("plain")
scaled = LlamaConfig(
    vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=1,
    num_attention_heads=heads, rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
)
right = (read("linear", config=scaled)[0] - plain).abs().max().item()
print(f"expected: logits that differ from the plain file's (for linear scaling by {right:.3f}), or keys reported")
seen = right > 0.01
for name in ("linear", "factors", "biases"):
    logits, reported = read(name)
    apart = (logits - plain).abs().max().item()
    print(f"seen, {name}: logits differ by {apart:.3f}, keys reported: {reported}")
    seen &= apart == 0 and reported == 0
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
