#!/usr/bin/env bash
# pycocotools 2.0.11: COCOeval marks a match by the annotation's id and "no match" by 0, so that an annotation with the
# id 0 is never found: a box that is predicted exactly counts as a miss, and its prediction as a false alarm. Who numbers
# boxes from 0, as in a data set of one's own, gets a lower precision, the more so the fewer boxes there are: of two
# perfect boxes the mean is 0.252 in place of 1. No error and no warning; COCO's own ids begin at 1.
# Instead: number annotations from 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pycocotools==2.0.11 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import contextlib
import io
import sys
from importlib.metadata import version

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

print("versions:", *(f"{name} {version(name)}" for name in ("pycocotools", "numpy")), sep="\n  ")
box = [10, 10, 40, 40]


def precision(first):
    """Average precision of two pictures with one box each, both predicted exactly; the boxes' ids are counted from `first`."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": picture, "width": 100, "height": 100} for picture in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": first + picture - 1, "image_id": picture, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
            for picture in (1, 2)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = [{"image_id": picture, "category_id": 1, "bbox": box, "score": 0.9} for picture in (1, 2)]
        measured = COCOeval(truth, truth.loadRes(found), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return float(measured.stats[0])


from_zero, from_one = precision(0), precision(1)
print("expected: an average precision of 1.000, whatever the annotations' ids")
print(f"seen: {from_zero:.3f} with ids from 0, {from_one:.3f} with ids from 1")
seen = from_zero < 0.5 and from_one > 0.999
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
