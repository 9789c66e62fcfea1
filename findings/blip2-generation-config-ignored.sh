#!/usr/bin/env bash
# transformers 5.23.0: Blip2ForConditionalGeneration and InstructBlipForConditionalGeneration read a folder's
# generation_config.json into model.generation_config, and their generate never looks at it: they hand over to the LLM
# inside, which has one of its own, made of text_config. So the length, the stop tokens and the suppressed tokens of the
# file, or set on the model, do not hold: here a reply runs past its stop token to the default length. LLaVA's generate
# keeps to its file. The only sign is the notice that a default max_length is used, where the file has a length.
# Instead: model.language_model.generation_config = model.generation_config after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=warning HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")
SLOT, SLOTS = 63, 4  # the token that stands for a picture, and how many of it
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
eyes = dict(size, image_size=28, patch_size=14)
words = dict(size, vocab_size=64, bos_token_id=1, eos_token_id=None, pad_token_id=0)


def blip(kind):
    queries = dict(size, vocab_size=40, encoder_hidden_size=32)
    text = dict(words, model_type="llama")
    return kind(
        vision_config=eyes, qformer_config=queries, text_config=text, num_query_tokens=SLOTS, image_token_index=SLOT
    )


models = {
    "LLaVA": LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(**eyes), text_config=LlamaConfig(**words), image_token_id=SLOT)
    ),
    "BLIP-2": Blip2ForConditionalGeneration(blip(Blip2Config)),
    "InstructBLIP": InstructBlipForConditionalGeneration(blip(InstructBlipConfig)),
}
seen = True
for name, model in models.items():
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    given = dict(input_ids=torch.tensor([[SLOT] * SLOTS + [1, 5, 6, 7]]), pixel_values=torch.ones(1, 3, 28, 28))
    if name == "InstructBLIP":
        given |= dict(qformer_input_ids=torch.tensor([[3, 4]]), qformer_attention_mask=torch.tensor([[1, 1]]))

    def reply(model, **more):
        """The ids after the prompt."""
        return model.generate(**given, **more)[0, SLOTS + 4 :].tolist()

    free = reply(model.eval())
    for settings in ({"max_new_tokens": 5}, {"eos_token_id": free[2]}, {"suppress_tokens": free[:1]}):
        model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, **settings)
        model.save_pretrained(name)
        loaded = type(model).from_pretrained(name).eval()
        ((key, value),) = settings.items()
        right, plain = reply(loaded, generation_config=loaded.generation_config), reply(loaded)
        print(f"{name}, generation_config.json with {settings}:\n  expected {right}\n  seen     {plain}")
        seen &= getattr(loaded.generation_config, key) == value and right != free
        seen &= plain == (right if name == "LLaVA" else free)
        if name != "LLaVA":
            loaded.language_model.generation_config = loaded.generation_config
            seen &= reply(loaded) == right
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
