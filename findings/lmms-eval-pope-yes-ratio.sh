#!/usr/bin/env bash
# lmms-eval 0.7.3: pope_yes_ratio, which POPE has to show how often a model says yes, counts the labels, not the answers.
# It is 0.5 for each model, also for one that says yes to everything, so it never shows what it is there for.
# pope_recall and pope_f1_score count an answer only if it is the bare word: "No." to a question whose label is yes is
# neither right nor a miss, and drops out. A model that finds one dog in ten and ends its answers with a full stop is
# given a recall and an F1 of 1, beside an accuracy of 0.05. POPE's own script takes the first sentence for this.
# Instead: read the logged answers as POPE's script does: no where the first sentence has "no" or "not", otherwise yes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps lmms_eval==0.7.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import importlib.util
import re
import sys
from importlib.metadata import distribution, version

print("versions:", f"lmms_eval {version('lmms_eval')}", sep="\n  ")
# The task's own module, as its YAML file names it; it needs nothing of the rest.
place = distribution("lmms_eval").locate_file("lmms_eval/tasks/pope/utils.py")
spec = importlib.util.spec_from_file_location("pope_utils", place)
pope = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pope)
names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
labels = ["yes"] * 10 + ["no"] * 10


def given(answers):
    """What the task says of one answer for each label."""
    rows = [
        pope.pope_process_results({"question_id": n, "answer": label}, [answer])
        for n, (label, answer) in enumerate(zip(labels, answers))
    ]
    found = {name: getattr(pope, f"pope_aggregate_{name}")([row[f"pope_{name}"] for row in rows]) for name in names}
    return {name: round(number, 2) for name, number in found.items()}


def right(answers):
    """The same, with answers read as POPE's script does."""
    first = [re.findall(r"[a-z]+", answer.lower().split(".")[0]) for answer in answers]
    said = ["no" not in words and "not" not in words for words in first]
    true = sum(yes for yes, label in zip(said, labels) if label == "yes")
    precision, recall = true / max(1, sum(said)), true / labels.count("yes")
    both = precision + recall
    numbers = (
        sum(yes == (label == "yes") for yes, label in zip(said, labels)) / len(labels),
        precision,
        recall,
        2 * precision * recall / both if both else 0,
        sum(said) / len(said),
    )
    return {name: round(number, 2) for name, number in zip(names, numbers)}


models = {
    "yes to all": ["Yes"] * 20,
    "no to all": ["No"] * 20,
    "no to all but one": ["Yes"] + ["No"] * 19,
    "the same, 'No.' for 'No'": ["Yes"] + ["No."] * 19,
}
found = {}
for name, answers in models.items():
    found[name] = given(answers)
    print(f"{name}: expected {right(answers)}", f"seen {found[name]}", sep="\n  ")
seen = all(numbers["yes_ratio"] == 0.5 for numbers in found.values())
seen &= [right(answers)["yes_ratio"] for answers in models.values()] == [1.0, 0.0, 0.05, 0.05]
word, stop = found["no to all but one"], found["the same, 'No.' for 'No'"]
seen &= (word["recall"], word["f1_score"]) == (0.1, 0.18)
seen &= (stop["recall"], stop["f1_score"], stop["accuracy"]) == (1.0, 1.0, 0.05)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
