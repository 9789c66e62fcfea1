#!/usr/bin/env bash
# datasets 5.2.0: the metadata of an imagefolder may name several pictures a record, in "file_name" and in columns that end
# in "_file_name" (or "file_names", "_file_names"); its error message lists these and asks for no order. But each column
# of pictures takes what "file_name" says as long as it is there, and only then its own: in metadata.csv with
# "mask_file_name" before "file_name" the mask of each record is the photo, the image is None, and the mask's file is
# not read. The same holds for metadata.jsonl. There is no error and no warning, and a model learns from wrong pictures.
# Instead: put file_name before all others, or call it image_file_name, which gives the same column "image".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PYTHON'
import csv
import json
import sys
from importlib.metadata import version
from pathlib import Path

from datasets import load_dataset
from PIL import Image

print("versions:", *(f"{name} {version(name)}" for name in ("datasets", "pandas", "pillow")), sep="\n  ")
colours = {"photo.png": "red", "mask.png": "blue"}
names = {(255, 0, 0): "the photo", (0, 0, 255): "the mask"}
values = {"file_name": "photo.png", "image_file_name": "photo.png", "mask_file_name": "mask.png", "caption": "a dog"}


def read(kind, *columns):
    """What the one record has, from metadata of the kind with the columns in that order."""
    folder = Path("-".join([kind, *columns]))
    folder.mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (8, 8), colour).save(folder / name)
    record = {column: values[column] for column in columns}
    with (folder / f"metadata.{kind}").open("w", newline="") as file:
        if kind == "csv":
            csv.writer(file).writerows([record.keys(), record.values()])
        else:
            file.write(json.dumps(record) + "\n")
    (found,) = load_dataset("imagefolder", data_dir=str(folder), split="train")
    shown = {name: names[found[name].getpixel((0, 0))] if found[name] else None for name in ("image", "mask")}
    print(f"metadata.{kind} with {', '.join(columns)}: seen {shown}")
    return shown


expected = {"image": "the photo", "mask": "the mask"}
print("expected of each:", expected)
wrong = {"image": None, "mask": "the photo"}
seen = all(read(kind, "mask_file_name", "file_name", "caption") == wrong for kind in ("csv", "jsonl"))
seen &= read("csv", "file_name", "mask_file_name", "caption") == expected
seen &= read("csv", "mask_file_name", "image_file_name", "caption") == expected
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
