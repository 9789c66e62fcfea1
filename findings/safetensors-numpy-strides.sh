#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy.save and save_file read an array's memory from its first byte on, whatever its
# strides. A transposed array, or every other column of one, is stored with the right shape and other numbers, without an
# error or a warning (the docstring asks for contiguous arrays and nothing checks it; safetensors.torch refuses them).
# Features of pictures that were transposed to (pictures, width), and weights that were turned for another framework, are
# then scrambled in their file: the norm of a transposed array is even the right one.
# Instead: numpy.ascontiguousarray(array) of all that is saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy
from safetensors.numpy import load, load_file, save, save_file

print("versions:", *(f"{name} {version(name)}" for name in ("safetensors", "numpy")), sep="\n  ")
whole = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
arrays = {"whole": whole, "transposed": whole.T, "every other column": whole[:, ::2]}
print("expected: what is read is what was saved, or an error")
seen = {}
for name, array in arrays.items():
    save_file({"it": array}, "it.safetensors")
    read, again = load_file("it.safetensors")["it"], load(save({"it": array}))["it"]
    same = numpy.array_equal(read, array)
    print(f"seen, {name}: shape {read.shape} of {array.shape}, the same numbers: {same}")
    print(f"  saved {array.tolist()}\n  read  {read.tolist()}")
    seen[name] = read.shape == array.shape and numpy.array_equal(read, again) and same
    mended = numpy.ascontiguousarray(array)
    save_file({"it": mended}, "it.safetensors")
    seen[f"{name}, contiguous"] = numpy.array_equal(load_file("it.safetensors")["it"], array)
wrong = sorted(name for name, right in seen.items() if not right)
described = wrong == ["every other column", "transposed"]
print("as described" if described else "CHANGED")
sys.exit(not described)
PYTHON
