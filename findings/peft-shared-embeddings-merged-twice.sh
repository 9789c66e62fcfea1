#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0: where a model's input and output embeddings are one matrix, ensure_weight_tying=True
# makes their LoRA adapters one, too ("the adapters added to the tied layers are also tied"). merge_and_unload then adds
# it to that matrix once for each of the two: the merged model has twice what was trained. A warning says that there may
# be "complications", not which. It goes by the names embed_tokens and lm_head: for the same with GPT-2's "wte", as in
# a captioner of ViT and GPT-2, merging changes the output matrix that was never adapted, and no warning is given.
# Instead: before merging, give the output layer a copy of the matrix (weight = Parameter(weight.clone())), and set
# tie_word_embeddings to False in the configuration, or the saved model shares one again; or do not merge the adapter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6 accelerate==1.15.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
venv/bin/python - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    logging,
)

logging.set_verbosity_error()
print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), sep="\n  ")
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
eyes = dict(image_size=28, patch_size=14, **size)
pixels = torch.ones(1, 3, 28, 28)


def llava():
    """Of what is in Llava, with the arguments of its forward pass and the part that has the embeddings."""
    text = LlamaConfig(vocab_size=64, **size)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**eyes), text_config=text, image_token_id=63, tie_word_embeddings=True
    )
    model = LlavaForConditionalGeneration(config)
    return model, model, dict(input_ids=torch.tensor([[63, 63, 63, 63, 1, 2, 3]]), pixel_values=pixels)


def captioner():
    text = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**eyes), text))
    return model, model.decoder, dict(decoder_input_ids=torch.tensor([[1, 3, 4]]), pixel_values=pixels)


def merged(make, target, tying, parted=False):
    """How many times the adapter is in the merged input matrix, by how much logits change, and what was warned of."""
    torch.manual_seed(0)
    model, text, given = make()
    into, out = text.get_input_embeddings(), text.get_output_embeddings()
    assert into.weight is out.weight
    before = into.weight.detach().clone()
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        config = LoraConfig(target_modules=[target], init_lora_weights=False, ensure_weight_tying=tying)
        adapted = get_peft_model(model, config).eval()
        trained = adapted(**given).logits
        (delta,) = (
            module.get_delta_weight("default") for name, module in adapted.named_modules() if name.endswith("." + target)
        )
        if parted:
            out.weight = torch.nn.Parameter(out.weight.detach().clone())
            model.config.tie_word_embeddings = False
        again = adapted.merge_and_unload().eval()(**given).logits
    times = ((into.weight - before) / delta).median().item()
    apart = ((again - trained).abs().max() / torch.stack([again, trained]).abs().max()).item()
    warned = [each for each in told if "tie_word_embeddings" in str(each.message)]
    print(f"{make.__name__}, {target}, ensure_weight_tying={tying}{', with two matrices' * parted}:")
    print("  expected the adapter once, and the same logits")
    print(f"  seen {times:.2f} times; logits differ by {apart:.1%} of the largest; warnings of tying: {len(warned)}")
    return round(times, 2), apart > 0.1, bool(warned)


seen = merged(llava, "embed_tokens", True) == (2, True, True)
seen &= merged(captioner, "wte", False) == (1, True, False)
seen &= merged(llava, "embed_tokens", True, parted=True) == (1, False, False)
seen &= merged(captioner, "wte", False, parted=True) == (1, False, False)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
