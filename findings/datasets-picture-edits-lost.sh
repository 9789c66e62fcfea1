#!/usr/bin/env bash
# datasets 5.2.0: a PIL picture that was opened from a file and then changed in place (thumbnail, paste, ImageDraw) is
# stored as the path of that file, so the change is lost: encode_pil_image looks at picture.filename, which Pillow
# leaves as it was. The same happens in map(), whose examples are opened from their paths.
# Pictures that were made smaller, or whose faces were painted over, come back whole in training and in what is shared.
# Instead: store picture.copy(), or the result of resize(), crop() or convert(), none of which has a file name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

from datasets import Dataset, Image
from PIL import Image as Pillow
from PIL import ImageDraw

print("versions:", *(f"{name} {version(name)}" for name in ("datasets", "pillow")), sep="\n  ")
red, blue = (200, 0, 0), (0, 0, 200)
Pillow.new("RGB", (64, 64), red).save("red.png")


def smaller(picture):
    picture.thumbnail((8, 8))
    return picture


def painted(picture):
    ImageDraw.Draw(picture).rectangle((0, 0, 64, 64), fill=blue)
    return picture


def look(data):
    picture = data[0]["image"]
    return picture.size, picture.getpixel((1, 1))


def stored(change, copied=False):
    picture = change(Pillow.open("red.png"))
    return look(Dataset.from_dict({"image": [picture.copy() if copied else picture]}))


def mapped(change):
    data = Dataset.from_dict({"image": ["red.png"]}).cast_column("image", Image())
    return look(data.map(lambda row: {"image": change(row["image"])}))


whole, small, covered = ((64, 64), red), ((8, 8), red), ((64, 64), blue)
print("expected: made smaller", small, "painted", covered)
made, drawn = stored(smaller), stored(painted)
print("seen, from_dict:            made smaller", made, "painted", drawn)
also_made, also_drawn = mapped(smaller), mapped(painted)
print("seen, map:                  made smaller", also_made, "painted", also_drawn)
copies = stored(smaller, copied=True), stored(painted, copied=True)
print("seen, from_dict of copies:  made smaller", copies[0], "painted", copies[1])
seen = made == drawn == also_made == also_drawn == whole and copies == (small, covered)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
