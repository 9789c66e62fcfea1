#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("webdataset") takes the columns from the first five samples of the first tar. What only
# later samples have, a further file or a further key of their .json, is left out of the whole data set, without a word.
# Question and answer that begin with the sixth picture, after five plain captions, never reach the training.
# Instead: give features= with all columns, or see to it that the first five samples have them all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PYTHON'
import io
import json
import sys
import tarfile
from importlib.metadata import version

from datasets import Features, Image, Value, load_dataset
from PIL import Image as Pillow

print("versions:", *(f"{name} {version(name)}" for name in ("datasets", "pyarrow")), sep="\n  ")


def write(name, from_sample):
    """Eight pictures with captions; from a sample on, also a question, as a key and as a file."""
    with tarfile.open(name, "w") as tar:
        for number in range(8):
            picture = io.BytesIO()
            Pillow.new("RGB", (8, 8)).save(picture, "PNG")
            more = number >= from_sample
            files = {"png": picture.getvalue(), "json": {"caption": "a star"} | ({"question": "What?"} if more else {})}
            files |= {"question.txt": b"What?"} if more else {}
            for ending, content in files.items():
                content = json.dumps(content).encode() if ending == "json" else content
                header = tarfile.TarInfo(f"{number:03}.{ending}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def last(name, streaming=False, **more):
    *_, row = load_dataset("webdataset", data_files=name, split="train", streaming=streaming, **more)
    return row["json"].get("question"), row.get("question.txt")


write("first.tar", from_sample=0)
write("sixth.tar", from_sample=5)
features = Features(
    {
        "png": Image(), "json": {"caption": Value("string"), "question": Value("string")},
        "question.txt": Value("string"), "__key__": Value("string"), "__url__": Value("string"),
    }
)
wanted = ("What?", "What?")
print("expected of the last sample, of the key and of the file:", wanted)
all_have, late, streamed = last("first.tar"), last("sixth.tar"), last("sixth.tar", streaming=True)
given = last("sixth.tar", features=features)
print("seen, questions from the first sample on:          ", all_have)
print("seen, questions from the sixth on:                 ", late)
print("seen, questions from the sixth on, streamed:       ", streamed)
print("seen, questions from the sixth on, features given: ", given)
seen = all_have == given == wanted and late == (None, None)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
