#!/usr/bin/env bash
# gradio 6.31.0: the title= of gr.Info, gr.Warning, gr.Success and gr.Error is not shown. The server sends it, and the
# page writes the kind of notice in its place, so that a person reads "Error" where the program says what has happened.
# "The picture was made smaller" becomes "Warning", and "Busy, try again in a minute" becomes "Error".
# Instead: say all of it in the message.
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
title, words = "A title of our own", "What it is about."


def failed():
    raise gradio.Error(words, title=title, print_exception=False)


kinds = {
    "Info": lambda: gradio.Info(words, title=title),
    "Warning": lambda: gradio.Warning(words, title=title),
    "Success": lambda: gradio.Success(words, title=title),
    "Error": failed,
}
with gradio.Blocks() as page:
    for kind, act in kinds.items():
        gradio.Button(kind, elem_id=kind).click(act)
_, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
seen = True
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=os.environ["BROWSER_PATH"], args=["--no-sandbox"])
    tab = browser.new_page()
    tab.goto(address)
    for kind in kinds:
        tab.click(f"#{kind}", timeout=60000)
        tab.wait_for_selector(".toast-body", timeout=60000)
        shown = tab.locator(".toast-body").last.inner_text()
        print(f"{kind}: expected {title!r} and {words!r}; seen: {shown.split(chr(10))}")
        seen &= title not in shown and shown.startswith(kind) and words in shown
        tab.locator(".toast-close").last.click()
        tab.wait_for_selector(".toast-body", state="detached", timeout=60000)
    browser.close()
page.close()
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
