#!/usr/bin/env bash
# gradio 6.31.0: gr.Chatbot passes each message that is a string through inspect.cleandoc, which is made for
# docstrings: tabs become spaces, also within a fenced block, spaces and empty lines before the first word go, and so
# does what the other lines are indented by. A Makefile or a table with tabs that a model writes is broken when a person
# copies it, a reply that is only indented lines changes its structure, and what the page hands back as history is not
# what the model said.
# Instead: give the content as {"type": "text", "text": ...}, which is left as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pandas==3.1.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False MPLCONFIGDIR="$folder"
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import gradio

print("versions:", f"gradio {version('gradio')}", sep="\n  ")
chatbot = gradio.Chatbot()
said = {
    "a Makefile in a fence": "```make\nall:\n\techo done\n```",
    "a table with tabs": "name\tcolour\nstar\tred",
    "indented lines": "    if red:\n        stop()\n    else:\n        go()",
}
kept = {
    "a Makefile in a fence": "```make\nall:\n        echo done\n```",
    "a table with tabs": "name    colour\nstar    red",
    "indented lines": "if red:\n    stop()\nelse:\n    go()",
}
seen = True
for name, text in said.items():
    sent = chatbot.postprocess([{"role": "assistant", "content": text}])
    shown = sent.root[0].content[0].text
    history = chatbot.preprocess(sent)[0]["content"][0]["text"]
    print(f"{name}:\n  expected {text!r}\n  seen     {shown!r}\n  history  {history!r}")
    seen &= shown == history == kept[name] != text
for text in said.values():
    part = chatbot.postprocess([{"role": "assistant", "content": {"type": "text", "text": text}}])
    seen &= part.root[0].content[0].text == text
    print(f"as a text part:\n  seen     {part.root[0].content[0].text!r}")
broken = chatbot.postprocess([{"role": "assistant", "content": "    if red:\n        stop()"}]).root[0].content[0].text
print(f"two indented lines:\n  seen     {broken!r}")
seen &= broken == "if red:\nstop()"
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
