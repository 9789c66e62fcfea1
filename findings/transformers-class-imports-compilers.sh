#!/usr/bin/env bash
# transformers 5.23.0: to name PreTrainedModel, which every network needs, is to import PyTorch's compilers and its
# distributed tensors, though nothing is compiled or distributed. integrations/flash_attention.py takes a class for a type
# from the continuous batching engine, which brings torch._dynamo and torch._inductor; loading imports DTensor. `import
# transformers` itself is quick, since its names are imported when they are asked for, so that this time seems to be that
# of the model. It is as long as `import torch`, or longer.
# A command that captions one picture with a small model spends more time on this than on the picture.
# Instead: nothing that is public; keep the process, or import it while something else is waited for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
cat > look.py <<'PYTHON'
import json
import sys
import time

begun = time.process_time()
import torch  # noqa: F401

torch_alone = time.process_time()
import transformers

named = time.process_time()
before = set(sys.modules)
transformers.PreTrainedModel
ended = time.process_time()
new = sorted(set(sys.modules) - before)
print(json.dumps({"torch": torch_alone - begun, "transformers": named - torch_alone, "class": ended - named, "new": new}))
PYTHON
venv/bin/python look.py > /dev/null  # once, so that what Python compiles is on the disk
venv/bin/python look.py > seen.json
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers")), sep="\n  ")
with open("seen.json") as file:
    seen = json.load(file)
print(f"import torch {seen['torch']:.2f} s, import transformers {seen['transformers']:.2f} s (of the processor)")
print(f"then transformers.PreTrainedModel {seen['class']:.2f} s, and {len(seen['new'])} modules more")
unasked = (
    "transformers.generation.continuous_batching",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "sympy",
)
for name in unasked:
    print(f"{name}: expected not to be imported, seen {'imported' if name in seen['new'] else 'not imported'}")
described = all(name in seen["new"] for name in unasked)
print("as described" if described else "CHANGED")
sys.exit(not described)
PYTHON
