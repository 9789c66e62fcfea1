#!/usr/bin/env bash
# torchmetrics 1.9.0: BLEUScore and SacreBLEUScore depend on the order of a caption's references. Where two are equally near
# to the caption in length, BLEU counts the shorter one's length, whatever the order; here it is that of the first in the
# list, so with a longer one in front the brevity penalty holds, too. SacreBLEUScore's documents promise "the behaviour of
# SacreBLEU", which gives one score for all orders. Captions have four or five references, so there are such ties in many
# a record, and a data set that is shuffled or stored anew gets another score, without a word.
# Instead: sort each caption's references by length in words, or use sacrebleu.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchmetrics==1.9.0 sacrebleu==2.6.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import itertools
import sys
from importlib.metadata import version

import sacrebleu
from torchmetrics.text import BLEUScore, SacreBLEUScore

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "torchmetrics", "sacrebleu")), sep="\n  ")
caption = "a brown dog runs across the green grass"
references = [
    "a brown dog runs across the grass",
    "there is a dog that runs across the green grass",
    "the brown dog runs across the green grass today",
]


def scores(*given):
    """Of BLEUScore, SacreBLEUScore and sacrebleu, each in percent."""
    ours = (100 * float(metric([caption], [given])) for metric in (BLEUScore(), SacreBLEUScore()))
    theirs = sacrebleu.corpus_bleu([caption], [[reference] for reference in given]).score
    return tuple(round(score, 2) for score in (*ours, theirs))


words = [len(text.split()) for text in references]
print(f"a caption of {len(caption.split())} words, references of {words}")
orders = list(itertools.permutations(references))
found = {tuple(len(text.split()) for text in order): scores(*order) for order in orders}
print("expected: one score for all orders")
for order, (bleu, sacre, reference) in found.items():
    print(f"seen with references of {order}: BLEUScore {bleu}, SacreBLEUScore {sacre}, sacrebleu {reference}")
one = {reference for _, _, reference in found.values()}
shorter_first = {found[order][:2] for order in found if order.index(7) < order.index(9)}
longer_first = {found[order][:2] for order in found if order.index(7) > order.index(9)}
(best,) = one
seen = shorter_first == {(best, best)} and len(longer_first) == 1 and all(each < best - 5 for each in max(longer_first))
by_length = scores(*sorted(references, key=lambda text: len(text.split())))
print(f"seen with references sorted by length: {by_length}")
seen &= by_length == (best, best, best)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
