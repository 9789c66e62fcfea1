#!/usr/bin/env bash
# transformers 5.23.0: Blip2VisionModel takes any picture that has no more patches than the size it is made for, and
# gives the patches the first of its positions, in order. Only for the whole width does that mean the same places: a
# picture of half the width and height gets, for all its rows, the positions of the upper rows of a wide one.
# Pictures that do not divide into patches lose their right and lower edge in the same silence. CLIP's model, made of
# the same parts, refuses both with a sentence; SigLIP's refuses fewer patches, not a lost edge.
# So a processor with another size=, chosen to save time, gives captions of a scrambled picture without a warning.
# Instead: pass interpolate_pos_encoding=True, or compare height and width with config.image_size.
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
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")
torch.manual_seed(0)
size = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
)  # 4 x 4 patches
blip2 = Blip2VisionModel(Blip2VisionConfig(**size)).eval()
clip = CLIPVisionModel(CLIPVisionConfig(**size)).eval()
siglip = SiglipVisionModel(SiglipVisionConfig(**size)).eval()


def tried(model, height, width):
    with torch.no_grad():
        try:
            return f"taken, {model(torch.zeros(1, 3, height, width)).last_hidden_state.shape[1]} tokens"
        except (ValueError, RuntimeError) as error:
            return type(error).__name__


pictures = ((56, 56), (28, 28), (69, 69))
rows = {name: [tried(model, *picture) for picture in pictures] for name, model in
        (("BLIP-2", blip2), ("CLIP", clip), ("SigLIP", siglip))}
print("pictures:", *pictures, "for models of (56, 56)")
print("expected: an error for (28, 28) and (69, 69), as from CLIP:", rows["CLIP"])
print("seen, BLIP-2:", rows["BLIP-2"])
print("seen, SigLIP:", rows["SigLIP"])

# Which positions do the 2 x 2 patches of a small picture get? All patches alike, so that only the positions differ.
embeddings = blip2.embeddings
with torch.no_grad():
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.bias.zero_()
    given = embeddings(torch.zeros(1, 3, 28, 28))[0, 1:]
table = embeddings.position_embedding[0, 1:]
at = [divmod((table - patch).abs().sum(1).argmin().item(), 4) for patch in given]
print("expected: the four patches (row, column) in two rows, such as [(0, 0), (0, 2), (2, 0), (2, 2)]")
print("seen, their positions:", at)
seen = rows["BLIP-2"] == ["taken, 17 tokens", "taken, 5 tokens", "taken, 17 tokens"]
seen &= rows["CLIP"] == ["taken, 17 tokens", "ValueError", "ValueError"]
seen &= rows["SigLIP"] == ["taken, 16 tokens", "RuntimeError", "taken, 16 tokens"]
seen &= at == [(0, 0), (0, 1), (0, 2), (0, 3)]
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
