#!/usr/bin/env bash
# transformers 5.23.0: InstructBlipProcessor hands the padding_side of the LLM's tokenizer to the Q-Former's tokenizer
# as well, whose own padding_side is ignored. An LLM that generates is padded on the left, so the Q-Former's words are,
# too; its positions are learned and counted from the first column, pads included, so a question that shares
# its batch with a longer one stands at other positions, and the queries read another picture.
# The same question about the same picture gets another answer by what else is in the batch, without a warning.
# Instead: tokenise for the Q-Former apart, processor.qformer_tokenizer(texts, padding=True), or ask one by one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipImageProcessor,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    PreTrainedTokenizerFast,
)

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")


def tokenizer(side):
    words = "<unk> <pad> what is this how many dogs are there".split()
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", padding_side=side)


torch.manual_seed(0)
qformer = InstructBlipQFormerModel(
    InstructBlipQFormerConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        encoder_hidden_size=32, initializer_range=0.3,
    )
).eval()
queries, patches = torch.randn(1, 2, 32), torch.randn(1, 5, 32)


def look(ids, mask):
    """What the two queries of the first row read in the picture, (2, 32)."""
    rows = len(ids)
    mask = torch.cat([torch.ones(rows, 2, dtype=torch.long), mask], dim=1)
    with torch.no_grad():
        return qformer(
            input_ids=ids, attention_mask=mask, query_embeds=queries.expand(rows, -1, -1),
            encoder_hidden_states=patches.expand(rows, -1, -1),
        ).last_hidden_state[0, :2]


processor = InstructBlipProcessor(BlipImageProcessor(), tokenizer("left"), tokenizer("right"), num_query_tokens=2)
texts = ["what is this", "how many dogs are there"]
alone = processor(text=texts[:1], return_tensors="pt")
batch = processor(text=texts, padding=True, return_tensors="pt")
apart = processor.qformer_tokenizer(texts, padding=True, return_tensors="pt")
right = look(alone["qformer_input_ids"], alone["qformer_attention_mask"])
moved = (look(batch["qformer_input_ids"], batch["qformer_attention_mask"]) - right).abs().max().item()
kept = (look(apart["input_ids"], apart["attention_mask"]) - right).abs().max().item()
print("expected: the Q-Former's own side (right), [2, 3, 4, 1, 1], and queries as for the question alone")
print(f"seen, the processor:              {batch['qformer_input_ids'][0].tolist()}, queries differ by {moved:.4f}")
print(f"seen, the Q-Former's tokenizer:   {apart['input_ids'][0].tolist()}, queries differ by {kept:.6f}")
seen = batch["qformer_input_ids"][0].tolist() == [1, 1, 2, 3, 4] and moved > 0.1 and kept < 1e-4
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
