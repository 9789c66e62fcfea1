#!/usr/bin/env bash
# gradio 6.31.0: launch(css=...) keeps a rule as it is written and adds a copy that is bound to Gradio's container; of
# rules within @media it keeps the bound copy alone. So "body.large #reply" holds on a wide screen and "@media (...) {
# body.large #reply {...} }" never does, since body is not within the container: a theme switch or a font size on
# body fails on telephones alone, and nothing is logged.
# Instead: put such a class on an element of the page (elem_classes), or give the sheet in launch(head=...).
# It needs Chromium or Chrome on the PATH (Debian: apt-get install chromium).
set -euo pipefail
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "No Chromium or Chrome was found on the PATH."
    exit 2
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 playwright==1.65.2 pandas==3.1.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False
export GRADIO_TEMP_DIR="$folder/files" BROWSER_PATH="$browser"
venv/bin/python - <<'PYTHON'
import os
import sys
from importlib.metadata import version

import gradio
from playwright.sync_api import sync_playwright

print("versions:", *(f"{name} {version(name)}" for name in ("gradio", "playwright")), sep="\n  ")
rule = "body.large #reply {{ {name}: {value}; }}"
plain = rule.format(name="letter-spacing", value="3px")
media = "@media (min-width: 10px) { " + rule.format(name="word-spacing", value="5px") + " }"
own = "@media (min-width: 10px) { #reply { text-indent: 7px; } }"
asked = {"letter-spacing": "3px", "word-spacing": "5px", "text-indent": "7px"}


def look(**sheets):
    with gradio.Blocks() as page:
        gradio.Markdown("a red star", elem_id="reply")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **sheets)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["BROWSER_PATH"], args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(address)
        tab.wait_for_selector("#reply", timeout=60000)
        tab.wait_for_timeout(2000)
        got = tab.evaluate(
            "names => { document.body.classList.add('large');"
            " const style = getComputedStyle(document.querySelector('#reply'));"
            " return Object.fromEntries(names.map(name => [name, style.getPropertyValue(name)])); }",
            list(asked),
        )
        browser.close()
    page.close()
    return got


css, head = look(css=plain + media + own), look(head=f"<style>{plain}{media}{own}</style>")
print("expected (body.large, body.large within @media, #reply within @media):", list(asked.values()))
print("seen, launch(css=...): ", list(css.values()))
print("seen, launch(head=...):", list(head.values()))
seen = list(css.values()) == ["3px", "0px", "7px"] and head == asked
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
