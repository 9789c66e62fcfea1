#!/usr/bin/env bash
# tokenizers 0.23.3 with transformers 5.23.0: of a SentencePiece model's own normalization rules those for several
# characters are left out, in silence. SentencePiece looks for the longest rule anywhere in a text; `Precompiled` looks up
# one grapheme at a time, so a rule such as "km/h" to "km per hour" (normalization_rule_tsv) never fits. A rule of one
# character in the same table holds. T5Tokenizer, made of a spiece.model, and the tokenizer.json that it saves then give
# other ids than SentencePiece, with which the model was trained.
# Instead: tokenize with sentencepiece, or apply such rules to the text before transformers' tokenizer is given it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

print("versions:", *(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "sentencepiece")), sep="\n  ")
rules = {"km/h": "km per hour", "№": "number"}
table = ("\t".join(" ".join(f"{ord(sign):X}" for sign in side) for side in rule) for rule in rules.items())
Path("rules.tsv").write_text("\n".join(table) + "\n")
texts = ["the train goes 50 km per hour/h", "number 7 is a red train", "how fast is number 50"]
Path("texts.txt").write_text("\n".join(texts * 50))
sentencepiece.SentencePieceTrainer.train(
    input="texts.txt", model_prefix="spiece", model_type="unigram", vocab_size=60, hard_vocab_limit=False,
    normalization_rule_tsv="rules.tsv", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
)
own, theirs = sentencepiece.SentencePieceProcessor(model_file="spiece.model"), T5Tokenizer.from_pretrained(".", extra_ids=0)
theirs.save_pretrained("saved")
again = T5Tokenizer.from_pretrained("saved")
same = {}
for text in ("number 7", "№ 7", "50 km/h"):
    ids = own.encode(text)
    seen = [each(text, add_special_tokens=False).input_ids for each in (theirs, again)]
    same[text] = [each == ids for each in seen]
    print(f"{text!r}: sentencepiece {own.id_to_piece(ids)}, transformers {theirs.convert_ids_to_tokens(seen[0])}")
print("expected: the same pieces for each text")
described = same == {"number 7": [True, True], "№ 7": [True, True], "50 km/h": [False, False]}
print(f"seen: the same ids, as made and as saved: {same}")
print("as described" if described else "CHANGED")
sys.exit(not described)
PYTHON
