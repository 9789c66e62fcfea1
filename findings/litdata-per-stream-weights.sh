#!/usr/bin/env bash
# litdata 0.2.76: CombinedStreamingDataset takes weights, "the sampling ratio of your choice", and batching_method
# "per_stream" promises batches of one data set each, "which is selected randomly". But after each batch it draws until
# it has another data set than the one before. So no data set gets more than half of the batches, and of two each
# gets every other one, whatever the weights: 90 to 10 is read as 50 to 50, a small data set is seen five times as
# often as was asked for, and is used up early, which ends the epoch. "stratified" keeps to the weights.
# Instead: a StreamingDataLoader for each data set, and random.choices with the weights for whose turn it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchvision==0.28.0 litdata==0.2.76 numpy==2.4.6
cd "$folder"
cat > show.py <<'PYTHON'
import random
import sys
from importlib.metadata import version
from itertools import islice

import litdata
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset

NAMES, LENGTHS, SIZE = ("captions", "chats", "charts"), (1200, 240, 240), 4


def record(item):
    return {"source": item}


def shares(batches, count):
    """Each data set's share of the first batches, and whether each batch is of one data set."""
    found = [batch["source"] for batch in islice(batches, count)]
    samples = [source for batch in found for source in batch]
    alone = all(len(set(batch)) == 1 for batch in found)
    return [round(samples.count(name) / len(samples), 2) for name in NAMES], alone


def mixed(weights, method):
    data = [StreamingDataset(name) for name in NAMES[: len(weights)]]
    both = CombinedStreamingDataset(data, weights=weights, iterate_over_all=False, batching_method=method, seed=1)
    return StreamingDataLoader(both, batch_size=SIZE, num_workers=0)


def by_hand(weights):
    data = [StreamingDataset(name) for name in NAMES[: len(weights)]]
    loaders = [iter(StreamingDataLoader(each, batch_size=SIZE, num_workers=0)) for each in data]
    draw = random.Random(1)
    while True:
        (loader,) = draw.choices(loaders, weights)
        yield next(loader)


def main():
    print("versions:", *(f"{name} {version(name)}" for name in ("torch", "litdata")), sep="\n  ")
    for name, length in zip(NAMES, LENGTHS):
        litdata.optimize(record, [name] * length, name, num_workers=1, chunk_bytes="1MB")
    seen = True
    for weights in ([0.9, 0.1], [0.8, 0.1, 0.1]):
        wanted = weights + [0.0] * (len(NAMES) - len(weights))
        print(f"weights {weights}: expected shares of about {wanted}")
        found = {
            "stratified": shares(mixed(weights, "stratified"), 100),
            "per_stream": shares(mixed(weights, "per_stream"), 100),
            "loaders drawn by hand": shares(by_hand(weights), 100),
        }
        for name, (parts, alone) in found.items():
            print(f"seen, {name}: {parts}, each batch of one data set: {alone}")
        near = {name: max(abs(a - b) for a, b in zip(parts, wanted)) < 0.07 for name, (parts, _) in found.items()}
        seen &= near == {"stratified": True, "per_stream": False, "loaders drawn by hand": True}
        seen &= found["per_stream"][1] and found["loaders drawn by hand"][1] and found["per_stream"][0][0] <= 0.5
        if len(weights) == 2:
            seen &= found["per_stream"][0] == [0.5, 0.5, 0.0]
    turns = [batch["source"][0] for batch in islice(mixed([0.9, 0.1], "per_stream"), 8)]
    print("seen, per_stream's first batches with weights [0.9, 0.1]:", *turns)
    seen &= turns in (["captions", "chats"] * 4, ["chats", "captions"] * 4)
    methods = ("stratified", "per_stream")
    epochs = {method: sum(len(batch["source"]) for batch in mixed([0.9, 0.1], method)) for method in methods}
    print(f"seen, samples in an epoch of {LENGTHS[:2]} with weights [0.9, 0.1]: {epochs}")
    seen &= epochs["stratified"] > 1000 and epochs["per_stream"] < 600
    print("as described" if seen else "CHANGED")
    return not seen


if __name__ == "__main__":
    sys.exit(main())
PYTHON
HOME="$folder" TMPDIR="$folder" venv/bin/python show.py
