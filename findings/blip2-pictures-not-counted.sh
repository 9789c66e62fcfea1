#!/usr/bin/env bash
# transformers 5.23.0: neither Blip2Processor nor Blip2ForConditionalGeneration (forward, loss and generate) counts
# pictures. Those beyond the texts are encoded and dropped, and the rest go to the texts in order: with two pictures for
# the first question and one for the second, the second is answered about the first one's other picture. One question
# about two pictures is answered about one. A processor with fewer num_query_tokens than the model has gives every
# row but the first what is left of the row before. Nothing is raised or logged. LLaVA compares and refuses.
# Training on records of which some have several pictures then pairs answers with the pictures of others.
# Instead: compare len(images) with len(text), and processor.num_query_tokens with model.config.num_query_tokens.
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
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "pillow")), sep="\n  ")
words = {word: number for number, word in enumerate("<unk> <pad> what is this here".split())}
made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", padding_side="left")
pixels = BlipImageProcessor(size={"height": 28, "width": 28})
processor, fewer = (Blip2Processor(pixels, tokenizer, num_query_tokens=number) for number in (4, 3))
slot = tokenizer.convert_tokens_to_ids("<image>")
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
eyes, text = dict(size, image_size=28, patch_size=14), dict(size, vocab_size=16, pad_token_id=1)
blip2 = Blip2ForConditionalGeneration(
    Blip2Config(
        vision_config=eyes, qformer_config=dict(size, vocab_size=16, encoder_hidden_size=32),
        text_config=dict(text, model_type="llama"), num_query_tokens=4, image_token_index=slot,
    )
)
llava = LlavaForConditionalGeneration(
    LlavaConfig(vision_config=CLIPVisionConfig(**eyes), text_config=LlamaConfig(**text), image_token_id=slot)
)
for model in (blip2, llava):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.eval().parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)


def read(model, images, texts, processor=processor):
    """The logits of each text's last token, as forward gives them, and as generate does for its first token."""
    given = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = model(**given).logits[:, -1]
    first = model.generate(**given, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    return whole, first


def same(one, other):
    return torch.allclose(one, other, atol=1e-4)


first, second, other = (Image.new("RGB", (28, 28), colour) for colour in ("red", "green", "blue"))
both = ["what is here", "what is this"]
rows = {name: read(blip2, pictures, both) for name, pictures in
        (("right", [first, other]), ("moved", [first, second]), ("given", [first, second, other]))}
right, moved = ([same(given[1], wanted[1]) for given, wanted in zip(rows["given"], rows[name])] for name in
                ("right", "moved"))
print("pictures red and green for the first question, blue for the second, in forward and generate")
print("  expected: an error, or the second answered as about blue")
print(f"  seen: as about blue {right}, as about green {moved}")
two, one = (read(blip2, pictures, both[:1]) for pictures in ([first, second], [first]))
alone = [same(*pair) for pair in zip(two, one)]
print(f"one question about red and green\n  expected: an error\n  seen: answered as about red alone {alone}")
pairs = [read(blip2, pictures, both, fewer) for pictures in ([first, other], [second, other])]
mixed = [not same(*(pair[at][1] for pair in pairs)) for at in (0, 1)]
print("three slots for four queries: expected: an error, or nothing of the first picture in the second row")
print(f"  seen: another first picture changes the second row's logits {mixed}")
try:
    read(llava, [first, second, other], both)
    refused = "nothing raised"
except ValueError as error:
    refused = str(error)
print(f"LLaVA, three pictures for two questions\n  seen: {refused}")
seen = right == [False, False] and moved == alone == mixed == [True, True] and "do not match" in refused
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
