#!/usr/bin/env bash
# datasets 5.2.0: to_parquet of an imagefolder data set writes the path of each picture and none of its bytes. The file
# reads well where it was written. Copied elsewhere, or once the folder has moved,
# it has captions without pictures, and the error comes only when a picture is first decoded.
# A user who ships or archives pictures with their captions as one Parquet file finds the loss when it is too late.
# Instead: embed first, data.with_format("arrow").map(embed_table_storage, batched=True) (from datasets.table).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet
from datasets import load_dataset
from datasets.table import embed_table_storage
from PIL import Image

print("versions:", *(f"{name} {version(name)}" for name in ("datasets", "pyarrow")), sep="\n  ")
Path("pictures").mkdir()
Image.new("RGB", (8, 8), (200, 0, 0)).save("pictures/0.png")
Path("pictures/metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a red square"}) + "\n")
data = load_dataset("imagefolder", data_dir="pictures", split="train")
data.to_parquet("plain.parquet")
data.with_format("arrow").map(embed_table_storage, batched=True).to_parquet("embedded.parquet")
Path("pictures").rename("moved")


def look(name):
    held = pyarrow.parquet.read_table(name)["image"][0].as_py()["bytes"]
    try:
        picture = load_dataset("parquet", data_files=name, split="train")[0]["image"]
        opened = f"a picture of {picture.size}"
    except FileNotFoundError as error:
        opened = type(error).__name__
    print(f"seen, {name}: {len(held or b'')} bytes of the picture; read after the folder moved: {opened}")
    return held is not None, opened


print("expected: the bytes of the picture in both, and a picture of (8, 8) read from both")
seen = look("plain.parquet") == (False, "FileNotFoundError")
seen &= look("embedded.parquet") == (True, "a picture of (8, 8)")
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
