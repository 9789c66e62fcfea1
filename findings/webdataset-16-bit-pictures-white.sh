#!/usr/bin/env bash
# webdataset 1.0.2 with Pillow 12.3.0: a PNG of 16 bits, such as an X-ray or a depth map, that TarWriter wrote as it is
# comes back from decode("pil") (and "rgb", "l", "rgb8", …) in 8 bits, each value cut off at 255 rather than scaled:
# all that is brighter than 255 of 65535 is white. There is no error and no warning, and a model learns from white
# pictures. (It is Pillow's convert("RGB") of a picture of the mode I;16, which other readers call, too.)
# Instead: decode such pictures by a function of one's own that divides by 256 before it converts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q webdataset==1.0.2 pillow==12.3.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import sys
from importlib.metadata import version

import numpy
import webdataset
from PIL import Image

print("versions:", *(f"{name} {version(name)}" for name in ("webdataset", "pillow", "numpy")), sep="\n  ")
values = numpy.array([[0, 200, 256, 1000, 30000, 65535]], dtype=numpy.uint16)
with webdataset.TarWriter("pictures.tar") as tar:
    tar.write({"__key__": "scan", "png": Image.fromarray(values)})


def picture(*how):
    data = webdataset.WebDataset("pictures.tar", shardshuffle=False)
    (sample,) = data.decode(*how) if how else data
    return sample["png"]


stored = Image.open(io.BytesIO(picture()))
kept = numpy.array_equal(numpy.asarray(stored), values)
read = {how: numpy.asarray(picture(how))[0].reshape(6, -1)[:, 0].tolist() for how in ("pil", "l8", "rgb8")}
print(f"expected: about {(values[0] // 256).tolist()}, or an error")
print(f"stored: mode {stored.mode}, with the values that were written: {kept}")
for how, found in read.items():
    print(f'seen, decode("{how}"): {found}')
seen = kept and stored.mode == "I;16" and all(found == [0, 200, 255, 255, 255, 255] for found in read.values())
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
