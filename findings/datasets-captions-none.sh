#!/usr/bin/env bash
# datasets 5.2.0: a caption in metadata.csv that is one of the words "None", "NA", "null", "nan" or "n/a" is read as
# no caption at all, since the imagefolder loader leaves pandas' list of words for missing values switched on.
# Answers to questions about pictures are often such words ("How many dogs are there?" "None"): these pairs reach the
# trainer without their answer, or are dropped by a filter for empty ones, and nothing says so.
# Instead: write metadata.jsonl, where such words stay words, or read the CSV with keep_default_na=False.
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

from datasets import load_dataset
from PIL import Image

print("versions:", *(f"{name} {version(name)}" for name in ("datasets", "pandas", "pyarrow")), sep="\n  ")
captions = ["a sign that says None", "None", "NA", "null", "nan", "n/a"]


def read(name, text):
    folder = Path(name)
    folder.mkdir()
    for number in range(len(captions)):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / f"metadata.{name}").write_text(text)
    return load_dataset("imagefolder", data_dir=name, split="train")["text"][:]


rows = [{"file_name": f"{number}.png", "text": caption} for number, caption in enumerate(captions)]
csv = read("csv", "file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
jsonl = read("jsonl", "".join(json.dumps(row) + "\n" for row in rows))
print("expected from both:   ", captions)
print("seen, metadata.csv:   ", csv)
print("seen, metadata.jsonl: ", jsonl)
seen = csv == captions[:1] + [None] * 5 and jsonl == captions
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
