#!/usr/bin/env bash
# datasets 5.2.0: a column of JSON strings that all look like dates is read as timestamps, by load_dataset("json") and
# from the metadata.jsonl of an imagefolder, since PyArrow's reader guesses so for quoted strings, too. features= with
# Value("string") comes too late: the timestamps are then turned into strings, not the strings kept.
# Answers read off receipts and forms are such strings. As text they come back as "2024-01-05 00:00:00", which the model
# then learns to write; "2024-01-05T10:00:00+02:00" becomes another hour. One answer that is no date, and all stay text.
# Instead: read the lines with json, and Dataset.from_list(rows).
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

from datasets import Dataset, Features, Image, Value, load_dataset
from PIL import Image as Pillow

print("versions:", *(f"{name} {version(name)}" for name in ("datasets", "pyarrow")), sep="\n  ")
text = Value("string")


def read(name, answers, given=False):
    """The answers as they come back, from a JSONL and from a folder of pictures."""
    folder = Path(name)
    folder.mkdir()
    for number in range(len(answers)):
        Pillow.new("RGB", (8, 8)).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "answer": answer} for number, answer in enumerate(answers)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines)
    Path(f"{name}.jsonl").write_text(lines)
    plain = Features({"file_name": text, "answer": text}) if given else None
    pictures = Features({"image": Image(), "answer": text}) if given else None
    plain = load_dataset("json", data_files=f"{name}.jsonl", split="train", features=plain)
    pictures = load_dataset("imagefolder", data_dir=name, split="train", features=pictures)
    return [[str(answer) for answer in data["answer"][:]] for data in (plain, pictures)]


dates, hours = ["2024-01-05", "2023-11-30"], ["2024-01-05T10:00:00+02:00"] * 2
got = {
    "dates": (dates, read("dates", dates)),
    "hours": (hours, read("hours", hours)),
    "a word among dates": (dates + ["none"], read("mixed", dates + ["none"])),
    "dates, with features=": (dates, read("given", dates, given=True)),
}
for name, (written, (plain, pictures)) in got.items():
    print(f"{name}:\n  expected          {written}\n  seen, json        {plain}\n  seen, imagefolder {pictures}")
kept = Dataset.from_list([json.loads(line) for line in Path("dates.jsonl").read_text().splitlines()])["answer"][:]
print("dates, Dataset.from_list:\n  seen             ", kept)
changed = ["2024-01-05 00:00:00", "2023-11-30 00:00:00"]
seen = got["dates"][1] == got["dates, with features="][1] == [changed] * 2 and kept == dates
seen &= got["hours"][1] == [["2024-01-05 08:00:00"] * 2] * 2
seen &= got["a word among dates"][1] == [got["a word among dates"][0]] * 2
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
